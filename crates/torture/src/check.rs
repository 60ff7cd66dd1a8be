//! A line in a driver's own tests.

use std::panic::panic_any;

use crate::campaign::{Campaign, Silent, campaign};
use crate::plan::Plan;
use crate::run::{Finding, Settings, run};
use crate::shrink::Budget;
use crate::store::Record;
use crate::target::Target;
use crate::workload::Profile;

/// Tortures a driver in a test, which fails with the least plan that breaks it.
///
/// ```
/// use blkproof_torture::plan::TargetSpec;
/// use blkproof_torture::target::{Files, Opening, Target};
///
/// struct Mine;
///
/// impl Target for Mine {
///     fn name(&self) -> &str {
///         "mine"
///     }
///     fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
///         Box::pin(async move { Ok(files.image) }) // a real driver puts itself around it
///     }
/// }
///
/// // #[test] fn torture() {
/// blkproof_torture::check(Mine).runs(20).quick();
/// // }
/// ```
///
/// The seeds are the same in every run, so a test that passed fails only if something changed. What was found once is kept
/// as a test of its own, with [`Check::plan`].
pub fn check<T: Target>(target: T) -> Check<T> {
    Check { target, first: 0, runs: None, settings: Settings::default() }
}

/// How a driver is tortured; made by [`check`].
#[derive(Clone, Debug)]
#[must_use = "quick, ci, deep or plan begins"]
pub struct Check<T> {
    target: T,
    first: u64,
    runs: Option<u64>,
    settings: Settings,
}

impl<T: Target> Check<T> {
    /// From this seed on; 0, if nothing is said.
    pub fn seed(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// So many seeds, instead of as many as the profile has.
    pub fn runs(self, runs: u64) -> Self {
        Self { runs: Some(runs), ..self }
    }

    /// Within these bounds.
    pub fn settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// 100 short plans: for every build.
    ///
    /// # Panics
    /// With what was found, and the least plan that shows it.
    #[track_caller]
    pub fn quick(self) {
        self.torture(Profile::QUICK, 100);
    }

    /// 1000 plans: for every change that is proposed.
    ///
    /// # Panics
    /// With what was found, and the least plan that shows it.
    #[track_caller]
    pub fn ci(self) {
        self.torture(Profile::CI, 1000);
    }

    /// 10 000 long plans: for nights.
    ///
    /// # Panics
    /// With what was found, and the least plan that shows it.
    #[track_caller]
    pub fn deep(self) {
        self.torture(Profile::DEEP, 10_000);
    }

    /// Runs a plan, as a report has it, against this driver, whatever target it names.
    ///
    /// # Panics
    /// With what is wrong with the driver, or with the plan's text.
    #[track_caller]
    pub fn plan(self, text: &str) {
        let plan = match Plan::parse(text) {
            Ok(plan) => plan,
            Err(error) => return fail(format!("the plan can not be read: {error}")),
        };
        if let Some(finding) = run(&plan, &self.target, &self.settings).findings.first() {
            fail(words(self.target.name(), finding, &plan));
        }
    }

    #[track_caller]
    fn torture(self, profile: Profile, runs: u64) {
        let plan = Campaign {
            profile,
            first: self.first,
            runs: Some(self.runs.unwrap_or(runs)),
            settings: self.settings,
            // A test is to end: what is left after so many runs is small enough to be read.
            shrink: Some(Budget { runs: 5_000, ..Budget::default() }),
            ..Campaign::default()
        };
        let results = campaign(&plan, &self.target, &Silent);
        if let Some(found) = results.found.first() {
            let record = Record::of(found, profile.name, &self.target, &self.settings);
            let words = words(self.target.name(), &record.finding, &record.plan);
            fail(format!("{words}\nfound by seed {:#x} of profile {}", found.seed, profile.name));
        }
    }
}

fn words(name: &str, finding: &Finding, plan: &Plan) -> String {
    format!("torture broke {name}: {finding}\n\n{plan}\n`check(…).plan(…)` runs this plan again")
}

/// Fails the test that calls.
#[track_caller]
#[allow(clippy::panic, reason = "this is how a test fails")]
fn fail(words: String) {
    panic_any(words);
}
