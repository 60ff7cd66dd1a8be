//! One rule at work: what it has counted, and which sectors are its own at a moment.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::ByteRange;
use rangemap::RangeSet;

use super::draw::{Draw, Stream};
use super::plan::RuleKey;
use crate::request::{Operation, Operations, Request};
use crate::rule::{Action, Corruption, Growth, Life, Rule, Until};

/// A rule and its state.
///
/// The sectors it is about are `(ranges ∪ grown) ∩ fallen − cured`: only what was cured is remembered, the rest follows
/// from the rule and the time.
#[derive(Debug)]
pub(super) struct Armed {
    pub(super) key: RuleKey,
    pub(super) rule: Rc<Rule>,
    pub(super) draw: Draw,
    lba_size: u64,
    /// When it was added.
    since: Duration,
    /// It fires at all.
    pub(super) armed: bool,
    /// The event it waits for was announced.
    pub(super) primed: bool,
    /// Requests that matched all but `nth`, `every`, `probability` and `times`.
    pub(super) seen: u64,
    pub(super) fired: u64,
    pub(super) cured: RangeSet<u64>,
    /// Sectors it has damaged, which read as its action says.
    pub(super) damaged: RangeSet<u64>,
    /// Failed accesses by sector, for [`Until::Accesses`].
    accesses: BTreeMap<u64, u64>,
}

impl Armed {
    pub(super) fn new(key: RuleKey, rule: Rc<Rule>, seed: u64, lba_size: u32, now: Duration) -> Self {
        Self {
            key,
            draw: Draw::new(seed, &rule.id.0),
            rule,
            lba_size: u64::from(lba_size.max(1)),
            since: now,
            armed: true,
            primed: false,
            seen: 0,
            fired: 0,
            cured: RangeSet::new(),
            damaged: RangeSet::new(),
            accesses: BTreeMap::new(),
        }
    }

    /// As it was when it was added.
    pub(super) fn reset(&mut self, now: Duration) {
        self.since = now;
        self.armed = true;
        self.primed = false;
        self.seen = 0;
        self.fired = 0;
        self.cured.clear();
        self.damaged.clear();
        self.accesses.clear();
    }

    /// Bytes of a sector.
    pub(super) fn lba_size(&self) -> u64 {
        self.lba_size
    }

    /// Whether it is judged once the request has been done.
    pub(super) fn is_late(&self) -> bool {
        self.rule.on.slower_than.is_some() || self.rule.on.faster_than.is_some()
    }

    /// Whether it has fired as often as it may.
    pub(super) fn is_exhausted(&self) -> bool {
        self.rule.on.times.is_some_and(|times| self.fired >= times)
    }

    /// Whether it fires on requests, not on the announcement of an event.
    pub(super) fn takes_requests(&self) -> bool {
        !self.rule.on.operations.is_empty()
    }

    /// The operations and ranges it has to hear of, for the index.
    pub(super) fn interests(&self) -> Vec<(Operation, Option<ByteRange>)> {
        let mut all = Vec::new();
        let on = &self.rule.on;
        let mut add = |operations: Operations, ranges: &[Option<ByteRange>]| {
            for operation in Operation::ALL.into_iter().filter(|operation| operations.contains(operation.set())) {
                all.extend(ranges.iter().map(|&range| (operation, range)));
            }
        };
        let reach = self.reach();
        if self.armed && !self.is_exhausted() {
            add(on.operations, &reach);
        }
        let changes = Operations::WRITE | Operations::WRITE_ZEROES | Operations::DISCARD;
        let cured_by_writes = self.rule.life.as_ref().is_some_and(|life| life.until == Until::Rewrite);
        let serves_versions = matches!(self.rule.action, Action::Corrupt { how: Corruption::Stale, .. });
        if cured_by_writes || serves_versions {
            add(changes, &reach);
        }
        let damaged: Vec<_> =
            self.damaged.iter().map(|range| Some(ByteRange { start: range.start, end: range.end })).collect();
        add(Operations::READ | changes, &damaged);
        all
    }

    /// Every byte it may ever be about; `None` is any place.
    fn reach(&self) -> Vec<Option<ByteRange>> {
        if self.rule.on.ranges.is_empty() {
            return vec![None];
        }
        let mut ranges = self.rule.on.ranges.clone();
        if let (Some(last), Some(growth)) = (ranges.last_mut(), self.growth()) {
            last.end = last.end.saturating_add(growth.limit.saturating_mul(self.lba_size));
        }
        ranges.into_iter().map(Some).collect()
    }

    fn life(&self) -> Option<&Life> {
        self.rule.life.as_ref()
    }

    fn growth(&self) -> Option<Growth> {
        self.life().and_then(|life| life.growth)
    }

    /// What it is about at `now`, grown but not yet sifted.
    fn ranges(&self, now: Duration) -> impl Iterator<Item = ByteRange> + '_ {
        let grown = self.growth().map_or(0, |growth| {
            let each = growth.each.as_nanos().max(1);
            let count = u64::try_from(now.saturating_sub(self.since).as_nanos() / each).unwrap_or(u64::MAX);
            count.min(growth.limit).saturating_mul(self.lba_size)
        });
        let last = self.rule.on.ranges.len().saturating_sub(1);
        self.rule.on.ranges.iter().enumerate().map(move |(index, range)| {
            let grown = if index == last { grown } else { 0 };
            ByteRange { start: range.start, end: range.end.saturating_add(grown) }
        })
    }

    /// The parts of `range` that are this rule's at `now`, in order. A rule without ranges is about all of it.
    pub(super) fn parts(&self, range: ByteRange, now: Duration) -> Vec<ByteRange> {
        if self.rule.on.ranges.is_empty() && self.life().is_none() {
            return vec![range];
        }
        let mut parts = Vec::new();
        let anywhere = [range];
        let everywhere = if self.rule.on.ranges.is_empty() { anywhere.as_slice() } else { &[] };
        for mine in self.ranges(now).chain(everywhere.iter().copied()) {
            let Some(shared) = mine.intersection(range).filter(|shared| !shared.is_empty()) else { continue };
            for gap in self.cured.gaps(&(shared.start..shared.end)) {
                self.sift(ByteRange { start: gap.start, end: gap.end }, now, &mut parts);
            }
        }
        parts
    }

    /// Adds the sectors of `range` that have fallen; all of them unless the rule rots.
    fn sift(&self, range: ByteRange, now: Duration, parts: &mut Vec<ByteRange>) {
        let Some(rot) = self.life().and_then(|life| life.rot) else {
            parts.push(range);
            return;
        };
        let age = now.saturating_sub(self.since);
        for sector in range.start / self.lba_size..range.end.div_ceil(self.lba_size) {
            if self.draw.falls(rot, sector) > age {
                continue;
            }
            let whole = ByteRange::at(sector.saturating_mul(self.lba_size), self.lba_size);
            let Some(part) = whole.intersection(range) else { continue };
            match parts.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => parts.push(part),
            }
        }
    }

    /// Whether the rule fires on `request`; then the bytes it is about. Counts either way.
    ///
    /// `took` is the time the request took, if it has been done.
    pub(super) fn fires(
        &mut self,
        request: &Request,
        state: &str,
        now: Duration,
        took: Option<Duration>,
    ) -> Option<Vec<ByteRange>> {
        let on = &self.rule.on;
        let waits = on.event.is_some() && !self.primed;
        // The state of a sticky rule counted when its event came.
        let state = if on.sticky { None } else { Some(state) };
        if !on.operations.contains(request.operation.set())
            || waits
            || !self.may_fire(state, now)
            || !self.in_time(took)
        {
            return None;
        }
        let parts = self.parts(request.range, now);
        if parts.is_empty() || !self.has_its_turn(request.id) {
            return None;
        }
        if !self.rule.on.sticky {
            // An event arms the rule for one request.
            self.primed = false;
        }
        Some(parts)
    }

    /// Whether a rule for an event alone fires when it is announced. Counts either way.
    pub(super) fn announced(&mut self, state: &str, now: Duration) -> bool {
        self.may_fire(Some(state), now) && self.has_its_turn(self.seen)
    }

    fn may_fire(&self, state: Option<&str>, now: Duration) -> bool {
        let on = &self.rule.on;
        let age = now.saturating_sub(self.since);
        let in_state = match (state, on.state.as_deref()) {
            (Some(state), Some(wanted)) => state == wanted,
            _ => true,
        };
        self.armed
            && in_state
            && on.after.is_none_or(|after| age >= after)
            && on.before.is_none_or(|before| age < before)
    }

    /// Whether a request is judged at this moment: before it is done, or with the time it took if that matters.
    fn in_time(&self, took: Option<Duration>) -> bool {
        let on = &self.rule.on;
        match took {
            None => !self.is_late(),
            Some(took) => {
                self.is_late()
                    && on.slower_than.is_none_or(|bound| took >= bound)
                    && on.faster_than.is_none_or(|bound| took < bound)
            }
        }
    }

    /// Counts what matched everything else, and says whether it is the one that fires.
    fn has_its_turn(&mut self, id: u64) -> bool {
        self.seen = self.seen.saturating_add(1);
        let on = &self.rule.on;
        let first = on.nth.or(on.every).unwrap_or(1);
        let turn = match (on.nth, on.every) {
            (None, None) => true,
            (Some(nth), None) => self.seen == nth,
            (_, Some(every)) => self.seen.checked_sub(first).is_some_and(|since| since.is_multiple_of(every.max(1))),
        };
        let fires = turn
            && on.probability.is_none_or(|part| self.draw.chance(Stream::Fire, id, part))
            && on.times.is_none_or(|times| self.fired < times);
        if fires {
            self.fired = self.fired.saturating_add(1);
        }
        fires
    }

    /// Takes whole sectors of `range` out of the rule's reach.
    pub(super) fn cure(&mut self, range: ByteRange) {
        let start = range.start.next_multiple_of(self.lba_size);
        let end = range.end / self.lba_size * self.lba_size;
        if start < end {
            self.cured.insert(start..end);
        }
    }

    /// Notes that an access to the sector at `at` failed; the sector recovers after the last one it has to fail.
    pub(super) fn accessed(&mut self, at: u64) {
        let Some(Until::Accesses(limit)) = self.life().map(|life| life.until) else { return };
        let sector = at / self.lba_size;
        let count = self.accesses.entry(sector).or_default();
        *count = count.saturating_add(1);
        if *count >= limit {
            self.accesses.remove(&sector);
            self.cure(ByteRange::at(sector.saturating_mul(self.lba_size), self.lba_size));
        }
    }

    /// A write reached these bytes: damage there is gone, and sectors that a rewrite cures are cured.
    ///
    /// A discard damages no more, but cures nothing: the sector is not written.
    pub(super) fn rewritten(&mut self, operation: Operation, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        self.damaged.remove(range.start..range.end);
        let writes = matches!(operation, Operation::Write | Operation::WriteZeroes);
        if writes && self.life().is_some_and(|life| life.until == Until::Rewrite) {
            self.cure(range);
        }
    }

    /// The sectors of `parts` that its corruption hits read as damaged from now on.
    pub(super) fn hurt(&mut self, parts: &[ByteRange], sectors: Option<u32>) {
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let Some(chosen) = sectors else {
                self.damaged.insert(part.start..part.end);
                continue;
            };
            for sector in part.start / self.lba_size..part.end.div_ceil(self.lba_size) {
                let whole = ByteRange::at(sector.saturating_mul(self.lba_size), self.lba_size);
                if self.draw.chance(Stream::Sectors, sector, chosen)
                    && let Some(part) = whole.intersection(*part)
                {
                    self.damaged.insert(part.start..part.end);
                }
            }
        }
    }

    /// How many sectors are this rule's at `now`, and how many it has damaged; for lists, so it may take its time. A rule
    /// without ranges, or one that rots, has no number of the first kind.
    pub(super) fn counts(&self, now: Duration) -> (Option<u64>, u64) {
        let sectors = |len: u64| len.div_ceil(self.lba_size);
        let rots = self.life().is_some_and(|life| life.rot.is_some());
        let known = !self.rule.on.ranges.is_empty() && !rots;
        let bad = known.then(|| {
            let mut bytes: u64 = 0;
            for range in self.ranges(now) {
                bytes = self.cured.gaps(&(range.start..range.end)).fold(bytes, |sum, gap| sum + (gap.end - gap.start));
            }
            sectors(bytes)
        });
        (bad, sectors(self.damaged.iter().map(|range| range.end - range.start).sum()))
    }
}
