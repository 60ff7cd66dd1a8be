//! `--checkpoint`: the file a long check goes on from.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use blkproof_check::checkpoint::{Resumed, Store};
use blkproof_check::source::Source;
use blkproof_check::watch::Watch;
use blkproof_check::{Options, Report, check};

use crate::messages::human_size;

use super::same_file;

/// Bytes after which what was written is made to last.
const SYNC_EVERY: u64 = 64 << 20;

struct FileStore {
    file: File,
    unsynced: u64,
}

impl Store for FileStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0usize;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

/// Refuses what can not be a checkpoint, before an image is read.
pub(super) fn refuse(file: &Path, images: &[PathBuf]) -> anyhow::Result<()> {
    if images.len() > 1 {
        anyhow::bail!("one file can not hold the checkpoint of several images; check them one by one");
    }
    if images.iter().any(|image| same_file(image, file)) {
        anyhow::bail!("'{}' is the image itself; check never writes to it", file.display());
    }
    Ok(())
}

/// Checks an image, going on from where an earlier check of it was. The checkpoint goes when the check is done.
pub(super) fn check_with(
    file: &Path,
    image: &dyn Source,
    options: &Options,
    watch: &dyn Watch,
) -> anyhow::Result<Report> {
    let failed = || format!("the checkpoint '{}' can not be used", file.display());
    let open = File::options().read(true).append(true).create(true).open(file).with_context(failed)?;
    let lock = rustix::fs::flock(&open, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    if lock == Err(rustix::io::Errno::WOULDBLOCK) {
        anyhow::bail!("{}: another check is using it", failed());
    }
    let mut store = FileStore { file: open, unsynced: 0 };
    let resumed = Resumed::new(image, &mut store).with_context(failed)?;
    if resumed.found() > 0 {
        let found = human_size(resumed.found());
        eprintln!("resuming: {found} of metadata are in '{}' and are not read again", file.display());
    }
    let report = check(&resumed, options, watch);
    if let Some(error) = resumed.failed() {
        let error = anyhow::Error::new(error).context(format!("'{}' could not be written further", file.display()));
        crate::messages::print_error(&error);
    }
    drop(resumed);
    if report.stopped {
        let kept = store.file.sync_data().and_then(|()| store.len());
        let kept = human_size(kept.with_context(failed)?);
        eprintln!("the checkpoint is kept in '{}' ({kept}); the same command goes on from there", file.display());
    } else {
        std::fs::remove_file(file).with_context(|| format!("the check is done; '{}' stays", file.display()))?;
    }
    Ok(report)
}
