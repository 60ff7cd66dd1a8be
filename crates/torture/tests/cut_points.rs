//! A power cut comes at the moment that the plan names.
#![allow(missing_docs, clippy::unwrap_used)]

use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Settings, run};
use blkproof_torture::target;

/// On a disk that acknowledges flushes and does nothing, what was flushed is gone at every moment after the flush, and at
/// none before it.
#[test]
fn a_cut_comes_when_the_plan_says() {
    let plan = |kind: &str, point: &str| {
        let text = format!(
            r#"
            schema = "blkproof.plan/1"
            seed = 0
            crash = "at {point} all-old"
            ops = ["1 write 0+512", "2 flush", "3 discard 4K+512", "4 write 8K+512"]
            [target]
            name = "raw"
            size = "64K"
            [disk]
            block = 512
            profile = "block"
            kind = "{kind}"
            flush-error = "keep"
            seed = 0
            "#
        );
        let plan = Plan::parse(&text).unwrap();
        run(&plan, target::find("raw").unwrap(), &Settings::default())
    };
    for (point, lost) in [
        ("before 2", false),
        ("before 2#1.done", false),
        ("after 2", true),
        ("before 3", true),
        ("before 4", true),
        ("before 4#1.done", true),
        ("end", true),
    ] {
        let codes: Vec<String> = plan("liar", point).findings.iter().map(|one| one.signature.code.clone()).collect();
        assert_eq!(codes, if lost { vec!["flush"] } else { vec![] }, "{point}");
        let honest = plan("honest", point);
        assert_eq!(honest.findings, [], "{point}");
        assert!(honest.undecided.is_some(), "no cut {point}");
    }
}
