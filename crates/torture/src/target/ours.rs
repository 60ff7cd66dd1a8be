//! The drivers of this project.

use blkproof_block::nodes::raw;
use blkproof_fault::disk::{FlushError, Profile};

use super::{Content, Files, Node, Opening, Promises, Target, base_image, variant};
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

    /// With the option `start=copied`, what would be the base image lies on the disk from the start.
    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        match (&spec.options[..], spec.base) {
            ([], _) => Ok(Content::new(spec.size)),
            ([(name, value)], Some(base)) if name == "start" && value == "copied" => {
                let mut content = base_image(base.min(spec.size));
                content.set_size(spec.size);
                Ok(content)
            }
            _ => {
                Err("a raw image has no option but start=copied, which says that it starts as a copy of a base".into())
            }
        }
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
        let copied =
            Variant { base: true, features, size_alignment: 1, ..variant(&[("start", "copied")], 1 << 20, 4096) };
        TargetInfo {
            name: "raw".to_owned(),
            variants: vec![disk(1 << 20), Variant { hot: vec![1 << 31, 1 << 32], ..disk(5 << 30) }, copied],
            profiles: vec![Profile::Ordered, Profile::Request, Profile::Block, Profile::Torn],
            blocks: vec![512, 4096],
            flush_errors: vec![FlushError::Keep, FlushError::Forget],
        }
    }
}
