//! The drivers of the crate as targets.

use std::io;

use blkproof_block::graph::{OpenError, Options};
use blkproof_fault::disk::{FlushError, Profile};
use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{Checked, Content, Files, Node, Opening, Promises, Target, formats, variant};
use blkproof_torture::workload::{Features, TargetInfo, Variant};
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, FormatDriverBuilder as _};

use super::below::Below;
use super::node::Image;
use crate::errors::up;

fn failed(what: &str) -> impl FnOnce(io::Error) -> OpenError {
    let what = what.to_owned();
    move |error| OpenError::io(what, up(&error))
}

/// `imago::raw::Raw`.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

impl Target for Raw {
    fn name(&self) -> &str {
        "imago-raw"
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
        Box::pin(async move {
            let below = Below::new(files.image.clone());
            let image = imago::raw::Raw::open_image(below, true).await.map_err(failed("opening the image"))?;
            Ok(Node::new(Image::new("imago-raw", FormatAccess::new(image), files.image)))
        })
    }

    fn promises(&self, _spec: &TargetSpec) -> Promises {
        // Flushes go straight through: what the disk forgets of a failed one is gone.
        Promises { forgets_failed_flush: true, ..Promises::default() }
    }

    fn info(&self) -> TargetInfo {
        let features = FEATURES;
        let disk = |size| Variant { features, size_alignment: 1, ..variant(&[], size, 4096) };
        TargetInfo {
            name: self.name().to_owned(),
            variants: vec![disk(1 << 20), Variant { hot: vec![1 << 31, 1 << 32], ..disk(5 << 30) }],
            profiles: vec![Profile::Ordered, Profile::Request, Profile::Block, Profile::Torn],
            blocks: vec![512, 4096],
            flush_errors: vec![FlushError::Keep],
        }
    }
}

/// `imago::qcow2::Qcow2`, of whose images the power is not cut: its documentation says nothing of that.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2;

/// The same, of whose images the power is cut.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2Cut;

impl Target for Qcow2 {
    fn name(&self) -> &str {
        "imago-qcow2"
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        create(spec)
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
        open(files)
    }

    fn own_thread(&self) -> bool {
        true
    }

    fn grows(&self) -> bool {
        true
    }

    fn check(&self, image: &Content) -> Checked {
        formats::check_qcow2(image)
    }

    fn promises(&self, _spec: &TargetSpec) -> Promises {
        Promises { crash_safe: false, ..Promises::default() }
    }

    fn info(&self) -> TargetInfo {
        info(self.name(), Features { cut: false, ..FEATURES })
    }
}

impl Target for Qcow2Cut {
    fn name(&self) -> &str {
        "imago-qcow2-cut"
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        create(spec)
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
        open(files)
    }

    fn own_thread(&self) -> bool {
        true
    }

    fn grows(&self) -> bool {
        true
    }

    fn check(&self, image: &Content) -> Checked {
        formats::check_qcow2(image)
    }

    fn info(&self) -> TargetInfo {
        info(self.name(), FEATURES)
    }
}

/// The crate has no durable write; what it could be made of, a write and a flush, is asked for as just that.
const FEATURES: Features = Features { fua: false, compressed: false, no_fallback: false, ..Features::ALL };

/// As the crate makes it.
fn create(spec: &TargetSpec) -> Result<Content, String> {
    let mut options: Options = formats::options(spec);
    let cluster = options.take_size("cluster_size").map_err(|error| error.to_string())?.unwrap_or(64 << 10);
    let bits = options.take_size("refcount_bits").map_err(|error| error.to_string())?.unwrap_or(16);
    options.finish("imago-qcow2").map_err(|error| error.to_string())?;
    let (Ok(cluster), Ok(bits)) = (usize::try_from(cluster), usize::try_from(bits)) else {
        return Err("an option is too large".to_owned());
    };
    formats::made(async |file| {
        let builder = imago::qcow2::Qcow2::<Below>::create_builder(Below::new(Node::new(file)));
        let builder = builder.size(spec.size).cluster_size(cluster).refcount_width(bits);
        let builder = match spec.base {
            Some(_) => builder.backing("base.raw".to_owned(), "raw".to_owned()),
            None => builder,
        };
        builder.create().await.map_err(failed("creating the image"))
    })
}

fn open(files: Files) -> Opening {
    Box::pin(async move {
        let base = match files.base {
            None => None,
            Some(base) => {
                let raw = imago::raw::Raw::open_image(Below::new(base), false).await;
                Some(FormatAccess::new(raw.map_err(failed("opening the base"))?))
            }
        };
        let below = Below::new(files.image.clone());
        let builder = imago::qcow2::Qcow2::<Below>::builder(below).write(true).backing(base).data_file(None);
        let image = builder.open(DenyImplicitOpenGate::default()).await.map_err(failed("opening the image"))?;
        Ok(Node::new(Image::new("imago-qcow2", FormatAccess::new(image), files.image)))
    })
}

fn info(name: &str, features: Features) -> TargetInfo {
    let image = |options: &[(&str, &str)], size: u64, cluster: u64| {
        let table = cluster / 8 * cluster;
        let counts = cluster.saturating_mul(cluster) / 2;
        Variant { spans: vec![table, counts], features, ..variant(options, size, cluster) }
    };
    let mut variants = vec![
        image(&[], 600 << 20, 64 << 10),
        image(&[("cluster_size", "4096")], 9 << 20, 4096),
        image(&[("cluster_size", "512")], 300 << 10, 512),
        image(&[("cluster_size", "512"), ("refcount_bits", "1")], 300 << 10, 512),
        image(&[("cluster_size", "4096"), ("refcount_bits", "64")], 9 << 20, 4096),
        Variant { hot: vec![1 << 31, 1 << 32], ..image(&[("cluster_size", "2097152")], 5 << 30, 2 << 20) },
    ];
    let overlays: Vec<_> = variants.iter().map(|variant| Variant { base: true, ..variant.clone() }).collect();
    variants.extend(overlays.into_iter().filter(|variant| variant.size < 64 << 20));
    TargetInfo {
        name: name.to_owned(),
        variants,
        profiles: vec![Profile::Ordered, Profile::Request, Profile::Block, Profile::Block, Profile::Torn],
        blocks: vec![512],
        flush_errors: vec![FlushError::Keep],
    }
}
