//! Finding the node that a command is about.

use std::rc::Rc;

use blkproof_fault::blkdebug::Handle;
use blkproof_fault::disk::Disk;
use blkproof_fault::filter::Faults;
use blkproof_fault::lab::Part;
use blkproof_fault::log_writes::node::WriteLog;
use blkproof_fault::stats::Stats;
use blkproof_fault::trace::Trace;

use super::Context;
use crate::arguments::Arguments;
use crate::error::{Class, Error};

/// A kind of node.
pub(super) trait Kind: Sized {
    /// Its driver, in messages.
    const DRIVER: &'static str;
    /// The node, if `part` is one of this kind.
    fn of(part: Part) -> Option<Self>;
}

impl Kind for Rc<Faults> {
    const DRIVER: &'static str = "fault";
    fn of(part: Part) -> Option<Self> {
        part.faults().cloned()
    }
}

impl Kind for Rc<Handle> {
    const DRIVER: &'static str = "blkdebug";
    fn of(part: Part) -> Option<Self> {
        match part {
            Part::Blkdebug(handle) => Some(handle),
            _ => None,
        }
    }
}

impl Kind for Rc<Stats> {
    const DRIVER: &'static str = "stats";
    fn of(part: Part) -> Option<Self> {
        match part {
            Part::Stats(stats) => Some(stats),
            _ => None,
        }
    }
}

impl Kind for Disk {
    const DRIVER: &'static str = "disk";
    fn of(part: Part) -> Option<Self> {
        match part {
            Part::Disk(disk) => Some(disk),
            _ => None,
        }
    }
}

impl Kind for WriteLog {
    const DRIVER: &'static str = "blklogwrites";
    fn of(part: Part) -> Option<Self> {
        match part {
            Part::Log(log) => Some(log),
            _ => None,
        }
    }
}

impl Kind for Rc<Trace> {
    const DRIVER: &'static str = "trace";
    fn of(part: Part) -> Option<Self> {
        match part {
            Part::Trace(trace) => Some(trace),
            _ => None,
        }
    }
}

/// Every node of a kind, by name.
pub(super) fn all<K: Kind>(context: &Context) -> Vec<(Rc<str>, K)> {
    context.lab.parts().into_iter().filter_map(|(name, part)| Some((name, K::of(part)?))).collect()
}

/// The node that the argument `node` names; without it the only one of its kind.
pub(super) fn one<K: Kind>(context: &Context, arguments: &mut Arguments) -> Result<(Rc<str>, K), Error> {
    match arguments.take_text("node") {
        Some(name) => named(context, &name),
        None => only(context),
    }
}

/// The nodes that a command is about which takes one or all.
pub(super) fn some<K: Kind>(context: &Context, arguments: &mut Arguments) -> Result<Vec<(Rc<str>, K)>, Error> {
    match arguments.take_text("node") {
        Some(name) => Ok(vec![named(context, &name)?]),
        None => {
            let all = all(context);
            if all.is_empty() { Err(none::<K>()) } else { Ok(all) }
        }
    }
}

pub(super) fn named<K: Kind>(context: &Context, name: &str) -> Result<(Rc<str>, K), Error> {
    let Some(part) = context.lab.get(name) else {
        let names: Vec<Rc<str>> = context.lab.parts().into_iter().map(|(name, _)| name).collect();
        let shown: String = name.chars().take(60).collect();
        let nearest = blkproof_block::graph::nearest(&shown, names.iter().map(|name| &**name));
        let hint = nearest.map(|nearest| format!("; did you mean '{nearest}'?")).unwrap_or_default();
        return Err(Error::new(Class::DeviceNotFound, format!("no node is named '{shown}'{hint}")));
    };
    let is = part.driver();
    let found = K::of(part).map(|node| (Rc::from(name), node));
    found.ok_or_else(|| Error::generic(format!("node '{name}' is of driver '{is}', and this is for '{}'", K::DRIVER)))
}

fn only<K: Kind>(context: &Context) -> Result<(Rc<str>, K), Error> {
    let mut all = all::<K>(context);
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(none::<K>()),
        (Some(last), false) => {
            let names: Vec<String> = all.iter().chain([&last]).map(|(name, _)| format!("'{name}'")).collect();
            Err(Error::generic(format!("there are several {} nodes: say which, of {}", K::DRIVER, names.join(", "))))
        }
    }
}

fn none<K: Kind>() -> Error {
    Error::new(Class::DeviceNotFound, format!("there is no {} node in any graph", K::DRIVER))
}
