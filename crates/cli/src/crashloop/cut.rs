//! One power cut from beginning to end: a fresh disk, the program, the cut, the check.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use blkproof_block::Node;
use blkproof_block::choice::Choices;
use blkproof_fault::disk::DiskOptions;
use serde_json::Value;

use super::bench::{Bench, Loss, Moment, did_its_work};
use super::program::{Ended, How};
use super::workload::{Values, Workload};

/// What all cuts have in common.
pub(super) struct Plan {
    pub(super) workload: Workload,
    pub(super) disk: DiskOptions,
    pub(super) seed: u64,
    pub(super) patience: Duration,
    /// Cut the power during recovery too.
    pub(super) during_recovery: bool,
    /// The state a disk comes back in after its first cut; its seed picks one if not given.
    pub(super) state: Option<String>,
    /// What a disk holds at first.
    pub(super) image: Node,
    /// Requests that a run takes from beginning to end.
    pub(super) requests: u64,
}

/// One cut, and what became of it.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) number: u64,
    pub(super) loss: Loss,
    /// The second cut, if it came during recovery.
    pub(super) again: Option<Loss>,
    /// Lines the program wrote before the power went.
    pub(super) acknowledged: usize,
    pub(super) verdict: Verdict,
    /// In the words of the check.
    pub(super) words: String,
    /// What the check says for programs: the JSON object that is the last line it writes.
    pub(super) details: Option<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The check is content.
    Survived,
    /// The check is not.
    Lost,
    /// The check did not end in time.
    Hung,
    /// The check could not do its work.
    Unclear,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Survived => "survived",
            Self::Lost => "lost",
            Self::Hung => "hung",
            Self::Unclear => "unclear",
        }
    }
}

impl Cut {
    /// Whether the disk broke a promise that the program had relied on.
    pub(super) fn is_betrayed(&self) -> bool {
        let broken = |loss: &Loss| !loss.betrayal.broken.is_empty();
        broken(&self.loss) || self.again.as_ref().is_some_and(broken)
    }
}

/// A directory for one cut, with the file of acknowledgements in it.
struct Place<'a> {
    plan: &'a Plan,
    dir: &'a Path,
    cut: u64,
}

impl Place<'_> {
    fn fill(&self, line: &str, socket: &Path) -> anyhow::Result<String> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("the scratch directory's name is not UTF-8");
        let socket = text(socket)?;
        let values = Values {
            uri: &format!("nbd+unix:///?socket={socket}"),
            socket: &socket,
            acknowledged: &text(&self.dir.join("acknowledged"))?,
            dir: &text(self.dir)?,
            seed: self.plan.seed,
            cut: self.cut,
        };
        Ok(values.fill(line))
    }

    async fn start(&self, bench: &Bench, line: &str, cut_at: Option<Moment>) -> anyhow::Result<Ended> {
        bench.run(&self.fill(line, &bench.socket())?, cut_at, self.plan.patience).await
    }

    /// Keeps what the program said it had done.
    fn keep(&self, ended: &Ended) -> anyhow::Result<usize> {
        // A line that the cut left half was not said.
        let whole = ended.stdout.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last.saturating_add(1));
        let said = ended.stdout.get(..whole).unwrap_or_default();
        std::fs::write(self.dir.join("acknowledged"), said).context("keeping what was acknowledged")?;
        Ok(said.iter().filter(|byte| **byte == b'\n').count())
    }
}

/// Prepares the disk that every cut begins with, and lets the program run once to its end, without any cut: it has to
/// work, the check has to be content, and how many requests it takes says when the power can go.
pub(super) async fn rehearse(plan: &mut Plan, dir: &Path) -> anyhow::Result<()> {
    if let Some(setup) = plan.workload.setup.clone() {
        let bench = Bench::new(&plan.image, plan.disk, dir).await?;
        let ended = Place { plan, dir, cut: 0 }.start(&bench, &setup, None).await?;
        if !did_its_work(&ended) {
            bail!("--setup {}: {}", ended.how.words(), ended.complaint());
        }
        plan.image = bench.close().await?;
    }
    let bench = Bench::new(&plan.image, plan.disk, dir).await?;
    let place = Place { plan, dir, cut: 0 };
    let ended = place.start(&bench, &plan.workload.run, None).await?;
    if !did_its_work(&ended) {
        bail!("the program {} although its disk kept its power: {}", ended.how.words(), ended.complaint());
    }
    place.keep(&ended)?;
    let requests = bench.requests();
    if requests == 0 {
        bail!("the program neither wrote to its disk nor flushed it; does its command line use {{uri}}?");
    }
    let ended = place.start(&bench, &plan.workload.check, None).await?;
    if !did_its_work(&ended) {
        let (_, words, _) = judged(&ended);
        bail!("the check {} although the power was never cut: {words}", ended.how.words());
    }
    plan.requests = requests;
    Ok(())
}

/// Makes the cut of that number; everything about it follows from the plan's seed and the number.
pub(super) async fn make(plan: &Plan, number: u64, dir: &Path) -> anyhow::Result<Cut> {
    let mut draws = Choices::new(plan.seed).stream(number);
    // The last one is after the end: what nobody flushed is lost then.
    let moment =
        Moment { request: draws.below(plan.requests.saturating_add(1)).saturating_add(1), done: draws.chance(500) };
    let options = DiskOptions { seed: draws.next(), ..plan.disk };
    let second = Moment { request: draws.below(12).saturating_add(1), done: draws.chance(500) };
    let mut bench = Bench::new(&plan.image, options, dir).await?;
    bench.state = plan.state.as_deref().map(Rc::from);
    let place = Place { plan, dir, cut: number };
    let ended = place.start(&bench, &plan.workload.run, Some(moment)).await?;
    let acknowledged = place.keep(&ended)?;
    let hung = ended.how == How::TooLong;
    let loss = bench.cut(moment).await.with_context(|| format!("cut {number}"))?;
    if loss.during.is_none() && !hung && !did_its_work(&ended) {
        bail!("cut {number}: the program {} before the power went: {}", ended.how.words(), ended.complaint());
    }
    let mut checked = place.start(&bench, &plan.workload.check, plan.during_recovery.then_some(second)).await?;
    let mut again = None;
    if plan.during_recovery && bench.is_cut() {
        again = Some(bench.cut(second).await?);
        checked = place.start(&bench, &plan.workload.check, None).await?;
    }
    let (verdict, words, details) = judged(&checked);
    let (verdict, words) = match hung {
        true => (Verdict::Hung, "the program did not end in time, and the power was cut then".to_owned()),
        false => (verdict, words),
    };
    Ok(Cut { number, loss, again, acknowledged, verdict, words, details })
}

/// What a check says: its verdict by its exit status, its words, and what it tells programs.
fn judged(ended: &Ended) -> (Verdict, String, Option<Value>) {
    let text = String::from_utf8_lossy(&ended.stdout);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let details = serde_json::from_str::<Value>(last).ok().filter(Value::is_object);
    let told = details.as_ref().and_then(|details| details.get("words")).and_then(Value::as_str);
    let said = told.map(str::to_owned).or_else(|| (details.is_none() && !last.is_empty()).then(|| last.to_owned()));
    let said = said.unwrap_or_else(|| ended.complaint());
    let verdict = match (ended.how, ended.how.code()) {
        (How::TooLong | How::Killed, _) => Verdict::Hung,
        (_, Some(0)) => Verdict::Survived,
        (_, Some(1)) => Verdict::Lost,
        _ => Verdict::Unclear,
    };
    let words = match verdict {
        Verdict::Survived | Verdict::Lost => said,
        Verdict::Hung | Verdict::Unclear => format!("the check {}: {}", ended.how.words(), ended.complaint()),
    };
    (verdict, words, details)
}
