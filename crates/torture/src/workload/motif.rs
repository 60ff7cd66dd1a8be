//! Motifs: a few requests in a row that a rule of the correctness model names, with everything else about them drawn.
//!
//! Single requests, however near each other, rarely say "fail, then write beside it, then flush, then open again"
//! (CM 4.3 (4)). A motif says what kinds follow each other and how their places are related; which of its steps there
//! are, their queues, lengths and flags, and what fails, is up to the seed like all else.

use blkproof_block::ByteRange;

use super::dice::Dice;
use super::geometry::Geometry;
use super::swarm::Kind;

/// Where a step lies, about the unit that the motif is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spot {
    /// Some bytes of the unit.
    Part,
    /// The unit.
    Whole,
    /// The unit beside it, or some bytes of that.
    Beside,
    /// From within the unit to within the next one, or a further one.
    Across,
    /// The same place under another table.
    OtherTable,
    /// The same place 2^32 bytes away, or whatever else is hot.
    Far,
    /// From the motif's unit on to the end of the disk.
    End,
    /// Nowhere: the kind has no place.
    None,
}

/// One request of a motif.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) spot: Spot,
    /// Which of the motif's queues.
    pub(super) lane: u8,
    /// Of a thousand motifs, those that have it.
    pub(super) of: u32,
    /// It may be the one that fails, or is dropped.
    pub(super) hurt: bool,
}

const fn step(kind: Kind, spot: Spot, lane: u8, of: u32) -> Step {
    Step { kind, spot, lane, of, hurt: false }
}

const fn hurt(kind: Kind, spot: Spot, lane: u8, of: u32) -> Step {
    Step { hurt: true, ..step(kind, spot, lane, of) }
}

/// After a failure, a neighbour in the same unit succeeds, and is to be found again (CM 4.3 (4), 4.5).
const NEIGHBOUR: [Step; 7] = [
    step(Kind::Write, Spot::Whole, 0, 250),
    hurt(Kind::Write, Spot::Part, 0, 1000),
    step(Kind::Write, Spot::Part, 1, 900),
    step(Kind::Flush, Spot::None, 1, 600),
    hurt(Kind::Reopen, Spot::None, 0, 300),
    step(Kind::Read, Spot::Whole, 1, 700),
    step(Kind::Write, Spot::Beside, 0, 400),
];

/// A request for several places, of which one fails (CM 4.2 (5), 4.3 (1)): units that follow each other were not allocated
/// in that order.
const SCATTERED: [Step; 7] = [
    step(Kind::Write, Spot::Beside, 0, 1000),
    step(Kind::Write, Spot::Whole, 0, 800),
    hurt(Kind::Write, Spot::Across, 0, 900),
    hurt(Kind::Read, Spot::Across, 0, 400),
    hurt(Kind::Discard, Spot::Across, 0, 200),
    step(Kind::Write, Spot::Part, 1, 300),
    hurt(Kind::Reopen, Spot::None, 0, 200),
];

/// Space that was given up goes to somebody else (CM 4.5 (3), 4.10, 5.7 I5).
const REUSED: [Step; 10] = [
    hurt(Kind::Write, Spot::Whole, 0, 900),
    step(Kind::Flush, Spot::None, 0, 500),
    step(Kind::Flush, Spot::None, 1, 300),
    hurt(Kind::Discard, Spot::Whole, 0, 600),
    hurt(Kind::Zeroes, Spot::Whole, 0, 500),
    step(Kind::Flush, Spot::None, 0, 400),
    step(Kind::Write, Spot::Beside, 1, 1000),
    step(Kind::Write, Spot::OtherTable, 2, 300),
    step(Kind::Read, Spot::Beside, 1, 700),
    step(Kind::Read, Spot::Whole, 0, 500),
];

/// A table changes and is wanted again, while others want its place in memory (CM 4.2 (1)).
const TABLES: [Step; 6] = [
    step(Kind::Write, Spot::Part, 0, 1000),
    step(Kind::Write, Spot::OtherTable, 1, 700),
    step(Kind::Read, Spot::OtherTable, 2, 700),
    step(Kind::Write, Spot::OtherTable, 3, 500),
    step(Kind::Read, Spot::Part, 0, 900),
    step(Kind::Write, Spot::Part, 0, 300),
];

/// Zeroes over a part of what is there, seen from beside (CM 4.11).
const EDGES: [Step; 5] = [
    step(Kind::Write, Spot::Part, 0, 500),
    hurt(Kind::Zeroes, Spot::Part, 0, 1000),
    hurt(Kind::Write, Spot::Part, 1, 500),
    step(Kind::Read, Spot::Whole, 0, 800),
    step(Kind::Status, Spot::Whole, 1, 300),
];

/// The disk shrinks, grows, and shows what it then has (CM 4.12).
const SIZES: [Step; 6] = [
    step(Kind::Write, Spot::End, 0, 500),
    hurt(Kind::Resize, Spot::None, 0, 700),
    hurt(Kind::Resize, Spot::None, 0, 1000),
    step(Kind::Write, Spot::Part, 1, 600),
    step(Kind::Read, Spot::End, 0, 700),
    hurt(Kind::Reopen, Spot::None, 0, 200),
];

/// Two places that differ in a high bit alone (CM 4.2 (1)).
const FAR: [Step; 5] = [
    step(Kind::Write, Spot::Part, 0, 600),
    step(Kind::Write, Spot::Far, 0, 1000),
    step(Kind::Read, Spot::Whole, 0, 900),
    step(Kind::Read, Spot::Far, 0, 600),
    step(Kind::Discard, Spot::Far, 0, 200),
];

/// Two requests at once to what one of them has to allocate, and one of them is flushed (CM 4.4, 4.6).
const TOGETHER: [Step; 6] = [
    hurt(Kind::Write, Spot::Part, 0, 1000),
    step(Kind::Write, Spot::Part, 1, 1000),
    step(Kind::Flush, Spot::None, 1, 700),
    step(Kind::Discard, Spot::Whole, 2, 200),
    step(Kind::Read, Spot::Whole, 1, 500),
    step(Kind::Flush, Spot::None, 0, 200),
];

/// The motifs there are, and how much of each.
pub(super) const ALL: [(&[Step], u64); 8] = [
    (&NEIGHBOUR, 20),
    (&SCATTERED, 15),
    (&REUSED, 20),
    (&TABLES, 10),
    (&EDGES, 15),
    (&SIZES, 12),
    (&FAR, 6),
    (&TOGETHER, 20),
];

/// Sites of decisions about a step's place.
mod site {
    pub(super) const FROM: u64 = 0x301;
    pub(super) const LEN: u64 = 0x302;
    pub(super) const GRAIN: u64 = 0x303;
    pub(super) const SIDE: u64 = 0x304;
    pub(super) const WHOLE: u64 = 0x305;
    pub(super) const TABLE: u64 = 0x306;
}

/// Where a step lies whose motif is about the unit at `unit`; `None` if it has no place, or the disk has none.
pub(super) fn range(spot: Spot, unit: u64, dice: Dice, geometry: &Geometry, limit: u64) -> Option<ByteRange> {
    let variant = &geometry.variant;
    let cluster = variant.cluster.max(1);
    let part = |base: u64| {
        // Of a large unit, near one of its ends: what lies beside counts as much as what is hit.
        let reach = cluster.min(16 << 10);
        let base = if dice.chance(site::SIDE | 0x100, 300) { base.saturating_add(cluster - reach) } else { base };
        let grain = dice.pick(site::GRAIN, &[512, 512, 512, 4096, 1]).unwrap_or(512).min(reach);
        let count = reach / grain;
        let from = dice.below(site::FROM, count);
        let most = dice.pick(site::LEN, &[1, 1, 2, 4, u64::MAX]).unwrap_or(1).min(count.saturating_sub(from));
        let len = dice.below(site::LEN | 0x100, most).saturating_add(1);
        ByteRange::at(base.saturating_add(from * grain), len.saturating_mul(grain))
    };
    let whole = ByteRange::at(unit, cluster.min(256 << 10));
    let there = match spot {
        Spot::None => return None,
        Spot::Part => part(unit),
        Spot::Whole => whole,
        Spot::Beside => {
            let after = unit.saturating_add(cluster);
            let before = unit.checked_sub(cluster);
            let base = match before {
                Some(before) if dice.chance(site::SIDE, 400) || after >= limit => before,
                _ => after,
            };
            if dice.chance(site::WHOLE, 500) { ByteRange::at(base, whole.len()) } else { part(base) }
        }
        Spot::Across => {
            let reach = cluster.min(64 << 10);
            let before = dice.below(site::FROM, reach / 512).saturating_add(1).saturating_mul(512);
            let units = dice.pick(site::LEN, &[0, 0, 1, 2]).unwrap_or(0);
            let behind = dice.below(site::SIDE, reach / 512).saturating_add(1).saturating_mul(512);
            let edge = unit.saturating_add(cluster);
            let far = edge.saturating_add(reach.saturating_mul(units)).saturating_add(behind);
            ByteRange { start: edge.saturating_sub(before), end: far }
        }
        Spot::OtherTable => {
            let span = variant.spans.first().copied().unwrap_or(cluster).max(cluster);
            let tables = limit.div_ceil(span).max(1);
            let number = dice.below(site::TABLE, tables);
            part(number.saturating_mul(span).saturating_add(unit % span))
        }
        Spot::Far => {
            let far = dice.pick(site::TABLE, &variant.hot)?;
            let base = unit.checked_sub(far).unwrap_or(unit.saturating_add(far));
            if dice.chance(site::WHOLE, 300) { ByteRange::at(base, whole.len()) } else { part(base) }
        }
        Spot::End => ByteRange { start: unit, end: limit.min(unit.saturating_add(256 << 10)) },
    };
    (there.start < limit).then_some(there)
}
