//! Tries edits in order, and accepts the first that fails in the same way.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use blkproof_sim::IoKey;

use super::cost::{Cost, smaller};
use super::key::{PlanKey, key};
use super::{Budget, Checkpoint, Judge, Limit, Pass, Progress, Shrunk, Verdict};
use crate::finding::Signature;
use crate::plan::{OpId, Plan};

/// From the best plan to a smaller one; `None` if there is nothing to change.
pub(super) type Edit = Box<dyn Fn(&Plan) -> Option<Plan>>;

/// Runs kept for verifying the result.
const VERIFY: usize = 3;

/// A verdict on a plan.
struct Tried {
    verdict: Verdict,
    /// It was needed, and is counted; else it was judged ahead.
    counted: bool,
}

/// A candidate of a batch.
struct Pick {
    edit: usize,
    plan: Plan,
    cost: Cost,
    key: PlanKey,
}

/// A shrink at work.
pub(super) struct Search<'a> {
    signature: &'a Signature,
    budget: &'a Budget,
    judge: &'a dyn Judge,
    watch: &'a mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    best: Plan,
    cost: Cost,
    failed_at: Option<OpId>,
    tried: BTreeMap<PlanKey, Tried>,
    /// What the judge said of a plan's crash states.
    pending: Option<(PlanKey, Option<Vec<IoKey>>)>,
    /// Every plan that was accepted, the original first.
    trail: Vec<Plan>,
    others: BTreeMap<Signature, Plan>,
    original: usize,
    /// Runs of shrinks before this one.
    earlier: usize,
    runs: usize,
    judged: usize,
    round: usize,
    pass: Pass,
    pass_left: usize,
    /// Some pass of this round was cut short.
    cut_short: bool,
    limit: Option<Limit>,
    minimal: bool,
    verified: (usize, usize),
}

impl<'a> Search<'a> {
    pub(super) fn new(
        from: &Checkpoint,
        signature: &'a Signature,
        budget: &'a Budget,
        judge: &'a dyn Judge,
        watch: &'a mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Self {
        Self {
            signature,
            budget,
            judge,
            watch,
            best: from.plan.clone(),
            cost: Cost::of(&from.plan),
            failed_at: None,
            tried: BTreeMap::new(),
            pending: None,
            trail: vec![from.plan.clone()],
            others: from.others.clone(),
            original: from.original,
            earlier: from.runs,
            runs: 0,
            judged: 0,
            round: 0,
            pass: Pass::ALL[0],
            pass_left: 0,
            cut_short: false,
            limit: None,
            minimal: false,
            verified: (0, 0),
        }
    }

    /// The best plan so far.
    pub(super) fn best(&self) -> &Plan {
        &self.best
    }

    /// The request that showed its failure.
    pub(super) fn failed_at(&self) -> Option<OpId> {
        self.failed_at
    }

    /// The requests that crash states of the best plan may be named by; costs a run, the first time it is asked.
    pub(super) fn pending(&mut self) -> Option<Vec<IoKey>> {
        let key = key(&self.best);
        if let Some((of, ios)) = &self.pending
            && *of == key
        {
            return ios.clone();
        }
        if !self.count(1) {
            return None;
        }
        self.judged += 1;
        let ios = self.judge.pending(&self.best);
        self.pending = Some((key, ios.clone()));
        ios
    }

    /// Runs the original. False if it does not fail as it should, or there is no budget at all.
    pub(super) fn start(&mut self) -> bool {
        if self.budget.runs < self.repeats() {
            self.limit = Some(Limit::Runs);
            return false;
        }
        self.runs += self.repeats();
        let verdicts = self.ask(std::slice::from_ref(&self.best.clone()));
        let verdict = verdicts.into_iter().next().unwrap_or(Verdict::Invalid);
        match verdict {
            Verdict::Fails(signature, at) if signature == *self.signature => self.failed_at = at,
            other => {
                let plan = self.best.clone();
                self.file(other, plan);
                self.limit = Some(Limit::NotFailing);
            }
        }
        self.tell();
        self.limit.is_none()
    }

    /// All passes once. False when there is nothing more to do.
    pub(super) fn round(&mut self) -> bool {
        if self.limit.is_some() {
            return false;
        }
        self.round += 1;
        self.cut_short = false;
        let (cost, runs) = (self.cost.clone(), self.runs);
        for pass in Pass::ALL {
            self.pass = pass;
            self.pass_left = self.budget.pass_runs.max(1);
            pass.run(self);
            if self.limit.is_some() {
                return false;
            }
        }
        if self.cost == cost && (!self.cut_short || self.runs == runs) {
            // Cut short without a single run: a pass has fewer runs than a candidate needs.
            self.minimal = !self.cut_short;
            self.limit = Some(if self.minimal { Limit::Fixpoint } else { Limit::Runs });
        }
        self.limit.is_none()
    }

    /// Tries these edits, each on the best plan there is by then. Returns whether one was accepted.
    pub(super) fn sweep(&mut self, edits: &[Edit]) -> bool {
        let mut accepted = false;
        let mut next = 0;
        while next < edits.len() && self.limit.is_none() {
            let (picks, end) = self.gather(edits, next);
            next = end;
            for pick in picks {
                if !self.count(self.repeats()) {
                    return accepted;
                }
                let Some(tried) = self.tried.get_mut(&pick.key) else { continue };
                tried.counted = true;
                match tried.verdict.clone() {
                    Verdict::Fails(signature, at) if signature == *self.signature => {
                        next = pick.edit + 1;
                        accepted = true;
                        self.trail.push(pick.plan.clone());
                        (self.best, self.cost, self.failed_at) = (pick.plan, pick.cost, at);
                        self.tell();
                        break;
                    }
                    verdict => self.file(verdict, pick.plan),
                }
                self.tell();
                if self.limit.is_some() {
                    return accepted;
                }
            }
        }
        accepted
    }

    /// The next candidates, and the edit after the last of them. All of them have been judged.
    ///
    /// They are built as if none of them failed. After one that does, those behind it are thrown away and built anew
    /// from it: what is accepted does not depend on how many there are.
    fn gather(&mut self, edits: &[Edit], from: usize) -> (Vec<Pick>, usize) {
        let mut picks: Vec<Pick> = Vec::new();
        let mut ask = Vec::new();
        let mut edit = from;
        let most = self.budget.batch.max(1).min(self.left() / self.repeats()).max(1);
        while edit < edits.len() && picks.len() < most {
            if let Some(plan) = edits.get(edit).and_then(|edit| edit(&self.best)) {
                let cost = Cost::of(&plan);
                if cost < self.cost {
                    let key = key(&plan);
                    let known = self.tried.get(&key);
                    let again = picks.iter().any(|pick| pick.key == key);
                    if !again && !known.is_some_and(|tried| tried.counted) {
                        if known.is_none() {
                            ask.push((key, plan.clone()));
                        }
                        picks.push(Pick { edit, plan, cost, key });
                    }
                }
            }
            edit += 1;
        }
        if self.left() >= self.repeats() && !ask.is_empty() {
            let (keys, plans): (Vec<_>, Vec<_>) = ask.into_iter().unzip();
            let verdicts = self.ask(&plans);
            let tried = verdicts.into_iter().map(|verdict| Tried { verdict, counted: false });
            self.tried.extend(keys.into_iter().zip(tried));
        }
        (picks, edit)
    }

    /// One verdict for each plan, of all its repetitions.
    fn ask(&mut self, plans: &[Plan]) -> Vec<Verdict> {
        let repeats = self.repeats();
        if repeats == 1 {
            self.judged += plans.len();
            let mut verdicts = self.judge.judge(plans);
            verdicts.resize(plans.len(), Verdict::Invalid);
            return verdicts;
        }
        let copies: Vec<Plan> = plans.iter().flat_map(|plan| vec![plan.clone(); repeats]).collect();
        self.judged += copies.len();
        let mut verdicts = self.judge.judge(&copies);
        verdicts.resize(copies.len(), Verdict::Invalid);
        verdicts.chunks(repeats).map(|verdicts| self.rate(verdicts)).collect()
    }

    /// Fails if enough do; else what else there was to see.
    fn rate(&self, verdicts: &[Verdict]) -> Verdict {
        let equal = |one: &&Verdict| matches!(one, Verdict::Fails(signature, _) if signature == self.signature);
        let fails = verdicts.iter().filter(equal).count();
        let other = verdicts.iter().find(|one| matches!(one, Verdict::Fails(..)) && !equal(one));
        match verdicts.iter().find(equal) {
            Some(verdict) if fails >= self.budget.fails.max(1) => verdict.clone(),
            _ => other.cloned().unwrap_or(Verdict::Passes),
        }
    }

    fn repeats(&self) -> usize {
        self.budget.repeats.max(1)
    }

    /// Runs that passes may still make.
    fn left(&self) -> usize {
        let kept = VERIFY.min(self.budget.runs);
        (self.budget.runs - kept).saturating_sub(self.runs).min(self.pass_left)
    }

    /// Counts runs that are needed; false if there are no more.
    fn count(&mut self, runs: usize) -> bool {
        if self.left() < runs {
            if self.pass_left < runs && self.budget.runs.saturating_sub(VERIFY + self.runs) >= runs {
                self.cut_short = true;
            } else {
                self.limit = Some(Limit::Runs);
            }
            return false;
        }
        self.runs += runs;
        self.pass_left -= runs;
        true
    }

    /// Keeps what failed differently.
    fn file(&mut self, verdict: Verdict, plan: Plan) {
        if let Verdict::Fails(signature, _) = verdict
            && signature != *self.signature
            && self.others.get(&signature).is_none_or(|known| smaller(&plan, known))
        {
            self.others.insert(signature, plan);
        }
    }

    fn tell(&mut self) {
        let progress = Progress {
            pass: self.pass,
            round: self.round,
            runs: self.earlier + self.runs,
            original: self.original,
            size: self.best.size(),
            best: &self.best,
        };
        if (self.watch)(&progress).is_break() {
            self.limit = self.limit.or(Some(Limit::Stopped));
        }
    }

    /// Runs the result again. If it does not fail each time, an accepted plan that does takes its place, the nearest of
    /// those 1, 2, 4, … back.
    pub(super) fn verify(&mut self) {
        self.pass = Pass::Verify;
        let Some(newest) = self.trail.len().checked_sub(1) else { return };
        let mut back = 0;
        loop {
            let Some(plan) = self.trail.get(newest.saturating_sub(back)).cloned() else { return };
            let runs = VERIFY.min(self.budget.runs.saturating_sub(self.runs));
            if runs == 0 {
                return;
            }
            self.runs += runs;
            self.judged += runs;
            let verdicts = self.judge.judge(&vec![plan.clone(); runs]);
            let equal = |one: &&Verdict| matches!(one, Verdict::Fails(signature, _) if signature == self.signature);
            let fails = verdicts.iter().filter(equal).count();
            // A plan that failed before is fit: the judge was told to stop. What it did not run says nothing.
            if verdicts.contains(&Verdict::Invalid) {
                if back == 0 {
                    self.verified = (fails, fails);
                }
                return;
            }
            if back == 0 {
                self.verified = (fails, runs);
            }
            if fails == runs {
                if back > 0 {
                    (self.verified, self.minimal) = ((fails, runs), false);
                    (self.cost, self.best) = (Cost::of(&plan), plan);
                }
                return;
            }
            if back >= newest {
                return;
            }
            back = (back * 2).max(1);
        }
    }

    pub(super) fn report(self) -> Shrunk {
        Shrunk {
            size: self.best.size(),
            plan: self.best,
            original: self.original,
            runs: self.earlier + self.runs,
            judged: self.judged,
            rounds: self.round,
            limit: self.limit.unwrap_or(Limit::Fixpoint),
            minimal: self.minimal,
            verified: self.verified,
            others: self.others,
        }
    }
}
