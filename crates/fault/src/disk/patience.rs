//! A state that a rule below keeps from the medium.
//!
//! What a power cut leaves is written through the nodes below the disk, and a rule there may hold those writes, stop
//! them, or never answer: then the cut would not return before somebody lets them go. So it gives up once nothing has
//! moved for [`PATIENCE`] *and* a node of the lab is known to keep requests waiting, and says which. The disk stays off;
//! the next `power_on` goes on. A medium that is merely slow has all the time it wants.
//!
//! Going around the rule would be the other way; but a rule below the disk is the medium's behaviour, and a write that
//! it never saw would be missing from its counts and its damage.

use std::future::Future;
use std::time::Duration;

use blkproof_block::{Errno, IoError, Result};

use super::medium::Shared;
use crate::lab::Lab;
use crate::rule::Action;

/// How long nothing has to have moved.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Does `work`, unless rules keep it from being done.
pub(super) async fn unless_stuck<T>(shared: &Shared, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(lab) = &shared.lab else { return work.await };
    let clock = lab.clock();
    let stuck = async {
        loop {
            let steps = shared.steps.get();
            clock.sleep(PATIENCE).await;
            if steps == shared.steps.get()
                && let Some(who) = in_the_way(lab)
            {
                let secs = PATIENCE.as_secs();
                let words = format!("the medium has not taken any of it for {secs} seconds, and {who}");
                return Err(IoError::new(Errno::TIMEDOUT).detail(words));
            }
        }
    };
    futures_lite::future::or(work, stuck).await
}

/// Which nodes keep requests waiting, in words.
fn in_the_way(lab: &Lab) -> Option<String> {
    let mut who = Vec::new();
    for (name, part) in lab.parts() {
        let Some(faults) = part.faults() else { continue };
        who.extend(faults.held().into_iter().map(|(tag, count)| {
            let requests = if count == 1 { "a request" } else { "requests" };
            format!("node '{name}' holds {requests} under tag '{tag}'")
        }));
        if faults.is_stopped() {
            who.push(format!("node '{name}' is stopped"));
        }
        let silent = faults.list().into_iter().filter(|one| matches!(one.rule.action, Action::Hang) && one.fired > 0);
        who.extend(silent.map(|one| format!("rule '{}' of node '{name}' leaves requests unanswered", one.rule.id)));
    }
    (!who.is_empty()).then(|| who.join(", "))
}
