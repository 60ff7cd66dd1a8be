//! The passes of a shrink, in their order (CM 10.2).

mod crash;
mod delta;
mod holds;
mod queues;
mod ranges;
mod values;

use super::element::{self, Element};
use super::remove::{Referrers, without};
use super::search::{Edit, Search};
use crate::plan::Plan;

/// What a shrink is doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pass {
    /// (a) Cuts everything after the failure.
    Cut,
    /// (b) Replaces random crash states by ones with names.
    Crash,
    /// (c) Delta debugging over what can be removed.
    Delta,
    /// (d) Merges queues.
    Queues,
    /// (e) Fewest holds, each as short as can be.
    Holds,
    /// (f) Lower values.
    Values,
    /// (g) Removes each remaining element singly.
    Single,
    /// (h) Runs the result again.
    Verify,
}

impl Pass {
    /// Those of a round.
    pub(super) const ALL: [Self; 7] =
        [Self::Cut, Self::Crash, Self::Delta, Self::Queues, Self::Holds, Self::Values, Self::Single];

    /// Its words in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cut => "cutting after the failure",
            Self::Crash => "naming the crash state",
            Self::Delta => "removing",
            Self::Queues => "merging queues",
            Self::Holds => "ordering",
            Self::Values => "lowering values",
            Self::Single => "removing singly",
            Self::Verify => "verifying",
        }
    }

    pub(super) fn run(self, search: &mut Search<'_>) {
        match self {
            Self::Cut => cut(search),
            Self::Crash => crash::run(search),
            Self::Delta => delta::run(search),
            Self::Queues => queues::run(search),
            Self::Holds => holds::run(search),
            Self::Values => values::run(search),
            Self::Single => single(search),
            Self::Verify => (),
        }
    }
}

/// Nothing after the request that showed the failure; or little, if what follows has a part in it.
fn cut(search: &mut Search<'_>) {
    let Some(at) = search.failed_at() else { return };
    let ops = element::ops(search.best());
    let Some(index) = ops.iter().position(|op| *op == Element::Op(at)) else { return };
    let mut edits = Vec::new();
    let mut more = 1_usize;
    while index + more < ops.len() {
        edits.push(removal(ops.iter().skip(index + more).cloned().collect(), Referrers::Bridge));
        more *= 2;
    }
    search.sweep(&edits);
}

/// Each element alone, with both ways to treat what refers to it: what is left after a round without success is 1-minimal.
fn single(search: &mut Search<'_>) {
    let elements = element::all(search.best());
    let ways = |element: Element| {
        let op = matches!(element, Element::Op(_));
        let bridged = op.then(|| removal(vec![element.clone()], Referrers::Bridge));
        bridged.into_iter().chain([removal(vec![element], Referrers::Cut)])
    };
    let edits: Vec<Edit> = elements.into_iter().flat_map(ways).collect();
    search.sweep(&edits);
}

fn removal(elements: Vec<Element>, referrers: Referrers) -> Edit {
    Box::new(move |plan| without(plan, &elements, referrers))
}

/// An edit in place, which says whether it changed anything.
fn change(edit: impl Fn(&mut Plan) -> bool + 'static) -> Edit {
    Box::new(move |plan| {
        let mut plan = plan.clone();
        edit(&mut plan).then_some(plan)
    })
}

/// Bytes of an allocation unit, as far as the target's options tell: the largest power of two among them, else 64 KiB.
pub(super) fn granule(plan: &Plan) -> u64 {
    let sizes = plan.target.options.iter().filter_map(|(_, value)| bytes(value));
    sizes.filter(|size| size.is_power_of_two() && (512..=2 << 20).contains(size)).max().unwrap_or(65_536)
}

/// A number of bytes: `65536`, `64k`, `64K`, `64KiB`, `1M`.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor = match unit {
        "" => 1,
        "k" | "K" | "KiB" => 1 << 10,
        "m" | "M" | "MiB" => 1 << 20,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}
