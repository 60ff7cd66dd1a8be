//! Which states are worth trying, and in which order (CM 5.4).

use std::collections::BTreeSet;

use blkproof_block::choice::hash;

use super::config::Profile;
use super::model::{ChangeId, Model};
use super::name::{Order, StateName};

/// So few requests are all looked at two by two, where nobody says which of them are metadata.
const FEW: usize = 16;

/// Tears of a request that are listed: as many blocks as a table of a format has; the seeds reach the others.
const TEARS: u64 = 64;

impl Model {
    /// Names of states in the order in which they are worth trying (CM 5.4), `budget` at most; of all, if they are so
    /// few. `seed` begins the random ones.
    pub fn names(&self, profile: Profile, budget: usize, seed: u64) -> Vec<StateName> {
        self.names_with(profile, budget, seed, None)
    }

    /// [`names`](Self::names) where it is known which requests are metadata: they are dropped and kept two by two, and
    /// torn. Where it is not (`None`), that goes for all, as long as they are few.
    pub fn names_with(
        &self,
        profile: Profile,
        budget: usize,
        seed: u64,
        metadata: Option<&BTreeSet<ChangeId>>,
    ) -> Vec<StateName> {
        let ids: Vec<_> = self.entries.keys().copied().collect();
        let requests = ids.len() as u64;
        if ids.is_empty() {
            return [StateName::AllOld].into_iter().take(budget).collect();
        }
        let ends = [StateName::AllOld, StateName::AllNew].into_iter();
        let prefixes = |order| (1..requests).map(move |count| StateName::Prefix(order, count));
        let prefixes = prefixes(Order::Completion).chain(prefixes(Order::Submission));
        if profile == Profile::Ordered {
            return ends.chain(prefixes).take(budget).collect();
        }
        let total = self.count(profile).count;
        if total <= budget as u64 && profile <= Profile::Block {
            return (0..total).map(StateName::Number).collect();
        }
        let one = |id: &ChangeId| BTreeSet::from([*id]);
        let is_metadata = |id: &ChangeId| metadata.is_none_or(|metadata| metadata.contains(id));
        let torn = self.entries.iter().filter(|(id, _)| profile >= Profile::Torn && is_metadata(id));
        let tears = torn.flat_map(|(&id, entry)| {
            let blocks = entry.change.range.aligned_out(self.block()).len() / self.block();
            (1..blocks.min(TEARS))
                .flat_map(move |blocks| [true, false].map(|first| StateName::Tear { id, first, blocks }))
        });
        // Of three requests, dropping two is keeping one; of four, keeping two is dropping the others.
        let paired = ids.len() > 3 && (metadata.is_some() || ids.len() <= FEW);
        let paired: Vec<_> = ids.iter().copied().filter(|id| paired && is_metadata(id)).collect();
        let pairs = |of: &[ChangeId]| {
            let of = of.to_vec();
            (0..of.len()).flat_map(move |first| {
                let mut rest = of.get(first..).unwrap_or_default().iter().copied();
                let first = rest.next();
                rest.map(move |second| first.into_iter().chain([second]).collect()).collect::<Vec<_>>()
            })
        };
        let kept = if ids.len() == 4 && metadata.is_none() { &[] } else { paired.as_slice() };
        ends.chain(ids.iter().map(|id| StateName::Drop(one(id))))
            .chain(ids.iter().map(|id| StateName::Keep(one(id))))
            .chain(prefixes)
            .chain(pairs(&paired).map(StateName::Drop))
            .chain(pairs(kept).map(StateName::Keep))
            .chain(tears)
            .chain((0_u64..).map(|number| StateName::Seed(hash(seed, number))))
            .take(budget)
            .collect()
    }
}
