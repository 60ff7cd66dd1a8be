//! `qcow2` and `vdi` as targets: our drivers, and copies of them that something was done to.

use std::rc::Rc;

use blkproof_block::graph::{OpenError, Options};
use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_check::Format;
use blkproof_fault::disk::{FlushError, Profile};
use blkproof_sim::SimDisk;
use blkproof_sim::disk::{Content, DiskOptions};

use super::{Checked, check_image, snapshot, variant};
use crate::plan::TargetSpec;
use crate::stamp;
use crate::workload::{Features, TargetInfo, Variant};

/// Defines the targets `Qcow2` and `Vdi` over the drivers of a module, which is that of `blkproof_formats` or a copy of it.
///
/// Options of a `qcow2` target are those of creating an image, `l2-cache-size` and `refcount-cache-size` of opening it, and
/// those of [`Start`]; those of a `vdi` target are those of creating one, and `start`.
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
                use $($formats)::+::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
                let mut options = $crate::target::formats::options(spec);
                let start = $crate::target::formats::Start::take(&mut options).map_err(|error| error.to_string())?;
                for name in ["l2-cache-size", "refcount-cache-size"] {
                    options.take_size(name).map_err(|error| error.to_string())?;
                }
                let mut wanted = CreateOptions::take(&mut options).map_err(|error| error.to_string())?;
                options.finish("qcow2").map_err(|error| error.to_string())?;
                wanted.size = spec.size;
                if spec.base.is_some() && !start.holds_data() {
                    wanted.backing_file = Some("base.raw".to_owned());
                    wanted.backing_format = Some("raw".to_owned());
                }
                let made = $crate::target::formats::made(async |file| {
                    create(std::rc::Rc::new(file.clone()), None, &wanted).await?;
                    if start.holds_data() {
                        start.fill(Qcow2::open(file, OpenOptions::default()).await?, spec).await?;
                    }
                    Ok(())
                })?;
                start.with_snapshot(made)
            }

            fn open(
                &self,
                files: $crate::target::Files,
                spec: &$crate::plan::TargetSpec,
            ) -> $crate::target::Opening {
                use $($formats)::+::qcow2::{OpenOptions, Qcow2};
                let mut options = $crate::target::formats::options(spec);
                Box::pin(async move {
                    let start = $crate::target::formats::Start::take(&mut options)?;
                    let default = OpenOptions::default();
                    let tables = options.take_size("l2-cache-size")?;
                    let counts = options.take_size("refcount-cache-size")?;
                    let open = OpenOptions {
                        backing: files.base.filter(|_| !start.holds_data()),
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

            fn intact(
                &self,
                image: &$crate::target::Content,
                spec: &$crate::plan::TargetSpec,
            ) -> Result<(), String> {
                use $($formats)::+::qcow2::{OpenOptions, Qcow2};
                $crate::target::formats::snapshot_is_intact(image, spec, async |file| {
                    Qcow2::open(file, OpenOptions { read_only: true, ..OpenOptions::default() }).await
                })
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
                use $($formats)::+::vdi::{CreateOptions, Vdi, create};
                let mut options = $crate::target::formats::options(spec);
                let start = $crate::target::formats::Start::take(&mut options).map_err(|error| error.to_string())?;
                let mut wanted = CreateOptions::take(&mut options).map_err(|error| error.to_string())?;
                options.finish("vdi").map_err(|error| error.to_string())?;
                wanted.size = spec.size;
                $crate::target::formats::made(async |file| {
                    create(&file, &wanted).await?;
                    if start.holds_data() {
                        start.fill(Vdi::open(file, false).await?, spec).await?;
                    }
                    Ok(())
                })
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

/// What an image holds before anybody writes to it: the options `start` and `snapshot`.
///
/// `start=copied` and `start=compressed` put what would be the base image ([`TargetSpec::base`]) into the image itself,
/// in ordinary or in compressed clusters; there is no backing file then. `snapshot=on` has an internal snapshot share
/// all of it; without a `start` it shares a few clusters of zeroes.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    data: Option<WriteFlags>,
    snapshot: bool,
}

/// Places of the guest's disk that hold zeroes in clusters of their own, for a snapshot to share.
const PLACES: u64 = 16;

/// Bytes of one request of filling an image: a multiple of every cluster that is compressed.
const FILL: u64 = 64 << 10;

impl Start {
    /// Takes its options.
    ///
    /// # Errors
    /// Of a word that is none of them.
    pub fn take(options: &mut Options) -> Result<Self, OpenError> {
        let words = [("copied", WriteFlags::empty()), ("compressed", WriteFlags::COMPRESSED)];
        let data = options.take_choice("start", &words)?;
        Ok(Self { data, snapshot: options.take_bool("snapshot")?.unwrap_or(false) })
    }

    /// Whether the image itself holds something from the start.
    pub fn holds_data(self) -> bool {
        self.data.is_some() || self.snapshot
    }

    /// Fills the image, and closes it.
    ///
    /// # Errors
    /// Of the driver.
    pub async fn fill<D: BlockDevice>(self, image: D, spec: &TargetSpec) -> Result<(), OpenError> {
        let filled = async {
            let end = spec.base.unwrap_or(0).min(spec.size);
            let all = self.data.unwrap_or(WriteFlags::empty());
            let mut at = 0;
            let mut buf = vec![0; usize::try_from(FILL).unwrap_or(0)];
            while at < end {
                let len = FILL.min(end - at);
                // A compressed write is of whole clusters.
                let flags = if len == FILL { all } else { WriteFlags::empty() };
                if let Some(part) = buf.get_mut(..usize::try_from(len).unwrap_or(0)) {
                    stamp::base_fill(part, at);
                    image.write(at, part, flags).await?;
                }
                at = at.saturating_add(len);
            }
            if end == 0 {
                for place in 0..PLACES {
                    let at = spec.size / PLACES * place;
                    if at.saturating_add(512) <= spec.size {
                        image.write(at, &[0; 512], WriteFlags::empty()).await?;
                    }
                }
            }
            image.close().await
        };
        filled.await.map_err(|error| OpenError::io("filling the image", error))
    }

    /// The image with the snapshot, if there is to be one.
    ///
    /// # Errors
    /// In words, if it is an image that this project can put none into.
    pub fn with_snapshot(self, image: Content) -> Result<Content, String> {
        if !self.snapshot {
            return Ok(image);
        }
        let mut bytes = image.to_vec();
        snapshot::add(&mut bytes)?;
        Ok(Content::from_bytes(&bytes))
    }
}

/// Whether the snapshot of an image, if it has one, still holds what it held (CM 5.7, I9). The driver is asked to `open`
/// the image as that was when the snapshot was made.
///
/// # Errors
/// What is wrong, in words.
pub fn snapshot_is_intact<D: BlockDevice>(
    image: &Content,
    spec: &TargetSpec,
    open: impl AsyncFnOnce(SimDisk) -> Result<D, OpenError>,
) -> Result<(), String> {
    if !spec.options.iter().any(|(name, value)| name == "snapshot" && value == "on") {
        return Ok(());
    }
    let mut header = vec![0; 112];
    image.read(0, &mut header);
    snapshot::reverted(&mut header, |at, bytes| image.read(at, bytes))?;
    let mut content = Content::over(Rc::new(image.clone()));
    content.write(0, &header);
    let disk = SimDisk::instant(DiskOptions { read_only: true, ..DiskOptions::new(content) });
    let read = async {
        let node = open(disk).await.map_err(|error| format!("the snapshot does not open: {error}"))?;
        let size = node.info().size;
        if size != spec.size {
            return Err(format!("the snapshot's disk has {size:#x} bytes instead of {:#x}", spec.size));
        }
        let end = spec.base.unwrap_or(0).min(size);
        let mut buf = vec![0; usize::try_from(FILL).unwrap_or(0)];
        let mut at = 0;
        while at < size {
            let until = if at < end { end } else { size };
            let len = FILL.min(until - at);
            let Some(part) = buf.get_mut(..usize::try_from(len).unwrap_or(0)) else { break };
            node.read(at, part).await.map_err(|error| format!("byte {at:#x} of the snapshot is not read: {error}"))?;
            let same = if at < end { stamp::is_base(part, at) } else { stamp::is_zero(part) };
            if !same {
                return Err(format!("the snapshot has changed within {len:#x} bytes at {at:#x}"));
            }
            at = at.saturating_add(len);
        }
        Ok(())
    };
    crate::run::now(read).unwrap_or_else(|| Err("reading the snapshot does not end".to_owned()))
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
    // Images that hold something from the start: small ones, since they are made for each run too.
    let full =
        |options: &[(&str, &str)], size: u64, cluster: u64| Variant { base: true, ..image(options, size, cluster, 8) };
    let small = ("cluster_size", "4096");
    let shared = |variant: Variant| lean(variant, Features { shrink: false, ..all });
    variants.extend([
        full(&[small, ("start", "copied")], 600 << 10, 4096),
        full(&[small, ("start", "compressed")], 600 << 10, 4096),
        full(&[("start", "compressed")], 2 << 20, 64 << 10),
        full(&[("cluster_size", "512"), ("l2-cache-size", "1024"), ("start", "compressed")], 200 << 10, 512),
        shared(full(&[small, ("snapshot", "on"), ("start", "copied")], 300 << 10, 4096)),
        shared(full(&[("cluster_size", "512"), ("snapshot", "on"), ("start", "copied")], 40 << 10, 512)),
        shared(image(&[small, ("snapshot", "on")], 2 << 20, 4096, 8)),
        image(&[small, ("preallocation", "full")], 300 << 10, 4096, 8),
    ]);
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
        variants: vec![
            image(&[], 9 << 20),
            image(&[("preallocation", "metadata")], 6 << 20),
            large,
            fixed,
            Variant { base: true, ..image(&[("start", "copied")], 3 << 20) },
        ],
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
