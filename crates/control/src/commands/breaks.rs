//! Commands about breakpoints, in the words of qemu-io: `break`, `wait_break`, `resume`, `remove_break`.

use std::rc::Rc;

use blkproof_block::graph::nearest;
use blkproof_block::{Breakpoints as _, Event};
use blkproof_fault::blkdebug::Handle;
use futures_lite::future::or;
use serde_json::{Value, json};

use super::fault::WAIT;
use super::{Context, done, nodes};
use crate::arguments::Arguments;
use crate::error::Error;

type Answer = Result<Value, Error>;

pub(crate) async fn set(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, handle) = nodes::one::<Rc<Handle>>(context, &mut arguments)?;
    let name = arguments.take_text("event").unwrap_or_default();
    let tag = arguments.take_text("tag").unwrap_or_default();
    handle.breaks.set(event(&name)?, &tag);
    done()
}

fn event(name: &str) -> Result<Event, Error> {
    Event::from_name(name).ok_or_else(|| {
        let name: String = name.chars().take(60).collect();
        let known = Event::ALL.iter().map(|event| event.name());
        let hint = nearest(&name, known).map(|nearest| format!("; did you mean '{nearest}'?")).unwrap_or_default();
        Error::generic(format!("no driver announces '{name}'{hint}"))
    })
}

pub(crate) async fn remove(context: &Context, mut arguments: Arguments) -> Answer {
    let (name, handle) = nodes::one::<Rc<Handle>>(context, &mut arguments)?;
    let tag = arguments.take_text("tag").unwrap_or_default();
    let parked = handle.breaks.is_suspended(&tag);
    if handle.breaks.remove(&tag) || parked { done() } else { Err(none(&name, &tag)) }
}

pub(crate) async fn resume(context: &Context, mut arguments: Arguments) -> Answer {
    let (name, handle) = nodes::one::<Rc<Handle>>(context, &mut arguments)?;
    let tag = arguments.take_text("tag").unwrap_or_default();
    if handle.breaks.resume(&tag) { done() } else { Err(none(&name, &tag)) }
}

fn none(node: &str, tag: &str) -> Error {
    let tag: String = tag.chars().take(60).collect();
    Error::generic(format!("nothing of node '{node}' waits under '{tag}'"))
}

pub(crate) async fn wait(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, handle) = nodes::one::<Rc<Handle>>(context, &mut arguments)?;
    let tag = arguments.take_text("tag").unwrap_or_default();
    let timeout = arguments.take_time("timeout").unwrap_or(WAIT);
    let parked = async {
        handle.breaks.wait(&tag).await;
        done()
    };
    let late = async {
        context.lab.clock().sleep(timeout).await;
        Err(Error::generic(format!("no request was parked under '{tag}' within {} s", timeout.as_secs_f64())))
    };
    or(parked, late).await
}

pub(crate) async fn list(context: &Context, mut arguments: Arguments) -> Answer {
    let found = nodes::some::<Rc<Handle>>(context, &mut arguments)?;
    Ok(found.iter().map(|(name, handle)| describe(name, handle)).collect())
}

fn describe(name: &str, handle: &Handle) -> Value {
    let pending = handle.breaks.pending();
    let pending: Vec<_> = pending.iter().map(|(event, tag)| json!({ "event": event.name(), "tag": &**tag })).collect();
    let parked = handle.breaks.suspended();
    let parked: Vec<_> = parked.iter().map(|(tag, count)| json!({ "tag": &**tag, "requests": count })).collect();
    json!({ "node": name, "breakpoints": pending, "suspended": parked })
}
