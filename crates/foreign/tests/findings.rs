//! What `docs/findings` says of these versions is still so: each plan there finds what it found.

mod pinned;

use std::collections::BTreeSet;
use std::path::PathBuf;

use blkproof_foreign::find;
use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Settings, run};

/// Plans, and the signatures of what they find.
const FINDINGS: &[(&str, &str)] = &[
    ("imago-failed-flush", "I2:QCOW2-CLUSTER-FREE-IN-USE:close:"),
    ("imago-failed-resize", "resize::end:"),
    ("imago-failed-shrink", "read::end:"),
    ("imago-failed-table-write", "reopen::end:"),
    ("imago-power-cut-data", "I2:QCOW2-L2-PAST-END:recovery:"),
    ("imago-power-cut", "I2:QCOW2-CLUSTER-OVERLAP:close:"),
    ("imago-raw-failed-resize", "resize::end:"),
    ("imago-write-beside-zeroes", "read::run:"),
    ("qcow2-rs-dropped-write-panic", "panic::run:qcow2-rs-0.1.6/src/cache.rs:223"),
    ("qcow2-rs-dropped-write", "error-contract::end:"),
    ("qcow2-rs-failed-flush-counts", "I2:QCOW2-CLUSTER-FREE-IN-USE:close:"),
    ("qcow2-rs-failed-flush-data", "reopen::end:"),
    ("qcow2-rs-failed-write-panic", "panic::run:qcow2-rs-0.1.6/src/cache.rs:223"),
    ("qcow2-rs-overlay-cache", "read::end:"),
    ("qcow2-rs-power-cut", "I2:QCOW2-CLUSTER-FREE-IN-USE:recovery:"),
    ("qcow2-rs-read-beside-write", "error-contract::run:"),
    ("qcow2-rs-short-base-count", "error-contract::run:"),
    ("qcow2-rs-short-base", "foreign::run:"),
    ("qcow2-rs-small-cache-hang", "hang::run:"),
    ("qcow2-rs-small-cache-write", "read::end:"),
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/findings")
}

#[test]
fn each_plan_finds_what_it_found() {
    for (name, signature) in FINDINGS {
        let text = std::fs::read_to_string(folder().join("plans").join(format!("{name}.toml"))).unwrap();
        let plan = Plan::parse(&text).unwrap();
        let target = find(&plan.target.name).unwrap();
        let outcome = run(&plan, target, &Settings::default());
        let found: Vec<_> = outcome.findings.iter().map(|finding| finding.signature.to_string()).collect();
        assert_eq!(found, [*signature], "{name}: {:?}", outcome.findings);
    }
}

/// No plan without a test, no test without a plan; and each is told of.
#[test]
fn every_plan_is_here_and_told_of() {
    let plans = std::fs::read_dir(folder().join("plans")).unwrap();
    let plans: BTreeSet<_> = plans.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(plans, FINDINGS.iter().map(|(name, _)| format!("{name}.toml")).collect());
    let pages = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let pages: String = pages.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for plan in plans {
        assert!(pages.contains(&format!("plans/{plan}")), "no page speaks of {plan}");
    }
}
