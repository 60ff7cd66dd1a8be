//! The image that a log is replayed to: a sparse file, beginning as the disk was when the log began.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use blkproof_block::Node;
use blkproof_block::graph::{OpenContext, OpenFlags, Options};
use blkproof_fault::log_writes::replay::Discards;
use rustix::fs::SeekFrom as Extent;

use crate::graph::{parse_size, registry};

/// What the disk held when the log began, and what its requests mean.
#[derive(clap::Args, Clone)]
pub(super) struct Start {
    /// Content of the disk when the log began: a raw file; zeroes if left out
    #[arg(long, value_name = "FILE")]
    pub(super) base: Option<PathBuf>,

    /// Size of the disk when the log began; that of the base, and as far as the log writes, if left out
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    /// Leave what is discarded as it was; it reads as zeroes otherwise
    #[arg(long)]
    no_discard: bool,
}

impl Start {
    pub(super) fn discards(&self) -> Discards {
        if self.no_discard { Discards::Keep } else { Discards::Zero }
    }

    /// Bytes the disk had when the log began; `None` if only the log tells.
    pub(super) fn disk_size(&self) -> anyhow::Result<Option<u64>> {
        let base = match &self.base {
            Some(base) => {
                let meta =
                    std::fs::metadata(base).with_context(|| format!("looking at the base '{}'", base.display()))?;
                Some(meta.len())
            }
            None => None,
        };
        Ok(self.size.or(base))
    }

    /// Makes `path` what the disk was, and opens it for writing. A block device is written in place, on top of what it
    /// holds.
    pub(super) async fn make(&self, path: &Path, log: &str, force: bool) -> anyhow::Result<Node> {
        let shown = path.display();
        let there = std::fs::metadata(path).ok();
        for other in [Some(Path::new(log)), self.base.as_deref()].into_iter().flatten() {
            let other = std::fs::metadata(other).ok();
            if let (Some(a), Some(b)) = (&there, &other)
                && (a.dev(), a.ino()) == (b.dev(), b.ino())
            {
                anyhow::bail!("'{shown}' is the log or the base itself, and would be overwritten; nothing was changed");
            }
        }
        match there {
            Some(meta) if meta.file_type().is_block_device() => {
                if self.base.is_some() || self.size.is_some() {
                    anyhow::bail!("'{shown}' is a device: it is written in place; leave --base and --size out");
                }
            }
            Some(meta) if meta.len() > 0 && !force => anyhow::bail!(
                "'{shown}' exists and is not empty; nothing was changed\nhint: give --force to overwrite it"
            ),
            _ => self.fill(path).with_context(|| format!("could not make '{shown}'"))?,
        }
        open(path).await
    }

    fn fill(&self, path: &Path) -> anyhow::Result<()> {
        let file = File::create(path)?;
        if let Some(base) = &self.base {
            let from = File::open(base).with_context(|| format!("opening the base '{}'", base.display()))?;
            copy_sparse(from, &file).with_context(|| format!("copying the base '{}'", base.display()))?;
        }
        if let Some(size) = self.size {
            file.set_len(size)?;
        }
        Ok(())
    }
}

/// Opens an image for writing, byte for byte. Without locks: it is nobody else's, and whoever checks it on the way
/// takes locks of their own.
async fn open(path: &Path) -> anyhow::Result<Node> {
    let name = path.to_str().context("the name of an image has to be UTF-8")?;
    let registry = registry();
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let options = Options::new().with("driver", "file").with("filename", name).with("locking", "off");
    context.open(options).await.with_context(|| format!("could not open '{name}'"))
}

/// Copies data, and leaves holes where they are. A file system that can share blocks does.
fn copy_sparse(mut from: File, mut to: &File) -> anyhow::Result<()> {
    let len = from.metadata()?.len();
    if len > 0 && rustix::fs::ioctl_ficlone(to, &from).is_ok() {
        return Ok(());
    }
    to.set_len(len)?;
    let mut at = 0;
    while at < len {
        let data = match rustix::fs::seek(&from, Extent::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = rustix::fs::seek(&from, Extent::Hole(data)).unwrap_or(len).clamp(data, len);
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        let copied = std::io::copy(&mut (&mut from).take(end.saturating_sub(data)), &mut to)?;
        if copied == 0 {
            break;
        }
        at = data.saturating_add(copied);
    }
    to.flush()?;
    Ok(())
}
