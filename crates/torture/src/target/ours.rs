//! The drivers of this project.

use blkproof_block::nodes::raw;
use blkproof_fault::disk::{FlushError, Profile};

use super::{Files, Node, Opening, Promises, Target, variant};
use crate::plan::TargetSpec;
use crate::workload::{Features, TargetInfo, Variant};

crate::format_targets!(blkproof_formats);

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

    fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
        Box::pin(async move { Ok(Node::new(raw::Raw::new(files.image))) })
    }

    fn promises(&self, _spec: &TargetSpec) -> Promises {
        Promises { forgets_failed_flush: true, ..Promises::default() }
    }

    fn info(&self) -> TargetInfo {
        let features = Features { compressed: false, ..Features::ALL };
        let disk = |size| Variant { features, size_alignment: 1, ..variant(&[], size, 4096) };
        TargetInfo {
            name: "raw".to_owned(),
            variants: vec![disk(1 << 20), Variant { hot: vec![1 << 31, 1 << 32], ..disk(5 << 30) }],
            profiles: vec![Profile::Ordered, Profile::Request, Profile::Block, Profile::Torn],
            blocks: vec![512, 4096],
            flush_errors: vec![FlushError::Keep, FlushError::Forget],
        }
    }
}
