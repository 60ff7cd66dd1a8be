//! A plan that cuts the power just before a request had no power cut: the moment was looked into by campaigns, and found
//! nothing when it was run again by its name. What such a campaign found could neither be repeated nor shrunk.

use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Settings, run};
use blkproof_torture::target::Raw;

#[test]
fn the_power_goes_just_before_a_request() {
    let plan = |crash: &str| {
        let text = format!(
            "schema = \"blkproof.plan/1\"\ncrash = \"{crash}\"\nops = [\"1 write 0+512\", \"2 zeroes 0+512\", \"3 flush\"]\n\
             [target]\nname = \"raw\"\nsize = \"4096\"\n"
        );
        Plan::parse(&text).unwrap()
    };
    for (crash, undecided) in [("at before 2 all-old", Some(1)), ("at after 3 all-old", Some(0))] {
        let outcome = run(&plan(crash), &Raw, &Settings::default());
        assert_eq!(outcome.findings, [], "{crash}");
        assert_eq!(outcome.undecided.map(|ios| ios.len()), undecided, "{crash}");
    }
}
