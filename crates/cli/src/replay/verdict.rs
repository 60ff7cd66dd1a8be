//! What came of a plan.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use blkproof_report::torture::{Ended, Suite, json};
use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Finding, Outcome, Settings, run};
use blkproof_torture::store::Record;
use serde_json::{Value, json};

use super::Case;
use crate::torture::{Told, counted, find_target, run_told};

/// A plan that was run.
pub(crate) struct Verdict {
    pub(crate) case: Case,
    /// What is wrong.
    pub(crate) found: Option<Told>,
    outcome: Outcome,
    took: Duration,
}

/// Runs a plan; twice, for a driver that is not deterministic is told so.
pub(crate) fn judge(case: Case) -> anyhow::Result<Verdict> {
    case.plan.validate()?;
    let name = &case.plan.target.name;
    let target = find_target(name).ok_or_else(|| anyhow!("this program has no driver '{name}'"))?;
    let begun = Instant::now();
    let outcome = run(&case.plan, target.get(), &Settings::default());
    let mut record = Record { finding: Finding::new("", "", ""), plan: case.plan.clone(), origin: case.origin.clone() };
    let again = run_told(&record, target.get());
    let took = begun.elapsed();
    let finding = match again.digest == outcome.digest {
        true => again.findings.first().cloned(),
        false => {
            let words = "the same plan made another run: the driver depends on something that is not its input";
            Some(Finding::new("nondeterminism", "run", words))
        }
    };
    let found = finding.map(|finding| {
        record.finding = finding;
        let told = Told::of(record, again, &target, &|| false);
        match &case.file {
            Some(file) => told.kept(file),
            None => told,
        }
    });
    Ok(Verdict { case, found, outcome, took })
}

impl Verdict {
    /// What is wrong, as it would be kept.
    pub(crate) fn record(&self) -> Option<&Record> {
        self.found.as_ref().map(|told| &told.record)
    }

    /// Whether the plan could be run at all.
    pub(crate) fn fits(&self) -> bool {
        let code = self.record().map(|found| found.finding.signature.code.as_str());
        !matches!(code, Some("plan" | "create"))
    }

    /// Whether it fails in another way than it did.
    pub(crate) fn is_other(&self) -> bool {
        match (self.record(), &self.case.recorded) {
            (Some(found), Some(recorded)) => found.finding.signature != *recorded,
            _ => false,
        }
    }

    /// The plan of this run, with nothing left to chance.
    pub(crate) fn explicit_plan(&self) -> &Plan {
        &self.outcome.explicit
    }

    pub(crate) fn words(&self) -> String {
        let target = &self.case.plan.target.name;
        let ops = counted(self.outcome.stats.ops, "operation");
        let states = match self.outcome.stats.states {
            0 => String::new(),
            states => format!(" and {}", counted(states, "crash state")),
        };
        match (self.record(), &self.case.recorded) {
            (None, None) => format!("{target} passes: {ops}{states}, nothing wrong"),
            (None, Some(recorded)) => format!("{target} passes: {ops}{states}; '{recorded}' is not there any more"),
            (Some(found), _) if !self.fits() => format!("{target} can not run this plan: {}", found.finding.text),
            (Some(_), None) => format!("{target} fails"),
            (Some(_), Some(_)) if !self.is_other() => format!("{target} fails as it did"),
            (Some(found), Some(recorded)) => {
                format!("{target} fails in another way: '{}', it was '{recorded}'", found.finding.signature)
            }
        }
    }

    /// Its word for programs.
    pub(crate) fn name(&self) -> &'static str {
        match &self.found {
            None => "passes",
            Some(_) if !self.fits() => "does-not-fit",
            Some(_) if self.is_other() => "fails-otherwise",
            Some(_) => "fails",
        }
    }

    /// For the renderings that take campaigns.
    pub(crate) fn suite(&self) -> Suite<'_> {
        Suite {
            target: &self.case.plan.target.name,
            profile: "plan",
            first: None,
            seeds: 1,
            stats: self.outcome.stats,
            ended: Ended::Runs,
            seconds: Some(self.took.as_secs_f64()),
            entries: self.found.iter().map(Told::entry).collect(),
            coverage: None,
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.case.name,
            "target": self.case.plan.target.name,
            "verdict": self.name(),
            "words": self.words(),
            "recorded": self.case.recorded.as_ref().map(ToString::to_string),
            "stats": json::stats(&self.outcome.stats),
            "finding": self.found.as_ref().map(|told| json::entry(&told.entry())),
            "explicit-plan": self.explicit_plan().to_string(),
        })
    }
}
