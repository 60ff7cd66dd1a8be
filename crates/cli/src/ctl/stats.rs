//! Statistics for people: a table, again and again if wanted, and a page.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use blkproof_fault::stats::{Snapshot, snapshot_from_json};
use blkproof_report::stats;
use serde_json::{Map, Value};

use super::client::{Client, Failure};
use super::print;

/// Width of a table that nobody looks at as it is.
const WIDTH: usize = 100;

fn query(client: &mut Client, node: Option<&str>) -> Result<Value, Failure> {
    let mut arguments = Map::new();
    if let Some(node) = node {
        arguments.insert("node".to_owned(), Value::from(node));
    }
    client.execute("stats-query", arguments)
}

fn snapshots(value: &Value) -> Result<Vec<Snapshot>, Failure> {
    let entries = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let read = entries.iter().map(snapshot_from_json).collect::<Result<Vec<_>, _>>();
    read.map_err(|error| Failure::Refused(anyhow!("statistics of another version: {error}")))
}

pub(super) fn table(
    client: &mut Client,
    node: Option<&str>,
    watch: Option<Duration>,
    json: bool,
) -> Result<(), Failure> {
    let width = crate::terminal::width().unwrap_or(WIDTH);
    let mut before: Vec<Snapshot> = Vec::new();
    loop {
        let value = query(client, node)?;
        let text = if json {
            format!("{value}\n")
        } else {
            let now = snapshots(&value)?;
            let last = |snapshot: &Snapshot| before.iter().find(|before| before.node == snapshot.node);
            let tables: Vec<String> = now.iter().map(|one| stats::table_since(one, last(one), width)).collect();
            before = now;
            tables.join("\n")
        };
        // The next table takes the place of the last.
        let clear = if watch.is_some() && !json && std::io::stdout().is_terminal() { "\u{1b}[H\u{1b}[J" } else { "" };
        print(&format!("{clear}{text}"))?;
        let Some(interval) = watch else { return Ok(()) };
        std::thread::sleep(interval);
    }
}

pub(super) fn page(client: &mut Client, node: Option<&str>, output: &Path) -> Result<(), Failure> {
    let page = stats::html(&snapshots(&query(client, node)?)?);
    let written = std::fs::write(output, page);
    written.with_context(|| format!("writing '{}'", output.display())).map_err(Failure::Refused)
}
