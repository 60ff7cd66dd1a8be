//! The figures as one page that needs nothing else: no network, no font, no library.
//!
//! Tables and latencies are plain markup and readable without a script. The script draws the heat maps. A policy in the
//! head forbids the page to load anything; text that came from outside (names of nodes and rules) reaches it escaped.

use std::fmt::Write as _;

use blkproof_fault::stats::heat::{CELLS, Cell};
use blkproof_fault::stats::{PerOperation, Snapshot};
use serde_json::{Value, json};

use super::charts::latencies;
use super::words::{alignment_class, asked, duration, has_range, queue, rate, share, size_class};
use crate::map::{cut, markup, script_data};
use crate::text::{count, size};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A count of a cell.
type Figure = fn(&Cell) -> u64;

/// Characters kept of one text from outside.
const TEXT_MAX: usize = 300;

/// Heat maps, latencies, sizes and failures of these nodes as one HTML page; it opens from a file, offline.
///
/// At most about 200 KiB for each node.
#[must_use]
pub fn html(snapshots: &[Snapshot]) -> String {
    let mut out = String::with_capacity(1 << 16);
    let names: Vec<String> = snapshots.iter().map(|snapshot| text(&snapshot.node)).collect();
    let title = if names.is_empty() { "no node".to_owned() } else { names.join(", ") };
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{title} · blkproof stats</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    );
    if snapshots.is_empty() {
        out.push_str("<p class=\"soft\">No node <code>stats</code> was running.</p>\n");
    }
    for (number, snapshot) in snapshots.iter().enumerate() {
        node(number, snapshot, &mut out);
    }
    let data: Vec<Value> = snapshots.iter().map(map_data).collect();
    let _ = write!(
        out,
        "<footer><p class=\"soft\">Made by blkproof {}. Latencies are kept with two digits; sizes and alignments in powers of \
         two.</p></footer>\n<script type=\"application/json\" id=\"data\">{}</script>\n<script>\n{SCRIPT}</script>\n</body>\n\
         </html>\n",
        env!("CARGO_PKG_VERSION"),
        script_data(&Value::from(data))
    );
    out
}

fn text(words: &str) -> String {
    markup(&cut(words, TEXT_MAX))
}

fn node(number: usize, snapshot: &Snapshot, out: &mut String) {
    let _ = writeln!(out, "<article>\n<header><h1>{}</h1>\n<dl class=\"facts\">", text(&snapshot.node));
    let counted = format!("{}{}", duration(snapshot.elapsed_ns), if snapshot.running { "" } else { ", stopped" });
    let busy = share(snapshot.queue.busy_ns, snapshot.elapsed_ns);
    for (name, value) in [
        ("disk", size(snapshot.size)),
        ("counted", counted),
        ("in flight", queue(snapshot)),
        ("busy", busy),
        ("written up to", format!("{:#x}", snapshot.wr_highest_offset)),
    ] {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    out.push_str("</dl></header>\n");
    if asked(snapshot).next().is_none() {
        out.push_str("<p class=\"soft\">No request yet.</p>\n</article>\n");
        return;
    }
    operations(snapshot, out);
    errors(snapshot, out);
    heat(number, snapshot, out);
    out.push_str(
        "<section><h2>Latency</h2>\n<p class=\"soft\">Requests by duration; equal areas are equal numbers. The marks \
                  are p50, p99 and p99.9.</p>\n<div class=\"scroll\">",
    );
    latencies(snapshot, out);
    out.push_str("</div></section>\n<div class=\"shapes\">\n");
    shapes(snapshot, "Sizes", "bytes of a request", |per| &per.sizes, size_class, out);
    shapes(
        snapshot,
        "Alignment",
        "largest power of two that divides offset and length",
        |per| &per.alignments,
        alignment_class,
        out,
    );
    out.push_str("</div>\n</article>\n");
}

fn operations(snapshot: &Snapshot, out: &mut String) {
    out.push_str("<section><h2>Operations</h2>\n<div class=\"scroll\"><table><thead><tr>");
    for head in [
        "operation",
        "requests",
        "per second",
        "bytes",
        "bytes/s",
        "failed",
        "invalid",
        "given up",
        "mean",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "sequential",
    ] {
        let _ = write!(out, "<th scope=\"col\">{head}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
    for per in asked(snapshot) {
        let ranged = |text: String| if has_range(per.operation) { text } else { "–".to_owned() };
        let at = |percent| per.latency.percentile(percent).map_or("–".to_owned(), duration);
        let timed = |ns| if per.latency.count > 0 { duration(ns) } else { "–".to_owned() };
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", per.operation);
        for cell in [
            count(per.submitted),
            count(rate(per.done + per.failed, snapshot.elapsed_ns)),
            ranged(size(per.bytes)),
            ranged(size(rate(per.bytes, snapshot.elapsed_ns))),
            alarm(per.failed),
            alarm(per.invalid),
            count(per.cancelled),
            timed(per.latency.mean_ns()),
            at(50.0),
            at(90.0),
            at(99.0),
            at(99.9),
            timed(per.latency.max_ns),
            ranged(share(per.sequential, per.submitted)),
        ] {
            let _ = write!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></section>\n");
}

fn alarm(number: u64) -> String {
    if number == 0 { "0".to_owned() } else { format!("<b class=\"bad\">{}</b>", count(number)) }
}

fn errors(snapshot: &Snapshot, out: &mut String) {
    if snapshot.errors.is_empty() {
        return;
    }
    out.push_str(
        "<section><h2>Failures</h2>\n<div class=\"scroll\"><table class=\"errors\"><thead><tr><th scope=\"col\">times</th>\
         <th scope=\"col\">operation</th><th scope=\"col\">error</th><th scope=\"col\">rule</th><th scope=\"col\">first at</th>\
         <th scope=\"col\">last at</th><th scope=\"col\">in words</th></tr></thead><tbody>\n",
    );
    for error in &snapshot.errors {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:#x}</td><td>{:#x}</td><td class=\"words\">{}</td></tr>",
            count(error.count),
            error.operation,
            text(&error.name()),
            error.rule.as_deref().map_or("–".to_owned(), text),
            error.first_at,
            error.last_at,
            error.detail.as_deref().map(text).unwrap_or_default()
        );
    }
    out.push_str("</tbody></table></div>\n");
    if snapshot.errors_more > 0 {
        let _ = writeln!(out, "<p class=\"soft\">and {} failures of other kinds</p>", count(snapshot.errors_more));
    }
    out.push_str("</section>\n");
}

/// Cells of the disk, touched or not.
fn cells(snapshot: &Snapshot) -> usize {
    let all = usize::try_from(snapshot.size.div_ceil(snapshot.heat.cell_size.max(1))).unwrap_or(usize::MAX);
    all.max(snapshot.heat.cells.len()).clamp(1, CELLS)
}

fn heat(number: usize, snapshot: &Snapshot, out: &mut String) {
    let _ = writeln!(
        out,
        "<section><h2>Where</h2>\n<p class=\"soft\">{} cells of {}, in the order of the disk from left to right and top to \
         bottom. Brightness goes by the logarithm of the number of requests that touched a cell.</p>\n<div class=\"maps\">",
        count(cells(snapshot) as u64),
        size(snapshot.heat.cell_size)
    );
    let figures: [(&str, &str, Figure); 3] = [
        ("reads", "Reads", |cell| cell.reads),
        ("writes", "Writes, zeroes and discards", |cell| cell.writes),
        ("errors", "Failures", |cell| cell.errors),
    ];
    for (id, title, figure) in figures {
        let touched = snapshot.heat.cells.iter().filter(|cell| figure(cell) > 0).count() as u64;
        let most = snapshot.heat.cells.iter().map(figure).max().unwrap_or(0);
        if touched == 0 {
            let _ = writeln!(out, "<figure class=\"map {id}\"><h3>{title}</h3><p class=\"soft\">none</p></figure>");
            continue;
        }
        let _ = writeln!(
            out,
            "<figure class=\"map {id}\" data-node=\"{number}\" data-kind=\"{id}\"><h3>{title} <em>{} of the disk touched, at most \
             {} in one cell</em></h3>\n<div class=\"frame\"><div class=\"offsets\"></div><canvas tabindex=\"0\" \
             aria-label=\"{title} by place. Arrow keys move.\"></canvas></div>\n<div class=\"key\"><span>0</span>\
             <i></i><span>1</span><b></b><span>{}</span></div><p class=\"readout\" aria-live=\"polite\">Point at a cell, or use \
             the arrow keys.</p><noscript><p>The map needs JavaScript.</p></noscript></figure>",
            share(touched, cells(snapshot) as u64),
            count(most),
            count(most)
        );
    }
    out.push_str("</div></section>\n");
}

fn map_data(snapshot: &Snapshot) -> Value {
    let touched = (0_u64..).zip(&snapshot.heat.cells).filter(|(_, cell)| **cell != Cell::default());
    let cells_touched: Vec<Value> =
        touched.map(|(number, cell)| json!([number, cell.reads, cell.writes, cell.errors])).collect();
    json!({
        "size": snapshot.size.to_string(),
        "cell": snapshot.heat.cell_size.to_string(),
        "cells": cells(snapshot),
        "touched": cells_touched,
    })
}

fn shapes(
    snapshot: &Snapshot,
    title: &str,
    note: &str,
    list: fn(&PerOperation) -> &Vec<u64>,
    class: fn(usize) -> String,
    out: &mut String,
) {
    let _ = writeln!(out, "<section><h2>{title} <em>{note}</em></h2>");
    for per in asked(snapshot).filter(|per| !list(per).is_empty()) {
        let (all, most) = (list(per).iter().sum::<u64>(), list(per).iter().max().copied().unwrap_or(0));
        let _ = writeln!(out, "<table class=\"bars\"><caption>{}</caption><tbody>", per.operation);
        for (index, number) in list(per).iter().enumerate().filter(|(_, number)| **number > 0) {
            let _ = writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td class=\"track\"><i style=\"width:{:.2}%\"></i></td><td>{}</td><td>{}</td></tr>",
                class(index),
                *number as f64 / most.max(1) as f64 * 100.0,
                count(*number),
                share(*number, all)
            );
        }
        out.push_str("</tbody></table>\n");
    }
    out.push_str("</section>\n");
}
