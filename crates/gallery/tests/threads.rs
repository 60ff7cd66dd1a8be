//! Threads: each race that is planted is found, shrunk and told with its rate; the driver with its locks right stands.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use blkproof_gallery::Threaded;
use blkproof_gallery::drivers::Race;
use blkproof_torture::campaign::Silent;
use blkproof_torture::shrink::Budget;
use blkproof_torture::threads::{Settings, Target, Wanted, campaign, rate};

fn target(threaded: Threaded) -> Arc<dyn Target> {
    Arc::new(threaded)
}

/// Wrong bytes, by whichever rule they are noticed.
const BYTES: &[&str] =
    &["foreign", "read", "inversion", "zero", "discard", "overlap", "failed-write", "reopen", "flush", "fua"];

/// What each race may show as, besides wrong bytes: a map that names a place twice is refused.
const FOUND: &[(Race, &[&str])] = &[
    (Race::EarlyTest, &["open", "error-contract"]),
    (Race::UnlockedFill, &[]),
    (Race::UnlockedMerge, &["open"]),
    (Race::UnlockedFlush, &["open"]),
    (Race::EarlyReuse, &["open"]),
];

#[test]
fn races_are_found() {
    for (race, also) in FOUND {
        let wanted = Wanted { runs: Some(2000), shrink: None, ..Wanted::default() };
        let results = campaign(&wanted, &target(Threaded::of(*race)), &Silent);
        let [found] = &results.found[..] else { panic!("{race:?}: {} seeds found nothing", results.seeds) };
        let code = found.finding.signature.code.as_str();
        assert!(BYTES.contains(&code) || also.contains(&code), "{race:?}: {}", found.finding);
    }
}

#[test]
fn a_thread_that_panics_is_a_finding() {
    let wanted = Wanted { runs: Some(2000), shrink: None, ..Wanted::default() };
    let results = campaign(&wanted, &target(Threaded::of(Race::LonelyFlush)), &Silent);
    let [found] = &results.found[..] else { panic!("{} seeds found nothing", results.seeds) };
    assert_eq!(found.finding.signature.code, "panic");
    assert!(found.finding.signature.site.starts_with("gallery/src/drivers/thin/mod.rs:"), "{}", found.finding);
}

/// A lock taken in either order: nothing short of waiting shows it, so little of it is done here.
#[test]
fn threads_that_wait_for_each_other_are_noticed() {
    let settings = Settings { patience: Duration::from_secs(2), ..Settings::default() };
    let wanted = Wanted { runs: Some(2000), shrink: None, repeats: 1, settings, ..Wanted::default() };
    let results = campaign(&wanted, &target(Threaded::of(Race::LockOrder)), &Silent);
    let [found] = &results.found[..] else { panic!("{} seeds found nothing", results.seeds) };
    assert_eq!(found.finding.signature.code, "hang");
    assert!(found.finding.text.contains("op "), "{}", found.finding);
}

#[test]
fn a_race_is_shrunk_and_told_with_its_rate() {
    let race = target(Threaded::of(Race::EarlyTest));
    let budget = Budget { runs: 150, ..Budget::default() };
    let wanted = Wanted { runs: Some(2000), shrink: Some(budget), ..Wanted::default() };
    let results = campaign(&wanted, &race, &Silent);
    let [found] = &results.found[..] else { panic!("{} seeds found nothing", results.seeds) };
    assert!(found.least().size() < found.plan.size(), "{}", found.least());
    assert!(found.rate.runs > 0 && !found.shrunk.as_ref().unwrap().minimal);
    // The same plan on the driver with its locks right.
    let (clean, first) = rate(found.least(), &target(Threaded::sound()), &wanted.settings, None, 50);
    assert_eq!((clean.failed, clean.runs), (0, 50), "{first:?}");
}

#[test]
fn the_sound_driver_stands() {
    for threads in [1, 2, 4, 8] {
        let wanted = Wanted { runs: Some(60), threads, ..Wanted::default() };
        let results = campaign(&wanted, &target(Threaded::sound()), &Silent);
        assert!(results.found.is_empty(), "{threads}: {}\n{}", results.found[0].finding, results.found[0].least());
        assert!(results.stats.ops > 1000 && results.stats.faults > 20, "{:?}", results.stats);
    }
}

/// With one queue nothing is wrong: what is planted is of threads alone.
#[test]
fn one_thread_shows_nothing() {
    for race in Race::ALL {
        let wanted = Wanted { runs: Some(15), threads: 1, ..Wanted::default() };
        let results = campaign(&wanted, &target(Threaded::of(*race)), &Silent);
        assert!(results.found.is_empty(), "{race:?}: {}\n{}", results.found[0].finding, results.found[0].least());
    }
}
