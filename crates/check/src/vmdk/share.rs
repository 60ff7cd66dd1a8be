//! Grains that are not compressed: each may be mapped once (VMDK-5), and what no entry maps is wasted.
//!
//! Nearly every writer places grains at multiples of the grain size from a common start, so a bit per grain says all.
//! Grains elsewhere count for both places they touch. Only where something is counted twice the tables are read once
//! more, to learn who it is. All of it window by window of the file where memory is short.

use std::ops::Range;

use crate::context::Context;
use crate::finding::Finding;
use crate::layout::Layout;
use crate::map::{Claim, Class, Owner};
use crate::tally::{Tally, in_windows};

use super::codes;
use super::geometry::{Geometry, Kind};
use super::survey::{Judge, Sums};
use super::tables::{Halt, Table, Visit, Walk, walk};

/// Grains that share a place, kept by name; more are only counted.
const NAMED: u64 = 1 << 16;
/// Units in a window that is not divided any more.
const SMALLEST: u64 = 1 << 15;
/// Units from which on no VMDK is that long: 64 TiB in grains of one sector.
const UNITS: u64 = 1 << 37;
/// Less than this is alignment, not a loss.
const SMALL: u64 = 4096;
/// Bytes looked at to tell data from space that was never used.
const SAMPLE: usize = 1 << 20;

/// The file in units of a grain, counted from where the first grain lies.
#[derive(Clone, Copy)]
struct Units {
    grain: u64,
    phase: u64,
}

impl Units {
    /// Unit 0 ends at `phase`, which is below the grain size.
    fn of(&self, at: u64) -> u64 {
        at.saturating_add(self.grain).saturating_sub(self.phase).checked_div(self.grain).unwrap_or(0)
    }

    fn start(&self, unit: u64) -> u64 {
        unit.saturating_mul(self.grain).saturating_add(self.phase).saturating_sub(self.grain)
    }

    fn touched(&self, grain: u64) -> Range<u64> {
        let last = grain.saturating_add(self.grain).saturating_sub(1);
        self.of(grain)..self.of(last).saturating_add(1)
    }
}

/// Counts who maps what, tells what is mapped twice and what is not mapped at all, and draws the map of the file.
pub(super) fn share(cx: &mut Context<'_>, judge: Judge<'_, '_>, sums: &Sums) -> Result<(), Halt> {
    let geo = judge.geo;
    let units = Units { grain: geo.grain.max(1), phase: sums.phase.unwrap_or(0) };
    let end = if sums.end == 0 { 0 } else { units.of(sums.end.saturating_sub(1)).saturating_add(1) };
    let mut draw = Draw { judge, sums, cursor: 0, at: 0, free: None };
    if end > UNITS {
        cx.could_not("grains mapped twice: the file is longer than any VMDK can be");
    } else {
        let budget = cx.budget;
        let mut halt = None;
        let done = in_windows(end, |window| {
            if halt.is_some() {
                return Ok(());
            }
            let tally = Tally::new(window, budget)?;
            match count(cx, judge, sums, units, &tally) {
                Ok(twice) => {
                    if twice && let Err(other) = name(cx, judge, sums, units, &tally) {
                        return stop(other, &mut halt);
                    }
                }
                Err(other) => return stop(other, &mut halt),
            }
            tally.runs(|run, count| draw.run(cx, units.start(run.start)..units.start(run.end), count));
            Ok(())
        });
        match halt {
            Some(halt) => return Err(halt),
            None => done?,
        }
    }
    draw.finish(cx);
    Ok(())
}

/// Full means a smaller window; anything else ends it.
fn stop(halt: Halt, kept: &mut Option<Halt>) -> Result<(), crate::budget::Full> {
    match halt {
        Halt::Full => Err(crate::budget::Full),
        Halt::Stopped => {
            *kept = Some(halt);
            Ok(())
        }
    }
}

struct EachGrain<'j, 'b, F> {
    judge: Judge<'j, 'b>,
    each: F,
}

impl<F: FnMut(&mut Context<'_>, u64, u64) -> Result<(), Halt>> Visit for EachGrain<'_, '_, F> {
    fn table(&mut self, cx: &mut Context<'_>, table: &Table<'_>) -> Result<(), Halt> {
        self.judge.grains(table, |guest, start| (self.each)(cx, guest, start))
    }
}

/// Calls `each` with guest offset and place of every grain that begins inside the file.
pub(super) fn each_grain(
    cx: &mut Context<'_>,
    judge: Judge<'_, '_>,
    sums: &Sums,
    phase: &'static str,
    each: impl FnMut(&mut Context<'_>, u64, u64) -> Result<(), Halt>,
) -> Result<(), Halt> {
    let how = Walk { phase, first: false, copies: sums.mixed, contents: true };
    walk(cx, judge.geo, how, &mut EachGrain { judge, each })
}

/// Counts every grain; whether any place was counted twice.
fn count(
    cx: &mut Context<'_>,
    judge: Judge<'_, '_>,
    sums: &Sums,
    units: Units,
    tally: &Tally<'_>,
) -> Result<bool, Halt> {
    let mut twice = false;
    // Neighbours in the file are counted together.
    let mut run = 0..0u64;
    each_grain(cx, judge, sums, "grains", |_, _, start| {
        let touched = units.touched(start);
        if run.end == touched.start && touched.end.saturating_sub(touched.start) == 1 {
            run.end = touched.end;
            return Ok(());
        }
        twice |= tally.add_run(run.start, run.end.saturating_sub(run.start))?;
        run = touched;
        Ok(())
    })?;
    twice |= tally.add_run(run.start, run.end.saturating_sub(run.start))?;
    Ok(twice)
}

/// Who shares grains with whom.
fn name(cx: &mut Context<'_>, judge: Judge<'_, '_>, sums: &Sums, units: Units, tally: &Tally<'_>) -> Result<(), Halt> {
    let budget = cx.budget;
    let mut layout = Layout::new(budget);
    let window = tally.window();
    let (mut named, mut more) = (0u64, 0u64);
    let mut lost: Vec<Range<u64>> = Vec::new();
    let judge_geo = judge.geo;
    each_grain(cx, judge, sums, "shared grains", |cx, guest, start| {
        let touched = units.touched(start);
        if !touched.clone().any(|unit| window.contains(&unit) && tally.count(unit) > 1)
            || judge.on_metadata(start, guest)
        {
            return Ok(());
        }
        // Touching the same unit is not sharing yet, if grains do not lie at equal distances: all of them are needed to
        // tell, in smaller windows if need be. In one page nothing can be smaller: what is left is counted like the
        // rest.
        let wanted = named < NAMED || sums.outliers > 0;
        if wanted && layout.add(start, units.grain, Class::Data, guest).is_ok() {
            named = named.saturating_add(1);
        } else if wanted && sums.outliers > 0 && window.end.saturating_sub(window.start) > SMALLEST {
            return Err(Halt::Full);
        } else {
            more = more.saturating_add(1);
            cx.lose(guest..guest.saturating_add(judge_geo.used(guest)));
        }
        Ok(())
    })?;
    let file = units.start(window.start)..units.start(window.end);
    let mut shared_by = Vec::new();
    layout.sweep(
        0..0,
        |first, second, shared| {
            // What begins in another window is told there.
            if file.contains(&shared.start) {
                shared_by.push((*first, *second, shared));
            }
        },
        |_, _| {},
    );
    for (first, second, shared) in shared_by {
        lost.extend(tell_shared(cx, judge.geo, &first, &second, shared));
    }
    for range in lost {
        cx.lose(range);
    }
    if more > 0 {
        let words = format!("{more} more entries map grains that others map too");
        cx.find(Finding::new(codes::GRAIN_SHARED, words).count(more));
    }
    Ok(())
}

/// Tells one pair, and gives back what of the guest's disk it is about.
pub(super) fn tell_shared(
    cx: &mut Context<'_>,
    geo: &Geometry,
    first: &Claim,
    second: &Claim,
    shared: Range<u64>,
) -> Vec<Range<u64>> {
    let len = shared.end.saturating_sub(shared.start);
    let guest = |claim: &Claim| {
        if geo.compressed {
            let end = claim.index.saturating_add(geo.used(claim.index));
            return claim.index..end;
        }
        let start = claim.index.saturating_add(shared.start.saturating_sub(claim.start));
        start..start.saturating_add(len).min(geo.capacity)
    };
    let owner = |claim: &Claim| {
        let guest = guest(claim);
        let label = format!("guest data {:#x}..{:#x}", guest.start, guest.end);
        Owner { class: claim.class, host: claim.range(), guest: Some(guest), label }
    };
    let (one, other) = (owner(first), owner(second));
    let words = format!("{} and {} are both mapped to {:#x}..{:#x}", one.label, other.label, shared.start, shared.end);
    let count = if geo.compressed { 1 } else { len.div_ceil(geo.grain.max(1)).max(1) };
    let ranges = vec![guest(first), guest(second)];
    let mut finding = Finding::new(codes::GRAIN_SHARED, words).host(shared).count(count).owner(one).owner(other);
    finding.guest.clone_from(&ranges);
    cx.find(finding);
    ranges
}

/// Draws the file in order: metadata from its pieces, the rest from the counts.
struct Draw<'j, 'b, 's> {
    judge: Judge<'j, 'b>,
    sums: &'s Sums,
    /// Next piece of metadata.
    cursor: usize,
    at: u64,
    /// Space without owner that may go on.
    free: Option<Range<u64>>,
}

impl Draw<'_, '_, '_> {
    /// The file's next stretch, mapped `count` times.
    fn run(&mut self, cx: &mut Context<'_>, run: Range<u64>, count: u64) {
        let end = run.end.min(self.judge.file);
        self.at = self.at.max(run.start);
        while self.at < end {
            let piece = self.judge.meta.pieces.get(self.cursor).cloned();
            match piece {
                Some((range, _)) if range.end <= self.at => self.cursor = self.cursor.saturating_add(1),
                Some((range, class)) if range.start <= self.at => {
                    let to = range.end.min(end);
                    self.piece(cx, to, if count > 0 { Class::Conflict } else { class });
                }
                found => {
                    let to = found.map_or(end, |(range, _)| range.start.min(end));
                    match count {
                        0 => self.free(to),
                        1 => self.piece(cx, to, Class::Data),
                        _ => self.piece(cx, to, Class::Conflict),
                    }
                }
            }
        }
    }

    fn piece(&mut self, cx: &mut Context<'_>, to: u64, class: Class) {
        self.tell_free(cx, false);
        cx.add_host(self.at..to, class);
        self.at = to;
    }

    fn free(&mut self, to: u64) {
        match &mut self.free {
            Some(range) => range.end = to,
            None => self.free = Some(self.at..to),
        }
        self.at = to;
    }

    /// Space nobody refers to: wasted, or kept in reserve.
    fn tell_free(&mut self, cx: &mut Context<'_>, tail: bool) {
        let Some(range) = self.free.take() else { return };
        let geo = self.judge.geo;
        let len = range.end.saturating_sub(range.start);
        let grains = len.checked_div(geo.grain).unwrap_or(0);
        // Grains of one sector leave gaps wherever something is aligned.
        let grains = if len < SMALL { 0 } else { grains };
        let handed_out = match geo.kind {
            Kind::Hosted => true,
            // It grows its files in steps of megabytes, and says how far it is.
            Kind::Cowd => geo.next_free.is_some_and(|next| range.end <= next),
            // The free bitmap's matter.
            Kind::SeSparse => false,
        };
        if self.sums.unknown > 0 {
            cx.add_host(range, Class::Unknown);
            return;
        }
        if !handed_out || grains == 0 || range.start < geo.overhead {
            cx.add_host(range, Class::Free);
            return;
        }
        if tail {
            let len = usize::try_from(len).unwrap_or(SAMPLE).min(SAMPLE);
            let mut sample = vec![0u8; len];
            let read = cx.image.read_at(range.start, &mut sample).unwrap_or(0);
            if crate::bytes::is_zero(sample.get(..read).unwrap_or_default()) {
                let words = format!("{len} bytes behind the last grain in use, zero where looked at");
                cx.find(Finding::new(codes::TAIL, words).host(range.clone()));
                cx.add_host(range, Class::Free);
                return;
            }
        }
        let words = format!("no table refers to {:#x}..{:#x} ({grains} grains)", range.start, range.end);
        cx.find(Finding::new(codes::LEAKED, words).host(range.clone()).count(grains));
        cx.add_host(range, Class::Leaked);
    }

    /// What lies behind the last grain.
    fn finish(&mut self, cx: &mut Context<'_>) {
        let file = self.judge.file;
        let last = self.judge.meta.end().max(self.sums.end).min(file);
        self.run(cx, self.at..last, 0);
        self.tell_free(cx, false);
        self.run(cx, self.at..file, 0);
        self.tell_free(cx, true);
    }
}
