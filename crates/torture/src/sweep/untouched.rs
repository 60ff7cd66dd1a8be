//! The run that nothing is done to, and what it sends below.

use blkproof_sim::{IoKey, IoKind};

use crate::plan::Plan;
use crate::run::{Outcome, QUIET, Settings, What, run};
use crate::target::Target;

/// A request below that can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    /// Which of the run's, from 1, in the order they were sent.
    pub(super) nth: u64,
    pub(super) key: IoKey,
    pub(super) kind: IoKind,
    /// Bytes.
    pub(super) len: u64,
}

/// A run, and the requests below that it sent before faults would have stopped.
#[derive(Debug)]
pub(super) struct Untouched {
    pub(super) outcome: Outcome,
    pub(super) requests: Vec<Request>,
}

impl Untouched {
    pub(super) fn run(plan: &Plan, target: &dyn Target, settings: &Settings) -> Self {
        let outcome = run(plan, target, &Settings { events: true, ..*settings });
        let mut requests: Vec<Request> = Vec::new();
        let mut nth = 0_u64;
        for event in &outcome.events {
            match &event.what {
                What::Begins(QUIET) => break,
                What::Below(info) => {
                    nth = nth.saturating_add(1);
                    // Neither moves data, and nothing fails them.
                    if !matches!(info.kind, IoKind::Status | IoKind::Drain) {
                        requests.push(Request { nth, key: info.key, kind: info.kind, len: info.range.len() });
                    }
                }
                // What fails by the plan's own fault can not fail once more.
                What::Fault(_) => {
                    requests.pop();
                }
                _ => {}
            }
        }
        Self { outcome, requests }
    }
}
