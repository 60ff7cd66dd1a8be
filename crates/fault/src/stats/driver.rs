//! `stats` as users name it: `driver=stats,file.filename=a.qcow2`.
//!
//! Options: `file` (the node counted), `node-name`, `start` (on; off waits for the command), `account-failed`,
//! `account-invalid` (on; QEMU's `stats-account-*`), `intervals` (seconds, as in `1:60`; QEMU's `stats-intervals`).

use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{BlockDevice as _, LocalBoxFuture, Node};

use super::NAME;
use super::counters::{INTERVALS_MAX, Stats, StatsOptions};
use super::node::StatsNode;
use crate::lab::{Lab, Part};

/// The driver.
#[derive(Clone, Debug)]
pub struct StatsDriver {
    lab: Rc<Lab>,
}

impl StatsDriver {
    /// Its nodes are known to `lab`.
    pub fn new(lab: &Rc<Lab>) -> Self {
        Self { lab: Rc::clone(lab) }
    }

    async fn open_node(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let mut how = StatsOptions::default();
        for (name, on) in [
            ("start", &mut how.start),
            ("account-failed", &mut how.account_failed),
            ("account-invalid", &mut how.account_invalid),
        ] {
            *on = options.take_bool(name)?.unwrap_or(*on);
        }
        if let Some(text) = options.take_text("intervals")? {
            how.intervals = intervals(&text).ok_or_else(|| {
                OpenError::Usage(format!(
                    "option '{}' is a list of at most {INTERVALS_MAX} lengths in seconds, as in 1:60, not '{text}'",
                    options.full_name("intervals")
                ))
            })?;
        }
        let wanted = options.take_text("node-name")?;
        let child = options
            .take_child("file")
            .ok_or_else(|| OptionError::Missing { option: "file".into(), driver: NAME.into() })?;
        options.finish(NAME)?;
        let child = context.open(child).await?;
        // Only now: a node of this kind below has its name already.
        let name = self.lab.name(NAME, wanted);
        let stats = Stats::new(Rc::clone(&name), child.info().size, self.lab.clock(), how);
        let registered = self
            .lab
            .register(&name, Part::Stats(Rc::clone(&stats)))
            .map_err(|error| OpenError::Usage(error.to_string()))?;
        Ok(Node::new(StatsNode::new(child, stats).registered(registered)))
    }
}

/// Reads `1:60`.
fn intervals(text: &str) -> Option<Vec<u64>> {
    let list: Option<Vec<u64>> = text.split(':').map(|word| word.parse().ok().filter(|seconds| *seconds > 0)).collect();
    list.filter(|list| list.len() <= INTERVALS_MAX)
}

impl Driver for StatsDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Filter
    }

    fn wants_node_name(&self) -> bool {
        true
    }

    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(self.open_node(options, context))
    }
}
