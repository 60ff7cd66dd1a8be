//! `disk` as users name it: `driver=disk,kind=liar,file.driver=qcow2,file.file.filename=a.qcow2`.

use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{LocalBoxFuture, Node};

use super::config::{DiskOptions, FlushError, Kind, Profile, WriteBack};
use super::node::DiskNode;
use crate::lab::Lab;

/// The driver's name, and the beginning of the names of its nodes.
const NAME: &str = "disk";

/// The driver.
#[derive(Debug)]
pub struct DiskDriver {
    lab: Rc<Lab>,
}

impl DiskDriver {
    /// Disks are listed in `lab`.
    pub fn new(lab: &Rc<Lab>) -> Self {
        Self { lab: Rc::clone(lab) }
    }

    async fn open_disk(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let wanted = options.take_text("node-name")?;
        let how = take_options(&mut options)?;
        let missing = || OptionError::Missing { option: options.full_name("file"), driver: NAME.into() };
        let missing = missing();
        let file = options.take_child("file").ok_or(missing)?;
        options.finish(NAME)?;
        let child = context.open(file).await?;
        // Only now: a node of this kind below has its name already.
        let name = self.lab.name(NAME, wanted);
        let disk = DiskNode::listed(child, how, &self.lab, &name);
        Ok(Node::new(disk.map_err(|taken| OpenError::Usage(taken.to_string()))?))
    }
}

/// Takes the options of a disk, except for its name and its child.
///
/// # Errors
/// On values that make no sense.
pub fn take_options(options: &mut Options) -> Result<DiskOptions, OptionError> {
    let default = DiskOptions::default();
    let block_size = options.take_size("block-size")?.unwrap_or(u64::from(default.block_size));
    let in_range = (u64::from(DiskOptions::BLOCK_MIN)..=u64::from(DiskOptions::BLOCK_MAX)).contains(&block_size);
    let block_size =
        u32::try_from(block_size).ok().filter(|size| size.is_power_of_two() && in_range).ok_or_else(|| {
            OptionError::Value {
                option: options.full_name("block-size"),
                expected: "a power of two from 512 to 64k".into(),
                value: block_size.to_string(),
            }
        })?;
    let profile = options.take_choice("profile", Profile::NAMES)?.unwrap_or_default();
    let write_back = options.take_choice("write-back", WriteBack::NAMES)?.unwrap_or_default();
    if profile == Profile::Ordered && write_back != WriteBack::Fifo {
        return Err(OptionError::Value {
            option: options.full_name("write-back"),
            expected: "'fifo' with profile=ordered, where a full cache is written back in order".into(),
            value: write_back.name().to_owned(),
        });
    }
    Ok(DiskOptions {
        kind: options.take_choice("kind", Kind::NAMES)?.unwrap_or_default(),
        profile,
        flush_error: options.take_choice("flush-error", FlushError::NAMES)?.unwrap_or_default(),
        cache_size: options.take_size("cache-size")?.unwrap_or(default.cache_size),
        write_back,
        seed: options.take_u64("seed")?.unwrap_or_default(),
        block_size,
        stay_off: options.take_bool("stay-off")?.unwrap_or_default(),
    })
}

/// Reads `honest`, `liar:profile=torn,seed=3`: a kind, and options of the driver.
///
/// # Errors
/// On options that make no sense, or that are none of a disk's.
pub fn parse_options(text: &str) -> Result<DiskOptions, OptionError> {
    let (kind, more) = text.split_once(':').unwrap_or((text, ""));
    let options = if more.is_empty() { Options::new() } else { Options::from_image_opts(more)? };
    let mut options = options.joined(Options::new().with("kind", kind));
    let how = take_options(&mut options)?;
    options.finish(NAME)?;
    Ok(how)
}

impl Driver for DiskDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Filter
    }

    fn wants_node_name(&self) -> bool {
        true
    }

    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(self.open_disk(options, context))
    }
}
