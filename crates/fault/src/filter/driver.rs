//! `fault` in a graph: `driver=fault,rules=bad.toml,file.driver=…`.
//!
//! Options: `file` (node), `rules` (a rule file), `node-name`.

use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{LocalBoxFuture, Node};

use super::{Fault, Faults};
use crate::lab::{Lab, Part};
use crate::power::Switch;
use crate::rule::RuleSet;

/// Reads a rule file; the error is told to the user as it is. Files belong to whoever registers the driver.
pub type RuleReader = Rc<dyn Fn(&str) -> Result<RuleSet, String>>;

/// The driver.
#[derive(Clone)]
pub struct FaultDriver {
    lab: Rc<Lab>,
    read: RuleReader,
}

impl std::fmt::Debug for FaultDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultDriver")
    }
}

impl FaultDriver {
    /// Nodes are made known to `lab`.
    pub fn new(lab: &Rc<Lab>, read: RuleReader) -> Self {
        Self { lab: Rc::clone(lab), read }
    }

    async fn open_node(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let rules = match options.take_text("rules")? {
            Some(file) => (self.read)(&file).map_err(OpenError::Usage)?,
            None => RuleSet::default(),
        };
        let wanted = options.take_text("node-name")?;
        let missing = OptionError::Missing { option: options.full_name("file"), driver: "fault".into() };
        let file = options.take_child("file").ok_or(missing)?;
        options.finish("fault")?;
        let before = self.lab.switches();
        let child = context.open(file).await?;
        Fault::attach(&self.lab, child, wanted, rules, &before)
    }
}

impl Fault {
    /// Puts a node with `rules` in front of `child`, and makes it known to `lab`.
    ///
    /// `before`: the disks the lab had before `child` was opened; those that came since are below.
    ///
    /// # Errors
    /// If the name is taken, two rules have one id, or one cuts the power of a disk that is not below.
    pub fn attach(
        lab: &Rc<Lab>,
        child: Node,
        name: Option<String>,
        rules: RuleSet,
        before: &[Switch],
    ) -> Result<Node, OpenError> {
        let name = lab.name("fault", name);
        let faults = Faults::new(Rc::clone(&name), rules, lab).map_err(|error| OpenError::Usage(error.to_string()))?;
        // A disk is made known after what is below it: the last is the nearest.
        let below = |switch: &Switch| before.iter().all(|other| other.name != switch.name);
        let disks = lab.switches().into_iter().filter(below).rev().collect();
        faults.set_disks(disks).map_err(|error| OpenError::Usage(error.to_string()))?;
        let part = Part::Fault(Rc::clone(&faults));
        let registered = lab.register(&name, part).map_err(|error| OpenError::Usage(error.to_string()))?;
        Ok(Node::new(Self { _registered: Some(Rc::new(registered)), ..Self::new(child, faults) }))
    }
}

impl Driver for FaultDriver {
    fn name(&self) -> &'static str {
        "fault"
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
