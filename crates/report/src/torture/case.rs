//! One finding, and everything a report needs to tell of it.

use blkproof_torture::campaign::Found;
use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Finding, Outcome};
use blkproof_torture::shrink::Shrunk;
use blkproof_torture::store::Record;

use super::model::{Cut, Run};
use super::neighbours::Neighbour;
use super::rules::{self, Rule, Severity};

/// One finding, the plan that shows it, and the run of that plan with `Settings::events` on.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// What is done to the driver: the least of it that there is.
    pub plan: &'a Plan,
    /// What is wrong, as the run of that plan said it.
    pub finding: &'a Finding,
    /// The run of that plan.
    pub outcome: &'a Outcome,
    /// What was found at first, and how; `None` for a plan that somebody brought.
    pub origin: Option<Origin<'a>>,
    /// The file that holds the plan, as the user would name it; `None` if there is none.
    pub plan_file: Option<&'a str>,
    /// The image format that QEMU knows it by; `None` if it knows none such. See [`qemu_io`](super::qemu_io).
    pub format: Option<&'a str>,
    /// An expression of Rust that is the driver as a `Target`, for the [test](super::rust_test) to paste.
    pub target_expression: Option<&'a str>,
    /// Other states of the disk after the same power cut, and whether they show the same.
    pub neighbours: &'a [Neighbour],
}

/// How something was found.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The seed that found it first.
    pub seed: u64,
    /// Seeds that found it.
    pub times: u64,
    /// Client requests until then.
    pub ops: u64,
    /// The name of the profile, if it is known.
    pub profile: Option<&'a str>,
    /// What shrinking came to.
    pub shrunk: Option<&'a Shrunk>,
    /// The same in words, of a finding that was stored and read back.
    pub shrunk_words: Option<&'a str>,
}

impl<'a> Case<'a> {
    /// A plan that somebody brought, and its run; `None` if the run found nothing.
    #[must_use]
    pub fn of_run(plan: &'a Plan, outcome: &'a Outcome, plan_file: Option<&'a str>) -> Option<Self> {
        let finding = outcome.findings.first()?;
        Some(Self::new(plan, finding, outcome, plan_file))
    }

    /// What a campaign found; `outcome` is a run of its [least plan](Found::least).
    #[must_use]
    pub fn of_found(
        found: &'a Found,
        outcome: &'a Outcome,
        profile: Option<&'a str>,
        plan_file: Option<&'a str>,
    ) -> Self {
        // The least plan's own words, if it says the same: its numbers are those of the plan that is shown.
        let same = |finding: &&Finding| finding.signature == found.finding.signature;
        let finding = outcome.findings.iter().find(same).unwrap_or(&found.finding);
        let Found { seed, times, ops, .. } = *found;
        let origin = Some(Origin { seed, times, ops, profile, shrunk: found.shrunk.as_ref(), shrunk_words: None });
        Self { origin, ..Self::new(found.least(), finding, outcome, plan_file) }
    }

    /// What a store kept; `outcome` is a run of its plan.
    #[must_use]
    pub fn of_record(record: &'a Record, outcome: &'a Outcome, plan_file: Option<&'a str>) -> Self {
        let origin = record.origin.as_ref().map(|origin| Origin {
            seed: origin.seed,
            times: origin.times,
            ops: origin.ops,
            profile: Some(&origin.profile),
            shrunk: None,
            shrunk_words: (!origin.shrunk.is_empty()).then_some(&origin.shrunk),
        });
        Self { origin, ..Self::new(&record.plan, &record.finding, outcome, plan_file) }
    }

    fn new(plan: &'a Plan, finding: &'a Finding, outcome: &'a Outcome, plan_file: Option<&'a str>) -> Self {
        let name = plan.target.name.as_str();
        let ours = ["raw", "qcow2", "vdi"].contains(&name);
        let format = ours.then_some(name);
        Self { plan, finding, outcome, origin: None, plan_file, format, target_expression: None, neighbours: &[] }
    }

    /// Whether the run that is shown showed the finding.
    #[must_use]
    pub fn repeats(&self) -> bool {
        self.outcome.findings.iter().any(|finding| finding.signature == self.finding.signature)
    }

    /// The rule that is broken.
    #[must_use]
    pub fn rule(&self) -> &'static Rule {
        rules::of(&self.finding.signature.code)
    }

    /// How bad it is: as the rule says, but data that nobody had acknowledged is not lost.
    #[must_use]
    pub fn severity(&self) -> Severity {
        let allowed = &self.finding.allowed;
        let acknowledged = allowed.is_empty() || allowed.iter().any(|words| words.ends_with(", completed)"));
        match self.rule().severity {
            Severity::LostData if !acknowledged => Severity::WrongData,
            severity => severity,
        }
    }

    pub(crate) fn run(&self) -> Run<'a> {
        Run::new(self.plan, self.outcome)
    }

    /// One sentence: when, what is there, what may be there, and who had promised it.
    #[must_use]
    pub fn sentence(&self) -> String {
        let finding = self.finding;
        // Findings after a power cut say so in words of their own, which do not say when.
        let said = match finding.cut.is_some() || finding.signature.phase == "recovery" {
            true => finding.text.replace("closed after a power cut", "closed").replace("after a power cut ", ""),
            false => finding.text.clone(),
        };
        let said = &said_well(&said.replace(" after a power cut: ", ": "));
        let mut sentence = match (&finding.cut, finding.signature.phase.as_str()) {
            (Some((point, state)), _) => {
                let cut = Cut { at: 0, point: *point, state, undecided: &[] };
                let when = super::text::cut_words(&self.run(), &cut);
                format!("After a power cut {when}, which left {}, {said}", state.describe())
            }
            (None, "recovery") => format!("After a power cut, {said}"),
            (None, "reopen") => format!("After the image was closed and opened again, {said}"),
            (None, "close") => format!("After the image was closed, {said}"),
            // That a run ends does not make it; that the image was opened anew does.
            (None, "end") if finding.signature.code == "reopen" => {
                format!("After the image was closed and opened again, {said}")
            }
            (None, "end") => {
                let said = said.trim_end_matches(", although faults have stopped");
                format!("When all was done and faults had stopped, {said}")
            }
            (None, "run") => match self.run().cuts.last() {
                Some(cut) => format!("After the power cut {}, {said}", super::text::cut_words(&self.run(), cut)),
                None => capital(said),
            },
            (None, _) => capital(said),
        };
        if let Some(promise) = super::history::promise(self) {
            sentence.push_str("; ");
            sentence.push_str(&promise);
        } else if finding.signature.code == "reopen" && !finding.allowed.is_empty() {
            // Nobody had acknowledged it: only that somebody saw it makes it certain.
            sentence.push_str("; a read before that had found it");
        }
        sentence.push('.');
        sentence
    }
}

/// `bytes 0x0..0x200 hold zeroes, where only op 2 may be`, for the oracle's `bytes 0x0..0x200: found zeroes, allowed: op
/// 2`.
fn said_well(text: &str) -> String {
    let parts = text.split_once(": found ").and_then(|(place, rest)| Some((place, rest.split_once(", allowed: ")?)));
    match parts {
        Some((place, (found, allowed))) => {
            format!("{place} hold {}, where only {} may be", found_words(found), allowed.replace("; ", " or "))
        }
        None => text.to_owned(),
    }
}

/// What was found, in the oracle's words but for the most frequent ones.
pub(super) fn found_words(found: &str) -> String {
    match found.strip_prefix("superseded content of ") {
        Some("the initial content") => "the initial content, which had been replaced".to_owned(),
        Some(whose) => format!("content of {whose} that had been replaced"),
        None => found.to_owned(),
    }
}

pub(super) fn capital(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
