//! `./demo` does what it says, with the binary under test.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::run;
use std::path::Path;

#[test]
fn the_demo_catches_the_damaged_sector() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let binary = format!("BLKPROOF={}", env!("CARGO_BIN_EXE_blkproof"));
    for seed in ["2010", "7"] {
        let outcome = run(&project, "env", &[&binary, "./demo", seed]).exited(0);
        let sector = (24 * 1024 * 1024 + 12288) / 512;
        for words in [
            "$ blkproof create -f qcow2 ",
            "$ blkproof serve --unix nbd.sock blkverify:reference.raw:disk.qcow2 &",
            &format!("workload -s {seed} -n 4000"),
            "blkverify: read offset=25165824 bytes=65536 contents mismatch at offset 25178112",
            "this is not",
            &format!("Caught: sector {sector}, at the first read."),
        ] {
            assert!(outcome.stdout.contains(words), "'{words}' in:\n{}\n{}", outcome.stdout, outcome.stderr);
        }
        assert_eq!(
            outcome.stdout.matches("contents mismatch").count(),
            1,
            "nothing but the damage:\n{}",
            outcome.stdout
        );
        assert_eq!(outcome.stderr, "", "{}", outcome.stdout);
    }
}
