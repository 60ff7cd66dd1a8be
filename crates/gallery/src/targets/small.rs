//! The small drivers as targets.

use blkproof_block::align::Aligned;
use blkproof_block::graph::OpenError;
use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{Content, Files, Node, Opening, Promises, Target, variant};
use blkproof_torture::workload::{Features, TargetInfo, Variant};

use crate::drivers::{Cache, Log, Merge, Pad, Pieces, Retry};

/// One of them.
pub(super) struct Small {
    name: &'static str,
    /// Bytes of the image besides those of the guest's disk.
    overhead: u64,
    /// Bytes of its unit.
    unit: u64,
    open: fn(Node) -> Opening,
}

const fn small(name: &'static str, unit: u64, open: fn(Node) -> Opening) -> Small {
    Small { name, overhead: 0, unit, open }
}

pub(super) static CACHE: Small = small("cache", 4096, |below| ready(Node::new(Cache::new(below))));
pub(super) static MERGE: Small = small("merge", 4096, |below| ready(Node::new(Merge::new(below))));
pub(super) static PAD: Small = small("pad", 4096, |below| ready(Node::new(Pad::new(below))));
pub(super) static PIECES: Small = small("pieces", 1536, |below| ready(Node::new(Pieces::new(below))));
pub(super) static RETRY: Small = small("retry", 4096, |below| ready(Node::new(Retry::new(below))));
pub(super) static LOG: Small = Small {
    overhead: Log::<Node>::OVERHEAD,
    ..small("log", 512, |below| {
        Box::pin(async move {
            let log = Log::open(below).await?;
            Ok(Node::new(Aligned::new(log)))
        })
    })
};

fn ready(node: Node) -> Opening {
    Box::pin(async move { Ok::<_, OpenError>(node) })
}

impl Target for Small {
    fn name(&self) -> &str {
        self.name
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        Ok(Content::new(spec.size.saturating_add(self.overhead)))
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
        (self.open)(files.image)
    }

    fn promises(&self, _spec: &TargetSpec) -> Promises {
        // Flushes go straight through: what the disk forgets of a failed one is gone.
        Promises { forgets_failed_flush: true, ..Promises::default() }
    }

    fn info(&self) -> TargetInfo {
        let base = variant(&[], 1 << 20, self.unit);
        let features = Features { no_fallback: false, ..base.features };
        let image = |size| Variant { size, features, ..base.clone() };
        // Few units, so that requests meet; and more than fit into any of them.
        let variants = vec![image(32 << 10), image(256 << 10), image(1 << 20)];
        TargetInfo { name: self.name.to_owned(), variants, ..Default.info() }
    }
}

/// What a target says of itself unless it knows better.
struct Default;

impl Target for Default {
    fn name(&self) -> &str {
        "default"
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
        ready(files.image)
    }
}
