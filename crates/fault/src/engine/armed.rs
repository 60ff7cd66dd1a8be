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

/// Sectors of one stretch that are counted one by one.
const COUNTED_MAX: u64 = 1 << 16;

/// A rule and its state.
///
/// The sectors it is about are `(ranges ∪ grown) ∩ fallen − cured`: only what was cured is remembered, the rest follows
/// from the rule and the time.
///
/// What it draws depends on what it has seen itself, never on what other rules have made of other requests.
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
    cured: RangeSet<u64>,
    /// Bytes of its reach that are not cured; without ranges, as good as endless.
    left: u64,
    /// Where it has damaged sectors, all of them or the share its action says: they read as that says. What a rule
    /// damages that [always](Self::always_corrupts) fires is not kept.
    damaged: RangeSet<u64>,
    /// Failed accesses by sector, for [`Until::Accesses`].
    accesses: BTreeMap<u64, u64>,
}

impl Armed {
    pub(super) fn new(key: RuleKey, rule: Rc<Rule>, seed: u64, lba_size: u32, now: Duration) -> Self {
        debug_assert!(rule.on.ranges.is_sorted_by(|one, next| one.end <= next.start), "rule {}", rule.id);
        let mut armed = Self {
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
            left: 0,
            damaged: RangeSet::new(),
            accesses: BTreeMap::new(),
        };
        armed.left = armed.whole_reach();
        armed
    }

    /// As it was when it was added.
    pub(super) fn reset(&mut self, now: Duration) {
        self.since = now;
        self.armed = true;
        self.primed = false;
        self.seen = 0;
        self.fired = 0;
        self.cured.clear();
        self.left = self.whole_reach();
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

    /// Whether it may still do anything but lay the damage it did: it is armed, may fire again, and has sectors left.
    pub(super) fn is_at_work(&self) -> bool {
        self.armed && !self.is_exhausted() && self.left > 0
    }

    /// The operations and ranges it has to hear of, for the index. They change with
    /// [`is_at_work`](Self::is_at_work) alone; what it has damaged is asked for by [`hurts`](Self::hurts).
    pub(super) fn interests(&self) -> Vec<(Operation, Option<ByteRange>)> {
        let mut all = Vec::new();
        if !self.is_at_work() {
            return all;
        }
        let mut wanted = self.rule.on.operations;
        let changes = Operations::WRITE | Operations::WRITE_ZEROES | Operations::DISCARD;
        if self.is_cured_by_writes() || self.keeps_versions() {
            wanted |= changes;
        }
        let reach = self.reach();
        for operation in Operation::ALL.into_iter().filter(|operation| wanted.contains(operation.set())) {
            all.extend(reach.iter().map(|&range| (operation, range)));
        }
        all
    }

    fn is_cured_by_writes(&self) -> bool {
        self.life().is_some_and(|life| life.until == Until::Rewrite)
    }

    /// Whether it wants to know what sectors held before they are written.
    pub(super) fn keeps_versions(&self) -> bool {
        self.is_at_work() && matches!(self.rule.action, Action::Corrupt { how: Corruption::Stale, .. })
    }

    /// Every byte it may ever be about; `None` is any place.
    fn reach(&self) -> Vec<Option<ByteRange>> {
        if self.rule.on.ranges.is_empty() {
            return vec![None];
        }
        self.grown(self.growth().map_or(0, |growth| growth.limit)).map(Some).collect()
    }

    /// Bytes of its reach.
    fn whole_reach(&self) -> u64 {
        self.reach().iter().fold(0, |sum, range| sum.saturating_add(range.map_or(u64::MAX, |range| range.len())))
    }

    fn life(&self) -> Option<&Life> {
        self.rule.life.as_ref()
    }

    fn growth(&self) -> Option<Growth> {
        self.life().and_then(|life| life.growth)
    }

    /// Its ranges, the last of them longer by so many sectors.
    fn grown(&self, sectors: u64) -> impl Iterator<Item = ByteRange> + '_ {
        let last = self.rule.on.ranges.len().saturating_sub(1);
        let more = sectors.saturating_mul(self.lba_size);
        self.rule.on.ranges.iter().enumerate().map(move |(index, range)| {
            let more = if index == last { more } else { 0 };
            ByteRange { start: range.start, end: range.end.saturating_add(more) }
        })
    }

    /// By how many sectors it has grown.
    fn growth_at(&self, now: Duration) -> u64 {
        self.growth().map_or(0, |growth| {
            let each = growth.each.as_nanos().max(1);
            let count = u64::try_from(now.saturating_sub(self.since).as_nanos() / each).unwrap_or(u64::MAX);
            count.min(growth.limit)
        })
    }

    /// What `range` and its ranges share when they have grown by so many sectors. Ranges are sorted and apart from each
    /// other, so those before `range` are passed over, and what is behind it is not looked at.
    fn shared(&self, range: ByteRange, grown: u64) -> impl Iterator<Item = ByteRange> + '_ {
        let ranges = &self.rule.on.ranges;
        let anywhere = (ranges.is_empty() && !range.is_empty()).then_some(range);
        // The last one may have grown into `range`.
        let before = ranges.partition_point(|mine| mine.end <= range.start).min(ranges.len().saturating_sub(1));
        let mine = self.grown(grown).skip(before).take_while(move |mine| mine.start < range.end);
        anywhere
            .into_iter()
            .chain(mine.filter_map(move |mine| mine.intersection(range).filter(|both| !both.is_empty())))
    }

    /// Whether a rule is about a request as such, and not about sectors of it.
    fn is_about_all(&self, range: ByteRange) -> bool {
        let cures = self.life().is_some() || self.rule.then.cure && !range.is_empty();
        self.rule.on.ranges.is_empty() && !cures
    }

    /// The parts of `range` that are this rule's at `now`, in order. A rule without ranges is about all of it.
    pub(super) fn parts(&self, range: ByteRange, now: Duration) -> Vec<ByteRange> {
        if self.is_about_all(range) {
            return vec![range];
        }
        let mut parts: Vec<ByteRange> = Vec::new();
        for own in self.own(range, now) {
            self.sift(own, now, |part| {
                match parts.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => parts.push(part),
                }
                true
            });
        }
        parts
    }

    /// The parts of `range` that are this rule's and not cured, whether they have fallen or not.
    fn own(&self, range: ByteRange, now: Duration) -> impl Iterator<Item = ByteRange> + '_ {
        let uncured = |shared: ByteRange| {
            let gaps: Vec<_> = self.cured.gaps(&(shared.start..shared.end)).collect();
            gaps.into_iter().map(|gap| ByteRange { start: gap.start, end: gap.end })
        };
        self.shared(range, self.growth_at(now)).flat_map(uncured)
    }

    /// Where the first of its [`parts`](Self::parts) begins; no more is looked at than has to be.
    pub(super) fn first_part(&self, range: ByteRange, now: Duration) -> Option<u64> {
        if self.is_about_all(range) {
            return Some(range.start);
        }
        let mut first = None;
        for own in self.own(range, now) {
            self.sift(own, now, |part| {
                first = Some(part.start);
                false
            });
            if first.is_some() {
                break;
            }
        }
        first
    }

    /// Whether anything of `range` is in its reach and not cured, fallen or not.
    pub(super) fn reaches(&self, range: ByteRange, now: Duration) -> bool {
        self.own(range, now).next().is_some()
    }

    /// Gives the sectors of `range` that have fallen to `take`, until that has enough; all of it at once unless the rule
    /// rots.
    fn sift(&self, range: ByteRange, now: Duration, mut take: impl FnMut(ByteRange) -> bool) {
        let Some(rot) = self.life().and_then(|life| life.rot) else {
            take(range);
            return;
        };
        let age = now.saturating_sub(self.since);
        for sector in self.sectors(range) {
            if self.draw.has_fallen(rot, sector, age)
                && let Some(part) = self.whole(sector).intersection(range)
                && !take(part)
            {
                return;
            }
        }
    }

    /// The numbers of the sectors of which anything is in `range`.
    fn sectors(&self, range: ByteRange) -> std::ops::Range<u64> {
        range.start / self.lba_size..range.end.div_ceil(self.lba_size)
    }

    /// The bytes of a sector.
    fn whole(&self, sector: u64) -> ByteRange {
        ByteRange::at(sector.saturating_mul(self.lba_size), self.lba_size)
    }

    /// Whether the rule fires on `request`; then the first byte it is about. Counts either way.
    ///
    /// `took` is the time the request took, if it has been done.
    pub(super) fn fires(
        &mut self,
        request: &Request,
        state: &str,
        now: Duration,
        took: Option<Duration>,
    ) -> Option<u64> {
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
        let first = self.first_part(request.range, now)?;
        if !self.has_its_turn() {
            return None;
        }
        if !self.rule.on.sticky {
            // An event arms the rule for one request.
            self.primed = false;
        }
        Some(first)
    }

    /// Whether a rule for an event alone fires when it is announced. Counts either way.
    pub(super) fn announced(&mut self, state: &str, now: Duration) -> bool {
        self.may_fire(Some(state), now) && self.has_its_turn()
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
    fn has_its_turn(&mut self) -> bool {
        self.seen = self.seen.saturating_add(1);
        let on = &self.rule.on;
        let first = on.nth.or(on.every).unwrap_or(1);
        let turn = match (on.nth, on.every) {
            (None, None) => true,
            (Some(nth), None) => self.seen == nth,
            (_, Some(every)) => self.seen.checked_sub(first).is_some_and(|since| since.is_multiple_of(every.max(1))),
        };
        let fires = turn
            && on.probability.is_none_or(|part| self.draw.chance(Stream::Fire, self.seen, part))
            && on.times.is_none_or(|times| self.fired < times);
        if fires {
            self.fired = self.fired.saturating_add(1);
        }
        fires
    }

    /// Takes whole sectors of `range` out of the rule's reach, and their damage with them. Whether it has none left.
    pub(super) fn cure(&mut self, range: ByteRange) -> bool {
        let start = range.start.next_multiple_of(self.lba_size);
        let end = range.end / self.lba_size * self.lba_size;
        if start >= end {
            return false;
        }
        let limit = self.growth().map_or(0, |growth| growth.limit);
        let mut cured: u64 = 0;
        for shared in self.shared(ByteRange { start, end }, limit) {
            let shared = shared.start..shared.end;
            cured = self.cured.gaps(&shared).fold(cured, |sum, gap| sum.saturating_add(gap.end - gap.start));
        }
        let before = self.left;
        // Without ranges there is no end to what may be written.
        if !self.rule.on.ranges.is_empty() {
            self.left = self.left.saturating_sub(cured);
        }
        self.cured.insert(start..end);
        self.damaged.remove(start..end);
        before > 0 && self.left == 0
    }

    /// Notes that an access to the sector at `at` failed; the sector recovers after the last one it has to fail. Whether the
    /// rule has none left.
    pub(super) fn accessed(&mut self, at: u64) -> bool {
        let Some(Until::Accesses(limit)) = self.life().map(|life| life.until) else { return false };
        let sector = at / self.lba_size;
        let count = self.accesses.entry(sector).or_default();
        *count = count.saturating_add(1);
        if *count < limit {
            return false;
        }
        self.accesses.remove(&sector);
        self.cure(self.whole(sector))
    }

    /// A write reached these bytes: damage there is gone, and sectors that a rewrite cures are cured. Whether the rule has
    /// none left.
    ///
    /// A discard damages no more, but cures nothing: the sector is not written. A rule that is not at work sees nothing.
    pub(super) fn rewritten(&mut self, operation: Operation, range: ByteRange) -> bool {
        if range.is_empty() {
            return false;
        }
        self.damaged.remove(range.start..range.end);
        let writes = matches!(operation, Operation::Write | Operation::WriteZeroes);
        writes && self.is_at_work() && self.is_cured_by_writes() && self.cure(range)
    }

    /// Whether each read that is this rule's is damaged by it, for ever: then its damage follows from the rule, and is not
    /// kept.
    fn always_corrupts(&self) -> bool {
        let (on, then) = (&self.rule.on, &self.rule.then);
        let sometimes = on.event.is_some()
            || on.nth.is_some()
            || on.every.is_some()
            || on.probability.is_some()
            || on.times.is_some()
            || on.state.is_some()
            || on.after.is_some()
            || on.before.is_some()
            || self.is_late();
        on.operations.contains(Operations::READ) && !sometimes && !then.disarm && !then.cure
    }

    /// The sectors of `range` that are the rule's read as damaged from now on.
    pub(super) fn hurt(&mut self, range: ByteRange, now: Duration) {
        if self.always_corrupts() {
            return;
        }
        for part in self.parts(range, now) {
            if !part.is_empty() {
                self.damaged.insert(part.start..part.end);
            }
        }
    }

    /// Whether it has damaged anything.
    pub(super) fn has_hurt(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Whether it has damaged any of `range`.
    pub(super) fn hurts(&self, range: ByteRange) -> bool {
        !range.is_empty() && self.damaged.overlaps(&(range.start..range.end))
    }

    /// Where sectors of `range` may read as damaged, in order: those it has damaged, and with `fires` all that are its own.
    /// A superset: [`hits`](Self::hits) has the last word.
    pub(super) fn stretches(&self, range: ByteRange, fires: bool, now: Duration) -> RangeSet<u64> {
        let mut all = RangeSet::new();
        if range.is_empty() {
            return all;
        }
        for hurt in self.damaged.overlapping(&(range.start..range.end)) {
            all.insert(hurt.start.max(range.start)..hurt.end.min(range.end));
        }
        if fires {
            for part in self.parts(range, now).into_iter().filter(|part| !part.is_empty()) {
                all.insert(part.start..part.end);
            }
        }
        all
    }

    /// The first stretch of `range` that it has damaged, or where a read may be damaged by it: whether it fires, and which
    /// sectors have fallen, is not asked.
    pub(super) fn first_doubt(&self, range: ByteRange, now: Duration) -> Option<ByteRange> {
        let hurt = self.stretches(range, false, now).into_iter().next();
        let may_fire = self.is_at_work() && self.rule.on.operations.contains(Operations::READ);
        let own = may_fire.then(|| self.own(range, now).next()).flatten();
        hurt.map(|hurt| ByteRange { start: hurt.start, end: hurt.end })
            .into_iter()
            .chain(own)
            .min_by_key(|stretch| stretch.start)
    }

    /// The sectors of `stretch` that its corruption hits.
    pub(super) fn hits(&self, stretch: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        let share = match self.rule.action {
            Action::Corrupt { sectors, .. } => sectors,
            _ => Some(0),
        };
        self.sectors(stretch)
            .filter(move |&sector| share.is_none_or(|share| self.draw.chance(Stream::Sectors, sector, share)))
            .filter_map(move |sector| self.whole(sector).intersection(stretch))
    }

    /// How many sectors are this rule's at `now`, and how many it has damaged and not said so of each read; for lists, so it
    /// may take its time. A rule without ranges, or one that rots, has no number of the first kind; the second is about
    /// right where a share of very many is damaged.
    pub(super) fn counts(&self, now: Duration) -> (Option<u64>, u64) {
        let rots = self.life().is_some_and(|life| life.rot.is_some());
        let known = !self.rule.on.ranges.is_empty() && !rots;
        let bad = known.then(|| {
            let mut bytes: u64 = 0;
            for range in self.grown(self.growth_at(now)) {
                bytes = self.cured.gaps(&(range.start..range.end)).fold(bytes, |sum, gap| sum + (gap.end - gap.start));
            }
            bytes.div_ceil(self.lba_size)
        });
        let mut damaged: u64 = 0;
        for stretch in self.damaged.iter().map(|stretch| ByteRange { start: stretch.start, end: stretch.end }) {
            let sectors = self.sectors(stretch);
            let all = sectors.end - sectors.start;
            damaged += match self.rule.action {
                Action::Corrupt { sectors: Some(share), .. } if all > COUNTED_MAX => scaled(all, share),
                Action::Corrupt { sectors: Some(_), .. } => self.hits(stretch).count() as u64,
                _ => all,
            };
        }
        (bad, damaged)
    }
}

/// `part` of 2^32 of `all`.
fn scaled(all: u64, part: u32) -> u64 {
    u64::try_from((u128::from(all) * u128::from(part)) >> 32).unwrap_or(u64::MAX)
}
