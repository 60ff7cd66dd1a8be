//! A finding with all that its report says: the least plan, a run of it with its events, and its neighbours.

use std::path::Path;

use blkproof_report::torture::{Case, Ended, Entry, Neighbour, Suite, neighbours};
use blkproof_torture::campaign::Found;
use blkproof_torture::run::{Outcome, Settings, run};
use blkproof_torture::store::{Record, Standing};
use blkproof_torture::target::Target;

use super::targets::AnyTarget;

/// A finding, and what is known of it.
pub(crate) struct Told {
    pub(crate) record: Record,
    pub(crate) standing: Standing,
    /// Where its plan is, if it is in a file.
    pub(crate) file: Option<String>,
    /// As the campaign had it, with the name of the profile; `None` if it was read.
    found: Option<(Found, &'static str)>,
    outcome: Outcome,
    neighbours: Vec<Neighbour>,
    format: Option<&'static str>,
    expression: Option<String>,
}

/// Settings of a run that is reported.
pub(crate) fn with_events(settings: &Settings) -> Settings {
    Settings { events: true, ..*settings }
}

impl Told {
    /// What was read, or comes of a plan that somebody brought, and the run of that plan with its events.
    pub(crate) fn of(record: Record, outcome: Outcome, target: &AnyTarget, stop: &dyn Fn() -> bool) -> Self {
        let (finding, plan) = (&record.finding, &record.plan);
        let neighbours = neighbours::look(plan, &outcome, &finding.signature, target.get(), stop);
        Self {
            record,
            standing: Standing::New,
            file: None,
            found: None,
            outcome,
            neighbours,
            format: target.format(),
            expression: target.expression(),
        }
    }

    /// What a campaign found.
    pub(super) fn of_found(
        found: Found,
        profile: &'static str,
        settings: &Settings,
        target: &AnyTarget,
        stop: &dyn Fn() -> bool,
    ) -> Self {
        let record = Record::of(&found, profile, target.get(), settings);
        let outcome = run(&record.plan, target.get(), &with_events(settings));
        Self { found: Some((found, profile)), ..Self::of(record, outcome, target, stop) }
    }

    /// In a store, of which this is a plan.
    pub(crate) fn kept(self, path: &Path) -> Self {
        Self { file: Some(path.display().to_string()), ..self }
    }

    /// For the renderings.
    pub(crate) fn entry(&self) -> Entry<'_> {
        let file = self.file.as_deref();
        let case = match &self.found {
            Some((found, profile)) => Case::of_found(found, &self.outcome, Some(profile), file),
            None => Case::of_record(&self.record, &self.outcome, file),
        };
        let case = Case {
            format: self.format,
            target_expression: self.expression.as_deref(),
            neighbours: &self.neighbours,
            ..case
        };
        Entry { case, standing: self.standing.clone() }
    }

    /// It alone, for the renderings that take campaigns.
    pub(crate) fn suite(&self) -> Suite<'_> {
        Suite {
            target: &self.record.plan.target.name,
            profile: "plan",
            first: None,
            seeds: 1,
            stats: self.outcome.stats,
            ended: Ended::Runs,
            seconds: None,
            entries: vec![self.entry()],
            coverage: None,
        }
    }
}

/// A run of a plan that is reported.
pub(crate) fn run_told(record: &Record, target: &dyn Target) -> Outcome {
    run(&record.plan, target, &with_events(&Settings::default()))
}
