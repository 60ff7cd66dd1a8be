//! Sweeps: what hides on error paths is found from plans of a few ops without any chance in them, and sound drivers pass.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use blkproof_gallery::{Driver, Planting, find};
use blkproof_torture::campaign::{Campaign, Silent, campaign};
use blkproof_torture::plan::Plan;
use blkproof_torture::run::Settings;
use blkproof_torture::sweep::{Swept, sweep};
use blkproof_torture::target::Target;

/// Name of the mutant, its image, ops in which nothing fails of itself, and what the sweep finds first.
const PLAIN: &[(&str, &str, &[&str], &str)] = &[
    ("m1-entry-before-data", CLUSTERS, &["1 write 0+512", "2 write 512+512", "3 reopen"], "error-contract"),
    ("m2-read-error-at-once", BLOCKS, &["1 write 0+512", "2 read 0+512"], "foreign"),
    ("m3-frees-preallocated", CLUSTERS, &["1 write 0+4K", "2 zeroes 0+4K", "3 write 0+4K", "4 write 8K+4K"], "I2"),
    ("m5-loses-refcounts", CLUSTERS, &["1 write 0+4K", "2 flush", "3 reopen"], "I2"),
    ("m6-keeps-failed-data", "", &["1 write 0+4K", "2 write 0+512 fua", "3 read 0+512"], "reopen"),
    ("m7-second-error-lost", CLUSTERS, &["1 write 4K+4K", "2 write 0+4K", "3 write 0+8K", "4 read 0+8K"], "read"),
    ("q2-refused-read-succeeds", CLUSTERS, &["1 write 0+4K", "2 read 0+4K"], "foreign"),
    ("v1-map-before-data", "", &["1 write 0+512", "2 write 512+512", "3 reopen"], "reopen"),
];

const CLUSTERS: &str = "cluster_size = \"4096\"";
const BLOCKS: &str = "block_size = \"4096\"";

fn plan(target: &str, options: &str, ops: &[&str]) -> Plan {
    let ops: String = ops.iter().map(|op| format!("    \"{op}\",\n")).collect();
    let text = format!(
        "schema = \"blkproof.plan/1\"\nops = [\n{ops}]\n[target]\nname = \"{target}\"\nsize = \"64K\"\n\
         [target.options]\n{options}\n"
    );
    Plan::parse(&text).unwrap_or_else(|error| panic!("{target}: {error}\n{text}"))
}

fn swept(target: &dyn Target, plan: &Plan, jobs: usize) -> Swept {
    sweep(plan, target, &Settings::default(), jobs, &|| false)
}

#[test]
fn error_paths_are_found_from_a_few_plain_ops() {
    for (name, options, ops, code) in PLAIN {
        let target = find(name).unwrap();
        let plan = plan(name, options, ops);
        let swept = swept(&target, &plan, 1);
        let found: Vec<_> = swept.found.iter().map(|(finding, _)| finding.signature.code.as_str()).collect();
        assert_eq!(found.first(), Some(code), "{name}: {found:?} in {} runs of\n{plan}", swept.runs);
        // The same driver without the bug passes the same sweep.
        let sound = Planting::sound(target.entry().unwrap().driver);
        let clean = self::swept(&sound, &plan, 1);
        assert!(clean.found.is_empty(), "{}: {}\n{}", sound.name(), clean.found[0].0, clean.found[0].1);
        assert!(clean.runs > 2 * clean.requests && clean.stats.faults >= clean.runs - 1, "{:?}", clean.stats);
    }
}

#[test]
fn threads_change_nothing() {
    let (name, options, ops, _) = PLAIN[0];
    let target = find(name).unwrap();
    let plan = plan(name, options, ops);
    let (one, many) = (swept(&target, &plan, 1), swept(&target, &plan, 3));
    assert_eq!((one.found, one.runs, one.stats), (many.found, many.runs, many.stats));
    let wanted =
        |jobs| Campaign { sweep: true, runs: Some(8), until_findings: 0, shrink: None, jobs, ..Campaign::default() };
    let (one, many) = (campaign(&wanted(1), &target, &Silent), campaign(&wanted(3), &target, &Silent));
    let found = |results: &blkproof_torture::campaign::Results| {
        results.found.iter().map(|found| (found.seed, found.times, found.ops, found.plan.clone())).collect::<Vec<_>>()
    };
    assert!(!one.found.is_empty());
    assert_eq!((found(&one), one.stats, one.seeds), (found(&many), many.stats, many.seeds));
}

/// A sweep's finding goes through the shrinker as all others do.
#[test]
fn what_a_swept_seed_finds_is_shrunk() {
    let target = find("v1-map-before-data").unwrap();
    let wanted = Campaign { sweep: true, runs: Some(200), ..Campaign::default() };
    let results = campaign(&wanted, &target, &Silent);
    let Some(found) = results.found.first() else { panic!("{} seeds found nothing", results.seeds) };
    let shrunk = found.shrunk.as_ref().unwrap();
    assert!(shrunk.minimal && shrunk.plan.ops.len() <= 4 && shrunk.plan.faults.named.len() == 1, "{}", shrunk.plan);
}

#[test]
fn the_sound_copies_stand_a_sweep() {
    for driver in [Driver::Qcow2, Driver::Vdi, Driver::Cache, Driver::Log] {
        let wanted = Campaign { sweep: true, runs: Some(4), ..Campaign::default() };
        let results = campaign(&wanted, &Planting::sound(driver), &Silent);
        assert!(results.found.is_empty(), "{driver:?}: {} in\n{}", results.found[0].finding, results.found[0].least());
        assert!(results.stats.faults > 100, "{driver:?}: {:?}", results.stats);
    }
}
