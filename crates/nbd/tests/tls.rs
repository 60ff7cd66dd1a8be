//! TLS with QEMU's and libnbd's clients, from certificates in QEMU's directory layout.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use blkproof_nbd::client::Client;
use blkproof_nbd::handshake::Mode;
use blkproof_nbd::handshake::client::Wanted;
use blkproof_nbd::server::{Ended, Exports, Limits, ServeError, Server};
use blkproof_nbd::tls::server_config;
use common::{MIB, Served, memory, patterned, program, run, succeeds, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

/// An authority, a server and a client it vouches for, and a stranger.
async fn certificates(directory: &Path) {
    let file = |name: &str| directory.join(name);
    let write = |name: &str, content: &str| std::fs::write(file(name), content).unwrap();
    write("ca.ext", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n");
    write(
        "server.ext",
        "basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
    );
    write("client.ext", "basicConstraints=CA:FALSE\nsubjectAltName=DNS:client\nextendedKeyUsage=clientAuth\n");
    for (authority, names) in [("ca", &["server", "client"][..]), ("other", &["stranger"][..])] {
        key_and_request(directory, authority).await;
        let (csr, key, cert) = paths(directory, authority);
        let ext = file("ca.ext");
        let arguments = ["x509", "-req", "-days", "2", "-in", &csr, "-signkey", &key, "-out", &cert];
        succeeds("openssl", &[&arguments[..], &["-extfile", text(&ext)]].concat()).await;
        for name in names {
            key_and_request(directory, name).await;
            let (csr, _, signed) = paths(directory, name);
            let ext = file(if *name == "server" { "server.ext" } else { "client.ext" });
            let arguments = ["x509", "-req", "-days", "2", "-in", &csr, "-CA", &cert, "-CAkey", &key];
            let rest = ["-CAcreateserial", "-out", &signed, "-extfile", text(&ext)];
            succeeds("openssl", &[&arguments[..], &rest[..]].concat()).await;
        }
    }
    // A directory for a client whom another authority vouches for.
    let stranger = file("stranger");
    std::fs::create_dir(&stranger).unwrap();
    for (from, to) in [
        ("ca-cert.pem", "ca-cert.pem"),
        ("stranger-cert.pem", "client-cert.pem"),
        ("stranger-key.pem", "client-key.pem"),
    ] {
        std::fs::copy(file(from), stranger.join(to)).unwrap();
    }
}

fn paths(directory: &Path, name: &str) -> (String, String, String) {
    let path = |suffix: &str| text(&directory.join(format!("{name}{suffix}"))).to_owned();
    (path(".csr"), path("-key.pem"), path("-cert.pem"))
}

async fn key_and_request(directory: &Path, name: &str) {
    let (csr, key, _) = paths(directory, name);
    let subject = format!("/CN={name}");
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let rest = ["-nodes", "-keyout", &key, "-out", &csr, "-subj", &subject];
    succeeds("openssl", &[&["req", "-new"], &curve[..], &rest[..]].concat()).await;
}

fn server(directory: &Path, verify_peer: bool, required: bool) -> Server {
    let config = server_config(directory, verify_peer).unwrap();
    Server::new(Exports::single(memory(&patterned(4 * MIB))), Limits::default()).with_tls(config, required)
}

fn qemu_arguments<'a>(creds: &'a str, image: &'a str) -> [&'a str; 8] {
    let read = "read -v 4096 16";
    ["--object", creds, "--image-opts", "-c", read, "-c", "write -P 3 1M 2M", image]
}

/// Runs qemu-io over TLS; whether it could.
async fn qemu(served: &Served, credentials: &Path) -> bool {
    let creds = format!("tls-creds-x509,id=t,endpoint=client,sanity-check=off,dir={}", text(credentials));
    let socket = served.socket();
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.tls-creds=t,file.tls-hostname=localhost",
        text(&socket)
    );
    let output = program("qemu-io", &qemu_arguments(&creds, &image)).await;
    let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() || !words.is_empty());
    output.status.success() && !words.contains("can't open") && !words.contains("failed")
}

#[test]
fn qemu_and_libnbd_use_tls() {
    run(async {
        let certs = tempfile::tempdir().unwrap();
        certificates(certs.path()).await;
        let stranger: PathBuf = certs.path().join("stranger");
        for (verify_peer, required) in [(false, false), (false, true), (true, true)] {
            let row = format!("verify {verify_peer}, required {required}");
            let served = Served::start(server(certs.path(), verify_peer, required));
            assert!(qemu(&served, certs.path()).await, "{row}: {:?}", served.ends);
            let last = served.last().await;
            assert_eq!((last.tls, last.mode, last.ended, last.errors), (true, Mode::Extended, Ended::Disconnect, 0));
            // A client with credentials of somebody else gets in only if nobody asks.
            assert_eq!(qemu(&served, &stranger).await, !verify_peer, "{row}: {:?}", served.ends);
            // A client without TLS gets in only if it may.
            let plain = program("qemu-io", &["-f", "raw", "-c", "read 0 512", &served.uri()]).await;
            assert_eq!(plain.status.success(), !required, "{row}");
            let uri = served.uri().replace("nbd+unix://", "nbds+unix://localhost");
            let uri = format!("{uri}&tls-certificates={}", text(certs.path()));
            let file = served.file("copy.raw");
            succeeds("nbdcopy", &[&uri, text(&file)]).await;
            let mut want = patterned(4 * MIB);
            want[1 << 20..3 << 20].fill(3);
            assert!(std::fs::read(&file).unwrap() == want, "{row}: nbdcopy");
        }
    });
}

#[test]
fn nothing_but_tls_is_answered_where_it_is_required() {
    run(async {
        let certs = tempfile::tempdir().unwrap();
        certificates(certs.path()).await;
        let server = Rc::new(server(certs.path(), false, true));
        let (near, far) = tokio::io::duplex(1 << 16);
        let shared = Rc::clone(&server);
        let served = spawn_local(async move { shared.serve(far, "plain", std::future::pending()).await });
        let error = Client::connect(near, Wanted::new("")).await.unwrap_err().to_string();
        assert!(error.contains("it wants TLS"), "{error}");
        served.await.unwrap().unwrap();
        // Text behind STARTTLS that somebody slipped in is not taken for the client's.
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let shared = Rc::clone(&server);
        let served = spawn_local(async move { shared.serve(far, "middle", std::future::pending()).await });
        let mut message = vec![0, 0, 0, 3];
        message.extend(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
        message.extend(b"IHAVEOPT\0\0\0\x05\0\0\0\0");
        message.extend(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
        near.write_all(&message).await.unwrap();
        let end = served.await.unwrap();
        assert!(matches!(end, Err(ServeError::Protocol(_))), "{end:?}");
        let mut heard = Vec::new();
        near.read_to_end(&mut heard).await.unwrap();
        assert!(heard.windows(4).any(|window| window == 0x8000_0005_u32.to_be_bytes()), "TLS_REQD");
        // Junk instead of a TLS handshake.
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let shared = Rc::clone(&server);
        let served = spawn_local(async move { shared.serve(far, "junk", std::future::pending()).await });
        near.write_all(&message[..4]).await.unwrap();
        near.write_all(&message[20..36]).await.unwrap();
        near.read_exact(&mut [0; 18 + 20]).await.unwrap();
        near.write_all(&[0x55; 100]).await.unwrap();
        let end = served.await.unwrap();
        assert!(matches!(end, Err(ServeError::Tls(_))), "{end:?}");
    });
}

#[test]
fn credentials_that_are_none_are_named() {
    run(async {
        let certs = tempfile::tempdir().unwrap();
        let error = server_config(certs.path(), false).unwrap_err().to_string();
        assert!(error.contains("server-cert.pem"), "{error}");
        std::fs::write(certs.path().join("server-cert.pem"), "no certificate").unwrap();
        let error = server_config(certs.path(), false).unwrap_err().to_string();
        assert!(error.contains("server-cert.pem"), "{error}");
        certificates(certs.path()).await;
        std::fs::remove_file(certs.path().join("ca-cert.pem")).unwrap();
        assert!(server_config(certs.path(), false).is_ok());
        let error = server_config(certs.path(), true).unwrap_err().to_string();
        assert!(error.contains("ca-cert.pem"), "{error}");
    });
}
