//! Which features a seed has, and how much of each (CM 7.2).
//!
//! A run of everything at once never fills a table, since something empties it again; it never has long reorderings,
//! since something flushes. So each seed leaves a part out altogether, and overdoes some of the rest.

use blkproof_block::ByteRange;

use super::dice::{Dice, Stream};
use super::geometry::Geometry;
use super::info::Features;
use super::motif::{self, Step};
use super::profile::Profile;

/// What an op does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Read,
    Write,
    Zeroes,
    Discard,
    Flush,
    Drain,
    Status,
    Resize,
    Reopen,
    Cut,
}

/// How long a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Length {
    /// Less than a sector.
    Bytes,
    /// A sector, or a few.
    Sectors,
    /// Pages.
    Pages,
    /// A cluster, or a few.
    Clusters,
    /// Many.
    Huge,
}

/// What a seed's plan is made of. Rates are of a thousand.
#[derive(Clone, Debug)]
pub(super) struct Swarm {
    pub(super) ops: u32,
    pub(super) queues: u8,
    pub(super) kinds: Vec<(Kind, u64)>,
    pub(super) fua: u32,
    pub(super) unmap: u32,
    pub(super) no_fallback: u32,
    pub(super) compressed: u32,
    pub(super) vector: u32,
    pub(super) drops: u32,
    pub(super) after: u32,
    /// Offsets are multiples of one of these.
    pub(super) grains: Vec<u64>,
    pub(super) lengths: Vec<(Length, u64)>,
    /// Near another op; at a boundary; in one of the hot units. The rest anywhere in the arena.
    pub(super) near: u32,
    pub(super) boundary: u32,
    pub(super) hot: u32,
    pub(super) arena: ByteRange,
    pub(super) units: Vec<u64>,
    pub(super) random_faults: bool,
    pub(super) named_fault: bool,
    /// Ops that begin a motif.
    pub(super) motifs: u32,
    pub(super) motif_kinds: Vec<(&'static [Step], u64)>,
    /// Requests of a motif that wait for the one before them.
    pub(super) in_turn: u32,
    /// Resizes may be dropped: from the first on, nobody knows the size.
    pub(super) unsure: bool,
}

impl Swarm {
    pub(super) fn draw(seed: u64, geometry: &Geometry, profile: &Profile) -> Self {
        let dice = Dice::new(seed, Stream::Swarm, 0);
        let features = &geometry.variant.features;
        let ops = count(dice, profile);
        let rate = |site: u64, able: bool, absent: u32, rates: &[u32]| match able && !dice.chance(site, absent) {
            true => dice.pick(site | 0x100, rates).unwrap_or(0),
            false => 0,
        };
        let faults = features.faults && dice.chance(20, 550);
        let (arena, units) = arena(Dice::new(seed, Stream::Swarm, 1), geometry);
        Self {
            ops,
            queues: dice.pick(1, &[1, 1, 2, 2, 3, 4, 4, 6, 8, 8, 16, 32]).unwrap_or(1),
            kinds: kinds(Dice::new(seed, Stream::Swarm, 2), geometry, ops),
            fua: rate(2, features.fua, 400, &[20, 100, 300, 1000]),
            unmap: rate(3, features.unmap, 250, &[300, 500, 1000]),
            no_fallback: rate(4, features.no_fallback, 600, &[100, 500]),
            compressed: rate(5, features.compressed, 700, &[50, 300, 900]),
            vector: rate(6, true, 400, &[50, 300]),
            drops: rate(7, features.drops, 550, &[20, 100, 400]),
            after: rate(8, true, 500, &[10, 50, 200]),
            grains: grains(Dice::new(seed, Stream::Swarm, 3), geometry),
            lengths: lengths(Dice::new(seed, Stream::Swarm, 4)),
            near: dice.pick(9, &[0, 300, 500, 500, 600, 600, 700, 900]).unwrap_or(500),
            boundary: rate(10, true, 200, &[100, 250, 600]),
            hot: rate(11, true, 200, &[200, 500, 900]),
            arena,
            units,
            random_faults: faults && dice.chance(21, 750),
            named_fault: faults && dice.chance(22, 700),
            motifs: rate(12, true, 350, &[50, 150, 400, 1000]),
            motif_kinds: motif_kinds(Dice::new(seed, Stream::Swarm, 5)),
            in_turn: dice.pick(13, &[0, 100, 400, 900]).unwrap_or(0),
            unsure: dice.chance(14, 200),
        }
    }

    /// Whether a motif may have a request of this kind: a seed that leaves a kind out leaves it out of motifs too, but
    /// for what little can be done without.
    pub(super) fn able(&self, kind: Kind, features: &Features) -> bool {
        let wanted = self.kinds.iter().any(|(own, _)| *own == kind);
        match kind {
            Kind::Read | Kind::Write | Kind::Flush => true,
            Kind::Reopen => features.reopen,
            Kind::Zeroes => features.zeroes && (wanted || self.motifs >= 400),
            Kind::Discard => features.discard && (wanted || self.motifs >= 400),
            Kind::Resize => features.grow || features.shrink,
            Kind::Drain | Kind::Status | Kind::Cut => wanted,
        }
    }
}

/// Some of the motifs, with wild weights.
fn motif_kinds(dice: Dice) -> Vec<(&'static [Step], u64)> {
    let mut kinds = Vec::new();
    for (number, (steps, weight)) in (0_u64..).zip(motif::ALL) {
        if dice.chance(number << 8, 600) {
            kinds.push((steps, weight * dice.pick(number << 8 | 1, &[1, 2, 4, 8]).unwrap_or(1)));
        }
    }
    if kinds.is_empty() { motif::ALL.to_vec() } else { kinds }
}

/// Short plans are the commoner ones: each factor of two is as likely as the next.
fn count(dice: Dice, profile: &Profile) -> u32 {
    let (least, most) = (profile.ops_min.max(1), profile.ops_max.max(profile.ops_min).max(1));
    let doublings = (most / least).checked_ilog2().unwrap_or(0);
    let shift = dice.below(0x200, u64::from(doublings).saturating_add(1));
    let from = u64::from(least) << shift;
    let to = (from << 1).min(u64::from(most).saturating_add(1)).max(from.saturating_add(1));
    let ops = from.saturating_add(dice.below(0x201, to.saturating_sub(from)));
    u32::try_from(ops).unwrap_or(most).min(most)
}

fn kinds(dice: Dice, geometry: &Geometry, ops: u32) -> Vec<(Kind, u64)> {
    let features = &geometry.variant.features;
    // Lives are dear and rare: about one in a plan, however long.
    let rare = (1000 / u64::from(ops.max(1))).max(4);
    // Kind, whether the target can, of a thousand seeds those that have it, and how much of it there is.
    let table = [
        (Kind::Read, true, 900, 300),
        (Kind::Write, true, 960, 400),
        (Kind::Zeroes, features.zeroes, 600, 90),
        (Kind::Discard, features.discard, 550, 90),
        (Kind::Flush, true, 800, 90),
        (Kind::Drain, features.drain, 250, 15),
        (Kind::Status, features.status, 450, 50),
        (Kind::Resize, features.grow || features.shrink, 300, rare),
        (Kind::Reopen, features.reopen, 500, rare),
        (Kind::Cut, features.cut, 200, rare),
    ];
    let mut kinds = Vec::new();
    for (number, (kind, able, of, weight)) in (0_u64..).zip(table) {
        let wild = dice.pick(number << 8 | 1, &[1, 2, 4, 4, 8, 8, 16, 32]).unwrap_or(4);
        if able && dice.chance(number << 8, of) {
            kinds.push((kind, weight * wild));
        }
    }
    // Of a disk on which nothing is ever written there is little to find.
    if !kinds.iter().any(|(kind, _)| matches!(kind, Kind::Write | Kind::Zeroes)) {
        kinds.push((Kind::Write, 4 * 400));
    }
    kinds
}

fn grains(dice: Dice, geometry: &Geometry) -> Vec<u64> {
    let cluster = geometry.variant.cluster.max(1);
    let all = [(cluster, 400), (4096, 500), (512, 700), (1, 600)];
    let mut grains: Vec<u64> = Vec::new();
    for (number, (grain, of)) in (0_u64..).zip(all) {
        if dice.chance(number, of) {
            grains.push(grain);
        }
    }
    if grains.is_empty() {
        grains.push(512);
    }
    grains
}

fn lengths(dice: Dice) -> Vec<(Length, u64)> {
    let all = [
        (Length::Bytes, 600, 10),
        (Length::Sectors, 850, 40),
        (Length::Pages, 700, 25),
        (Length::Clusters, 700, 15),
        (Length::Huge, 250, 1),
    ];
    let mut lengths: Vec<(Length, u64)> = Vec::new();
    for (number, (length, of, weight)) in (0_u64..).zip(all) {
        if dice.chance(number << 8, of) {
            lengths.push((length, weight * dice.pick(number << 8 | 1, &[1, 2, 4, 8]).unwrap_or(1)));
        }
    }
    if lengths.is_empty() {
        lengths.push((Length::Sectors, 1));
    }
    lengths
}

/// Where most of it happens: a few clusters, some, or everywhere; and units of it that are used again and again.
fn arena(dice: Dice, geometry: &Geometry) -> (ByteRange, Vec<u64>) {
    let (cluster, size) = (geometry.variant.cluster.max(1), geometry.size);
    let clusters = dice.pick(0, &[2, 4, 8, 16, 64, 256]).unwrap_or(8);
    let whole = ByteRange { start: 0, end: size };
    let arena = match dice.chance(1, 300) {
        true => whole,
        false => {
            let len = cluster.saturating_mul(clusters).min(size);
            let at = dice.below(2, size.saturating_sub(len).saturating_add(1));
            ByteRange::at(at - at % cluster, len)
        }
    };
    let count = dice.below(3, 5).saturating_add(1);
    let unit = |number: u64| {
        let at = arena.start.saturating_add(dice.below(0x100 | number, arena.len()));
        at - at % cluster
    };
    (arena, (0..count).map(unit).collect())
}
