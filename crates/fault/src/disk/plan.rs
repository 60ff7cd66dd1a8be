//! What a state's name means: which versions the blocks pick, and what the hostile profiles do to them.

use std::collections::BTreeSet;

use blkproof_block::ByteRange;
use blkproof_block::choice::{Choices, hash};

use super::config::Profile;
use super::model::{ChangeId, Covered, Model};
use super::name::{Order, StateName, UnknownState};

/// A sector, the unit in which a sheared block is cut.
const SECTOR: u64 = 512;

/// Which versions the blocks pick.
pub(super) enum Pick<'a> {
    /// The newest of a request that is kept.
    Requests(Keep<'a>),
    /// Any, older or newer, each block for itself.
    Blocks { seed: u64, per_mille: u32 },
    /// The digits of this number in the mixed radix of all choices.
    Number(u64),
}

pub(super) enum Keep<'a> {
    None,
    All,
    Only(&'a BTreeSet<ChangeId>),
    AllBut(&'a BTreeSet<ChangeId>),
    /// Sorted.
    These(Vec<ChangeId>),
    Random {
        seed: u64,
        per_mille: u32,
    },
}

impl Keep<'_> {
    pub(super) fn keeps(&self, id: ChangeId) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Only(ids) => ids.contains(&id),
            Self::AllBut(ids) => !ids.contains(&id),
            Self::These(ids) => ids.binary_search(&id).is_ok(),
            Self::Random { seed, per_mille } => hash(*seed, id.0) % 1000 < u64::from(*per_mille),
        }
    }
}

/// A pick with what the hostile profiles do to it.
pub(super) struct Plan<'a> {
    pub(super) pick: Pick<'a>,
    /// Of this request only these bytes, whole blocks.
    pub(super) torn: Option<(ChangeId, ByteRange)>,
    /// Of this request's block at `start` only the bytes of the range.
    pub(super) shorn: Option<(ChangeId, ByteRange)>,
    pub(super) noise: Option<u64>,
}

impl<'a> Plan<'a> {
    fn plain(pick: Pick<'a>) -> Self {
        Self { pick, torn: None, shorn: None, noise: None }
    }

    /// Whether these blocks of the request do not survive.
    pub(super) fn tears_off(&self, id: ChangeId, blocks: ByteRange) -> bool {
        self.torn.is_some_and(|(torn, kept)| torn == id && !kept.overlaps(blocks))
    }
}

impl Model {
    pub(super) fn plan<'a>(
        &self,
        name: &'a StateName,
        profile: Profile,
        moving: &Covered,
    ) -> Result<Plan<'a>, UnknownState> {
        let least = name.least_profile();
        if profile < least {
            let (profile, least) = (profile.name(), least.name());
            return Err(UnknownState::Profile { name: name.to_string(), profile, least });
        }
        if let Some(id) = name.requests().find(|id| !self.entries.contains_key(id)) {
            return Err(UnknownState::Request { name: name.to_string(), id });
        }
        let requests = |keep| Plan::plain(Pick::Requests(keep));
        Ok(match name {
            StateName::AllOld => requests(Keep::None),
            StateName::AllNew => requests(Keep::All),
            StateName::Drop(ids) => requests(Keep::AllBut(ids)),
            StateName::Keep(ids) => requests(Keep::Only(ids)),
            StateName::Prefix(order, count) => requests(self.prefix(*order, *count)),
            StateName::Tear { id, first, blocks } => {
                Plan { torn: self.tear(*id, *first, *blocks).map(|kept| (*id, kept)), ..requests(Keep::All) }
            }
            StateName::Shear { id, block, sectors } => {
                Plan { shorn: self.shear(*id, *block, *sectors).map(|kept| (*id, kept)), ..requests(Keep::All) }
            }
            StateName::Number(number) if profile == Profile::Request => {
                let count = self.count(profile).count;
                if *number >= count {
                    return Err(UnknownState::Number { name: name.to_string(), count });
                }
                let kept = self.entries.keys().zip(0..u64::BITS).filter(|&(_, bit)| number >> bit & 1 == 1);
                requests(Keep::These(kept.map(|(&id, _)| id).collect()))
            }
            StateName::Number(number) => Plan::plain(Pick::Number(*number)),
            StateName::Seed(seed) => self.drawn(*seed, profile, moving),
        })
    }

    /// What a seed picks: each draw is the seed's own, however much is in the cache.
    fn drawn<'a>(&self, seed: u64, profile: Profile, moving: &Covered) -> Plan<'a> {
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
        let mut plan = Plan::plain(pick);
        if profile < Profile::Torn {
            return plan;
        }
        let index = usize::try_from(victim % (self.entries.len() as u64).max(1)).unwrap_or(0);
        let victim = self.entries.iter().nth(index).map(|(&id, entry)| (id, entry.change.range));
        if let Some((id, range)) = victim {
            let blocks = range.aligned_out(self.block()).len() / self.block();
            if tears && blocks > 1 {
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
        let moving = profile >= Profile::Garbage && (*moving != Covered::Nothing || self.pending().1 > 0);
        plan.noise = moving.then(|| draws.next());
        plan
    }

    /// The first `count` requests in that order.
    fn prefix<'a>(&self, order: Order, count: u64) -> Keep<'a> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Keep::These(match order {
            Order::Submission => self.entries.keys().take(count).copied().collect(),
            Order::Completion => {
                let mut ended = self.by_completion();
                ended.truncate(count);
                ended.sort_unstable();
                ended
            }
        })
    }

    /// Every request in the order of completion; what is open comes last.
    pub fn by_completion(&self) -> Vec<ChangeId> {
        let mut ids: Vec<_> = self.entries.iter().map(|(&id, entry)| (entry.end_key(), id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
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
}
