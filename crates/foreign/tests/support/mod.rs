//! A campaign that is cheap enough for every build.

use blkproof_torture::campaign::{Campaign, Found, Silent, campaign};
use blkproof_torture::target::Target;
use blkproof_torture::workload::Profile;

/// Codes and words of everything that so many seeds find, each seed run twice.
pub(crate) fn found(target: &dyn Target, runs: u64) -> Vec<(String, String)> {
    let wanted = Campaign {
        profile: Profile::QUICK,
        runs: Some(runs),
        until_findings: 0,
        repeat_every: 1,
        shrink: None,
        ..Campaign::default()
    };
    let results = campaign(&wanted, target, &Silent);
    assert_eq!(results.seeds, runs);
    let words =
        |found: &Found| (found.finding.signature.code.clone(), format!("seed {}: {}", found.seed, found.finding));
    results.found.iter().map(words).collect()
}
