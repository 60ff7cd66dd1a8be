//! `./demo` does what it says, with the binary under test.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Outcome, run};
use std::path::Path;

fn demo(words: &[&str]) -> Outcome {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let binary = format!("BLKPROOF={}", env!("CARGO_BIN_EXE_blkproof"));
    run(&project, "env", &[&[&binary, "./demo"], words].concat())
}

#[test]
#[cfg(feature = "gallery")]
fn the_demo_breaks_a_driver_and_shrinks_what_broke_it() {
    for words in [&[][..], &["0"], &["torture", "50"]] {
        let outcome = demo(words).exited(0);
        let seed = words.last().unwrap_or(&"2011");
        for said in [
            &format!("$ blkproof torture --target v1-map-before-data --seed {seed} --runs 2000 --out findings\n"),
            "\nREPEAT  (plan ",
            "\n  blkproof replay findings/",
            "\nTIMELINE ",
            "\nNOT TESTED\n",
            "schema = \"blkproof.plan/1\"",
            ".json: v1-map-before-data fails as it did",
            ".toml: vdi-copy passes: ",
            "Caught.",
        ] {
            assert!(outcome.stdout.contains(said), "'{said}' in:\n{}\n{}", outcome.stdout, outcome.stderr);
        }
        let again = outcome.stderr.lines().next().unwrap_or_default();
        assert!(again.starts_with("blkproof torture --target v1-map-before-data --profile quick --seed 0x"), "{again}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn the_demo_says_what_it_can_do() {
    let outcome = demo(&["everything"]).exited(2);
    assert!(outcome.stderr.contains("./demo mirror [SEED]"), "{}", outcome.stderr);
}

#[test]
fn the_demo_catches_the_damaged_sector() {
    for words in [&["mirror"][..], &["mirror", "7"]] {
        let outcome = demo(words).exited(0);
        let seed = words.get(1).unwrap_or(&"2010");
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
