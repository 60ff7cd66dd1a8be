//! On a disk that keeps the order of its writes, a power cut leaves the first few of them. Plans name them, as they name what
//! survives on any disk, and were told that such a disk is never left so: what campaigns found on it could not be repeated.

use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Settings, run};
use blkproof_torture::target::Raw;

#[test]
fn the_first_of_the_writes_by_name() {
    let codes = |state: &str| {
        let text = format!(
            "schema = \"blkproof.plan/1\"\ncrash = \"at before 3 {state}\"\n\
             ops = [\"1 write 0+512\", \"2 write 512+512\", \"3 flush\"]\n\
             [target]\nname = \"raw\"\nsize = \"4096\"\n[disk]\nblock = 512\nprofile = \"ordered\"\nkind = \"honest\"\n\
             flush-error = \"none\"\nseed = 0\n"
        );
        let outcome = run(&Plan::parse(&text).unwrap(), &Raw, &Settings::default());
        outcome.findings.into_iter().map(|finding| finding.signature.code).collect::<Vec<_>>()
    };
    for state in ["keep nothing", "keep 1#1", "keep 1#1+2#1"] {
        assert!(codes(state).is_empty(), "{state}");
    }
    // The second without the first is what it is never left with.
    assert_eq!(codes("keep 2#1"), ["plan"]);
}
