//! QEMU's blkdebug configuration files, by blkdebug's own semantics (block-layer.md 1.4).
//!
//! blkdebug has two things that change: a state, which is a number, and the *active list*, the rules that the last
//! event armed. Here there are states alone, so each pair that can be reached becomes one: `2:1,3-4` is blkdebug's
//! state 2 with its rules 1 and 3 active and rule 4, a `once`, used up. Rules are numbered in the order of the file.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use blkproof_block::{ByteRange, Errno, Event};

use super::{Draft, Wrong, refusal};
use crate::blkdebug::config::{self, Config, InjectError};
use crate::file::NAME_MAX;
use crate::request::{Operation, Operations};
use crate::rule::{Action, Failure, On, Then};

/// Pairs of state and active list that are followed; a file of QEMU's tests has a dozen.
const STATES_MAX: usize = 64;

/// A state of blkdebug, its active rules, and the `once` rules that are used up.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    state: u32,
    active: Vec<usize>,
    used: BTreeSet<usize>,
}

impl Moment {
    fn name(&self) -> String {
        let list = |rules: Vec<usize>| {
            rules.into_iter().map(|index| index.saturating_add(1).to_string()).collect::<Vec<_>>().join(",")
        };
        let mut name = self.state.to_string();
        if !self.active.is_empty() {
            name.push_str(&format!(":{}", list(self.active.clone())));
        }
        if !self.used.is_empty() {
            name.push_str(&format!("-{}", list(self.used.iter().copied().collect())));
        }
        name
    }

    /// After `event` was announced.
    fn announced(&self, config: &Config, event: Event) -> Self {
        let here = |state: u32| state == 0 || state == self.state;
        let fired: Vec<usize> = (0..)
            .zip(&config.inject_error)
            .filter(|(index, rule)| rule.event == event && here(rule.state) && !self.used.contains(index))
            .map(|(index, _)| index)
            .collect();
        let state = config.set_state.iter().find(|rule| rule.event == event && here(rule.state));
        Self {
            state: state.map_or(self.state, |rule| rule.new_state),
            active: if fired.is_empty() { self.active.clone() } else { fired },
            used: self.used.clone(),
        }
    }

    /// After the `once` rule `index` failed a request.
    fn used(&self, index: usize) -> Self {
        let mut after = self.clone();
        after.active.retain(|active| *active != index);
        after.used.insert(index);
        after
    }
}

pub(super) fn read(file: &str, text: &str, draft: &mut Draft) -> Result<(), Wrong> {
    let config = config::parse(file, text).map_err(|error| (error.line, error.words))?;
    let events: BTreeSet<Event> = config
        .inject_error
        .iter()
        .map(|rule| rule.event)
        .chain(config.set_state.iter().map(|rule| rule.event))
        .filter(|event| *event != Event::None)
        .collect();
    // The event `none` comes once, when the image is opened.
    let first = Moment { state: 1, active: Vec::new(), used: BTreeSet::new() }.announced(&config, Event::None);
    let mut next: BTreeMap<Moment, Vec<(Event, Moment)>> = BTreeMap::new();
    let mut to_do = VecDeque::from([first.clone()]);
    while let Some(moment) = to_do.pop_front() {
        if next.contains_key(&moment) {
            continue;
        }
        if next.len() >= STATES_MAX || moment.name().len() > NAME_MAX {
            simply(&config, first.state, draft);
            return Ok(());
        }
        let moves: Vec<(Event, Moment)> = events
            .iter()
            .map(|event| (*event, moment.announced(&config, *event)))
            .filter(|(_, after)| *after != moment)
            .collect();
        to_do.extend(moves.iter().map(|(_, after)| after.clone()));
        to_do.extend(active_once(&config, &moment).map(|index| moment.used(index)));
        next.insert(moment, moves);
    }
    let alone = next.len() == 1;
    if !alone {
        draft.note(
            "States are named STATE:ACTIVE-USED: blkdebug's state, the numbers of the rules it has armed, and of the",
        );
        draft.note("'once' rules that are used up. [inject-error] rules are numbered in the order of the file.");
        draft.rules.state = Rc::from(first.name());
    }
    draft.note("Beyond blkdebug: an error of a rule with a sector names that sector.");
    for (number, (moment, moves)) in (1..).zip(&next) {
        let state: Option<Rc<str>> = (!alone).then(|| Rc::from(moment.name()));
        let tag = if alone { String::new() } else { format!("s{number}.") };
        for (event, after) in moves {
            let on = On { operations: Operations::empty(), event: Some(*event), state: state.clone(), ..On::default() };
            let then = Then { state: Some(Rc::from(after.name())), ..Then::default() };
            draft.rule(format!("{tag}{event}"), on, Action::None, Vec::new()).then = then;
        }
        for index in &moment.active {
            let Some(rule) = config.inject_error.get(*index).filter(|rule| matches_something(rule)) else { continue };
            let on = On { state: state.clone(), ..on(rule) };
            let notes = vec![format!("line {}, rule {}", rule.line, index.saturating_add(1))];
            let id = format!("{tag}inject-{}", index.saturating_add(1));
            let then = if rule.once && rule.errno != 0 {
                Then { state: Some(Rc::from(moment.used(*index).name())), ..Then::default() }
            } else {
                Then::default()
            };
            draft.rule(id, on, action(rule), notes).then = then;
        }
    }
    never_armed(&config, &next, draft);
    Ok(())
}

fn active_once<'a>(config: &'a Config, moment: &'a Moment) -> impl Iterator<Item = usize> + 'a {
    // errno 0 does not use a rule up.
    let once = |index: &usize| config.inject_error.get(*index).is_some_and(|rule| rule.once && rule.errno != 0);
    moment.active.iter().copied().filter(once)
}

/// Says which rules no event can arm.
fn never_armed(config: &Config, next: &BTreeMap<Moment, Vec<(Event, Moment)>>, draft: &mut Draft) {
    let armed: BTreeSet<usize> = next.keys().flat_map(|moment| moment.active.iter().copied()).collect();
    for (index, rule) in (0..).zip(&config.inject_error) {
        if !armed.contains(&index) {
            draft.note(format!("The rule in line {} is never armed: its state is never reached.", rule.line));
        } else if !matches_something(rule) {
            draft.note(format!("The rule in line {} never matches: a flush has no sector.", rule.line));
        }
    }
}

/// Where too many states are to be followed: each rule by itself.
fn simply(config: &Config, first: u32, draft: &mut Draft) {
    draft.rules.state = Rc::from(first.to_string());
    draft.lost(format!(
        "the file has more than {STATES_MAX} states and lists of armed rules; here an event arms a rule for one \
         request, while \
         blkdebug keeps it armed until another is"
    ));
    for (number, rule) in (1_usize..).zip(&config.set_state) {
        let state = (rule.state != 0).then(|| Rc::from(rule.state.to_string()));
        if rule.event == Event::None {
            // It came at the beginning.
            continue;
        }
        let on = On { operations: Operations::empty(), event: Some(rule.event), state, ..On::default() };
        draft.rule(format!("state-{number}"), on, Action::None, vec![format!("line {}", rule.line)]).then =
            Then { state: Some(Rc::from(rule.new_state.to_string())), ..Then::default() };
    }
    for (number, rule) in (1_usize..).zip(&config.inject_error).filter(|(_, rule)| matches_something(rule)) {
        let event = (rule.event != Event::None).then_some(rule.event);
        // What is armed at the beginning, in blkdebug's state 1, stays so in any state.
        if event.is_none() && rule.state > 1 {
            continue;
        }
        let state = (rule.state != 0 && event.is_some()).then(|| Rc::from(rule.state.to_string()));
        let times = (rule.once && rule.errno != 0).then_some(1);
        let on = On { event, state, times, ..on(rule) };
        draft.rule(format!("inject-{number}"), on, action(rule), vec![format!("line {}", rule.line)]);
    }
}

/// A flush has no sector.
fn matches_something(rule: &InjectError) -> bool {
    !(rule.sector.is_some() && rule.iotype == Some(Operation::Flush))
}

fn on(rule: &InjectError) -> On {
    // A sector matches where its first byte lies in the request.
    let byte = rule.sector.and_then(|sector| sector.checked_mul(512)).map(|at| ByteRange::at(at, 1));
    let operations = rule.iotype.map_or(Operations::DATA, |operation| operation.set());
    On { operations, ranges: byte.into_iter().collect(), ..On::default() }
}

fn action(rule: &InjectError) -> Action {
    if rule.errno == 0 { Action::Pass } else { refusal(Failure::errno(Errno(rule.errno))) }
}
