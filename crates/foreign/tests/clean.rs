//! What of these crates nothing was found in, and that both repeat exactly. A seed that finds something here is news, of them
//! or of this project.
#![allow(clippy::unwrap_used)]

mod pinned;
mod support;

use blkproof_foreign::find;
use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{Checked, Content, Files, Opening, Promises, Target};
use blkproof_torture::workload::{Features, TargetInfo, Variant};
use support::found;

/// Without resizes: `docs/findings` speaks of those that fail or are dropped.
#[test]
fn imago_raw() {
    let less = |variant: Variant| {
        let features = Features { grow: false, shrink: false, ..variant.features };
        Variant { features, ..variant }
    };
    assert_eq!(found(&Less::of("imago-raw", less), 60), []);
}

/// Without the requests that `docs/findings` speaks of: zeroing beside a write, and what follows an error. Without a base
/// too: a read beside a write may find half a sector where a base ends within one, which was not looked into yet.
#[test]
fn imago_qcow2_without_errors_and_zeroing() {
    let less = |variant: Variant| {
        let features = Features { zeroes: false, faults: false, ..variant.features };
        Variant { features, base: false, ..variant }
    };
    assert_eq!(found(&Less::of("imago-qcow2", less), 60), []);
}

/// With random numbers that are always the same, and a thread for each run; `tests/nondeterminism.rs` has it without.
#[test]
fn every_seed_makes_the_same_run_twice() {
    for name in ["imago-qcow2", "qcow2-rs"] {
        let found = found(find(name).unwrap(), 100);
        assert!(found.iter().all(|(code, _)| code != "nondeterminism"), "{name}: {found:?}");
    }
}

/// A target of which less is asked.
struct Less {
    target: &'static dyn Target,
    less: fn(Variant) -> Variant,
}

impl Less {
    fn of(name: &str, less: fn(Variant) -> Variant) -> Self {
        Self { target: find(name).unwrap(), less }
    }
}

impl Target for Less {
    fn name(&self) -> &str {
        self.target.name()
    }

    fn open(&self, files: Files, spec: &TargetSpec) -> Opening {
        self.target.open(files, spec)
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        self.target.create(spec)
    }

    fn grows(&self) -> bool {
        self.target.grows()
    }

    fn promises(&self, spec: &TargetSpec) -> Promises {
        self.target.promises(spec)
    }

    fn check(&self, image: &Content) -> Checked {
        self.target.check(image)
    }

    fn own_thread(&self) -> bool {
        self.target.own_thread()
    }

    fn info(&self) -> TargetInfo {
        let info = self.target.info();
        TargetInfo { variants: info.variants.into_iter().map(self.less).collect(), ..info }
    }
}
