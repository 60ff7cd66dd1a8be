//! What a power cut leaves (CM 5.1, 5.2, 5.4).
//!
//! Each block picks one of its versions, and the size one of its own; the profile says which picks go together, and the
//! plan what a name means. Where the plan is about requests, a run of blocks picks once. Where each block
//! picks for itself, there may be more blocks than anybody can list: beyond 65536 in all, the longest runs pick in
//! groups.

use blkproof_block::ByteRange;
use blkproof_block::choice::{Choices, hash};

use super::config::Profile;
use super::model::{Covered, Model};
use super::name::{StateName, UnknownState};
use super::piece::{Content, Piece, append, cut_off};
use super::plan::{Pick, Plan};
use super::runs::Run;

/// Picks of all runs together, unless there are more runs.
const GROUPS: u64 = 1 << 16;

/// A disk that a power cut leaves: the medium, and this over it.
#[derive(Clone, Debug)]
pub struct State {
    /// What asks for it again.
    pub name: StateName,
    /// Bytes of the disk.
    pub size: u64,
    /// What is to be written over what the medium holds: sorted, apart, inside the size.
    pub pieces: Vec<Piece>,
    /// Blocks that can not be read until they are written again, sorted, apart, inside the size: what the pieces have
    /// there is what a medium holds that has no other way to say so.
    pub unreadable: Vec<ByteRange>,
    /// Bytes that were acknowledged and are not there. Equal content is not looked for.
    pub lost: u64,
    /// Bytes of these that a liar had said were durable.
    pub betrayed: u64,
}

/// How many states there are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// The number, as long as it fits; equal contents count as often as they are written.
    pub count: u64,
    /// Its binary logarithm, which always fits.
    pub log2: f64,
}

impl Model {
    /// The state of that name, with the requests `moving` on their way to the medium: only profile `garbage` asks.
    /// Nothing changes.
    ///
    /// # Errors
    /// If the profile has no such state, or the name speaks of something that is not there.
    pub fn state(&self, name: &StateName, profile: Profile, moving: &Covered) -> Result<State, UnknownState> {
        let plan = self.plan(name, profile, moving)?;
        let sizes = self.sizes.versions().len();
        let version = match &plan.pick {
            Pick::Requests(keep) => self.sizes.newest(|id| keep.keeps(id)),
            Pick::Blocks { seed, per_mille } => any(*seed, u64::MAX, *per_mille, sizes),
            // The last digit, behind those of the blocks.
            Pick::Number(_) => {
                let mut number = self.each_pick(&plan, |_, _, _| ());
                let version = digit(&mut number, sizes);
                if number > 0 {
                    let count = self.count(profile).count;
                    return Err(UnknownState::Number { name: name.to_string(), count });
                }
                version
            }
        };
        let size = self.sizes.at(version);
        let seen = ByteRange { start: 0, end: self.size() };
        let (mut pieces, mut lost, mut betrayed) = (Vec::new(), 0_u64, 0_u64);
        // Of the run that was visited last: which versions had completed, which had been promised.
        let mut owed = (u64::MAX, 0, 0);
        self.each_pick(&plan, |run, blocks, version| {
            self.put(&plan, run, blocks, version, &mut pieces);
            let Some(blocks) = blocks.intersection(seen) else { return };
            if owed.0 != run.range.start {
                owed = (run.range.start, self.newest_completed(run), self.newest_promised(run));
            }
            lost = lost.saturating_add(missing(run, blocks, version, owed.1, size));
            betrayed = betrayed.saturating_add(missing(run, blocks, version, owed.2, size));
        });
        let mut unreadable = Vec::new();
        if let Some(seed) = plan.noise {
            (pieces, unreadable) = self.with_noise(&pieces, seed, moving);
        }
        cut_off(&mut pieces, size);
        let inside = ByteRange { start: 0, end: size };
        let unreadable = unreadable.into_iter().filter_map(|range: ByteRange| range.intersection(inside)).collect();
        Ok(State { name: name.clone(), size, pieces, unreadable, lost, betrayed })
    }

    /// What the blocks pick, by place: neighbours of one run that pick the same together. Returns what is left of a
    /// number.
    fn each_pick<'a>(&'a self, plan: &Plan<'_>, mut visit: impl FnMut(&'a Run, ByteRange, usize)) -> u64 {
        let mut number = match plan.pick {
            Pick::Number(number) => number,
            _ => 0,
        };
        let share = match plan.pick {
            Pick::Requests(_) => 1,
            _ => self.share(),
        };
        for run in self.runs.iter() {
            let versions = run.versions.len();
            match &plan.pick {
                Pick::Requests(keep) => each_part(plan, run, |blocks| {
                    let version = run.newest(|id| keep.keeps(id) && !plan.tears_off(id, blocks));
                    visit(run, blocks, version);
                }),
                Pick::Blocks { seed, per_mille } => {
                    let picks = groups(run, self.block(), share).map(|blocks| {
                        let version = any(*seed, blocks.start, *per_mille, versions);
                        match version.checked_sub(1).and_then(|index| run.versions.get(index)) {
                            Some(change) if plan.tears_off(change.id, blocks) => (blocks, version.saturating_sub(1)),
                            _ => (blocks, version),
                        }
                    });
                    each_merged(picks, |blocks, version| visit(run, blocks, version));
                }
                Pick::Number(_) if number == 0 => visit(run, run.range, 0),
                Pick::Number(_) => {
                    let picks = groups(run, self.block(), share).map(|blocks| (blocks, digit(&mut number, versions)));
                    each_merged(picks, |blocks, version| visit(run, blocks, version));
                }
            }
        }
        number
    }

    /// Picks that one run has at most, so that all together are not too many.
    fn share(&self) -> u64 {
        let blocks = |run: &Run| run.range.len() / self.block();
        let mut share = GROUPS;
        while share > 1 && self.runs.iter().fold(0_u64, |sum, run| sum.saturating_add(blocks(run).min(share))) > GROUPS
        {
            share /= 2;
        }
        share
    }

    fn newest_completed(&self, run: &Run) -> usize {
        run.newest(|id| self.entries.get(&id).is_some_and(|entry| entry.completed.is_some()))
    }

    fn newest_promised(&self, run: &Run) -> usize {
        if !self.has_promised() {
            return 0;
        }
        run.newest(|id| self.entries.get(&id).is_some_and(|entry| entry.promised))
    }

    /// Appends what blocks of a run hold at their version.
    fn put(&self, plan: &Plan<'_>, run: &Run, blocks: ByteRange, version: usize, pieces: &mut Vec<Piece>) {
        let sheared = plan.shorn.and_then(|(id, kept)| {
            let index = run.versions.iter().position(|change| change.id == id)?;
            // Only where the version that was picked is the sheared request's own.
            (index.saturating_add(1) == version && blocks.contains(kept.start)).then_some((index, kept))
        });
        let Some((older, kept)) = sheared else {
            run.content(version, blocks, pieces);
            return;
        };
        let block = ByteRange::at(kept.start, self.block());
        run.content(version, ByteRange { start: blocks.start, end: kept.end }, pieces);
        run.content(older, ByteRange { start: kept.end, end: block.end }, pieces);
        run.content(version, ByteRange { start: block.end, end: blocks.end.max(block.end) }, pieces);
    }

    /// About half of the blocks that were on their way hold noise, and about half of these can not be read.
    fn with_noise(&self, pieces: &[Piece], seed: u64, moving: &Covered) -> (Vec<Piece>, Vec<ByteRange>) {
        let (mut noise, mut unreadable) = (Vec::new(), Vec::<ByteRange>::new());
        let share = self.share();
        let open = |id| self.entries.get(&id).is_some_and(|entry| entry.completed.is_none());
        for run in self.runs.iter().filter(|run| run.newest(|id| self.has(moving, id) || open(id)) > 0) {
            for blocks in groups(run, self.block(), share) {
                let drawn = hash(seed, blocks.start);
                if drawn & 1 == 1 {
                    append(&mut noise, Piece { range: blocks, content: Content::Noise(seed) });
                }
                if drawn & 3 == 3 {
                    match unreadable.last_mut() {
                        Some(last) if last.end == blocks.start => last.end = blocks.end,
                        _ => unreadable.push(blocks),
                    }
                }
            }
        }
        (super::piece::laid_over(&noise, pieces), unreadable)
    }

    /// How many states the profile has; an estimate for those beyond `block`.
    pub fn count(&self, profile: Profile) -> Estimate {
        let requests = self.entries.len();
        let (count, log2) = match profile {
            Profile::Ordered => {
                // Prefixes by either order, of which the empty one and the full one are the same.
                let count = if requests == 0 { 1 } else { (requests as u64).saturating_mul(2) };
                (count, f64::from(u32::try_from(count).unwrap_or(u32::MAX)).log2())
            }
            Profile::Request => {
                let bits = u32::try_from(requests).unwrap_or(u32::MAX);
                (1_u64.checked_shl(bits).unwrap_or(u64::MAX), f64::from(bits))
            }
            _ => {
                let radix = |versions: usize| u32::try_from(versions.saturating_add(1)).unwrap_or(u32::MAX);
                let sizes = radix(self.sizes.versions().len());
                let (mut count, mut log2) = (u64::from(sizes), f64::from(sizes).log2());
                let share = self.share();
                for run in self.runs.iter() {
                    let radix = radix(run.versions.len());
                    let picks = u32::try_from(picks(run, self.block(), share)).unwrap_or(u32::MAX);
                    log2 += f64::from(radix).log2() * f64::from(picks);
                    count = count.saturating_mul(u64::from(radix).checked_pow(picks).unwrap_or(u64::MAX));
                }
                (count, log2)
            }
        };
        Estimate { count, log2 }
    }
}

/// The medium's version or, in so many of a thousand cases, any newer one.
fn any(seed: u64, place: u64, per_mille: u32, versions: usize) -> usize {
    let mut draws = Choices::new(hash(seed, place));
    if versions > 0 && draws.chance(per_mille) { draws.index(versions).saturating_add(1) } else { 0 }
}

/// Takes a digit from 0 to `most` off the number.
fn digit(number: &mut u64, most: usize) -> usize {
    let radix = (most as u64).saturating_add(1);
    let digit = *number % radix;
    *number /= radix;
    usize::try_from(digit).unwrap_or(0)
}

/// A run as a whole; in two or three parts where a tear goes through it.
fn each_part(plan: &Plan<'_>, run: &Run, mut visit: impl FnMut(ByteRange)) {
    let mut from = run.range.start;
    let torn = plan.torn.filter(|(id, _)| run.versions.iter().any(|change| change.id == *id));
    if let Some((_, kept)) = torn {
        for border in [kept.start, kept.end] {
            if from < border && border < run.range.end {
                visit(ByteRange { start: from, end: border });
                from = border;
            }
        }
    }
    visit(ByteRange { start: from, end: run.range.end });
}

/// Neighbours that pick the same, as one.
fn each_merged(picks: impl Iterator<Item = (ByteRange, usize)>, mut visit: impl FnMut(ByteRange, usize)) {
    let mut open: Option<(ByteRange, usize)> = None;
    for (blocks, version) in picks {
        open = Some(match open {
            Some((before, same)) if same == version => (ByteRange { end: blocks.end, ..before }, version),
            Some((before, other)) => {
                visit(before, other);
                (blocks, version)
            }
            None => (blocks, version),
        });
    }
    if let Some((blocks, version)) = open {
        visit(blocks, version);
    }
}

/// How many blocks of a run pick together.
fn group(run: &Run, block: u64, share: u64) -> u64 {
    (run.range.len() / block.max(1)).div_ceil(share.max(1)).max(1)
}

/// How many picks a run has.
fn picks(run: &Run, block: u64, share: u64) -> u64 {
    (run.range.len() / block.max(1)).div_ceil(group(run, block, share)).max(1)
}

/// The blocks of a run, or groups of them.
fn groups(run: &Run, block: u64, share: u64) -> impl Iterator<Item = ByteRange> {
    let step = group(run, block, share).saturating_mul(block);
    let ByteRange { start, end } = run.range;
    (start..end)
        .step_by(usize::try_from(step).unwrap_or(usize::MAX))
        .map(move |at| ByteRange { start: at, end: at.saturating_add(step).min(end) })
}

/// Bytes of `blocks` that versions after the one picked, up to `wanted`, had changed; beyond the end all up to it.
fn missing(run: &Run, blocks: ByteRange, picked: usize, wanted: usize, size: u64) -> u64 {
    let inside = ByteRange { start: blocks.start, end: blocks.end.min(size) };
    let beyond = ByteRange { start: blocks.start.max(size), end: blocks.end };
    touched(run, picked, wanted, inside).saturating_add(touched(run, 0, wanted, beyond))
}

/// Bytes of `range` that these versions of a run had changed.
fn touched(run: &Run, from: usize, to: usize, range: ByteRange) -> u64 {
    if range.is_empty() || to <= from {
        return 0;
    }
    let changes = || run.versions.iter().take(to).skip(from).map(|change| change.range);
    if changes().any(|change| change.start <= range.start && range.end <= change.end) {
        return range.len();
    }
    let mut parts: Vec<_> = changes().filter_map(|change| change.intersection(range)).collect();
    parts.sort_unstable();
    let mut end = range.start;
    let mut sum: u64 = 0;
    for part in parts {
        sum = sum.saturating_add(part.end.saturating_sub(part.start.max(end)));
        end = end.max(part.end);
    }
    sum
}
