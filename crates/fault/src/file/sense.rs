//! Rules that are well written and make no sense: that can never fire, that never get their turn, that ask for what can
//! not be done.
//!
//! What can never do anything is refused; what is only odd, or may be meant for rules added later, is a warning.

use std::collections::BTreeSet;

use blkproof_block::ByteRange;

use super::words::open_end;
use crate::request::Operations;
use crate::rule::{Action, Life, On, Rule, RuleSet, StateName, Tear, Until};

/// Rules before a rule that are looked at to see whether one of them takes all its requests.
const SHADOWS_MAX: usize = 256;

/// Something about a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    /// Its place in the set; `None` if it is about the set, or about a rule by itself.
    pub rule: Option<usize>,
    /// The field, as in `on.lba`.
    pub field: &'static str,
    /// What about it.
    pub words: String,
    /// Whether the rule can not be used.
    pub refuses: bool,
}

/// Operations that an action can be done to.
pub const fn possible(action: &Action) -> Operations {
    match action {
        Action::None
        | Action::Pass
        | Action::Fail { .. }
        | Action::Delay(_)
        | Action::Hold { .. }
        | Action::Hang
        | Action::Disconnect { .. }
        | Action::Ask { .. }
        | Action::PowerCut { .. } => Operations::all(),
        Action::Recovered(_) | Action::Phantom => Operations::DATA,
        Action::Short { .. } | Action::Misdirect(_) => WITH_RANGE,
        Action::Torn { .. } => WRITES,
        Action::Corrupt { .. } => Operations::READ.union(Operations::WRITE).union(Operations::WRITE_ZEROES),
    }
}

const WRITES: Operations = Operations::WRITE.union(Operations::WRITE_ZEROES).union(Operations::DISCARD);
const WITH_RANGE: Operations = Operations::READ.union(WRITES);
/// Requests without a place.
const PLACELESS: Operations = Operations::FLUSH.union(Operations::RESIZE);

/// What is to be said of one rule, whatever others there are.
pub fn rule(rule: &Rule, lba_size: u32) -> Vec<Remark> {
    let mut remarks = Remarks::default();
    operations(rule, &mut remarks);
    windows(&rule.on, &mut remarks);
    if rule.on.slower_than.is_some() || rule.on.faster_than.is_some() {
        late(rule, &mut remarks);
    }
    if let Some(life) = &rule.life {
        sectors(rule, life, lba_size, &mut remarks);
    }
    if rule.on.ranges.is_empty() && tear(&rule.action) == Some(Tear::AtRange) {
        remarks.refuse("do", "cut = \"range\" cuts where the range begins, and there is none: give on.lba or on.bytes");
    }
    corrupted_writes(rule, &mut remarks);
    if rule.then.disarm && rule.on.times.is_some_and(|times| times > 1) {
        remarks.warn("on.times", "'then.disarm' ends the rule after the first time; 'times' is without effect");
    }
    remarks.0
}

/// What is to be said of a set.
pub fn set(set: &RuleSet) -> Vec<Remark> {
    let states: BTreeSet<&StateName> =
        set.rules.iter().filter_map(|rule| rule.then.state.as_ref()).chain([&set.state]).collect();
    let mut remarks = Vec::new();
    let mut takers: Vec<&Rule> = Vec::new();
    for (index, each) in set.rules.iter().enumerate() {
        let mut here = Remarks(rule(each, set.lba_size));
        if let Some(state) = each.on.state.as_ref().filter(|state| !states.contains(state)) {
            here.warn(
                "on.state",
                format!("it can never fire: no rule sets the state '{state}', and things begin in '{}'", set.state),
            );
        }
        if let Some(taker) = takers.iter().find(|taker| shadows(taker, each)) {
            here.warn(
                "on",
                format!("it can never fire: rule '{}' stands before it and takes every request it is about", taker.id),
            );
        }
        if takers.len() < SHADOWS_MAX && takes_all(each) {
            takers.push(each);
        }
        remarks.extend(here.0.into_iter().map(|remark| Remark { rule: Some(index), ..remark }));
    }
    if set.rules.is_empty() {
        remarks.push(Remark {
            rule: None,
            field: "",
            words: "there are no rules in it; a rule begins with [[rule]]".to_owned(),
            refuses: false,
        });
    }
    remarks
}

#[derive(Default)]
struct Remarks(Vec<Remark>);

impl Remarks {
    fn refuse(&mut self, field: &'static str, words: impl Into<String>) {
        self.0.push(Remark { rule: None, field, words: words.into(), refuses: true });
    }

    fn warn(&mut self, field: &'static str, words: impl Into<String>) {
        self.0.push(Remark { rule: None, field, words: words.into(), refuses: false });
    }
}

fn operations(rule: &Rule, remarks: &mut Remarks) {
    let on = &rule.on;
    let name = rule.action.name();
    if on.operations.is_empty() {
        if on.event.is_none() {
            remarks.refuse("on.op", "it can never fire: there is neither an operation nor an event");
            return;
        }
        if !matches!(rule.action, Action::None | Action::Hold { .. } | Action::Delay(_) | Action::PowerCut { .. }) {
            remarks.refuse(
                "do",
                format!(
                    "an event by itself has no request to {name}; it can hold, delay, power-cut or change the \
                     state. Say \
                     with on.op which request behind the event is meant"
                ),
            );
        }
        if !on.ranges.is_empty() {
            remarks.refuse("on", "an event by itself has no place; say with on.op which request behind it is meant");
        }
        if rule.life.is_some() {
            remarks
                .refuse("life", "an event by itself has no sectors; say with on.op which request behind it is meant");
        }
        if on.slower_than.is_some() || on.faster_than.is_some() {
            remarks.refuse("on", "an event by itself takes no time; say with on.op which request behind it is meant");
        }
        return;
    }
    let possible = possible(&rule.action);
    let wrong = on.operations.difference(possible);
    if !wrong.is_empty() {
        remarks.refuse("on.op", format!("'{name}' can not be done to {}; it is for {}", list(wrong), list(possible)));
    }
    if !on.ranges.is_empty() && !on.operations.contains(Operations::DATA.intersection(possible)) {
        let placeless = on.operations.intersection(PLACELESS);
        if placeless == on.operations {
            remarks.refuse("on", format!("it can never fire: {} has no place on the disk", list(placeless)));
        } else if !placeless.is_empty() {
            remarks.warn("on.op", format!("{} has no place on the disk, so the rule is not about it", list(placeless)));
        }
    }
    if rule.action == Action::None && rule.then == crate::rule::Then::default() {
        remarks.warn("do", "it does nothing but count; give do or then");
    }
}

fn windows(on: &On, remarks: &mut Remarks) {
    if let (Some(after), Some(before)) = (on.after, on.before)
        && after >= before
    {
        remarks.refuse("on.before", "it can never fire: 'before' is not later than 'after'");
    }
    if let (Some(slower), Some(faster)) = (on.slower_than, on.faster_than)
        && slower >= faster
    {
        remarks.refuse("on.faster-than", "it can never fire: 'faster-than' is not more than 'slower-than'");
    }
    if on.nth.is_some() && on.every.is_none() && on.times.is_some_and(|times| times > 1) {
        remarks.warn("on.times", "'nth' without 'every' fires once at most; 'times' is without effect");
    }
}

/// Damage done to what is written that is gone before anybody can read it.
fn corrupted_writes(rule: &Rule, remarks: &mut Remarks) {
    let writes = rule.on.operations.intersection(Operations::WRITE.union(Operations::WRITE_ZEROES));
    if writes.is_empty() || !matches!(rule.action, Action::Corrupt { .. }) {
        return;
    }
    let writes = list(writes);
    if rule.then.cure {
        remarks.refuse(
            "then.cure",
            format!("it would take the damage done to {writes} away again; give on.op = \"read\" for one bad read"),
        );
    }
    if rule.life.as_ref().is_some_and(|life| life.until == Until::Rewrite) {
        remarks.refuse(
            "life",
            format!("{writes} would cure the very sectors to be damaged by it; give on.op = \"read\", or another life"),
        );
    }
}

/// A rule for requests that took so long is looked at when they are done.
fn late(rule: &Rule, remarks: &mut Remarks) {
    let undoes = matches!(
        rule.action,
        Action::Short { .. } | Action::Torn { .. } | Action::Phantom | Action::Misdirect(_) | Action::Ask { .. }
    );
    if undoes {
        let name = rule.action.name();
        let field = if rule.on.slower_than.is_some() { "on.slower-than" } else { "on.faster-than" };
        remarks.refuse(field, format!("how long a request takes is known when it is done, too late for '{name}'"));
    }
}

fn sectors(rule: &Rule, life: &Life, lba_size: u32, remarks: &mut Remarks) {
    let on = &rule.on;
    if on.operations.is_empty() {
        return;
    }
    if on.operations.difference(PLACELESS).is_empty() {
        remarks.refuse("life", format!("{} has no sectors that could live or die", list(on.operations)));
        return;
    }
    if on.ranges.is_empty() && life.growth.is_some() {
        remarks.refuse("life", "growth begins behind the bad sectors, and all are bad from the start: give on.lba");
    }
    let size = u64::from(lba_size);
    let whole = |offset: u64| offset.is_multiple_of(size.max(1));
    if let Some(range) = on.ranges.iter().find(|range| !whole(range.start) || !whole(range.end)) {
        let around = range.aligned_out(size);
        remarks.refuse(
            "on.bytes",
            format!(
                "{range} is not made of whole sectors of {lba_size} bytes, and sectors are what goes bad and \
                 recovers; the \
                 whole ones are {around}"
            ),
        );
    }
    let writes = on.operations.intersection(Operations::WRITE.union(Operations::WRITE_ZEROES));
    if life.until == Until::Rewrite && !writes.is_empty() && spares_nothing(&rule.action) {
        let name = rule.action.name();
        remarks
            .warn("life", format!("the write that would cure a sector meets '{name}' itself; give on.op = \"read\""));
    }
}

/// Whether a write that meets it never succeeds on the medium.
const fn spares_nothing(action: &Action) -> bool {
    matches!(
        action,
        Action::Fail { .. } | Action::Short { .. } | Action::Phantom | Action::Hang | Action::Disconnect { .. }
    )
}

const fn tear(action: &Action) -> Option<Tear> {
    match action {
        Action::Short { tear, .. } | Action::Torn { tear } => Some(*tear),
        _ => None,
    }
}

/// Whether a rule decides every request it is about, for ever.
fn takes_all(rule: &Rule) -> bool {
    let on = &rule.on;
    let always = on.event.is_none()
        && on.nth.is_none()
        && on.every.is_none_or(|every| every == 1)
        && on.probability.is_none()
        && on.times.is_none()
        && on.after.is_none()
        && on.before.is_none()
        && on.slower_than.is_none()
        && on.faster_than.is_none();
    // A state may be left in other ways than by this rule, but then both rules are out of it.
    let stays = rule.then.state.is_none() || rule.then.state == on.state;
    let lives = rule.life.as_ref().is_none_or(|life| life.until == Until::Never && life.rot.is_none());
    always
        && stays
        && lives
        && !rule.then.disarm
        && !rule.then.cure
        && !rule.action.goes_on()
        && !on.operations.is_empty()
}

fn shadows(taker: &Rule, rule: &Rule) -> bool {
    let same_state = taker.on.state.is_none() || taker.on.state == rule.on.state;
    let covers = taker.on.ranges.is_empty()
        || (!rule.on.ranges.is_empty() && rule.on.ranges.iter().all(|range| covered(*range, &taker.on.ranges)));
    same_state && covers && !rule.on.operations.is_empty() && taker.on.operations.contains(rule.on.operations)
}

fn covered(range: ByteRange, by: &[ByteRange]) -> bool {
    let before = by.partition_point(|other| other.start <= range.start);
    before.checked_sub(1).and_then(|index| by.get(index)).is_some_and(|other| range.end <= other.end)
}

/// `read, write and flush`.
pub(super) fn list(operations: Operations) -> String {
    let names: Vec<&str> = crate::request::Operation::ALL
        .into_iter()
        .filter(|operation| operations.contains(operation.set()))
        .map(crate::request::Operation::name)
        .collect();
    and(&names)
}

pub(super) fn and(names: &[&str]) -> String {
    match names.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// Whether every range is made of whole sectors.
pub(super) fn whole_sectors(ranges: &[ByteRange], lba_size: u32) -> bool {
    let whole = |offset: u64| offset.is_multiple_of(u64::from(lba_size.max(1)));
    ranges.iter().all(|range| whole(range.start) && (whole(range.end) || range.end >= open_end(lba_size)))
}
