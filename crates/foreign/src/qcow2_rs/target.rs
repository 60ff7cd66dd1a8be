//! The driver of the crate as targets: one for what its documentation promises, and one for each thing it does not speak of.

use std::path::Path;
use std::rc::Rc;

use blkproof_block::graph::{OpenError, Options};
use blkproof_fault::disk::{FlushError, Profile};
use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{self, Checked, Content, Files, Node, Opening, Promises, Target, formats, variant};
use blkproof_torture::workload::{Features, TargetInfo, Variant};
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::error::Qcow2Error;
use qcow2_rs::meta::Qcow2Header;
use qcow2_rs::utils::qcow2_alloc_dev;

use super::below::Below;
use super::node::Image;
use super::off::Power;
use super::view::View;
use crate::errors::up;

/// Bytes of a block are 2 to the power of this.
const BLOCK_BITS: u8 = 9;

/// `qcow2_rs::dev::Qcow2Dev`, of which something is asked.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2 {
    name: &'static str,
    features: Features,
    /// Images with a base, or without.
    base: bool,
}

/// What the crate has a request for.
const PLAIN: Features = Features { status: true, reopen: true, drain: true, ..Features::NONE };

const fn qcow2(name: &'static str, features: Features) -> Qcow2 {
    Qcow2 { name, features, base: false }
}

/// What its documentation promises, of images without and with a base; and with errors below, with dropped requests, with
/// power cuts.
pub static TARGETS: [Qcow2; 5] = [
    qcow2("qcow2-rs", PLAIN),
    Qcow2 { base: true, ..qcow2("qcow2-rs-overlay", PLAIN) },
    qcow2("qcow2-rs-faults", Features { faults: true, ..PLAIN }),
    qcow2("qcow2-rs-drops", Features { drops: true, ..PLAIN }),
    qcow2("qcow2-rs-cut", Features { cut: true, ..PLAIN }),
];

impl Target for Qcow2 {
    fn name(&self) -> &str {
        self.name
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        let mut rest = spec.clone();
        for name in ["l2_cache", "rb_cache"] {
            rest.options.retain(|(option, _)| option != name);
        }
        let own = rest.options.len();
        rest.options.retain(|(option, _)| option != "made_by_itself");
        match rest.options.len() < own {
            true => create(&rest),
            false => target::Qcow2.create(&rest),
        }
    }

    fn open(&self, files: Files, spec: &TargetSpec) -> Opening {
        let mut options = formats::options(spec);
        let droppable = self.features.drops;
        Box::pin(async move {
            // A cache of so many bytes, in slices of a block.
            let cache = |size: Option<u64>| size.and_then(|size| Some((BLOCK_BITS, usize::try_from(size).ok()?)));
            let tables = cache(options.take_size("l2_cache")?);
            let counts = cache(options.take_size("rb_cache")?);
            let params = Qcow2DevParams::new(BLOCK_BITS, counts, tables, false, false);
            let power = Power::on(files.image);
            let path = Path::new("image.qcow2");
            let (mut device, backing) =
                qcow2_alloc_dev(path, Below::Image(Rc::clone(&power)), &params).await.map_err(failed)?;
            if let (Some(path), Some(base)) = (backing, files.base) {
                let params = Qcow2DevParams::new(BLOCK_BITS, None, None, true, false);
                params.mark_backing_dev(Some(true));
                let (base, _) = qcow2_alloc_dev(&path, Below::Base(View::new(base)), &params).await.map_err(failed)?;
                device.set_backing_dev(Box::new(base));
            }
            prepare(&device).await.map_err(failed)?;
            Ok(Node::new(Image::new(device, power, droppable)))
        })
    }

    fn grows(&self) -> bool {
        true
    }

    fn own_thread(&self) -> bool {
        true
    }

    fn promises(&self, _spec: &TargetSpec) -> Promises {
        Promises { crash_safe: self.features.cut, ..Promises::default() }
    }

    fn check(&self, image: &Content) -> Checked {
        formats::check_qcow2(image)
    }

    fn info(&self) -> TargetInfo {
        let image = |options: &[(&str, &str)], size: u64, cluster: u64| {
            let table = cluster / 8 * cluster;
            let counts = cluster.saturating_mul(cluster) / 2;
            let plain = variant(options, size, cluster);
            Variant { spans: vec![table, counts], features: self.features, alignment: 512, ..plain }
        };
        let small = [("cluster_size", "4096"), ("l2_cache", "1024"), ("rb_cache", "1024")];
        let variants = match self.base {
            false => vec![
                image(&[], 600 << 20, 64 << 10),
                image(&[("cluster_size", "4096")], 9 << 20, 4096),
                image(&small, 9 << 20, 4096),
                image(&[("cluster_size", "65536"), ("made_by_itself", "on")], 600 << 20, 64 << 10),
                image(&[("cluster_size", "4096"), ("refcount_bits", "64")], 9 << 20, 4096),
                Variant { hot: vec![1 << 31, 1 << 32], ..image(&[("cluster_size", "2097152")], 5 << 30, 2 << 20) },
            ],
            // A base is filled for each run, which takes its time.
            true => [
                image(&[("cluster_size", "4096")], 9 << 20, 4096),
                image(&small, 9 << 20, 4096),
                image(&[("cluster_size", "16384")], 18 << 20, 16 << 10),
            ]
            .map(|image| Variant { base: true, ..image })
            .to_vec(),
        };
        TargetInfo {
            name: self.name.to_owned(),
            variants,
            profiles: vec![Profile::Ordered, Profile::Request, Profile::Block, Profile::Block, Profile::Torn],
            blocks: vec![512],
            flush_errors: vec![FlushError::Keep],
        }
    }
}

fn failed(error: Qcow2Error) -> OpenError {
    let words = error.to_string();
    OpenError::io("opening the image", up(&error.into_inner()).detail(words))
}

async fn prepare(device: &Qcow2Dev<Below>) -> Result<(), Qcow2Error> {
    device.qcow2_prep_io().await
}

/// As the crate makes it: `Qcow2Header::format_qcow2`, in a file as long as its own helper has it.
fn create(spec: &TargetSpec) -> Result<Content, String> {
    let mut options: Options = formats::options(spec);
    let cluster = options.take_size("cluster_size").map_err(|error| error.to_string())?.unwrap_or(64 << 10);
    options.finish("qcow2-rs").map_err(|error| error.to_string())?;
    let bits = usize::try_from(cluster.trailing_zeros()).map_err(|error| error.to_string())?;
    let (table, counts, _) = Qcow2Header::calculate_meta_params(spec.size, bits, 4, 512);
    let clusters = u64::from(table.1).saturating_add(u64::from(counts.1)).saturating_add(1);
    let len = clusters.saturating_mul(cluster).saturating_add(512);
    let mut bytes = vec![0; usize::try_from(len).map_err(|error| error.to_string())?];
    Qcow2Header::format_qcow2(&mut bytes, spec.size, bits, 4, 512).map_err(|error| error.to_string())?;
    Ok(Content::from_bytes(&bytes))
}
