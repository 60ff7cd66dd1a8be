//! Many seeds, by as many threads as there are, with the result of one.
//!
//! A seed is run by whoever comes to it; findings are taken in the order of seeds, and of two findings with one signature
//! the one of the lower seed is kept. So what a campaign reports does not depend on how many threads worked on it, but
//! where a clock or a signal ended it: then seeds that were under way are not counted, though some after them may be.

mod judge;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use self::judge::Replays;
pub use self::watch::{Silent, Watch};

use crate::finding::Signature;
use crate::plan::Plan;
use crate::run::{Finding, Settings, Stats, run_until};
use crate::shrink::{Budget, Limit, Progress, Shrunk, shrink};
use crate::sweep;
use crate::target::Target;
use crate::workload::{Profile, TargetInfo, generate};

/// What to do.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// How much is spent on a seed.
    pub profile: Profile,
    /// Each seed's plan is a short one of which every request below fails in turn, instead of a long one with faults
    /// here and there.
    pub sweep: bool,
    /// The first seed.
    pub first: u64,
    /// How many seeds; `None`: until [`Watch::stop`] says so.
    pub runs: Option<u64>,
    /// Findings of different signatures after which it ends; 0: never.
    pub until_findings: usize,
    /// Signatures that are known already and do not count for that.
    pub known: Vec<Signature>,
    /// Threads.
    pub jobs: usize,
    /// Of so many seeds one is run twice, to see whether the driver is deterministic; 0: none but those that fail.
    pub repeat_every: u64,
    /// Bounds of a run.
    pub settings: Settings,
    /// How far findings are shrunk; `None`: not at all.
    pub shrink: Option<Budget>,
}

impl Campaign {
    /// The plan of a seed.
    pub fn plan(&self, seed: u64, info: &TargetInfo) -> Plan {
        match self.sweep {
            true => sweep::plain(generate(seed, info, &self.profile.swept())),
            false => generate(seed, info, &self.profile),
        }
    }
}

impl Default for Campaign {
    fn default() -> Self {
        Self {
            profile: Profile::QUICK,
            sweep: false,
            first: 0,
            runs: Some(100),
            until_findings: 1,
            known: Vec::new(),
            jobs: 1,
            repeat_every: 20,
            settings: Settings::default(),
            shrink: Some(Budget::default()),
        }
    }
}

/// Something found, and the least plan that shows it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed that found it first.
    pub seed: u64,
    /// Seeds of the campaign that found it.
    pub times: u64,
    /// Client requests of the seeds up to and with the one that found it.
    pub ops: u64,
    /// What the first run said.
    pub finding: Finding,
    /// That run's plan, without chance.
    pub plan: Plan,
    /// What shrinking made of it.
    pub shrunk: Option<Shrunk>,
}

impl Found {
    /// The least plan there is.
    pub fn least(&self) -> &Plan {
        self.shrunk.as_ref().map_or(&self.plan, |shrunk| &shrunk.plan)
    }
}

/// What came of a campaign.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// How many seeds were run, from the first one on.
    pub seeds: u64,
    /// Seeds before the last of these that were not, because somebody ended the campaign while they were under way: fewer
    /// than there were threads.
    pub unfinished: Vec<u64>,
    /// What was done.
    pub stats: Stats,
    /// What was found, by seed.
    pub found: Vec<Found>,
}

/// What a worker puts down for a seed.
struct Entry {
    stats: Stats,
    /// Of different signatures.
    findings: Vec<(Finding, Plan)>,
}

/// Runs a campaign against a target.
pub fn campaign(campaign: &Campaign, target: &dyn Target, watch: &dyn Watch) -> Results {
    let desk = Desk {
        next: AtomicU64::new(campaign.first),
        enough: AtomicBool::new(false),
        entries: Mutex::new(BTreeMap::new()),
    };
    let info = target.info();
    // Enough is found when all seeds before are done: nobody needs those that are still under way.
    let stop = || desk.enough.load(Ordering::Acquire) || watch.stop();
    let work = || {
        loop {
            if stop() {
                return;
            }
            let seed = desk.next.fetch_add(1, Ordering::Relaxed);
            if campaign.runs.is_some_and(|runs| seed.wrapping_sub(campaign.first) >= runs) {
                return;
            }
            let plan = campaign.plan(seed, &info);
            let entry = match campaign.sweep {
                true => swept(campaign, target, &plan, &stop),
                false => one(campaign, target, &plan, &stop),
            };
            let Some(entry) = entry else { return };
            desk.put(campaign, seed, entry, watch);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..campaign.jobs.max(1) {
            scope.spawn(work);
        }
        work();
    });
    let entries = desk.entries.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut results = gather(campaign, entries);
    if let Some(budget) = &campaign.shrink {
        for found in &mut results.found {
            if found.finding.signature.code == "nondeterminism" {
                continue;
            }
            if watch.stop_shrinking() {
                break;
            }
            let stop = || watch.stop_shrinking();
            let judge = Replays { target, settings: campaign.settings, jobs: campaign.jobs, stop: &stop };
            let signature = found.finding.signature.clone();
            let mut look = |progress: &Progress<'_>| {
                watch.shrinking(progress);
                if watch.stop_shrinking() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let shrunk = shrink(&found.plan, &signature, budget, &judge, &mut look);
            // Stopped in its very first run, which then said nothing.
            let begun = shrunk.limit != Limit::NotFailing || !watch.stop_shrinking();
            found.shrunk = begun.then_some(shrunk);
        }
    }
    results
}

/// Runs one plan; and again, if it fails or its seed is one of those. `None` if it had to stop before its end.
fn one(campaign: &Campaign, target: &dyn Target, plan: &Plan, stop: &dyn Fn() -> bool) -> Option<Entry> {
    let outcome = run_until(plan, target, &campaign.settings, stop)?;
    let (stats, mut finding) = (outcome.stats, outcome.findings.into_iter().next());
    let asked = campaign.repeat_every > 0 && plan.seed.is_multiple_of(campaign.repeat_every);
    if asked || finding.is_some() {
        // The first run is whole, and holds without the second one.
        let again = run_until(plan, target, &campaign.settings, stop);
        if again.is_some_and(|again| again.digest != outcome.digest) {
            let text = "the same plan made another run: the driver depends on something that is not its input";
            finding = Some(Finding::new("nondeterminism", "run", text));
        }
    }
    Some(Entry { stats, findings: finding.map(|finding| (finding, outcome.explicit)).into_iter().collect() })
}

/// Sweeps the plan of a seed. Nothing, if it was stopped on the way: part of a sweep says nothing of its seed.
fn swept(campaign: &Campaign, target: &dyn Target, plan: &Plan, stop: &(dyn Fn() -> bool + Sync)) -> Option<Entry> {
    // Seeds are worked on side by side; a single one is not.
    let jobs = if campaign.runs == Some(1) { campaign.jobs } else { 1 };
    let swept = sweep::sweep(plan, target, &campaign.settings, jobs, stop);
    (!swept.stopped || !swept.found.is_empty()).then_some(Entry { stats: swept.stats, findings: swept.found })
}

struct Desk {
    next: AtomicU64,
    enough: AtomicBool,
    entries: Mutex<BTreeMap<u64, Entry>>,
}

impl Desk {
    fn put(&self, campaign: &Campaign, seed: u64, entry: Entry, watch: &dyn Watch) {
        watch.seed(seed, &entry.stats, entry.findings.first().map(|(finding, _)| finding));
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.insert(seed, entry);
        // Enough is enough once all seeds before are done: a lower one may yet find something.
        let done = (campaign.first..).zip(entries.iter()).take_while(|(want, (seed, _))| want == *seed);
        let mut signatures: Vec<&Signature> =
            done.flat_map(|(_, (_, entry))| entry.findings.iter().map(|(finding, _)| &finding.signature)).collect();
        signatures.sort_unstable();
        signatures.dedup();
        signatures.retain(|signature| !campaign.known.contains(signature));
        if campaign.until_findings > 0 && signatures.len() >= campaign.until_findings {
            self.enough.store(true, Ordering::Release);
        }
    }
}

/// Puts together what the seeds came to, in their order, up to the last one needed.
fn gather(campaign: &Campaign, entries: BTreeMap<u64, Entry>) -> Results {
    let mut results = Results::default();
    let mut done = BTreeSet::new();
    for (seed, entry) in entries {
        done.insert(seed.wrapping_sub(campaign.first));
        results.seeds = results.seeds.saturating_add(1);
        results.stats += entry.stats;
        for (finding, plan) in entry.findings {
            match results.found.iter_mut().find(|found| found.finding.signature == finding.signature) {
                Some(found) => found.times = found.times.saturating_add(1),
                None => {
                    let ops = results.stats.ops;
                    results.found.push(Found { seed, times: 1, ops, finding, plan, shrunk: None });
                }
            }
        }
        let unknown = results.found.iter().filter(|found| !campaign.known.contains(&found.finding.signature)).count();
        if campaign.until_findings > 0 && unknown >= campaign.until_findings {
            break;
        }
    }
    let last = done.last().copied().unwrap_or(0);
    let missing = (0..last).filter(|number| !done.contains(number));
    results.unfinished = missing.map(|number| campaign.first.wrapping_add(number)).collect();
    results
}
