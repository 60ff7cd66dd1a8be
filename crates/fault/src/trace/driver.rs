//! `trace` as users name it: `driver=trace,path=run.jsonl,file.filename=a.qcow2`.
//!
//! Options: `file` (the node whose requests are written down), `path` (where to), `node-name`, `hash` (on: checksums of
//! what is read and written), `data` (off: what is written, whole), `start` (on; off waits for the command).

use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{BlockDevice as _, LocalBoxFuture, Node};

use super::NAME;
use super::node::TraceNode;
use super::recorder::{Trace, TraceOptions};
use super::sink::Sinks;
use crate::lab::{Lab, Part};

/// The driver.
#[derive(Clone)]
pub struct TraceDriver {
    lab: Rc<Lab>,
    sinks: Rc<dyn Sinks>,
}

impl std::fmt::Debug for TraceDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TraceDriver").field("lab", &self.lab).finish_non_exhaustive()
    }
}

impl TraceDriver {
    /// Its nodes are known to `lab`, and write where `sinks` opens something.
    pub fn new(lab: &Rc<Lab>, sinks: Rc<dyn Sinks>) -> Self {
        Self { lab: Rc::clone(lab), sinks }
    }

    async fn open_node(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let mut how = TraceOptions::default();
        for (name, on) in [("start", &mut how.start), ("hash", &mut how.hash), ("data", &mut how.data)] {
            *on = options.take_bool(name)?.unwrap_or(*on);
        }
        let path = options.need_text("path", NAME)?;
        let wanted = options.take_text("node-name")?;
        let child = options
            .take_child("file")
            .ok_or_else(|| OptionError::Missing { option: "file".into(), driver: NAME.into() })?;
        options.finish(NAME)?;
        let child = context.open(child).await?;
        // Only now: a node of this kind below has its name already.
        let name = self.lab.name(NAME, wanted);
        // The graph below opened, and the name is free: only the node's first line empties a trace of an earlier run.
        let sink =
            self.sinks.open(&path).map_err(|error| OpenError::io(format!("opening the trace '{path}'"), error))?;
        let trace = Trace::new(Rc::clone(&name), child.info().size, self.lab.clock(), sink, how);
        let registered = self
            .lab
            .register(&name, Part::Trace(Rc::clone(&trace)))
            .map_err(|error| OpenError::Usage(error.to_string()))?;
        Ok(Node::new(TraceNode::new(child, trace).registered(registered)))
    }
}

impl Driver for TraceDriver {
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
