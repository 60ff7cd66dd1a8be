//! A campaign against one target, and what is made of its findings.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blkproof_report::torture::{Coverage, Ended, Suite};
use blkproof_torture::campaign::{Campaign, Results, Watch as _, campaign};
use blkproof_torture::store::{Date, Known, Store};
use blkproof_torture::workload::Profile;

use super::targets::AnyTarget;
use super::told::Told;
use super::watcher::Watcher;
use crate::stop::Stop;

/// What came of a campaign against one target.
pub(super) struct Done {
    target: String,
    profile: Profile,
    first: u64,
    results: Results,
    findings: Vec<Told>,
    coverage: Coverage,
    ended: Ended,
    seconds: f64,
}

impl Done {
    /// A finding that fails the run.
    pub(super) fn failed(&self) -> bool {
        self.findings.iter().any(|told| told.standing.fails())
    }

    /// No request was ever sent, because there was nothing to send it to.
    pub(super) fn not_started(&self) -> bool {
        let codes = ["create", "open"];
        self.results.stats.ops == 0
            && self.findings.iter().any(|told| codes.contains(&told.record.finding.signature.code.as_str()))
    }

    /// Nothing can be said: no seed was run, or not all that were to be.
    pub(super) fn too_little(&self) -> bool {
        self.results.seeds == 0 || self.ended == Ended::Signal
    }

    /// For the renderings.
    pub(super) fn suite(&self) -> Suite<'_> {
        Suite {
            target: &self.target,
            profile: self.profile.name,
            first: Some(self.first),
            seeds: self.results.seeds,
            stats: self.results.stats,
            ended: self.ended,
            seconds: Some(self.seconds),
            entries: self.findings.iter().map(Told::entry).collect(),
            coverage: Some(&self.coverage),
        }
    }
}

/// What is the same for all targets of a run.
pub(super) struct Setting<'a> {
    pub(super) campaign: Campaign,
    pub(super) time: Option<Duration>,
    pub(super) known: &'a Known,
    pub(super) store: Option<&'a Store>,
    pub(super) stop: &'a Stop,
}

impl Setting<'_> {
    /// Tortures one target.
    pub(super) fn torture(&self, any: &AnyTarget) -> anyhow::Result<Done> {
        let (today, target) = (today(), any.get());
        let plan = Campaign { known: self.known.signatures(target.name(), today), ..self.campaign.clone() };
        let watcher = Watcher::new(self.stop, target.name(), plan.runs, self.time);
        let mut results = campaign(&plan, target, &watcher);
        let seconds = watcher.elapsed().as_secs_f64();
        watcher.clear();
        let ended = match () {
            () if plan.runs.is_some_and(|runs| results.seeds >= runs) => Ended::Runs,
            () if self.stop.asked() => Ended::Signal,
            () if enough(&plan, &results) => Ended::Findings,
            () if watcher.stop() => Ended::Time,
            () => Ended::Runs,
        };
        let stop = || self.stop.asked();
        let mut findings = Vec::new();
        let profile = profile_words(&plan);
        for found in std::mem::take(&mut results.found) {
            let mut told = Told::of_found(found, profile, &plan.settings, any, &stop);
            told.standing = self.known.standing(target.name(), &told.record.finding.signature, today);
            if let Some(store) = self.store {
                let (name, _) = store.put(&told.record)?;
                told = told.kept(&store.plan_path(&name));
            }
            findings.push(told);
        }
        let coverage = Coverage::of(&results, &plan, &target.info());
        let (target, profile, first) = (target.name().to_owned(), plan.profile, plan.first);
        Ok(Done { target, profile, first, results, findings, coverage, ended, seconds })
    }
}

/// The profile as it is said on the command line, so that the seed is enough.
fn profile_words(plan: &Campaign) -> &'static str {
    match (plan.profile.name, plan.sweep) {
        (name, false) => name,
        ("quick", true) => "quick --sweep",
        ("ci", true) => "ci --sweep",
        (_, true) => "deep --sweep",
    }
}

fn enough(plan: &Campaign, results: &Results) -> bool {
    let unknown = results.found.iter().filter(|found| !plan.known.contains(&found.finding.signature)).count();
    plan.until_findings > 0 && unknown >= plan.until_findings
}

/// This day, in UTC. A clock set before 1970 reads as 1970.
pub(crate) fn today() -> Date {
    Date::of_unix(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
