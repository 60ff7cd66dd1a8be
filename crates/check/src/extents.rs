//! The file by owner, for formats whose tables are walked and have no reference counts to compare with.
//!
//! The tables are read once, with everything an entry can say for itself reported, and every reference goes into a
//! [`Layout`]. Where that takes more memory than there is, the tables are walked again, window by window of the file.

use std::cell::RefCell;
use std::ops::Range;

use crate::context::Context;
use crate::layout::Layout;
use crate::map::{Claim, Class};
use crate::tally::in_windows;

/// Below this number of units a window is not split any more: as many references to it as memory holds must overlap.
const WINDOW_MIN: u64 = 1 << 15;

/// The tables of a format.
pub(crate) trait Tables {
    /// Hands every reference to `add`, data in guest order, until it says `false`. References beyond the end of the file
    /// are left out, those that reach beyond it are cut. With `report` flawed entries become findings and everything is
    /// counted: that happens in one walk, which is never stopped by `add`.
    fn walk(&mut self, cx: &mut Context<'_>, report: bool, add: &mut dyn FnMut(Claim) -> bool);

    /// Two claims share bytes.
    fn overlap(&mut self, cx: &mut Context<'_>, first: &Claim, second: &Claim, shared: Range<u64>);

    /// A stretch that nobody claims; adds it to the map of the file.
    fn vacant(&mut self, cx: &mut Context<'_>, range: Range<u64>);
}

/// Walks the tables, and fills the map of the file, which was begun with [`Context::map_host`].
pub(crate) fn lay_out(cx: &mut Context<'_>, unit: u64, tables: &mut impl Tables) {
    let (unit, file_len, budget) = (unit.max(1), cx.file_len(), cx.budget);
    let mut report = true;
    let mut left_out = false;
    if file_len == 0 {
        tables.walk(cx, true, &mut |_| true);
        return;
    }
    let done = in_windows(file_len.div_ceil(unit), |window| {
        let within = window.start.saturating_mul(unit)..window.end.saturating_mul(unit).min(file_len);
        let mut layout = Layout::new(budget);
        let mut full = None;
        tables.walk(cx, report, &mut |claim| {
            let range = claim.range();
            if full.is_none() && range.start < within.end && range.end > within.start {
                full = layout.add(claim.start, claim.len, claim.class, claim.index).err();
            }
            report || full.is_none()
        });
        report = false;
        if let Some(full) = full {
            if window.end.saturating_sub(window.start) > WINDOW_MIN {
                return Err(full);
            }
            left_out = true;
        }
        let complete = full.is_none();
        // Both closures report to the same two.
        let both = RefCell::new((&mut *cx, &mut *tables));
        layout.sweep(
            within.clone(),
            |first, second, shared| {
                // A pair that reaches into the next window is told in the one where the second begins, and a pair that
                // begins before this one has been told.
                if within.contains(&shared.start) {
                    let (cx, tables) = &mut *both.borrow_mut();
                    tables.overlap(cx, first, second, shared);
                }
            },
            |range, class| {
                let (cx, tables) = &mut *both.borrow_mut();
                match class {
                    Some(class) => cx.add_host(range, class),
                    None if complete => tables.vacant(cx, range),
                    // Somebody who found no room may claim it.
                    None => cx.add_host(range, Class::Unknown),
                }
            },
        );
        Ok(())
    });
    if done.is_err() || left_out {
        cx.could_not("so many references overlap that memory does not hold them all: not all of them are listed");
    }
}
