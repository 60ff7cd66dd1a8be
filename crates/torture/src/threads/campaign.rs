//! Many seeds, one after the other: runs beside each other would only disturb their threads.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::driver::Target;
use super::repeat::{Rate, rate, shrink};
use super::run::{Outcome, Settings, run, spread};
use crate::campaign::Watch;
use crate::finding::Signature;
use crate::plan::Plan;
use crate::run::{Finding, Stats};
use crate::shrink::{Budget, Progress, Shrunk};
use crate::store::{Origin, Record};
use crate::workload::{Profile, generate};

/// What to do.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How much is spent on a seed.
    pub profile: Profile,
    /// The first seed.
    pub first: u64,
    /// How many seeds; `None`: until [`Watch::stop`] says so.
    pub runs: Option<u64>,
    /// Findings of different signatures after which it ends; 0: never.
    pub until_findings: usize,
    /// Signatures that are known already and do not count for that.
    pub known: Vec<Signature>,
    /// Threads that send requests.
    pub threads: u8,
    /// Runs of each seed's plan.
    pub tries: u32,
    /// Runs by which a rate is told, and in one of which a plan has to fail to be shrunk to.
    pub repeats: u32,
    /// Bounds of a run.
    pub settings: Settings,
    /// How far findings are shrunk; `None`: not at all.
    pub shrink: Option<Budget>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            profile: Profile::QUICK,
            first: 0,
            runs: Some(100),
            until_findings: 1,
            known: Vec::new(),
            threads: 4,
            tries: 3,
            repeats: 20,
            settings: Settings::default(),
            shrink: Some(Budget { runs: 600, pass_runs: 200, ..Budget::default() }),
        }
    }
}

/// Something found, the least plan that shows it now and then, and how often.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed that found it first.
    pub seed: u64,
    /// Seeds of the campaign that found it.
    pub times: u64,
    /// Client requests up to and with the run that found it.
    pub ops: u64,
    /// What a run of the least plan said; if none of them failed any more, what that run said.
    pub finding: Finding,
    /// That run's plan: with the faults that happened by name, if it still fails then.
    pub plan: Plan,
    /// What shrinking made of it.
    pub shrunk: Option<Shrunk>,
    /// How often the least plan there is fails.
    pub rate: Rate,
}

impl Found {
    /// The least plan there is.
    pub fn least(&self) -> &Plan {
        self.shrunk.as_ref().map_or(&self.plan, |shrunk| &shrunk.plan)
    }

    /// As it is handed on.
    pub fn record(&self, profile: &str) -> Record {
        let how = match &self.shrunk {
            Some(shrunk) => format!("{} tries of many runs each: {}", shrunk.runs, shrunk.limit.name()),
            None => "no tries".to_owned(),
        };
        let origin = Origin {
            seed: self.seed,
            profile: profile.to_owned(),
            times: self.times,
            ops: self.ops,
            plan_ops: self.plan.ops.len() as u64,
            shrunk: format!("{how}; the plan fails in {}", self.rate),
        };
        Record { finding: self.finding.clone(), plan: self.least().clone(), origin: Some(origin) }
    }
}

/// What came of a campaign.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Seeds whose plans were run.
    pub seeds: u64,
    /// What was done.
    pub stats: Stats,
    /// What was found, in the order in which it was.
    pub found: Vec<Found>,
}

/// The plan of a seed, as threads run it.
pub fn plan_of(seed: u64, target: &dyn Target, wanted: &Wanted) -> Plan {
    spread(generate(seed, &target.info(), &wanted.profile), wanted.threads)
}

/// Runs a campaign against a target.
pub fn campaign(wanted: &Wanted, target: &Arc<dyn Target>, watch: &dyn Watch) -> Results {
    let mut results = Results::default();
    let mut seed = wanted.first;
    while wanted.runs.is_none_or(|runs| results.seeds < runs) && !enough(wanted, &results) && !watch.stop() {
        let plan = plan_of(seed, &**target, wanted);
        let mut stats = Stats::default();
        let mut found = None;
        for number in 0..wanted.tries.max(1) {
            let Outcome { finding, stats: more, explicit, .. } = run(&plan, target, &wanted.settings, number.into());
            stats += more;
            if let Some(finding) = finding {
                found = Some((finding, explicit));
                break;
            }
        }
        results.seeds = results.seeds.saturating_add(1);
        results.stats += stats;
        watch.seed(seed, &stats, found.as_ref().map(|(finding, _)| finding));
        if let Some((finding, explicit)) = found {
            keep(wanted, target, &mut results, seed, finding, (plan, explicit));
        }
        seed = seed.wrapping_add(1);
    }
    if let Some(budget) = &wanted.shrink {
        for found in &mut results.found {
            let signature = found.finding.signature.clone();
            if signature.code == "create" || watch.stop_shrinking() {
                continue;
            }
            let mut look = |progress: &Progress<'_>| {
                watch.shrinking(progress);
                if watch.stop_shrinking() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let (settings, runs) = (&wanted.settings, wanted.repeats.max(1));
            let (shrunk, first) = shrink(&found.plan, &signature, target, settings, runs, budget, &mut look);
            found.rate = Rate { failed: count(shrunk.verified.0), runs: count(shrunk.verified.1) };
            found.shrunk = Some(shrunk);
            // What is said is about the plan that is shown.
            found.finding = first.unwrap_or_else(|| found.finding.clone());
        }
    }
    results
}

fn count(runs: usize) -> u32 {
    u32::try_from(runs).unwrap_or(u32::MAX)
}

fn enough(wanted: &Wanted, results: &Results) -> bool {
    let unknown = results.found.iter().filter(|found| !wanted.known.contains(&found.finding.signature)).count();
    wanted.until_findings > 0 && unknown >= wanted.until_findings
}

fn keep(
    wanted: &Wanted,
    target: &Arc<dyn Target>,
    results: &mut Results,
    seed: u64,
    finding: Finding,
    (plan, explicit): (Plan, Plan),
) {
    if let Some(found) = results.found.iter_mut().find(|found| found.finding.signature == finding.signature) {
        found.times = found.times.saturating_add(1);
        return;
    }
    let tell = |plan: &Plan| rate(plan, target, &wanted.settings, Some(&finding.signature), wanted.repeats).0;
    let (mut plan, mut of) = (plan, Rate::default());
    if explicit != plan {
        of = tell(&explicit);
        if of.failed > 0 {
            plan = explicit;
        }
    }
    if of.failed == 0 {
        of = tell(&plan);
    }
    let ops = results.stats.ops;
    results.found.push(Found { seed, times: 1, ops, finding, plan, shrunk: None, rate: of });
}
