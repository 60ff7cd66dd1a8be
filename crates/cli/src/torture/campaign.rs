//! A campaign against one target, and what is made of its findings.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blkproof_torture::campaign::{Campaign, Results, Watch as _, campaign};
use blkproof_torture::store::{Date, Known, Record, Standing, Store};
use blkproof_torture::target::Target;
use serde_json::{Value, json};

use super::watcher::Watcher;
use crate::stop::Stop;

/// What ended a campaign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// All seeds were run.
    Runs,
    /// Its time was over.
    Time,
    /// Enough was found.
    Findings,
    /// Somebody stopped it.
    Signal,
}

impl Ended {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Time => "time",
            Self::Findings => "findings",
            Self::Signal => "signal",
        }
    }

    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Runs => "all seeds were run",
            Self::Time => "its time was over",
            Self::Findings => "enough was found",
            Self::Signal => "stopped by a signal",
        }
    }

    /// Whether less was done than was asked for, without a finding being the reason.
    pub(super) fn is_early(self) -> bool {
        self == Self::Signal
    }
}

/// A finding, and what is known of it.
pub(super) struct Told {
    pub(super) record: Record,
    pub(super) standing: Standing,
    /// Where its plan is kept, if there is a store.
    pub(super) kept: Option<PathBuf>,
}

/// What came of a campaign against one target.
pub(super) struct Done {
    pub(super) target: String,
    pub(super) first: u64,
    pub(super) results: Results,
    pub(super) findings: Vec<Told>,
    pub(super) ended: Ended,
    pub(super) seconds: f64,
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
        self.results.seeds == 0 || self.ended.is_early()
    }

    pub(super) fn json(&self) -> Value {
        let stats = &self.results.stats;
        let findings: Vec<Value> = self.findings.iter().map(Told::json).collect();
        json!({
            "target": self.target,
            "first_seed": self.first,
            "seeds": self.results.seeds,
            "ended": self.ended.name(),
            "seconds": self.seconds,
            "stats": {
                "operations": stats.ops, "moves": stats.moves, "requests_below": stats.ios, "faults": stats.faults,
                "cancels": stats.drops, "bytes_judged": stats.judged, "reopens": stats.reopens,
                "crash_points": stats.points, "crash_points_exhausted": stats.exhausted,
                "crash_states_possible": stats.possible, "crash_states": stats.states,
                "crash_states_distinct": stats.distinct, "checks": stats.checks,
            },
            "findings": findings,
        })
    }
}

impl Told {
    fn json(&self) -> Value {
        let mut json = self.record.json();
        if let Value::Object(map) = &mut json {
            map.insert("standing".to_owned(), self.standing.name().into());
            if let Standing::Known(issue) | Standing::Expired(issue) = &self.standing {
                map.insert("known".to_owned(), json!({"until": issue.until.to_string(), "why": issue.why}));
            }
            if let Some(path) = &self.kept {
                map.insert("kept".to_owned(), path.display().to_string().into());
            }
        }
        json
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
    pub(super) fn torture(&self, target: &dyn Target) -> anyhow::Result<Done> {
        let today = today();
        let plan = Campaign { known: self.known.signatures(target.name(), today), ..self.campaign.clone() };
        let watcher = Watcher::new(self.stop, target.name(), plan.runs, self.time);
        let results = campaign(&plan, target, &watcher);
        let seconds = watcher.elapsed().as_secs_f64();
        watcher.clear();
        let ended = match () {
            () if plan.runs.is_some_and(|runs| results.seeds >= runs) => Ended::Runs,
            () if self.stop.asked() => Ended::Signal,
            () if enough(&plan, &results) => Ended::Findings,
            () if watcher.stop() => Ended::Time,
            () => Ended::Runs,
        };
        let mut findings = Vec::new();
        // As it is said on the command line, so that the seed is enough.
        let profile = format!("{}{}", plan.profile.name, if plan.sweep { " --sweep" } else { "" });
        for found in &results.found {
            let record = Record::of(found, &profile, target, &plan.settings);
            let standing = self.known.standing(target.name(), &record.finding.signature, today);
            let keep = |store: &Store| store.put(&record).map(|(name, _)| store.plan_path(&name));
            let kept = self.store.map(keep).transpose()?;
            findings.push(Told { record, standing, kept });
        }
        Ok(Done { target: target.name().to_owned(), first: plan.first, results, findings, ended, seconds })
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
