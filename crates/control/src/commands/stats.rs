//! Commands about statistics.

use std::rc::Rc;

use blkproof_fault::stats::{Stats, snapshot_json};
use serde_json::Value;

use super::{Context, done, nodes};
use crate::arguments::Arguments;
use crate::error::Error;

pub(crate) async fn start(context: &Context, arguments: Arguments) -> Result<Value, Error> {
    each(context, arguments, Stats::start)
}

pub(crate) async fn stop(context: &Context, arguments: Arguments) -> Result<Value, Error> {
    each(context, arguments, Stats::stop)
}

pub(crate) async fn reset(context: &Context, arguments: Arguments) -> Result<Value, Error> {
    each(context, arguments, Stats::reset)
}

fn each(context: &Context, mut arguments: Arguments, does: fn(&Stats)) -> Result<Value, Error> {
    for (_, stats) in nodes::some::<Rc<Stats>>(context, &mut arguments)? {
        does(&stats);
    }
    done()
}

pub(crate) async fn query(context: &Context, mut arguments: Arguments) -> Result<Value, Error> {
    let found = nodes::some::<Rc<Stats>>(context, &mut arguments)?;
    Ok(found.iter().map(|(_, stats)| snapshot_json(&stats.snapshot())).collect())
}

/// QEMU's command: it lists whatever there is, if that is nothing.
pub(crate) async fn query_blockstats(context: &Context, _: Arguments) -> Result<Value, Error> {
    let found = nodes::all::<Rc<Stats>>(context);
    Ok(found.iter().map(|(_, stats)| snapshot_json(&stats.snapshot())).collect())
}

pub(crate) async fn set_histograms(context: &Context, mut arguments: Arguments) -> Result<Value, Error> {
    let id = arguments.take_text("id").unwrap_or_default();
    let (_, stats) = nodes::named::<Rc<Stats>>(context, &id)?;
    let mut take = |name| arguments.take_counts(name);
    let every = take("boundaries");
    let (read, write, append, flush) =
        (take("boundaries-read"), take("boundaries-write"), take("boundaries-zap"), take("boundaries-flush"));
    stats.set_histograms(every, read, write, append, flush).map_err(|error| Error::generic(error.to_string()))?;
    done()
}
