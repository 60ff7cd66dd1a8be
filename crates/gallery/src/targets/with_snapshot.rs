//! qcow2 images with a snapshot: the option `snapshot=on` of a target.

use std::rc::Rc;

use blkproof_block::graph::OpenError;
use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{Content, formats};
use blkproof_torture::workload::{Features, Variant};

use crate::formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create as create_image};
use crate::snapshot;

const OPTION: &str = "snapshot";
/// Places of the guest's disk that hold zeroes in clusters of their own, which the snapshot shares.
const PLACES: u64 = 16;

/// The image without the option, if it is asked for.
pub(super) fn asked(spec: &TargetSpec) -> Option<TargetSpec> {
    let mut plain = spec.clone();
    plain.options.retain(|(name, _)| name != OPTION);
    (plain.options.len() < spec.options.len()).then_some(plain)
}

/// Asks for it.
pub(super) fn ask(variant: &mut Variant) {
    variant.options.push((OPTION.to_owned(), "on".to_owned()));
    variant.options.sort();
    // Neither goes with snapshots.
    variant.features = Features { shrink: false, ..variant.features };
}

/// Makes one. The guest reads zeroes all over.
pub(super) fn create(spec: &TargetSpec) -> Result<Content, String> {
    if spec.base.is_some() {
        return Err("an image with a snapshot has no base here".into());
    }
    let mut options = formats::options(spec);
    for name in ["l2-cache-size", "refcount-cache-size"] {
        options.take_size(name).map_err(|error| error.to_string())?;
    }
    let mut wanted = CreateOptions::take(&mut options).map_err(|error| error.to_string())?;
    options.finish("qcow2").map_err(|error| error.to_string())?;
    wanted.size = spec.size;
    let plain = formats::made(async |file| {
        create_image(Rc::new(file.clone()), None, &wanted).await?;
        let image = Qcow2::open(file, OpenOptions::default()).await?;
        let filled = async {
            for place in 0..PLACES {
                let at = spec.size / PLACES * place;
                if at.saturating_add(512) <= spec.size {
                    image.write(at, &[0; 512], WriteFlags::empty()).await?;
                }
            }
            image.close().await
        };
        filled.await.map_err(|error| OpenError::io("filling the image", error))
    })?;
    let mut bytes = plain.to_vec();
    snapshot::add(&mut bytes)?;
    Ok(Content::from_bytes(&bytes))
}
