//! `qcow2` and `vdi` as targets: our drivers, and copies of them that something was done to.

use blkproof_block::graph::{OpenError, Options};
use blkproof_check::Format;
use blkproof_fault::disk::{FlushError, Profile};
use blkproof_sim::SimDisk;
use blkproof_sim::disk::{Content, DiskOptions};

use super::{Checked, check_image, variant};
use crate::plan::TargetSpec;
use crate::workload::{Features, TargetInfo, Variant};

/// Defines the targets `Qcow2` and `Vdi` over the drivers of a module, which is that of `blkproof_formats` or a copy of it.
///
/// Options of a `qcow2` target are those of creating an image, and `l2-cache-size` and `refcount-cache-size` of opening it;
/// those of a `vdi` target are those of creating one.
#[macro_export]
macro_rules! format_targets {
    ($($formats:ident)::+) => {
        /// `qcow2`.
        #[derive(Clone, Copy, Debug)]
        pub struct Qcow2;

        impl $crate::target::Target for Qcow2 {
            fn name(&self) -> &str {
                "qcow2"
            }

            fn create(&self, spec: &$crate::plan::TargetSpec) -> Result<$crate::target::Content, String> {
                use $($formats)::+::qcow2::{CreateOptions, create};
                let mut options = $crate::target::formats::options(spec);
                for name in ["l2-cache-size", "refcount-cache-size"] {
                    options.take_size(name).map_err(|error| error.to_string())?;
                }
                let mut wanted = CreateOptions::take(&mut options).map_err(|error| error.to_string())?;
                options.finish("qcow2").map_err(|error| error.to_string())?;
                wanted.size = spec.size;
                if spec.base.is_some() {
                    wanted.backing_file = Some("base.raw".to_owned());
                    wanted.backing_format = Some("raw".to_owned());
                }
                $crate::target::formats::made(async |file| create(std::rc::Rc::new(file), None, &wanted).await)
            }

            fn open(
                &self,
                files: $crate::target::Files,
                spec: &$crate::plan::TargetSpec,
            ) -> $crate::target::Opening {
                use $($formats)::+::qcow2::{OpenOptions, Qcow2};
                let mut options = $crate::target::formats::options(spec);
                Box::pin(async move {
                    let default = OpenOptions::default();
                    let tables = options.take_size("l2-cache-size")?;
                    let counts = options.take_size("refcount-cache-size")?;
                    let open = OpenOptions {
                        backing: files.base,
                        l2_cache_size: tables.unwrap_or(default.l2_cache_size),
                        refcount_cache_size: counts.unwrap_or(default.refcount_cache_size),
                        ..default
                    };
                    Ok($crate::target::Node::new(Qcow2::open(files.image, open).await?))
                })
            }

            fn grows(&self) -> bool {
                true
            }

            fn check(&self, image: &$crate::target::Content) -> $crate::target::Checked {
                $crate::target::formats::check_qcow2(image)
            }

            fn info(&self) -> $crate::workload::TargetInfo {
                $crate::target::formats::qcow2_info()
            }
        }

        /// `vdi`.
        #[derive(Clone, Copy, Debug)]
        pub struct Vdi;

        impl $crate::target::Target for Vdi {
            fn name(&self) -> &str {
                "vdi"
            }

            fn create(&self, spec: &$crate::plan::TargetSpec) -> Result<$crate::target::Content, String> {
                use $($formats)::+::vdi::{CreateOptions, create};
                let mut options = $crate::target::formats::options(spec);
                let mut wanted = CreateOptions::take(&mut options).map_err(|error| error.to_string())?;
                options.finish("vdi").map_err(|error| error.to_string())?;
                wanted.size = spec.size;
                $crate::target::formats::made(async |file| create(&file, &wanted).await)
            }

            fn open(
                &self,
                files: $crate::target::Files,
                _spec: &$crate::plan::TargetSpec,
            ) -> $crate::target::Opening {
                use $($formats)::+::vdi::Vdi;
                Box::pin(async move { Ok($crate::target::Node::new(Vdi::open(files.image, false).await?)) })
            }

            fn grows(&self) -> bool {
                true
            }

            fn check(&self, image: &$crate::target::Content) -> $crate::target::Checked {
                $crate::target::formats::check_vdi(image)
            }

            fn info(&self) -> $crate::workload::TargetInfo {
                $crate::target::formats::vdi_info()
            }
        }
    };
}

/// The options of a target as the drivers read them.
pub fn options(spec: &TargetSpec) -> Options {
    spec.options.iter().fold(Options::new(), |options, (name, value)| options.with(name, value.as_str()))
}

/// Checks a qcow2 image.
pub fn check_qcow2(image: &Content) -> Checked {
    check_image(image, Format::Qcow2, &[])
}

/// Checks a VDI image.
pub fn check_vdi(image: &Content) -> Checked {
    // A count that is too high leaves out blocks when the next one is taken; a power cut may leave one, by the driver's
    // own argument.
    check_image(image, Format::Vdi, &["VDI-HEADER-ALLOCATED"])
}

/// The images of `qcow2` worth trying.
pub fn qcow2_info() -> TargetInfo {
    // Bytes of a cluster, and of an L2 entry, give what a table covers.
    let image = |options: &[(&str, &str)], size: u64, cluster: u64, entry: u64| {
        let table = cluster / entry * cluster;
        let counts = cluster.saturating_mul(cluster) / 2;
        Variant { spans: vec![table, counts], features: Features::ALL, ..variant(options, size, cluster) }
    };
    let lean = |variant: Variant, features: Features| Variant { features, ..variant };
    let all = Features::ALL;
    let rigid = Features { grow: false, shrink: false, ..all };
    let small = [("cluster_size", "512"), ("l2-cache-size", "1024")];
    let bits = [("cluster_size", "512"), ("refcount-cache-size", "1024"), ("refcount_bits", "1")];
    let mut variants = vec![
        image(&[], 600 << 20, 64 << 10, 8),
        image(&[("cluster_size", "4096")], 9 << 20, 4096, 8),
        image(&small, 300 << 10, 512, 8),
        lean(image(&bits, 300 << 10, 512, 8), Features { compressed: false, ..all }),
        image(&[("cluster_size", "4096"), ("refcount_bits", "64")], 9 << 20, 4096, 8),
        lean(image(&[("cluster_size", "4096"), ("compat", "0.10")], 9 << 20, 4096, 8), rigid),
        image(&[("cluster_size", "4096"), ("lazy_refcounts", "on")], 9 << 20, 4096, 8),
        image(&[("cluster_size", "16384"), ("extended_l2", "on")], 40 << 20, 16384, 16),
        image(&[("cluster_size", "65536"), ("extended_l2", "on")], 600 << 20, 65536, 16),
        image(&[("cluster_size", "4096"), ("compression_type", "zstd")], 9 << 20, 4096, 8),
        image(&[("cluster_size", "4096"), ("preallocation", "metadata")], 5 << 20, 4096, 8),
        image(&[("cluster_size", "2097152")], 5 << 30, 2 << 20, 8),
    ];
    for variant in &mut variants {
        if variant.size > 1 << 32 {
            variant.hot = vec![1 << 31, 1 << 32];
        }
    }
    let overlays: Vec<_> = variants.iter().map(|variant| Variant { base: true, ..variant.clone() }).collect();
    // A base image is made for each run; a large one takes its time. What is preallocated hides it.
    let hides = |variant: &Variant| variant.options.iter().any(|(name, _)| name == "preallocation");
    variants.extend(overlays.into_iter().filter(|variant| variant.size < 64 << 20 && !hides(variant)));
    TargetInfo {
        name: "qcow2".to_owned(),
        variants,
        profiles: vec![Profile::Ordered, Profile::Request, Profile::Block, Profile::Block, Profile::Torn],
        blocks: vec![512],
        flush_errors: vec![FlushError::Keep],
    }
}

/// The images of `vdi` worth trying.
pub fn vdi_info() -> TargetInfo {
    let features = Features { compressed: false, ..Features::ALL };
    let image = |options: &[(&str, &str)], size| Variant { features, ..variant(options, size, 1 << 20) };
    let large = Variant { hot: vec![1 << 31, 1 << 32], ..image(&[], 5 << 30) };
    let fixed = Variant {
        features: Features { grow: false, shrink: false, ..features },
        ..image(&[("static", "on")], 4 << 20)
    };
    TargetInfo {
        name: "vdi".to_owned(),
        variants: vec![image(&[], 9 << 20), image(&[("preallocation", "metadata")], 6 << 20), large, fixed],
        profiles: vec![Profile::Ordered, Profile::Request, Profile::Block, Profile::Block, Profile::Torn],
        blocks: vec![512],
        flush_errors: vec![FlushError::Keep],
    }
}

/// The image that `create` makes of an empty file.
///
/// # Errors
/// What `create` says.
pub fn made(create: impl AsyncFnOnce(SimDisk) -> Result<(), OpenError>) -> Result<Content, String> {
    let disk = SimDisk::instant(DiskOptions::new(Content::new(0)).growing());
    let result = crate::run::now(create(disk.clone()));
    match result {
        Some(Ok(())) => Ok(disk.content().flattened()),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("creating the image waits for something that never comes".to_owned()),
    }
}
