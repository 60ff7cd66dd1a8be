//! The file by owner, for formats whose tables are walked and have no reference counts to compare with.
//!
//! The tables are read once, with everything an entry can say for itself reported, and a bit for each unit of data.
//! Where that shows that something is claimed twice or lies askew, they are read again, with every reference in a
//! [`Layout`] that knows whose it is; window by window of the file, if memory does not hold all of them.

use std::cell::RefCell;
use std::ops::Range;

use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;
use crate::layout::{Layout, window_by_window};
use crate::map::{Claim, Class, Owner};
use crate::tally::Tally;

/// The tables of a format.
pub(crate) trait Tables {
    /// Hands every reference to `add`, data in guest order, until it says `false`. References beyond the end of the
    /// file are left out, those that reach beyond it are cut. With `report` flawed entries become findings and
    /// everything is counted: that happens in one walk, which is never stopped by `add`.
    fn walk(&mut self, cx: &mut Context<'_>, report: bool, add: &mut dyn FnMut(Claim) -> bool);

    /// Two claims share bytes.
    fn overlap(&mut self, cx: &mut Context<'_>, first: &Claim, second: &Claim, shared: Range<u64>);

    /// A stretch that nobody claims; adds it to the map of the file.
    fn vacant(&mut self, cx: &mut Context<'_>, range: Range<u64>);
}

/// Walks the tables, and fills the map of the file, which was begun with [`Context::map_host`]. Data lies in units of
/// `unit` bytes, one of which begins at `origin` (as long as nothing is wrong).
pub(crate) fn lay_out<T: Tables>(cx: &mut Context<'_>, unit: u64, origin: u64, tables: &mut T) {
    let (unit, file_len, budget) = (unit.max(1), cx.file_len(), cx.budget);
    if unclaimed_twice(cx, &Units::new(unit, origin), tables) {
        return;
    }
    let mut left_out = false;
    let fill = |both: &mut Both<'_, '_, T>, within: &Range<u64>, layout: &mut Layout<'_>| {
        let mut full = Ok(());
        both.tables.walk(both.cx, false, &mut |claim| {
            let range = claim.range();
            if full.is_ok() && range.start < within.end && range.end > within.start {
                full = layout.add(claim.start, claim.len, claim.class, claim.index);
            }
            full.is_ok()
        });
        full
    };
    let mut both = Both { cx, tables };
    let done = window_by_window(budget, file_len, unit, &mut both, fill, |both, within, layout, complete| {
        left_out |= !complete;
        // Both closures report to the same two.
        let both = RefCell::new(both);
        layout.sweep(
            within.clone(),
            |first, second, shared| {
                // A pair that reaches into the next window is told in the one where the second begins, and a pair that
                // begins before this one has been told.
                if within.contains(&shared.start) {
                    let both = &mut **both.borrow_mut();
                    both.tables.overlap(both.cx, first, second, shared);
                }
            },
            |range, class| {
                let both = &mut **both.borrow_mut();
                match class {
                    Some(class) => both.cx.add_host(range, class),
                    None if complete => both.tables.vacant(both.cx, range),
                    // Somebody who found no room may claim it.
                    None => both.cx.add_host(range, Class::Unknown),
                }
            },
        );
    });
    if done.is_err() || left_out {
        cx.could_not("so many references overlap that memory does not hold them all: not all of them are listed");
    }
}

/// What a walk and a sweep work on.
struct Both<'m, 'c, T> {
    cx: &'m mut Context<'c>,
    tables: &'m mut T,
}

/// A finding about two who claim the same bytes: what of the disk both have there is lost, unless `keeps` says so of an owner.
pub(crate) fn claimed_twice(
    cx: &mut Context<'_>,
    code: &'static Code,
    owners: [Owner; 2],
    shared: Range<u64>,
    unit: u64,
    keeps: impl Fn(&Owner) -> bool,
) {
    let units = shared.end.saturating_sub(shared.start).div_ceil(unit.max(1));
    let [one, other] = &owners;
    let words = format!("{:#x}..{:#x} is claimed by {} and by {}", shared.start, shared.end, one.label, other.label);
    let mut finding = Finding::new(code, words).host(shared).count(units.max(1));
    for owner in owners {
        if let Some(guest) = owner.guest.clone().filter(|guest| !guest.is_empty() && !keeps(&owner)) {
            cx.lose(guest.clone());
            finding = finding.guest(guest);
        }
        finding = finding.owner(owner);
    }
    cx.find(finding);
}

/// Where units begin.
struct Units {
    unit: u64,
    /// Bytes before the beginning of the file at which the first unit begins.
    before: u64,
}

impl Units {
    fn new(unit: u64, origin: u64) -> Self {
        let past = origin.checked_rem(unit).unwrap_or(0);
        Self { unit, before: if past == 0 { 0 } else { unit.saturating_sub(past) } }
    }

    /// Which unit a byte lies in, and how far behind its beginning.
    fn index(&self, at: u64) -> (u64, u64) {
        let at = at.saturating_add(self.before);
        (at.checked_div(self.unit).unwrap_or(0), at.checked_rem(self.unit).unwrap_or(0))
    }

    fn bytes(&self, units: &Range<u64>, file_len: u64) -> Range<u64> {
        let at = |index: u64| index.saturating_mul(self.unit).saturating_sub(self.before).min(file_len);
        at(units.start)..at(units.end)
    }
}

/// The walk that reports. As long as every unit of data is where units are and claimed once, a bit for each is enough:
/// no extents, nothing to sort, and the map of the file follows. `false` if it is not so: the map is still to be made.
fn unclaimed_twice(cx: &mut Context<'_>, units: &Units, tables: &mut impl Tables) -> bool {
    let (file_len, budget) = (cx.file_len(), cx.budget);
    let count = units.index(file_len).0.saturating_add(1);
    // A quarter stays with the tables, whose walk needs memory of its own.
    let reserve = budget.left() / 4;
    let mut tally = Tally::new(0..count, budget).ok();
    let mut metadata = Layout::new(budget);
    tables.walk(cx, true, &mut |claim| {
        let Some(bits) = &tally else { return true };
        let fits = if claim.class.is_data() {
            let (index, past) = units.index(claim.start);
            let whole = claim.len == units.unit || claim.range().end == file_len;
            past == 0 && whole && bits.add(index, 1) == Ok(false)
        } else {
            metadata.add(claim.start, claim.len, claim.class, claim.index).is_ok()
        };
        if !fits || budget.left() < reserve {
            tally = None;
        }
        true
    });
    let Some(tally) = tally else { return false };
    let metadata = metadata.metadata();
    let mut apart = metadata.windows(2).all(|two| match two {
        [one, next] => one.range().end <= next.start,
        _ => true,
    });
    let mut rest = metadata.iter().peekable();
    tally.runs(|run, count| {
        let run = units.bytes(&run, file_len);
        if count > 0 {
            while rest.next_if(|claim| claim.range().end <= run.start).is_some() {}
            apart &= rest.peek().is_none_or(|claim| claim.start >= run.end);
        }
    });
    if !apart {
        return false;
    }
    let mut rest = metadata.iter().peekable();
    tally.runs(|run, count| {
        let run = units.bytes(&run, file_len);
        if count > 0 {
            cx.add_host(run, Class::Data);
            return;
        }
        // Metadata shares no byte with data: what begins in this stretch ends in it.
        let mut at = run.start;
        while let Some(claim) = rest.next_if(|claim| claim.start < run.end) {
            if at < claim.start {
                tables.vacant(cx, at..claim.start);
            }
            cx.add_host(claim.range(), claim.class);
            at = claim.range().end;
        }
        if at < run.end {
            tables.vacant(cx, at..run.end);
        }
    });
    true
}
