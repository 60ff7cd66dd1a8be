//! What an action means for the request at hand.

use std::rc::Rc;

use blkproof_block::{IoError, RuleId};

use super::armed::Armed;
use super::draw::Stream;
use super::plan::{Fate, Pause, Plan, Share};
use crate::request::{Operation, Request};
use crate::rule::{Action, Done, Place, Tear, Unit};

pub(super) fn hold(armed: &Armed, tag: Option<&Rc<str>>) -> Pause {
    let tag = tag.map_or_else(|| Rc::from(&*armed.rule.id.0), Rc::clone);
    Pause::Hold { key: armed.key, tag }
}

/// Adds to `plan` what the action of a rule that fired means for `request`; the error it injects, if it does.
///
/// `first` is the first byte of the request that is the rule's, if that has a place.
pub(super) fn fate(
    armed: &Armed,
    request: &Request,
    size: u64,
    first: Option<u64>,
    plan: &mut Plan,
) -> Option<IoError> {
    let rule = &armed.rule;
    let range = request.range;
    let before = Share::Bytes(first.map_or(0, |first| first.saturating_sub(range.start)));
    let share = |done: Done| match done {
        Done::None => Share::Bytes(0),
        Done::Prefix => before,
        Done::All => Share::All,
    };
    let transferred = |error: IoError, done: Share| match done {
        Share::Bytes(transferred) => IoError { transferred, ..error },
        Share::All => IoError { transferred: range.len(), ..error },
    };
    match &rule.action {
        Action::None | Action::Pass | Action::Corrupt { .. } => None,
        Action::Recovered(failure) => Some(failure.error(&rule.id, first)),
        Action::Delay(delay) => {
            plan.pauses.push(Pause::Delay(armed.draw.delay(*delay, armed.seen)));
            None
        }
        Action::Hold { tag } => {
            plan.pauses.push(hold(armed, tag.as_ref()));
            None
        }
        Action::Fail { error, done, wait } => {
            if let Some(wait) = wait {
                plan.pauses.push(Pause::Delay(armed.draw.delay(*wait, armed.seen)));
            }
            // An error with a place says that what lies before it is valid. A read has to make that true, also one that
            // does nothing: it changes nothing.
            let done = if request.operation == Operation::Read && *done == Done::None { before } else { share(*done) };
            let error = transferred(error.error(&rule.id, first), done);
            plan.fate = Fate::Fail { done, error: error.clone() };
            Some(error)
        }
        Action::Short { tear, error } => {
            let prefix = cut(armed, *tear, request, first);
            let done = Share::Bytes(prefix);
            let error = transferred(error.error(&rule.id, Some(range.start.saturating_add(prefix))), done);
            plan.fate = Fate::Fail { done, error: error.clone() };
            Some(error)
        }
        Action::Torn { tear } => {
            plan.fate = Fate::Torn { done: Share::Bytes(cut(armed, *tear, request, first)) };
            None
        }
        Action::Phantom => {
            plan.fate = Fate::Phantom;
            None
        }
        Action::Misdirect(place) => {
            let room = size.saturating_sub(range.len());
            let to = match *place {
                Place::At(to) => to,
                Place::By(distance) => wrap(range.start, distance, size.max(1)),
            };
            plan.fate = Fate::Misdirect { to: to.min(room) };
            None
        }
        Action::Hang => {
            plan.fate = Fate::Hang { rule: rule.id.clone() };
            None
        }
        Action::Disconnect { done } => {
            let done = share(*done);
            let error = transferred(gone(&rule.id), done);
            plan.fate = Fate::Fail { done, error: error.clone() };
            Some(error)
        }
        Action::Ask { timeout, default, data } => {
            plan.fate = Fate::Ask { rule: rule.id.clone(), timeout: *timeout, default: default.clone(), data: *data };
            None
        }
        Action::PowerCut { disk, state, done } => {
            let done = share(*done);
            let error = gone(&rule.id);
            plan.fate = Fate::PowerCut { done, disk: disk.clone(), state: state.clone(), error: error.clone() };
            Some(error)
        }
    }
}

/// The device is gone for this client.
fn gone(rule: &RuleId) -> IoError {
    IoError { injected_by: Some(rule.clone()), ..IoError::gone() }
}

/// Bytes of the first part of a request that is cut in two. Never all of it, unless it has no units to cut between.
fn cut(armed: &Armed, tear: Tear, request: &Request, first: Option<u64>) -> u64 {
    let len = request.range.len();
    let bytes = |unit: Unit| match unit {
        Unit::Sector => armed.lba_size(),
        Unit::Byte => 1,
    };
    let prefix = match tear {
        Tear::After(count, unit) => count.saturating_mul(bytes(unit)),
        Tear::Random(unit) => {
            let unit = bytes(unit);
            armed.draw.below(Stream::Tear, armed.seen, len.div_ceil(unit)).saturating_mul(unit)
        }
        Tear::AtRange => first.map_or(0, |first| first.saturating_sub(request.range.start)),
    };
    prefix.min(len)
}

/// `at` plus `distance`, around the end at `size`.
pub(super) fn wrap(at: u64, distance: i64, size: u64) -> u64 {
    let sum = (i128::from(at) + i128::from(distance)).rem_euclid(i128::from(size));
    u64::try_from(sum).unwrap_or(0)
}
