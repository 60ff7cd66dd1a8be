//! TLS credentials in QEMU's directory layout.
//!
//! One directory holds `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, as for QEMU's `tls-creds-x509`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// Credentials that can not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that can not be read, or holds something else.
    #[error("{path}: {source}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A file without a certificate.
    #[error("{0}: no certificate in it")]
    Empty(PathBuf),
    /// What they say makes no sense together.
    #[error("unusable TLS credentials: {0}")]
    Config(#[from] rustls::Error),
    /// Clients can not be verified with this authority.
    #[error("unusable certificate authority: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Loads a server's credentials; with `verify_peer`, clients have to show a certificate of the same authority.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn server_config(directory: &Path, verify_peer: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&directory.join("server-cert.pem"))?;
    let key_path = directory.join("server-key.pem");
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|source| TlsError::Pem { path: key_path, source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if verify_peer {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&directory.join("ca-cert.pem"))? {
            roots.add(certificate)?;
        }
        builder
            .with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
    } else {
        builder.with_no_client_auth()
    };
    Ok(Arc::new(builder.with_single_cert(chain, key)?))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    let list: Vec<_> = CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if list.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(list) }
}
