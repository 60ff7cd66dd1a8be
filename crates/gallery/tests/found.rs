//! What is planted is found, and what is sound is not.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use blkproof_gallery::{Driver, Planting, find};
use blkproof_torture::campaign::{Campaign, Silent, campaign};
use blkproof_torture::run::{Settings, run};
use blkproof_torture::target;

/// The bug that FVD's tool found in 2011: found by its seed alone, shrunk to a few lines, and told by what is lost. The
/// sound driver passes the same plan.
#[test]
fn the_bug_of_2011_is_found_and_shrunk() {
    let target = find("v1-map-before-data").unwrap();
    let results = campaign(&Campaign { runs: Some(400), ..Campaign::default() }, &target, &Silent);
    let [found] = &results.found[..] else { panic!("{} seeds found nothing", results.seeds) };
    let shrunk = found.shrunk.as_ref().unwrap();
    assert!(shrunk.plan.ops.len() <= 6 && shrunk.minimal, "{}", shrunk.plan);
    let again = run(&shrunk.plan, &target, &Settings::default());
    assert_eq!(again.findings[0].signature, found.finding.signature);
    let sound = run(&shrunk.plan, target::find("vdi").unwrap(), &Settings::default());
    assert_eq!(sound.findings, []);
}

#[test]
fn the_sound_copies_stand() {
    for driver in [Driver::Qcow2, Driver::Vdi] {
        let campaign_of = Campaign { runs: Some(12), ..Campaign::default() };
        let results = campaign(&campaign_of, &Planting::sound(driver), &Silent);
        assert!(results.found.is_empty(), "{driver:?}: {} in\n{}", results.found[0].finding, results.found[0].least());
        assert!(results.stats.ops > 100);
    }
}
