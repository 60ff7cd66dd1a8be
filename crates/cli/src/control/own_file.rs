//! Files that this process has made, and that go with what they are for.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::net::UnixStream;

/// A file of this process. Dropped, it is removed, if what has its name is still the same file.
#[derive(Debug)]
pub(crate) struct OwnFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl OwnFile {
    /// The file that was just made at `path`, as it was seen then.
    pub(crate) fn new(path: &Path, seen: &Metadata) -> Self {
        Self { path: path.to_owned(), identity: Some(identity(seen)) }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the file where it is.
    pub(crate) fn keep(mut self) {
        self.identity = None;
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let Some(own) = self.identity else { return };
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| identity(&now) == own) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Removes a socket that nobody listens on any more; refuses anything else that stands in the way.
pub(crate) async fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        bail!("it exists and is not a socket; name another path");
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another process listens on it"),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            // Another server may have done the same and made its own since.
            if std::fs::symlink_metadata(path).is_ok_and(|now| identity(&now) == identity(&meta)) {
                std::fs::remove_file(path).context("removing the stale socket")?;
            }
            Ok(())
        }
        // Another server has just removed it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("looking at the socket that is there"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_unless_it_is_kept_or_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let make = || {
            std::fs::write(&path, "").unwrap();
            OwnFile::new(&path, &std::fs::symlink_metadata(&path).unwrap())
        };
        drop(make());
        assert!(!path.exists());
        make().keep();
        assert!(path.exists());
        let own = make();
        // The old file lives on under another name, so that its number is not used again.
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(own);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another's");
    }
}
