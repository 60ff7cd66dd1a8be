//! What a power cut leaves (CM 5.1, 5.2, 5.4).
//!
//! Each block picks one of its versions, and the size one of its own; the profile says which picks go together. A
//! range that one request covers may have more blocks than anybody can list: beyond 65536 of one run they pick
//! in groups.

use std::collections::BTreeSet;

use blkproof_block::ByteRange;
use blkproof_block::choice::{Choices, hash};

use super::config::Profile;
use super::model::{ChangeId, Covered, Model};
use super::name::{Order, StateName, UnknownState};
use super::piece::{Content, Piece, append, cut_off};
use super::runs::Run;

/// Blocks of one run that pick for themselves.
const GROUPS: u64 = 1 << 16;

/// A sector, the unit in which a sheared block is cut.
const SECTOR: u64 = 512;

/// A disk that a power cut leaves: the medium, and this over it.
#[derive(Clone, Debug)]
pub struct State {
    /// What asks for it again.
    pub name: StateName,
    /// Bytes of the disk.
    pub size: u64,
    /// What is to be written over what the medium holds: sorted, apart, inside the size.
    pub pieces: Vec<Piece>,
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

/// Which versions the blocks pick.
enum Pick {
    /// The newest of a request that is kept.
    Requests(Keep),
    /// Any, older or newer, each block for itself.
    Blocks { seed: u64, per_mille: u32 },
    /// The digits of this number in the mixed radix of all choices.
    Number(u64),
}

enum Keep {
    None,
    All,
    Only(BTreeSet<ChangeId>),
    AllBut(BTreeSet<ChangeId>),
    Random { seed: u64, per_mille: u32 },
}

impl Keep {
    fn keeps(&self, id: ChangeId) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Only(ids) => ids.contains(&id),
            Self::AllBut(ids) => !ids.contains(&id),
            Self::Random { seed, per_mille } => hash(*seed, id.0) % 1000 < u64::from(*per_mille),
        }
    }
}

/// A pick with what the hostile profiles do to it.
struct Plan {
    pick: Pick,
    /// Of this request only these bytes.
    torn: Option<(ChangeId, ByteRange)>,
    /// Of this request's block at `start` only the bytes of the range.
    shorn: Option<(ChangeId, ByteRange)>,
    noise: Option<u64>,
}

impl Model {
    /// The state of that name, with the requests `moving` on their way to the medium: only profile `garbage` asks.
    /// Nothing changes.
    ///
    /// # Errors
    /// If the profile has no such state, or the name speaks of something that is not there.
    pub fn state(&self, name: &StateName, profile: Profile, moving: &Covered) -> Result<State, UnknownState> {
        let plan = self.plan(name, profile, moving)?;
        let mut number = match plan.pick {
            Pick::Number(number) => number,
            _ => 0,
        };
        let mut chosen = Vec::new();
        let mut pieces = Vec::new();
        for run in self.runs.iter() {
            for blocks in groups(run, self.block()) {
                let version = version_of(&plan, run, blocks, &mut number);
                self.put(&plan, run, blocks, version, &mut pieces);
                chosen.push((run, blocks, version));
            }
        }
        let sizes = self.sizes.versions().len();
        let version = match &plan.pick {
            Pick::Requests(keep) => self.sizes.newest(|id| keep.keeps(id)),
            Pick::Number(_) => digit(&mut number, sizes),
            Pick::Blocks { seed, per_mille } => any(*seed, u64::MAX, *per_mille, sizes),
        };
        if number > 0 {
            let count = self.count(profile).count;
            return Err(UnknownState::Number { name: name.to_string(), count });
        }
        let size = self.sizes.at(version);
        if let Some(seed) = plan.noise {
            pieces = self.with_noise(&pieces, seed, moving);
        }
        let (mut lost, mut betrayed) = (0, 0);
        for (run, blocks, version) in chosen {
            let at_least = |promised: bool| {
                run.newest(|id| {
                    self.entries
                        .get(&id)
                        .is_some_and(|entry| if promised { entry.promised } else { entry.completed.is_some() })
                })
            };
            let blocks = blocks.intersection(ByteRange { start: 0, end: self.size() });
            let Some(blocks) = blocks else { continue };
            lost = u64::saturating_add(lost, missing(run, blocks, version, at_least(false), size));
            betrayed = u64::saturating_add(betrayed, missing(run, blocks, version, at_least(true), size));
        }
        Ok(State { name: name.clone(), size, pieces: cut_off(pieces, size), lost, betrayed })
    }

    fn plan(&self, name: &StateName, profile: Profile, moving: &Covered) -> Result<Plan, UnknownState> {
        let least = name.least_profile();
        if profile < least {
            let (profile, least) = (profile.name(), least.name());
            return Err(UnknownState::Profile { name: name.to_string(), profile, least });
        }
        if let Some(&id) = name.requests().iter().find(|id| !self.entries.contains_key(id)) {
            return Err(UnknownState::Request { name: name.to_string(), id });
        }
        let requests = |keep| Plan { pick: Pick::Requests(keep), torn: None, shorn: None, noise: None };
        Ok(match name {
            StateName::AllOld => requests(Keep::None),
            StateName::AllNew => requests(Keep::All),
            StateName::Drop(ids) => requests(Keep::AllBut(ids.clone())),
            StateName::Keep(ids) => requests(Keep::Only(ids.clone())),
            StateName::Prefix(order, count) => requests(self.prefix(*order, *count)),
            StateName::Tear { id, first, blocks } => {
                Plan { torn: self.tear(*id, *first, *blocks).map(|kept| (*id, kept)), ..requests(Keep::All) }
            }
            StateName::Shear { id, block, sectors } => {
                Plan { shorn: self.shear(*id, *block, *sectors).map(|kept| (*id, kept)), ..requests(Keep::All) }
            }
            StateName::Number(number) => match profile {
                Profile::Request => {
                    let ids: Vec<_> = self.entries.keys().copied().collect();
                    let count = self.count(profile).count;
                    if *number >= count {
                        return Err(UnknownState::Number { name: name.to_string(), count });
                    }
                    let kept = ids.iter().zip(0..u64::BITS).filter(|&(_, bit)| number >> bit & 1 == 1);
                    requests(Keep::Only(kept.map(|(&id, _)| id).collect()))
                }
                _ => Plan { pick: Pick::Number(*number), ..requests(Keep::None) },
            },
            StateName::Seed(seed) => self.drawn(*seed, profile, moving),
        })
    }

    /// What a seed picks: each draw is the seed's own, however much is in the cache.
    fn drawn(&self, seed: u64, profile: Profile, moving: &Covered) -> Plan {
        let mut draws = Choices::new(hash(seed, 0x706f_7765_7220_6375));
        let per_mille = [20, 100, 500, 900, 980].get(draws.index(5)).copied().unwrap_or(500);
        let (by_block, own) = (draws.chance(500), draws.next());
        let (tears, shears) = (draws.chance(500), draws.chance(500));
        let victim = draws.next();
        let pick = match profile {
            Profile::Ordered => {
                let order = if by_block { Order::Completion } else { Order::Submission };
                let count = draws.below((self.entries.len() as u64).saturating_add(1));
                Pick::Requests(self.prefix(order, count))
            }
            Profile::Request => Pick::Requests(Keep::Random { seed: own, per_mille }),
            _ if by_block => Pick::Blocks { seed: own, per_mille },
            _ => Pick::Requests(Keep::Random { seed: own, per_mille }),
        };
        let mut plan = Plan { pick, torn: None, shorn: None, noise: None };
        let index = usize::try_from(victim % (self.entries.len() as u64).max(1)).unwrap_or(0);
        let victim = self.entries.iter().nth(index).map(|(&id, entry)| (id, entry.change.range));
        if let Some((id, range)) = victim {
            let blocks = range.aligned_out(self.block()).len() / self.block();
            if profile >= Profile::Torn && tears && blocks > 1 {
                let first = draws.chance(500);
                let count = draws.below(blocks.saturating_sub(1)).saturating_add(1);
                plan.torn = self.tear(id, first, count).map(|kept| (id, kept));
            }
            let sectors = self.block() / SECTOR;
            if profile >= Profile::Shorn && shears && sectors > 1 {
                let block = draws.below(blocks);
                let count = draws.below(sectors.saturating_sub(1)).saturating_add(1);
                plan.shorn = self.shear(id, block, count).map(|kept| (id, kept));
            }
        }
        let moving = *moving != Covered::Nothing || self.pending().1 > 0;
        plan.noise = (profile >= Profile::Garbage && moving).then(|| draws.next());
        plan
    }

    /// The first `count` requests in that order.
    fn prefix(&self, order: Order, count: u64) -> Keep {
        let mut ids: Vec<_> = self.entries.iter().map(|(&id, entry)| (entry.completed, id)).collect();
        if order == Order::Completion {
            ids.sort_by_key(|&(completed, id)| (completed.is_none(), completed, id));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Keep::Only(ids.into_iter().take(count).map(|(_, id)| id).collect())
    }

    /// The bytes that a tear leaves of a request.
    fn tear(&self, id: ChangeId, first: bool, blocks: u64) -> Option<ByteRange> {
        let whole = self.entries.get(&id)?.change.range.aligned_out(self.block());
        let len = blocks.saturating_mul(self.block()).min(whole.len());
        Some(match first {
            true => ByteRange::at(whole.start, len),
            false => ByteRange { start: whole.end.saturating_sub(len), end: whole.end },
        })
    }

    /// The bytes that survive of the one block that is sheared.
    fn shear(&self, id: ChangeId, block: u64, sectors: u64) -> Option<ByteRange> {
        let whole = self.entries.get(&id)?.change.range.aligned_out(self.block());
        let start = whole.start.saturating_add(block.saturating_mul(self.block()));
        let len = sectors.saturating_mul(SECTOR).min(self.block());
        whole.contains(start).then(|| ByteRange::at(start, len))
    }

    /// Appends what blocks of a run hold at their version.
    fn put(&self, plan: &Plan, run: &Run, blocks: ByteRange, version: usize, pieces: &mut Vec<Piece>) {
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

    /// Noise in about half of the blocks that were on their way.
    fn with_noise(&self, pieces: &[Piece], seed: u64, moving: &Covered) -> Vec<Piece> {
        let mut noise = Vec::new();
        for run in self.runs.iter() {
            let open = |id| self.entries.get(&id).is_some_and(|entry| entry.completed.is_none());
            if run.newest(|id| self.has(moving, id) || open(id)) == 0 {
                continue;
            }
            for blocks in groups(run, self.block()) {
                if hash(seed, blocks.start) & 1 == 1 {
                    append(&mut noise, Piece { range: blocks, content: Content::Noise(seed) });
                }
            }
        }
        super::piece::laid_over(&noise, pieces)
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
                for run in self.runs.iter() {
                    let radix = radix(run.versions.len());
                    let blocks = u32::try_from(group_count(run, self.block())).unwrap_or(u32::MAX);
                    log2 += f64::from(radix).log2() * f64::from(blocks);
                    count = count.saturating_mul(u64::from(radix).checked_pow(blocks).unwrap_or(u64::MAX));
                }
                (count, log2)
            }
        };
        Estimate { count, log2 }
    }

    /// Names of states in the order in which they are worth trying (CM 5.4), `budget` at most; of all, if they are so
    /// few. `seed` begins the random ones.
    pub fn names(&self, profile: Profile, budget: usize, seed: u64) -> Vec<StateName> {
        let ids: Vec<_> = self.entries.keys().copied().collect();
        let requests = ids.len() as u64;
        let total = self.count(profile).count;
        if ids.is_empty() {
            return [StateName::AllOld].into_iter().take(budget).collect();
        }
        let ends = [StateName::AllOld, StateName::AllNew].into_iter();
        let prefixes = |order| (1..requests).map(move |count| StateName::Prefix(order, count));
        let prefixes = prefixes(Order::Completion).chain(prefixes(Order::Submission));
        if profile == Profile::Ordered {
            return ends.chain(prefixes).take(budget).collect();
        }
        if total <= budget as u64 && profile <= Profile::Block {
            return (0..total).map(StateName::Number).collect();
        }
        let one = |id: &ChangeId| BTreeSet::from([*id]);
        let tears = self.entries.iter().filter(|_| profile >= Profile::Torn).flat_map(|(&id, entry)| {
            let blocks = entry.change.range.aligned_out(self.block()).len() / self.block();
            // As many as a table of a format has; the seeds reach the others.
            (1..blocks.min(64)).flat_map(move |blocks| [true, false].map(|first| StateName::Tear { id, first, blocks }))
        });
        ends.chain(ids.iter().map(|id| StateName::Drop(one(id))))
            .chain(ids.iter().map(|id| StateName::Keep(one(id))))
            .chain(prefixes)
            .chain(tears)
            .chain((0_u64..).map(|number| StateName::Seed(hash(seed, number))))
            .take(budget)
            .collect()
    }
}

/// Which version some blocks of a run pick.
fn version_of(plan: &Plan, run: &Run, blocks: ByteRange, number: &mut u64) -> usize {
    let torn_off = |id: ChangeId| plan.torn.is_some_and(|(torn, kept)| torn == id && !kept.overlaps(blocks));
    match &plan.pick {
        Pick::Requests(keep) => run.newest(|id| keep.keeps(id) && !torn_off(id)),
        Pick::Blocks { seed, per_mille } => {
            let version = any(*seed, blocks.start, *per_mille, run.versions.len());
            match version.checked_sub(1).and_then(|index| run.versions.get(index)) {
                Some(change) if torn_off(change.id) => version.saturating_sub(1),
                _ => version,
            }
        }
        Pick::Number(_) => digit(number, run.versions.len()),
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

/// How many picks a run has.
fn group_count(run: &Run, block: u64) -> u64 {
    (run.range.len() / block.max(1)).clamp(1, GROUPS)
}

/// The blocks of a run, or groups of them.
fn groups(run: &Run, block: u64) -> impl Iterator<Item = ByteRange> {
    let blocks = run.range.len() / block.max(1);
    let step = blocks.div_ceil(GROUPS).max(1).saturating_mul(block);
    let ByteRange { start, end } = run.range;
    (start..end)
        .step_by(usize::try_from(step).unwrap_or(usize::MAX))
        .map(move |at| ByteRange { start: at, end: at.saturating_add(step).min(end) })
}

/// Bytes of `blocks` that versions after the one picked, up to `wanted`, had changed; beyond the end all up to it.
fn missing(run: &Run, blocks: ByteRange, picked: usize, wanted: usize, size: u64) -> u64 {
    let touched = |from: usize, range: ByteRange| -> u64 {
        if range.is_empty() || wanted <= from {
            return 0;
        }
        let mut parts: Vec<_> =
            run.versions.iter().take(wanted).skip(from).filter_map(|change| change.range.intersection(range)).collect();
        parts.sort_unstable();
        let mut end = range.start;
        let mut sum: u64 = 0;
        for part in parts {
            sum = sum.saturating_add(part.end.saturating_sub(part.start.max(end)));
            end = end.max(part.end);
        }
        sum
    };
    let inside = ByteRange { start: blocks.start, end: blocks.end.min(size) };
    let beyond = ByteRange { start: blocks.start.max(size), end: blocks.end };
    touched(picked, inside).saturating_add(touched(0, beyond))
}
