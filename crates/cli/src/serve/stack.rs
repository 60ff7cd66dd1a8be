//! What stands in front of a graph, from the client down: trace, stats, fault, log, disk.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::rc::Rc;

use blkproof_block::align::Aligned;
use blkproof_block::graph::{CacheMode, Driver, DriverKind, OpenContext, OpenError, OpenFlags, Options, Registry};
use blkproof_block::{BlockDevice as _, LocalBoxFuture, Node};
use blkproof_fault::disk::DiskNode;
use blkproof_fault::filter::Fault;
use blkproof_fault::lab::{Lab, Part, Registered};
use blkproof_fault::log_writes::driver::LogWritesDriver;
use blkproof_fault::stats::{Stats, StatsNode, StatsOptions};
use blkproof_fault::trace::{Sinks as _, Trace, TraceNode, TraceOptions};

use super::plan::{ExportPlan, Wanted};
use crate::trace_file::TraceFiles;

/// Opens an export's graph and what stands in front of it.
pub(super) async fn open(plan: &ExportPlan, lab: &Rc<Lab>, registry: &Registry) -> Result<Node, OpenError> {
    let mut registry = registry.clone();
    if plan.is_bare() {
        let context = OpenContext { registry: &registry, flags: plan.flags };
        return context.open_image(&plan.graph, plan.format.as_deref(), plan.image_opts).await;
    }
    registry.add(Stack { plan: plan.clone(), lab: Rc::clone(lab) });
    let context = OpenContext { registry: &registry, flags: plan.flags };
    context.open(Options::new().with("driver", NAME)).await
}

/// The name of a driver that nobody can name: it is in no registry but the one made here.
const NAME: &str = "serve";

/// A driver for one export: what a graph needs of its top node is done for the whole.
struct Stack {
    plan: ExportPlan,
    lab: Rc<Lab>,
}

impl Stack {
    /// The name of one of the nodes: what its user guesses.
    fn name(&self, node: &str) -> String {
        format!("{}{node}", self.plan.prefix)
    }

    fn register(&self, node: &str, part: Part) -> Result<Registered, OpenError> {
        self.lab.register(&Rc::from(self.name(node)), part).map_err(|error| OpenError::Usage(error.to_string()))
    }

    async fn build(&self, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let ExportPlan { graph, format, image_opts, disk, log, trace, stats, fault, rules, .. } = &self.plan;
        let (lab, clock) = (&self.lab, self.lab.clock());
        let (before, known) = (lab.switches(), names(lab));
        let mut node = context.open_image(graph, format.as_deref(), *image_opts).await?;
        let below: Vec<Part> =
            lab.parts().into_iter().filter(|(name, _)| !known.contains(name)).map(|(_, part)| part).collect();
        let stands = |wanted: Wanted, is_one: fn(&Part) -> bool| match wanted {
            Wanted::Yes => true,
            Wanted::Some => !below.iter().any(is_one),
            Wanted::No => false,
        };
        if let Some(options) = disk {
            let listed = DiskNode::listed(node, *options, lab, &Rc::from(self.name("disk")));
            node = Aligned::wrap(Node::new(listed.map_err(|error| OpenError::Usage(error.to_string()))?));
        }
        if let Some(path) = log {
            // A log begins as an empty file.
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| OpenError::io(format!("opening the log '{path}'"), error))?;
            let to = Options::new().with("driver", "file").with("filename", path);
            // The log is the host's: its cache mode is not the disk's.
            let cache = CacheMode { direct: false, no_flush: false, writeback: true };
            let context = OpenContext { flags: OpenFlags { cache, ..context.flags }, ..*context };
            node = LogWritesDriver::new(lab).attach(node, to, Some(self.name("log")), &context).await?;
            node = Aligned::wrap(node);
        }
        if stands(*fault, |part| part.faults().is_some()) {
            node = Fault::attach(lab, node, Some(self.name("fault")), rules.clone(), &before)?;
            node = Aligned::wrap(node);
        }
        if stands(*stats, |part| matches!(part, Part::Stats(_))) {
            let counters =
                Stats::new(Rc::from(self.name("stats")), node.info().size, Rc::clone(&clock), StatsOptions::default());
            let registered = self.register("stats", Part::Stats(Rc::clone(&counters)))?;
            node = Aligned::wrap(Node::new(StatsNode::new(node, counters).registered(registered)));
        }
        if let Some(path) = trace {
            // Until there is a node for it, nothing is written: what may fail comes before.
            let sink =
                TraceFiles.open(path).map_err(|error| OpenError::io(format!("opening the trace '{path}'"), error))?;
            let name = Rc::from(self.name("trace"));
            let recorder = Trace::new(name, node.info().size, clock, sink, TraceOptions::default());
            let registered = self.register("trace", Part::Trace(Rc::clone(&recorder)))?;
            node = Node::new(TraceNode::new(node, recorder).registered(registered));
        }
        Ok(node)
    }
}

impl Driver for Stack {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Filter
    }

    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move {
            options.finish(NAME)?;
            self.build(context).await
        })
    }
}

/// The names of every node that can be controlled.
pub(super) fn names(lab: &Lab) -> BTreeSet<Rc<str>> {
    lab.parts().into_iter().map(|(name, _)| name).collect()
}

/// What there is to know of an export with these nodes, from the client down.
pub(super) fn describe(plan: &ExportPlan, parts: &[Rc<str>]) -> String {
    let name = |node: &str| {
        let name = format!("{}{node}", plan.prefix);
        parts.iter().any(|part| **part == *name).then_some(name)
    };
    let mut nodes = Vec::new();
    let to = |node, path: &Option<String>| Some(format!("{} (to '{}')", name(node)?, path.as_ref()?));
    nodes.extend(to("trace", &plan.trace));
    nodes.extend(name("stats"));
    nodes.extend(name("fault").map(|name| match plan.rules.rules.len() {
        1 => format!("{name} (1 rule)"),
        count => format!("{name} ({count} rules)"),
    }));
    nodes.extend(to("log", &plan.log));
    nodes.extend(name("disk").zip(plan.disk).map(|(name, disk)| {
        format!("{name} ({}, profile {}, seed {})", disk.kind.name(), disk.profile.name(), disk.seed)
    }));
    nodes.push(plan.graph.clone());
    nodes.join(" > ")
}
