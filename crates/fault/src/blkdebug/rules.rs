//! blkdebug's rules as the engine's.
//!
//! | blkdebug | here |
//! |---|---|
//! | active list, replaced by an event that fires any rule | [`On::sticky`] |
//! | `sector` | the first byte of that sector: a request that begins inside it does not match |
//! | `once` | fires once; unless `errno` is 0, when it is never used up |
//! | `errno` 0 | [`Action::Pass`]: the rules behind it are not looked at |
//! | `set-state` | a rule on the event alone that does nothing; the first one's state holds |
//! | `state` 0 | any state |

use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::{ByteRange, Errno, RuleId};

use super::config::{Config, InjectError, SetState};
use crate::request::{Operation, Operations};
use crate::rule::{Action, Done, Failure, On, Rule, RuleSet, StateName, Then};

/// The state a blkdebug begins in.
const FIRST_STATE: &str = "1";

/// Bytes of a sector, whatever the device's are.
const SECTOR: u64 = 512;

/// The rules of a file and those given as options, in this order, and the ids of those that want their error at once.
///
/// Rules of `file` are named by it and their line, others by their option (`inject-error.0`).
pub fn rule_set(file: Option<(&str, &Config)>, options: &Config) -> (RuleSet, BTreeSet<Box<str>>) {
    let mut rules = Vec::new();
    let mut immediate = BTreeSet::new();
    let mut add = |rule: Rule, immediately: bool| {
        if immediately {
            immediate.insert(rule.id.0.clone());
        }
        rules.push(rule);
    };
    let named = |name: String| RuleId(name.into_boxed_str());
    if let Some((name, config)) = file {
        for rule in &config.inject_error {
            add(inject(rule, named(format!("{name}:{}", rule.line))), rule.immediately);
        }
        for rule in &config.set_state {
            add(set_state(rule, named(format!("{name}:{}", rule.line))), false);
        }
    }
    for (index, rule) in options.inject_error.iter().enumerate() {
        add(inject(rule, named(format!("inject-error.{index}"))), rule.immediately);
    }
    for (index, rule) in options.set_state.iter().enumerate() {
        add(set_state(rule, named(format!("set-state.{index}"))), false);
    }
    (RuleSet { state: Rc::from(FIRST_STATE), rules, ..RuleSet::default() }, immediate)
}

fn state(number: u32) -> Option<StateName> {
    (number != 0).then(|| Rc::from(number.to_string()))
}

fn inject(rule: &InjectError, id: RuleId) -> Rule {
    let action = match rule.errno {
        0 => Action::Pass,
        errno => Action::Fail { error: Failure::errno(Errno(errno)), done: Done::None, wait: None },
    };
    let on = On {
        operations: rule.iotype.map_or(Operations::DATA, Operation::set),
        event: Some(rule.event),
        sticky: true,
        ranges: rule.sector.map(|sector| ByteRange::at(sector.saturating_mul(SECTOR), 1)).into_iter().collect(),
        times: (rule.once && rule.errno != 0).then_some(1),
        state: state(rule.state),
        ..On::default()
    };
    Rule { id, on, action, then: Then::default(), life: None }
}

fn set_state(rule: &SetState, id: RuleId) -> Rule {
    let on = On { operations: Operations::empty(), event: Some(rule.event), state: state(rule.state), ..On::default() };
    let then = Then { state: Some(Rc::from(rule.new_state.to_string())), ..Then::default() };
    Rule { id, on, action: Action::None, then, life: None }
}
