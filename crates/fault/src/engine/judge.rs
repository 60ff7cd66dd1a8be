//! Requests and events before the rules: which of them fire, and what follows for the rules and the state.

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, Event};

use super::Engine;
use super::armed::Armed;
use super::fate::{fate, hold};
use super::plan::{Completed, Cut, Fired, OnEvent, Pause, Plan, RuleKey};
use crate::request::{Operation, Request};
use crate::rule::{Action, StateName};

impl Engine {
    /// A step is announced.
    pub fn event(&mut self, event: Event, now: Duration) -> OnEvent {
        let mut all = OnEvent::default();
        self.begun |= event == Event::None;
        if !self.listens(event) {
            return all;
        }
        let state = Rc::clone(&self.state);
        let here = |armed: &Armed| {
            armed.armed
                && armed.rule.on.event == Some(event)
                && armed.rule.on.state.as_deref().is_none_or(|wanted| *wanted == *state)
        };
        let selects = |armed: &Armed| armed.rule.on.sticky && !armed.is_exhausted() && here(armed);
        // One that fires makes the active list anew; if none does, the old list stays.
        if self.rules.iter().any(selects) {
            for armed in self.rules.iter_mut().filter(|armed| armed.rule.on.sticky) {
                armed.primed = selects(armed);
            }
        }
        let mut next_state = None;
        let mut changed = false;
        for armed in self.rules.iter_mut().filter(|armed| here(armed) && !armed.rule.on.sticky) {
            if armed.takes_requests() {
                armed.primed = true;
                continue;
            }
            if !armed.announced(&state, now) {
                continue;
            }
            let action = armed.rule.action.clone();
            match &action {
                Action::Delay(delay) => all.pauses.push(Pause::Delay(armed.draw.delay(*delay, armed.seen))),
                Action::Hold { tag } => all.pauses.push(hold(armed, tag.as_ref())),
                Action::PowerCut { disk, state, .. } => {
                    all.power_cut.get_or_insert_with(|| Cut { disk: disk.clone(), state: state.clone() });
                }
                _ => {}
            }
            let nowhere = ByteRange::at(0, 0);
            all.fired.push(Fired { rule: armed.rule.id.clone(), action, place: nowhere, error: None });
            changed |= then(armed, &mut next_state, None) | armed.is_exhausted();
        }
        self.advance(next_state, changed);
        all
    }

    /// A request arrives on a device of `size` bytes. What is to be done with it?
    pub fn submit(&mut self, request: &Request, size: u64, now: Duration) -> Plan {
        let mut plan = Plan::default();
        self.examine(request, size, now, None, &mut plan);
        plan
    }

    /// A request has been done: it took so long, and succeeded on `range` (a misdirected one elsewhere than it was sent), or
    /// failed. `damages` is its plan's.
    pub fn complete(
        &mut self,
        request: &Request,
        damages: &[RuleKey],
        succeeded: Option<ByteRange>,
        took: Option<Duration>,
        size: u64,
        now: Duration,
    ) -> Completed {
        let mut done = Completed::default();
        let Some(range) = succeeded else { return done };
        let mut changed = false;
        if request.operation.changes() {
            for armed in &mut self.rules {
                changed |= armed.rewritten(request.operation, range);
            }
        }
        if let Some(took) = took.filter(|_| self.late) {
            self.examine(request, size, now, Some(took), &mut done.late);
        }
        let damages = [damages, &done.late.damages].concat();
        for armed in self.rules.iter_mut().filter(|armed| damages.contains(&armed.key)) {
            // What a rule damages for one read alone is laid over that one, and not kept.
            if !armed.rule.then.cure {
                armed.hurt(range, now);
            }
        }
        self.look_for_damage();
        if request.operation == Operation::Read {
            done.damage = self.damaged(range, &damages, now);
            for armed in self.rules.iter_mut().filter(|armed| damages.contains(&armed.key)) {
                changed |= armed.rule.then.cure && armed.cure(range);
            }
        }
        if changed {
            self.reindex();
        }
        done
    }

    fn examine(&mut self, request: &Request, size: u64, now: Duration, took: Option<Duration>, plan: &mut Plan) {
        let state = Rc::clone(&self.state);
        let mut next_state = None;
        let mut changed = false;
        for armed in &mut self.rules {
            let Some(first) = armed.fires(request, &state, now, took) else { continue };
            let rule = Rc::clone(&armed.rule);
            let has_place = !rule.on.ranges.is_empty() || rule.life.is_some();
            let error = fate(armed, request, size, has_place.then_some(first), plan);
            if matches!(rule.action, Action::Fail { .. } | Action::Short { .. }) {
                changed |= armed.accessed(first);
            }
            // Sectors are damaged when the request has been done, and cured of what damages it after that.
            let damages = matches!(rule.action, Action::Corrupt { .. });
            if damages {
                plan.damages.push(armed.key);
            }
            changed |= then(armed, &mut next_state, (!damages).then_some(request.range)) | armed.is_exhausted();
            let place = ByteRange { start: first, end: request.range.end };
            plan.fired.push(Fired { rule: rule.id.clone(), action: rule.action.clone(), place, error });
            if !rule.action.goes_on() {
                break;
            }
        }
        self.advance(next_state, changed);
    }

    fn advance(&mut self, next: Option<StateName>, changed: bool) {
        if let Some(next) = next {
            self.state = next;
        }
        if changed {
            self.reindex();
        }
    }
}

/// Applies what follows from a rule that fired, and cures `range` if that follows; whether the rule is at work no more.
fn then(armed: &mut Armed, next_state: &mut Option<StateName>, range: Option<ByteRange>) -> bool {
    let rule = Rc::clone(&armed.rule);
    if let Some(state) = &rule.then.state {
        next_state.get_or_insert_with(|| Rc::clone(state));
    }
    if rule.then.disarm {
        armed.armed = false;
    }
    let cured = rule.then.cure && range.is_some_and(|range| armed.cure(range));
    rule.then.disarm || cured
}
