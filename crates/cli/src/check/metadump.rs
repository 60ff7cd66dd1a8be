//! `--metadump`: the file a metadump goes to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use blkproof_check::Options;
use blkproof_check::metadump::{Dumped, Error, Sink, metadump};
use blkproof_check::source::Source;
use blkproof_check::watch::Watch;

use crate::messages::human_size;

use super::same_file;

/// A sparse file, which gets its name when it is whole.
struct Sparse<'f>(&'f File);

impl Sink for Sparse<'_> {
    fn begin(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn piece(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }
}

/// Refuses what can not become a dump, before an image is read.
pub(super) fn refuse(file: &Path, images: &[PathBuf]) -> anyhow::Result<()> {
    if images.len() > 1 {
        anyhow::bail!("one file can not hold the metadump of several images; check them one by one");
    }
    if images.iter().any(|image| same_file(image, file)) {
        anyhow::bail!("'{}' is the image itself; check never writes to it", file.display());
    }
    if file.symlink_metadata().is_ok() {
        anyhow::bail!("'{}' exists already; a metadump overwrites nothing", file.display());
    }
    let folder = folder(file);
    if !folder.is_dir() {
        anyhow::bail!("'{}' can not be written: there is no folder '{}'", file.display(), folder.display());
    }
    Ok(())
}

fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Dumps an image's metadata into a new file, and says on standard error what is in it. Half a dump never has the name.
pub(super) fn write(
    file: &Path,
    image: &dyn Source,
    options: &Options,
    keep_names: bool,
    watch: &dyn Watch,
) -> anyhow::Result<()> {
    let failed = || format!("the metadump '{}' was not written", file.display());
    let part =
        tempfile::Builder::new().prefix(".metadump-").suffix(".part").tempfile_in(folder(file)).with_context(failed)?;
    let dumped = metadump(image, options, keep_names, watch, &mut Sparse(part.as_file()));
    let dumped = match dumped {
        Err(Error::Write(error)) => return Err(error).with_context(failed),
        dumped => dumped.with_context(failed)?,
    };
    // Some file systems find out here that there is no room.
    part.as_file().sync_all().with_context(failed)?;
    part.persist_noclobber(file).map_err(|error| error.error).with_context(failed)?;
    tell(file, image.len(), keep_names, &dumped);
    Ok(())
}

fn tell(file: &Path, len: u64, keep_names: bool, dumped: &Dumped) {
    let names = match (keep_names, dumped.names) {
        (true, _) => "names were kept".to_owned(),
        (false, 0) => "there were no names to blank".to_owned(),
        (false, 1) => "1 name was blanked".to_owned(),
        (false, many) => format!("{many} names were blanked"),
    };
    eprintln!(
        "metadump: '{}' holds {} of metadata of {} and none of its data clusters; {names}",
        file.display(),
        human_size(dumped.bytes),
        human_size(len)
    );
    if let Some(first) = dumped.shared.first() {
        eprintln!(
            "note: guest data claims {} of these places as well (the first is {:#x}..{:#x}): only words that can be pointers were kept there, but look before you hand it on",
            dumped.shared.len(),
            first.start,
            first.end
        );
    }
}
