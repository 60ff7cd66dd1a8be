//! The drivers of this project.

use std::rc::Rc;

use blkproof_block::graph::{OpenError, Options};
use blkproof_block::nodes::raw;
use blkproof_block::{LocalBoxFuture, Node};
use blkproof_check::Format;
use blkproof_formats::{qcow2, vdi};
use blkproof_sim::SimDisk;
use blkproof_sim::disk::{Content, DiskOptions};

use super::{Checked, Files, Promises, Target, check_image};
use crate::plan::TargetSpec;

/// Every target that is built in.
static ALL: [&dyn Target; 3] = [&Qcow2, &Raw, &Vdi];

/// The target of that name.
pub fn find(name: &str) -> Option<&'static dyn Target> {
    ALL.into_iter().find(|target| target.name() == name)
}

/// Names of all built-in targets.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.into_iter().map(|target| target.name())
}

/// `raw` over a disk of fixed size.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

impl Target for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> LocalBoxFuture<'static, Result<Node, OpenError>> {
        Box::pin(async move { Ok(Node::new(raw::Raw::new(files.image))) })
    }

    fn promises(&self, _spec: &TargetSpec) -> Promises {
        Promises { forgets_failed_flush: true, ..Promises::default() }
    }
}

/// `qcow2`. Options are those of creating an image, and `l2-cache-size`, `refcount-cache-size` of opening it.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2;

/// Bytes of a cluster if no option says so: small, so that a small disk has many tables.
const QCOW2_CLUSTER: u64 = 64 << 10;

fn options(spec: &TargetSpec) -> Options {
    spec.options.iter().fold(Options::new(), |options, (name, value)| options.with(name, value.as_str()))
}

impl Target for Qcow2 {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        let mut options = options(spec);
        for name in ["l2-cache-size", "refcount-cache-size"] {
            options.take_size(name).map_err(|error| error.to_string())?;
        }
        let mut create = qcow2::CreateOptions::take(&mut options).map_err(|error| error.to_string())?;
        options.finish("qcow2").map_err(|error| error.to_string())?;
        create.size = spec.size;
        if spec.base.is_some() {
            create.backing_file = Some("base.raw".to_owned());
            create.backing_format = Some("raw".to_owned());
        }
        made(async |file| qcow2::create(Rc::new(file), None, &create).await)
    }

    fn open(&self, files: Files, spec: &TargetSpec) -> LocalBoxFuture<'static, Result<Node, OpenError>> {
        let mut options = options(spec);
        Box::pin(async move {
            let default = qcow2::OpenOptions::default();
            let open = qcow2::OpenOptions {
                backing: files.base,
                l2_cache_size: options.take_size("l2-cache-size")?.unwrap_or(default.l2_cache_size),
                refcount_cache_size: options.take_size("refcount-cache-size")?.unwrap_or(default.refcount_cache_size),
                ..default
            };
            Ok(Node::new(qcow2::Qcow2::open(files.image, open).await?))
        })
    }

    fn grows(&self) -> bool {
        true
    }

    fn check(&self, image: &Content) -> Checked {
        check_image(image, Format::Qcow2, &[])
    }

    fn variants(&self) -> Vec<Vec<(String, String)>> {
        let table: &[&[(&str, &str)]] = &[
            &[],
            &[("cluster_size", "4096")],
            &[("cluster_size", "512"), ("l2-cache-size", "1024")],
            &[("cluster_size", "512"), ("refcount_bits", "1"), ("refcount-cache-size", "1024")],
            &[("cluster_size", "4096"), ("refcount_bits", "64")],
            &[("compat", "0.10"), ("cluster_size", "4096")],
            &[("lazy_refcounts", "on"), ("cluster_size", "4096")],
            &[("extended_l2", "on"), ("cluster_size", "16384")],
            &[("extended_l2", "on"), ("cluster_size", "65536")],
            &[("compression_type", "zstd"), ("cluster_size", "4096")],
            &[("preallocation", "metadata"), ("cluster_size", "4096")],
            &[("cluster_size", "2097152")],
        ];
        let owned = |set: &&[(&str, &str)]| set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        table.iter().map(owned).collect()
    }

    fn cluster(&self, spec: &TargetSpec) -> u64 {
        options(spec).take_size("cluster_size").ok().flatten().unwrap_or(QCOW2_CLUSTER)
    }

    fn takes_base(&self) -> bool {
        true
    }
}

/// `vdi`. Options are those of creating an image.
#[derive(Clone, Copy, Debug)]
pub struct Vdi;

impl Target for Vdi {
    fn name(&self) -> &'static str {
        "vdi"
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        let mut options = options(spec);
        let mut create = vdi::CreateOptions::take(&mut options).map_err(|error| error.to_string())?;
        options.finish("vdi").map_err(|error| error.to_string())?;
        create.size = spec.size;
        made(async |file| vdi::create(&file, &create).await)
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> LocalBoxFuture<'static, Result<Node, OpenError>> {
        Box::pin(async move { Ok(Node::new(vdi::Vdi::open(files.image, false).await?)) })
    }

    fn grows(&self) -> bool {
        true
    }

    fn check(&self, image: &Content) -> Checked {
        // A count that is too high leaves out blocks when the next one is taken; so does a power cut in between, by
        // the driver's own argument.
        check_image(image, Format::Vdi, &["VDI-HEADER-ALLOCATED"])
    }

    fn variants(&self) -> Vec<Vec<(String, String)>> {
        let set = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        vec![Vec::new(), set("static", "on"), set("preallocation", "metadata")]
    }

    fn cluster(&self, _spec: &TargetSpec) -> u64 {
        1 << 20
    }
}

/// The image that `create` makes of an empty file.
pub(crate) fn made(create: impl AsyncFnOnce(SimDisk) -> Result<(), OpenError>) -> Result<Content, String> {
    let disk = SimDisk::instant(DiskOptions::new(Content::new(0)).growing());
    let result = crate::run::now(create(disk.clone()));
    match result {
        Some(Ok(())) => Ok(disk.content().flattened()),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("creating the image waits for something that never comes".to_owned()),
    }
}
