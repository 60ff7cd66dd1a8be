//! What a run found: for people, and for programs (schema [`SCHEMA`]).

use std::fmt::Write as _;

use blkproof_fault::disk::Kind;
use serde_json::{Value, json};

use super::bench::Loss;
use super::cut::{Cut, Plan, Verdict};
use crate::messages::human_size;

/// The schema's name. Its number grows when a key changes its meaning or goes; new keys may come at any time.
pub(super) const SCHEMA: &str = "blkproof.crashloop/1";

/// Losses told one by one, unless all are asked for.
const SHOWN: usize = 5;

/// All cuts of a run, in the order of their numbers.
pub(super) struct Report<'a> {
    pub(super) plan: &'a Plan,
    pub(super) cuts: &'a [Cut],
    /// How many there were to be.
    pub(super) wanted: usize,
    /// The command line that makes one of them again.
    pub(super) again: &'a dyn Fn(&Cut) -> String,
}

/// Sums over the cuts.
struct Totals {
    survived: usize,
    lost: usize,
    hung: usize,
    unclear: usize,
    /// Cuts that were not survived although every promise was kept.
    unprovoked: usize,
    promises: usize,
    broken: usize,
    betrayed_cuts: usize,
    acknowledged: u64,
    transactions_lost: u64,
}

impl Report<'_> {
    fn totals(&self) -> Totals {
        let count = |verdict| self.cuts.iter().filter(|cut| cut.verdict == verdict).count();
        let told = |key: &str| {
            let numbers = self.cuts.iter().filter_map(|cut| cut.details.as_ref()?.get(key)?.as_u64());
            numbers.fold(0, u64::saturating_add)
        };
        let lives = || self.cuts.iter().flat_map(|cut| std::iter::once(&cut.loss).chain(&cut.again));
        Totals {
            survived: count(Verdict::Survived),
            lost: count(Verdict::Lost),
            hung: count(Verdict::Hung),
            unclear: count(Verdict::Unclear),
            unprovoked: self.cuts.iter().filter(|cut| cut.verdict != Verdict::Survived && !cut.is_betrayed()).count(),
            promises: lives().map(|life| life.betrayal.promises).sum(),
            broken: lives().map(|life| life.betrayal.broken.len()).sum(),
            betrayed_cuts: self.cuts.iter().filter(|cut| cut.is_betrayed()).count(),
            acknowledged: told("acknowledged"),
            transactions_lost: told("lost"),
        }
    }

    /// Whether anything was found: a loss, or a disk that calls itself honest and is not.
    pub(super) fn is_finding(&self) -> bool {
        let totals = self.totals();
        totals.lost.saturating_add(totals.hung) > 0 || self.liar_unmasked()
    }

    /// Whether some check could not do its work.
    pub(super) fn is_unclear(&self) -> bool {
        self.cuts.iter().any(|cut| cut.verdict == Verdict::Unclear)
    }

    fn liar_unmasked(&self) -> bool {
        self.plan.disk.kind == Kind::Honest && self.cuts.iter().any(Cut::is_betrayed)
    }

    /// The text.
    pub(super) fn human(&self, all: bool) -> String {
        let mut text = String::new();
        let Totals { survived, lost, hung, unclear, unprovoked, promises, broken, betrayed_cuts, .. } = self.totals();
        let Plan { workload, disk, seed, requests, .. } = self.plan;
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = text.write_fmt(words);
            text.push('\n');
        };
        line(format_args!(
            "{} of {} disk (profile {}) under {}, seed {seed}; uncut it makes {requests} requests",
            counted(self.cuts.len(), "power cut"),
            if disk.kind == Kind::Honest { "an honest" } else { "a lying" },
            disk.profile.name(),
            workload.name,
        ));
        if self.cuts.len() < self.wanted {
            line(format_args!("ended early: {} cuts were to be made", self.wanted));
        }
        line(format_args!(""));
        let bad: Vec<_> = self.cuts.iter().filter(|cut| cut.verdict != Verdict::Survived).collect();
        let told: Vec<_> = if all { self.cuts.iter().collect() } else { bad.iter().copied().take(SHOWN).collect() };
        for cut in &told {
            line(format_args!("{}", human_cut(cut)));
        }
        if !all && bad.len() > told.len() {
            line(format_args!("… and {} more; -v lists every cut", bad.len().saturating_sub(told.len())));
        }
        if let Some(first) = told.first() {
            line(format_args!("the first again, alone: {}", (self.again)(first)));
            line(format_args!(""));
        }
        let totals = self.totals();
        line(format_args!("  survived             {survived:>8}"));
        line(format_args!("  lost data            {lost:>8}"));
        for (words, count) in [("hung", hung), ("could not be checked", unclear)] {
            if count > 0 {
                line(format_args!("  {words:<20} {count:>8}"));
            }
        }
        line(format_args!(
            "  flushes acknowledged {promises:>8}, betrayed {broken}, in {}",
            counted(betrayed_cuts, "cut")
        ));
        if totals.acknowledged > 0 {
            line(format_args!(
                "  transactions acknowledged {}, lost {} where the rest could be read",
                totals.acknowledged, totals.transactions_lost
            ));
        }
        line(format_args!(""));
        let bad = bad.len();
        match (bad, self.liar_unmasked()) {
            (_, true) => line(format_args!("An honest disk broke its word: that is a mistake of this program.")),
            (0, _) if broken > 0 => {
                line(format_args!(
                    "Everything was survived, by luck: the disk broke its word in {betrayed_cuts} cuts."
                ));
            }
            (0, _) => line(format_args!("Everything that was acknowledged was there after every cut.")),
            _ if unprovoked == 0 => line(format_args!(
                "The disk is to blame: where data was lost ({}) it had broken its word about a flush.",
                counted(bad, "cut")
            )),
            _ if unprovoked == bad => line(format_args!(
                "The program is to blame: the disk kept its word about every flush, and data was lost all the same."
            )),
            _ => line(format_args!(
                "In {} the disk had broken its word; in {} it had not, and the program is to blame.",
                counted(bad.saturating_sub(unprovoked), "bad cut"),
                counted(unprovoked, "other")
            )),
        }
        text
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        let totals = self.totals();
        let Plan { workload, disk, seed, requests, during_recovery, .. } = self.plan;
        json!({
            "schema": SCHEMA,
            "version": env!("CARGO_PKG_VERSION"),
            "workload": workload.name,
            "commands": { "setup": workload.setup, "run": workload.run, "check": workload.check },
            "disk": {
                "kind": disk.kind.name(),
                "profile": disk.profile.name(),
                "cache-size": disk.cache_size,
                "write-back": disk.write_back.name(),
                "block-size": disk.block_size,
            },
            "seed": seed,
            "during-recovery": during_recovery,
            "requests-uncut": requests,
            "cuts-wanted": self.wanted,
            "totals": {
                "cuts": self.cuts.len(),
                "survived": totals.survived,
                "lost": totals.lost,
                "hung": totals.hung,
                "unclear": totals.unclear,
                "blame": {
                    "disk": self.cuts.len().saturating_sub(totals.survived).saturating_sub(totals.unprovoked),
                    "program": totals.unprovoked,
                },
                "flushes": { "acknowledged": totals.promises, "betrayed": totals.broken },
                "transactions": { "acknowledged": totals.acknowledged, "lost": totals.transactions_lost },
            },
            "cuts": self.cuts.iter().map(json_cut).collect::<Vec<_>>(),
        })
    }
}

/// `1 cut`, `2 cuts`.
fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn human_cut(cut: &Cut) -> String {
    let mut text = format!("cut {}, {}", cut.number, human_loss(&cut.loss));
    if let Some(again) = &cut.again {
        let _ = write!(text, "\n  again during recovery, {}", human_loss(again));
    }
    let _ = write!(text, "\n  {}: {}", cut.verdict.name(), cut.words);
    text
}

fn human_loss(loss: &Loss) -> String {
    let mut text = match &loss.during {
        Some(cause) => {
            let done = if cause.moment.done { "done but not answered" } else { "not done" };
            let place = match cause.range.is_empty() {
                true => String::new(),
                false => format!(" of {} bytes at {:#x}", cause.range.len(), cause.range.start),
            };
            format!("at request {}, a {}{place}, {done}; ", cause.moment.request, cause.operation)
        }
        None => "after the program had ended; ".to_owned(),
    };
    let _ = write!(text, "state {}, {} acknowledged and lost", loss.state, human_size(loss.lost));
    if let Some(first) = &loss.betrayal.first {
        let what = if first.promise.fua { "FUA write" } else { "flush" };
        let _ = write!(
            text,
            "\n  betrayed: {} of {} flushes, {}; first {what} {} (request {}), which was to keep the write of request {} \
             at {:#x}",
            loss.betrayal.broken.len(),
            loss.betrayal.promises,
            human_size(loss.betrayal.bytes),
            first.index.saturating_add(1),
            first.promise.request,
            first.write,
            first.at,
        );
    }
    text
}

fn json_cut(cut: &Cut) -> Value {
    json!({
        "cut": cut.number,
        "verdict": cut.verdict.name(),
        "blame": match (cut.verdict, cut.is_betrayed()) {
            (Verdict::Survived, _) => Value::Null,
            (_, true) => "disk".into(),
            (_, false) => "program".into(),
        },
        "words": cut.words,
        "lines-acknowledged": cut.acknowledged,
        "details": cut.details,
        "power": json_loss(&cut.loss),
        "during-recovery": cut.again.as_ref().map(json_loss),
    })
}

fn json_loss(loss: &Loss) -> Value {
    let betrayal = &loss.betrayal;
    json!({
        "during": loss.during.map(|cause| json!({
            "request": cause.moment.request,
            "done": cause.moment.done,
            "operation": cause.operation.name(),
            "offset": cause.range.start,
            "length": cause.range.len(),
        })),
        "state": loss.state,
        "lost-bytes": loss.lost,
        "betrayed-bytes": loss.betrayed,
        "flushes": {
            "acknowledged": betrayal.promises,
            "betrayed": betrayal.broken.iter().map(|index| index.saturating_add(1)).collect::<Vec<_>>(),
            "missing-bytes": betrayal.bytes,
            "first": betrayal.first.map(|first| json!({
                "number": first.index.saturating_add(1),
                "request": first.promise.request,
                "fua": first.promise.fua,
                "write": first.write,
                "offset": first.at,
            })),
        },
    })
}
