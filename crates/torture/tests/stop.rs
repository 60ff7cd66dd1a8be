//! Runs and campaigns that are stopped before their end.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use blkproof_torture::campaign::{Campaign, Results, Watch, campaign};
use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Settings, Stats, run, run_until};
use blkproof_torture::target;

/// A plan with power cuts, and with cuts during the recovery from them.
fn busy() -> Plan {
    let text = r#"schema = "blkproof.plan/1"
crash = "explore 20 states, depth 1, seed 7"
ops = ["1 write 0+1K", "2 q1 write 2M+512", "3 flush", "4 write 1M+4K fua", "5 q1 discard 0+512", "6 reopen", "7 read 0+1K"]
[target]
name = "vdi"
size = "4M"
"#;
    text.parse().unwrap()
}

#[test]
fn half_of_a_run_says_nothing() {
    let (plan, vdi, settings) = (busy(), target::find("vdi").unwrap(), Settings::default());
    let whole = run(&plan, vdi, &settings);
    let asked = Cell::new(0_u32);
    let ask = |last: u32| {
        asked.set(0);
        run_until(&plan, vdi, &settings, &|| {
            asked.set(asked.get() + 1);
            asked.get() >= last
        })
    };
    let to_the_end = ask(u32::MAX).unwrap();
    assert_eq!((to_the_end.digest, to_the_end.stats), (whole.digest, whole.stats), "asking changes nothing");
    let all = asked.get();
    assert!(u64::from(all) >= whole.stats.states, "before each of {} states: {all}", whole.stats.states);
    // Wherever it stops, in opening, in the run, in a recovery, at the end: no outcome, and nobody is asked again.
    let some = (1..=all).filter(|last| *last < 8 || all - last < 8 || last % 397 == 0);
    for last in some {
        assert!(ask(last).is_none(), "question {last} of {all}");
        assert_eq!(asked.get(), last);
    }
    assert!(ask(all + 1).is_some());
}

/// Stops a campaign at the n-th question, and sums up what it hears of.
struct After {
    questions: AtomicU64,
    last: u64,
    heard: AtomicU64,
}

impl Watch for After {
    fn stop(&self) -> bool {
        self.questions.fetch_add(1, Ordering::Relaxed) + 1 >= self.last
    }

    fn seed(&self, _seed: u64, stats: &Stats, _finding: Option<&blkproof_torture::run::Finding>) {
        self.heard.fetch_add(stats.ops, Ordering::Relaxed);
    }
}

#[test]
fn a_stopped_campaign_counts_whole_seeds_only() {
    let vdi = target::find("vdi").unwrap();
    let go = |runs: u64, last: u64, jobs: usize| -> (Results, u64) {
        let watch = After { questions: AtomicU64::new(0), last, heard: AtomicU64::new(0) };
        let plan = Campaign { runs: Some(runs), jobs, first: 5, ..Campaign::default() };
        let results = campaign(&plan, vdi, &watch);
        (results, watch.heard.load(Ordering::Relaxed))
    };
    let (mut stopped, mut most) = (0, 0);
    for last in [1, 2, 40, 400, 2000] {
        let (results, heard) = go(1000, last, 1);
        assert!(results.unfinished.is_empty() && results.found.is_empty());
        assert_eq!(results.stats.ops, heard, "what was under way is not counted");
        let (same, _) = go(results.seeds.max(1), u64::MAX, 1);
        if results.seeds > 0 {
            assert_eq!(results.stats, same.stats, "the first {} seeds", results.seeds);
        }
        stopped += u32::from(results.seeds < 1000);
        most = results.seeds.max(most);
    }
    assert!(stopped == 5 && most > 1, "{stopped} {most}");
    // With several threads later seeds may be done: those that are missing are named.
    let (results, heard) = go(1000, 2000, 4);
    assert!(results.unfinished.len() < 4 && results.stats.ops == heard);
    let last = 5 + results.seeds + results.unfinished.len() as u64;
    assert!(results.unfinished.iter().all(|seed| (5..last).contains(seed)), "{results:?}");
}
