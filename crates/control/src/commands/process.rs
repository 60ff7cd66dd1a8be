//! Commands about the process: what it can do, which nodes it has, its end.

use blkproof_block::Breakpoints as _;
use blkproof_fault::lab::Part;
use serde_json::{Value, json};

use super::{Context, done, unknown};
use crate::arguments::Arguments;
use crate::error::Error;
use crate::events::EVENTS;
use crate::schema::{COMMANDS, find};
use crate::wire::version;

pub(crate) async fn query_commands(_: &Context, _: Arguments) -> Result<Value, Error> {
    Ok(COMMANDS.iter().map(|command| json!({ "name": command.name })).collect())
}

pub(crate) async fn query_schema(_: &Context, mut arguments: Arguments) -> Result<Value, Error> {
    let commands: Vec<Value> = match arguments.take_text("command") {
        Some(name) => vec![find(&name).ok_or_else(|| unknown(&name))?.describe()],
        None => COMMANDS.iter().map(|command| command.describe()).collect(),
    };
    let events: Vec<Value> = EVENTS.iter().map(|(name, about)| json!({ "name": name, "about": about })).collect();
    Ok(json!({ "commands": commands, "events": events }))
}

pub(crate) async fn query_version(_: &Context, _: Arguments) -> Result<Value, Error> {
    Ok(version())
}

pub(crate) async fn query_nodes(context: &Context, _: Arguments) -> Result<Value, Error> {
    let parts = context.lab.parts();
    Ok(parts.iter().map(|(name, part)| describe(name, part)).collect())
}

pub(crate) async fn quit(context: &Context, _: Arguments) -> Result<Value, Error> {
    context.host.quit();
    done()
}

fn describe(name: &str, part: &Part) -> Value {
    let mut it = json!({ "node": name, "driver": part.driver() });
    let mut more = match part.faults() {
        Some(faults) => vec![
            ("rules", json!(faults.count())),
            ("state", json!(&*faults.state())),
            ("stopped", json!(faults.is_stopped())),
        ],
        None => Vec::new(),
    };
    more.extend(match part {
        Part::Blkdebug(handle) => vec![("breakpoints", json!(handle.breaks.pending().len()))],
        Part::Disk(disk) => {
            let state = disk.state(0);
            vec![
                ("kind", json!(state.options.kind.name())),
                ("on", json!(state.on)),
                ("cuts", json!(state.cuts)),
                ("requests", json!(state.requests)),
            ]
        }
        Part::Log(log) => vec![("entries", json!(log.entries()))],
        Part::Stats(stats) => vec![("running", json!(stats.is_running()))],
        Part::Trace(trace) => {
            vec![
                ("running", json!(trace.is_running())),
                ("lines", json!(trace.lines())),
                ("dropped", json!(trace.dropped())),
            ]
        }
        _ => Vec::new(),
    });
    for (key, value) in more {
        it[key] = value;
    }
    it
}
