//! A snapshot as an entry of `query-blockstats`, and back.
//!
//! Under `stats` stand QEMU's fields with QEMU's names and units, every one that its schema demands. `wr_*` counts
//! writes and write zeroes, `unmap_*` discards, as QEMU's devices do. What QEMU has no field for stands under
//! `driver-specific`, where its schema has room for what one driver alone knows; schema [`SCHEMA`].

use serde_json::{Map, Value, json};

use super::errors::Merged;
use super::heat::Cell;
use super::interval::{Timed, TimedKind};
use super::latency::{Bin, Boundaries, Latency};
use super::snapshot::{HeatMap, Histograms, PerOperation, Queue, Snapshot};
use crate::request::Operation;
use crate::rule::Failure;

/// Name and version of the part that is ours.
pub const SCHEMA: &str = "blkproof.stats/1";

/// The snapshot as an entry of the list that `query-blockstats` returns.
pub fn snapshot_json(snapshot: &Snapshot) -> Value {
    json!({
        "node-name": snapshot.node,
        "stats": qemu(snapshot),
        "driver-specific": ours(snapshot),
    })
}

fn qemu(snapshot: &Snapshot) -> Value {
    let of = |operations: &[Operation]| {
        let all: Vec<PerOperation> = operations.iter().map(|operation| snapshot.of(*operation)).collect();
        move |figure: fn(&PerOperation) -> u64| all.iter().map(figure).sum::<u64>()
    };
    let mut stats = Map::new();
    for (name, figures) in [
        ("rd", Some(of(&[Operation::Read]))),
        ("wr", Some(of(&[Operation::Write, Operation::WriteZeroes]))),
        ("zone_append", None),
        ("unmap", Some(of(&[Operation::Discard]))),
        ("flush", Some(of(&[Operation::Flush]))),
    ] {
        let figure = |of: fn(&PerOperation) -> u64| figures.as_ref().map_or(0, |figures| figures(of));
        if name != "flush" {
            stats.insert(format!("{name}_bytes"), figure(|per| per.bytes).into());
            // Requests are never merged here.
            stats.insert(format!("{name}_merged"), 0.into());
        }
        stats.insert(format!("{name}_operations"), figure(|per| per.done).into());
        stats.insert(format!("{name}_total_time_ns"), figure(|per| per.total_time_ns).into());
        stats.insert(format!("failed_{name}_operations"), figure(|per| per.failed).into());
        stats.insert(format!("invalid_{name}_operations"), figure(|per| per.invalid).into());
    }
    stats.insert("wr_highest_offset".into(), snapshot.wr_highest_offset.into());
    if let Some(idle) = snapshot.idle_ns {
        stats.insert("idle_time_ns".into(), idle.into());
    }
    stats.insert("account_invalid".into(), snapshot.account_invalid.into());
    stats.insert("account_failed".into(), snapshot.account_failed.into());
    stats.insert("timed_stats".into(), snapshot.timed.iter().map(timed).collect());
    let Histograms { read, write, zone_append, flush } = &snapshot.histograms;
    for (name, histogram) in [("rd", read), ("wr", write), ("zone_append", zone_append), ("flush", flush)] {
        if let Some(Boundaries { boundaries, bins }) = histogram {
            stats.insert(format!("{name}_latency_histogram"), json!({ "boundaries": boundaries, "bins": bins }));
        }
    }
    stats.into()
}

fn timed(timed: &Timed) -> Value {
    let mut out = Map::new();
    out.insert("interval_length".into(), timed.interval_s.into());
    let append = TimedKind::default();
    let kinds = [("rd", &timed.read), ("wr", &timed.write), ("zone_append", &append), ("flush", &timed.flush)];
    for (name, kind) in kinds {
        for (what, value) in [("min", kind.min_ns), ("max", kind.max_ns), ("avg", kind.avg_ns)] {
            out.insert(format!("{what}_{name}_latency_ns"), value.into());
        }
    }
    for (name, kind) in kinds.iter().take(3) {
        out.insert(format!("avg_{name}_queue_depth"), kind.queue_depth.into());
    }
    out.into()
}

fn ours(snapshot: &Snapshot) -> Value {
    let Queue { in_flight, max, average, busy_ns } = snapshot.queue;
    let heat: Vec<Value> = (0_u64..)
        .zip(&snapshot.heat.cells)
        .filter(|(_, cell)| **cell != Cell::default())
        .map(|(number, cell)| json!([number, cell.reads, cell.writes, cell.errors]))
        .collect();
    json!({
        "driver": super::NAME,
        "schema": SCHEMA,
        "running": snapshot.running,
        "unix_ns": snapshot.unix_ns,
        "elapsed_ns": snapshot.elapsed_ns,
        "size": snapshot.size,
        "queue": { "in_flight": in_flight, "max": max, "average": average, "busy_ns": busy_ns },
        "operations": snapshot.operations.iter().map(operation).collect::<Vec<_>>(),
        "errors": snapshot.errors.iter().map(merged).collect::<Vec<_>>(),
        "errors_more": snapshot.errors_more,
        "heat": { "cell_size": snapshot.heat.cell_size, "cells": heat },
    })
}

fn operation(per: &PerOperation) -> Value {
    let latency = &per.latency;
    let percentiles: Vec<Value> = latency.percentiles.iter().map(|(percent, ns)| json!([percent, ns])).collect();
    let bins: Vec<Value> = latency.bins.iter().map(|bin| json!([bin.from_ns, bin.to_ns, bin.count])).collect();
    json!({
        "operation": per.operation.name(),
        "submitted": per.submitted,
        "done": per.done,
        "bytes": per.bytes,
        "failed": per.failed,
        "invalid": per.invalid,
        "cancelled": per.cancelled,
        "in_flight": per.in_flight,
        "fua": per.fua,
        "sequential": per.sequential,
        "total_time_ns": per.total_time_ns,
        "latency": {
            "count": latency.count,
            "total_ns": latency.total_ns,
            "min_ns": latency.min_ns,
            "max_ns": latency.max_ns,
            "percentiles": percentiles,
            "bins": bins,
        },
        "sizes": per.sizes,
        "alignments": per.alignments,
    })
}

fn merged(error: &Merged) -> Value {
    let mut out = json!({
        "operation": error.operation.name(),
        "error": error.name(),
        "errno": error.errno.0,
        "count": error.count,
        "first_at": error.first_at,
        "last_at": error.last_at,
    });
    for (name, value) in [("rule", &error.rule), ("detail", &error.detail)] {
        if let Some(text) = value {
            out[name] = text.as_ref().into();
        }
    }
    out
}

/// JSON that is no snapshot: the path of what is missing or of another type.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an entry of query-blockstats as blkproof writes it: '{0}' is missing or wrong")]
pub struct NotSnapshot(pub String);

/// Reads what [`snapshot_json`] writes.
///
/// # Errors
/// If a field of ours is missing or wrong. Text, counts and lists are taken as they are: whoever shows them escapes
/// them.
pub fn snapshot_from_json(value: &Value) -> Result<Snapshot, NotSnapshot> {
    let top = Place { value, path: "" };
    let own = top.at("driver-specific")?;
    let stats = top.at("stats")?;
    if own.text("schema")? != SCHEMA {
        return Err(own.wrong("schema"));
    }
    let queue = own.at("queue")?;
    let heat = own.at("heat")?;
    let histogram = |name: &str| {
        stats.value.get(name).map(|value| {
            let place = Place { value, path: "stats.*_latency_histogram" };
            Ok(Boundaries { boundaries: place.numbers("boundaries")?, bins: place.numbers("bins")? })
        })
    };
    Ok(Snapshot {
        node: top.text("node-name")?.to_owned(),
        running: own.truth("running")?,
        unix_ns: own.number("unix_ns")?,
        elapsed_ns: own.number("elapsed_ns")?,
        size: own.number("size")?,
        operations: own.each("operations", |place| operation_from(&place))?,
        queue: Queue {
            in_flight: queue.number("in_flight")?,
            max: queue.number("max")?,
            average: queue.real("average")?,
            busy_ns: queue.number("busy_ns")?,
        },
        heat: HeatMap { cell_size: heat.number("cell_size")?, cells: cells_from(&heat)? },
        errors: own.each("errors", |place| merged_from(&place))?,
        errors_more: own.number("errors_more")?,
        wr_highest_offset: stats.number("wr_highest_offset")?,
        idle_ns: stats.number("idle_time_ns").ok(),
        account_failed: stats.truth("account_failed")?,
        account_invalid: stats.truth("account_invalid")?,
        timed: stats.each("timed_stats", |place| timed_from(&place))?,
        histograms: Histograms {
            read: histogram("rd_latency_histogram").transpose()?,
            write: histogram("wr_latency_histogram").transpose()?,
            zone_append: histogram("zone_append_latency_histogram").transpose()?,
            flush: histogram("flush_latency_histogram").transpose()?,
        },
    })
}

fn operation_from(place: &Place<'_>) -> Result<PerOperation, NotSnapshot> {
    let latency = place.at("latency")?;
    let bins = latency.each("bins", |bin| match bin.value.as_array().map(Vec::as_slice) {
        Some([from, to, count]) => match (from.as_u64(), to.as_u64(), count.as_u64()) {
            (Some(from_ns), Some(to_ns), Some(count)) => Ok(Bin { from_ns, to_ns, count }),
            _ => Err(bin.wrong("bins")),
        },
        _ => Err(bin.wrong("bins")),
    })?;
    let percentiles = latency.each("percentiles", |pair| match pair.value.as_array().map(Vec::as_slice) {
        Some([percent, ns]) => percent.as_f64().zip(ns.as_u64()).ok_or_else(|| pair.wrong("percentiles")),
        _ => Err(pair.wrong("percentiles")),
    })?;
    Ok(PerOperation {
        operation: operation_named(place)?,
        submitted: place.number("submitted")?,
        done: place.number("done")?,
        bytes: place.number("bytes")?,
        failed: place.number("failed")?,
        invalid: place.number("invalid")?,
        cancelled: place.number("cancelled")?,
        in_flight: place.number("in_flight")?,
        fua: place.number("fua")?,
        sequential: place.number("sequential")?,
        total_time_ns: place.number("total_time_ns")?,
        latency: Latency {
            count: latency.number("count")?,
            total_ns: latency.number("total_ns")?,
            min_ns: latency.number("min_ns")?,
            max_ns: latency.number("max_ns")?,
            percentiles,
            bins,
        },
        sizes: place.numbers("sizes")?,
        alignments: place.numbers("alignments")?,
    })
}

fn operation_named(place: &Place<'_>) -> Result<Operation, NotSnapshot> {
    Operation::from_name(place.text("operation")?).ok_or_else(|| place.wrong("operation"))
}

fn cells_from(heat: &Place<'_>) -> Result<Vec<Cell>, NotSnapshot> {
    let mut cells = Vec::new();
    for entry in heat.list("cells")? {
        let numbers: Vec<u64> = entry.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let &[number, reads, writes, errors] = numbers.as_slice() else { return Err(heat.wrong("cells")) };
        // There are never more cells than this; a number beyond is no reason to take memory.
        let number = usize::try_from(number).ok().filter(|number| *number < super::heat::CELLS);
        let number = number.ok_or_else(|| heat.wrong("cells"))?;
        if cells.len() <= number {
            cells.resize(number + 1, Cell::default());
        }
        if let Some(cell) = cells.get_mut(number) {
            *cell = Cell { reads, writes, errors };
        }
    }
    Ok(cells)
}

fn merged_from(place: &Place<'_>) -> Result<Merged, NotSnapshot> {
    let error = Failure::parse(place.text("error")?).map_err(|_| place.wrong("error"))?;
    let errno = i32::try_from(place.number("errno")?).map_err(|_| place.wrong("errno"))?;
    let text = |name| place.text(name).ok().map(Box::from);
    Ok(Merged {
        operation: operation_named(place)?,
        errno: blkproof_block::Errno(errno),
        device: error.device,
        rule: text("rule"),
        count: place.number("count")?,
        first_at: place.number("first_at")?,
        last_at: place.number("last_at")?,
        detail: text("detail"),
    })
}

fn timed_from(place: &Place<'_>) -> Result<Timed, NotSnapshot> {
    let kind = |name: &str, depth: Option<&str>| {
        Ok(TimedKind {
            min_ns: place.number(&format!("min_{name}_latency_ns"))?,
            max_ns: place.number(&format!("max_{name}_latency_ns"))?,
            avg_ns: place.number(&format!("avg_{name}_latency_ns"))?,
            queue_depth: depth.map_or(Ok(0.0), |depth| place.real(depth))?,
        })
    };
    Ok(Timed {
        interval_s: place.number("interval_length")?,
        read: kind("rd", Some("avg_rd_queue_depth"))?,
        write: kind("wr", Some("avg_wr_queue_depth"))?,
        flush: kind("flush", None)?,
    })
}

/// A value, and where it stands.
struct Place<'a> {
    value: &'a Value,
    path: &'static str,
}

impl<'a> Place<'a> {
    fn wrong(&self, name: &str) -> NotSnapshot {
        NotSnapshot(if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) })
    }

    fn need<T>(&self, name: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<T, NotSnapshot> {
        self.value.get(name).and_then(read).ok_or_else(|| self.wrong(name))
    }

    fn at(&self, name: &'static str) -> Result<Place<'a>, NotSnapshot> {
        self.need(name, |value| value.is_object().then_some(Place { value, path: name }))
    }

    fn text(&self, name: &str) -> Result<&'a str, NotSnapshot> {
        self.need(name, Value::as_str)
    }

    fn number(&self, name: &str) -> Result<u64, NotSnapshot> {
        self.need(name, Value::as_u64)
    }

    fn real(&self, name: &str) -> Result<f64, NotSnapshot> {
        self.need(name, Value::as_f64)
    }

    fn truth(&self, name: &str) -> Result<bool, NotSnapshot> {
        self.need(name, Value::as_bool)
    }

    fn list(&self, name: &str) -> Result<&'a Vec<Value>, NotSnapshot> {
        self.need(name, Value::as_array)
    }

    fn numbers(&self, name: &str) -> Result<Vec<u64>, NotSnapshot> {
        self.list(name)?.iter().map(|value| value.as_u64().ok_or_else(|| self.wrong(name))).collect()
    }

    fn each<T>(
        &self,
        name: &'static str,
        read: impl Fn(Place<'a>) -> Result<T, NotSnapshot>,
    ) -> Result<Vec<T>, NotSnapshot> {
        self.list(name)?.iter().map(|value| read(Place { value, path: name })).collect()
    }
}
