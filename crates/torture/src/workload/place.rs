//! Where requests lie: near each other, at boundaries, in hot units, anywhere.

use blkproof_block::ByteRange;

use super::dice::Dice;
use super::geometry::Geometry;
use super::swarm::{Length, Swarm};

/// Bytes of the longest read or write; a longer one shows nothing more and takes its time.
const DATA_MAX: u64 = 256 << 10;

/// Bytes of the longest, now and then.
const HUGE_MAX: u64 = 2 << 20;

/// How a request lies to the one it is near.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Identical,
    Inside,
    Around,
    OverStart,
    OverEnd,
    Before,
    Behind,
    SameCluster,
    SameTable,
}

const SHAPES: [(Shape, u64); 9] = [
    (Shape::Identical, 15),
    (Shape::Inside, 12),
    (Shape::Around, 8),
    (Shape::OverStart, 10),
    (Shape::OverEnd, 10),
    (Shape::Before, 10),
    (Shape::Behind, 10),
    (Shape::SameCluster, 20),
    (Shape::SameTable, 8),
];

/// Sites of decisions about a place.
mod site {
    pub(super) const HOW: u64 = 1;
    pub(super) const SHAPE: u64 = 2;
    pub(super) const GRAIN: u64 = 3;
    pub(super) const LENGTH: u64 = 4;
    pub(super) const SIZE: u64 = 5;
    pub(super) const AT: u64 = 6;
    pub(super) const OVER: u64 = 7;
    pub(super) const WHICH: u64 = 8;
    pub(super) const SIDE: u64 = 9;
    pub(super) const HOT: u64 = 10;
    pub(super) const BOUNDARY: u64 = 11;
    pub(super) const ROUND: u64 = 12;
    pub(super) const WIDE: u64 = 13;
}

/// One place to be found.
pub(super) struct Place<'a> {
    pub(super) dice: Dice,
    pub(super) geometry: &'a Geometry,
    pub(super) swarm: &'a Swarm,
    /// Bytes of the disk that this request can count on; at least one unit of alignment.
    pub(super) limit: u64,
    /// The request holds its bytes in memory.
    pub(super) data: bool,
}

impl Place<'_> {
    /// A range within the limit, aligned; near `other`, if the seed likes it. Empty only if the disk is.
    pub(super) fn range(&self, other: Option<ByteRange>) -> ByteRange {
        let near = other.filter(|_| self.dice.chance(site::HOW, self.swarm.near));
        let near = near.and_then(|other| self.near(other));
        near.unwrap_or_else(|| match () {
            () if self.dice.chance(site::BOUNDARY, self.swarm.boundary) => self.boundary(),
            () if self.dice.chance(site::HOT, self.swarm.hot) => self.hot(),
            () => self.anywhere(),
        })
    }

    fn alignment(&self) -> u64 {
        self.geometry.variant.alignment.max(1)
    }

    fn cluster(&self) -> u64 {
        self.geometry.variant.cluster.max(1)
    }

    /// A length, not yet aligned.
    fn len(&self) -> u64 {
        let dice = self.dice;
        let class = dice.weigh(site::LENGTH, &self.swarm.lengths).unwrap_or(Length::Sectors);
        let some = |unit: u64, most: u64| {
            // One as often as any other number.
            let count = if dice.chance(site::OVER, 400) { 1 } else { dice.below(site::SIZE, most).saturating_add(1) };
            unit.saturating_mul(count)
        };
        let cluster = self.cluster();
        let len = match class {
            Length::Bytes => dice.below(site::SIZE, 511).saturating_add(1),
            Length::Sectors => some(512, 7),
            Length::Pages => some(4096, 8),
            Length::Clusters => some(cluster, 4),
            Length::Huge if self.data => dice.below(site::SIZE, HUGE_MAX).saturating_add(1),
            Length::Huge => dice.below(site::SIZE, self.limit).saturating_add(1),
        };
        if self.data && class != Length::Huge { len.min(DATA_MAX) } else { len }
    }

    /// `len` bytes from about `at`, on the seed's grain.
    fn settle(&self, at: u64, len: u64) -> ByteRange {
        let grain = self.dice.pick(site::GRAIN, &self.swarm.grains).unwrap_or(1);
        let start = at - at % grain.max(1);
        // A coarse start mostly has a coarse length.
        let len = match len >= grain && self.dice.chance(site::ROUND, 700) {
            true => len - len % grain.max(1),
            false => len,
        };
        self.fit(start, start.saturating_add(len))
    }

    /// Within the limit, aligned, and not empty.
    pub(super) fn fit(&self, start: u64, end: u64) -> ByteRange {
        let unit = self.alignment();
        let limit = self.limit - self.limit % unit;
        let start = (start - start % unit).min(limit.saturating_sub(unit));
        let end = end.div_ceil(unit).saturating_mul(unit).max(start.saturating_add(unit)).min(limit);
        let most = if self.data { HUGE_MAX.next_multiple_of(unit) } else { u64::MAX };
        ByteRange { start, end: end.min(start.saturating_add(most)).max(start) }
    }

    fn near(&self, other: ByteRange) -> Option<ByteRange> {
        let dice = self.dice;
        let other = other.intersection(ByteRange { start: 0, end: self.limit })?;
        let (start, end) = (other.start, other.end);
        let len = self.len();
        // How far one reaches into the other: a byte, a sector, or something.
        let over = match dice.below(site::OVER, 3) {
            0 => self.alignment(),
            1 => 512,
            _ => dice.below(site::AT, other.len()).saturating_add(1),
        };
        let over = over.min(other.len());
        let range = match dice.weigh(site::SHAPE, &SHAPES)? {
            Shape::Identical => other,
            Shape::Inside => {
                let at = start.saturating_add(dice.below(site::AT, other.len()));
                self.fit(at, at.saturating_add(len).min(end))
            }
            Shape::Around => self.fit(start.saturating_sub(len.min(4096)), end.saturating_add(over)),
            Shape::OverStart => {
                let reach = start.saturating_add(over);
                self.fit(reach.saturating_sub(len.saturating_add(over)), reach)
            }
            Shape::OverEnd => {
                let at = end.saturating_sub(over);
                self.fit(at, at.saturating_add(len.max(over.saturating_add(1))))
            }
            Shape::Before if start > 0 => self.fit(start.saturating_sub(len), start),
            Shape::Before | Shape::Behind if end < self.limit => self.fit(end, end.saturating_add(len)),
            Shape::Before | Shape::Behind | Shape::SameCluster => {
                let edge = if dice.chance(site::SIDE, 500) { start } else { end.saturating_sub(1) };
                let within = dice.below(site::AT, self.cluster());
                self.settle((edge - edge % self.cluster()).saturating_add(within), len)
            }
            Shape::SameTable => {
                let span = dice
                    .pick(site::WHICH, &self.geometry.variant.spans)
                    .unwrap_or(self.cluster().saturating_mul(8))
                    .max(1);
                let table = start - start % span;
                let room = span.min(self.limit.saturating_sub(table)).max(1);
                self.settle(table.saturating_add(dice.below(site::AT, room)), len)
            }
        };
        Some(self.fit(range.start, range.end))
    }

    /// Up to a boundary, from it on, or over it.
    fn boundary(&self) -> ByteRange {
        let (dice, variant) = (self.dice, &self.geometry.variant);
        let whole = self.limit;
        let multiple = |span: u64, site: u64| {
            let count = (whole / span.max(1)).max(1);
            // The first ones are everybody's neighbours; the last one is nobody's.
            let number = match dice.below(site, 4) {
                0 => 1,
                1 => count,
                _ => dice.below(site | 0x100, count).saturating_add(1),
            };
            span.saturating_mul(number)
        };
        let arena = self.swarm.arena;
        let inside = {
            let at = arena.start.saturating_add(dice.below(site::AT, arena.len()));
            at - at % self.cluster()
        };
        let base = self.geometry.base.unwrap_or(whole);
        let at = match dice.below(site::WHICH, 8) {
            0 | 1 => inside,
            2 | 3 if !variant.spans.is_empty() => {
                multiple(dice.pick(site::WIDE, &variant.spans).unwrap_or(1), site::HOT | 0x200)
            }
            4 => dice.pick(site::WIDE, &variant.hot).unwrap_or(inside),
            5 => base,
            // The last sector, perhaps a part of one only.
            6 => whole.saturating_sub(1) / 512 * 512,
            7 => whole,
            _ => multiple(self.cluster(), site::HOT | 0x200),
        };
        let at = if at <= whole { at } else { inside.min(whole) };
        let len = self.len();
        match dice.below(site::SIDE, 4) {
            0 => self.fit(at.saturating_sub(len), at),
            1 => self.fit(at, at.saturating_add(len)),
            _ => {
                let before = dice.below(site::OVER, len).saturating_add(1);
                let start = at.saturating_sub(before);
                self.fit(start, start.saturating_add(len.max(2)))
            }
        }
    }

    fn hot(&self) -> ByteRange {
        let unit = self.dice.pick(site::WHICH, &self.swarm.units).unwrap_or(0);
        self.settle(unit.saturating_add(self.dice.below(site::AT, self.cluster())), self.len())
    }

    fn anywhere(&self) -> ByteRange {
        let arena = match self.dice.chance(site::WIDE, 50) {
            true => ByteRange { start: 0, end: self.limit },
            false => self.swarm.arena,
        };
        self.settle(arena.start.saturating_add(self.dice.below(site::AT, arena.len())), self.len())
    }
}
