//! Latencies as bars over a logarithmic axis, drawn as SVG that needs no script.

use std::fmt::Write as _;

use blkproof_fault::stats::{PerOperation, Snapshot};

use super::words::{asked, duration};
use crate::map::markup;
use crate::text::count;

/// Width of a chart, and where the bars begin and end in it.
const WIDTH: f64 = 1040.0;
const LEFT: f64 = 8.0;
const RIGHT: f64 = 1032.0;
/// Height of the bars of one operation, and of the words above them.
const BARS: f64 = 84.0;
const WORDS: f64 = 26.0;
/// Room of the axis below.
const AXIS: f64 = 26.0;

/// The axis of all operations of a node: from a power of ten of nanoseconds to another.
struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    fn new(snapshot: &Snapshot) -> Option<Self> {
        let bins = || snapshot.operations.iter().flat_map(|per| &per.latency.bins);
        let from = bins().map(|bin| bin.from_ns).min()?;
        let to = bins().map(|bin| bin.to_ns).max()?;
        let from = f64::from(from.max(1).ilog10());
        Some(Self { from, to: (to.max(1) as f64).log10().ceil().max(from + 1.0) })
    }

    fn x(&self, ns: u64) -> f64 {
        let place = ((ns.max(1) as f64).log10() - self.from) / (self.to - self.from);
        LEFT + place.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }
}

/// The latencies of every operation that was asked for, below each other on one axis; nothing where nothing was
/// measured.
pub(super) fn latencies(snapshot: &Snapshot, out: &mut String) {
    let Some(axis) = Axis::new(snapshot) else { return };
    let measured: Vec<&PerOperation> = asked(snapshot).filter(|per| per.latency.count > 0).collect();
    let height = measured.len() as f64 * (WORDS + BARS) + AXIS;
    let _ = writeln!(
        out,
        "<svg class=\"latency\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Latency of each operation; the \
         figures stand in the table above\">"
    );
    let floor = height - AXIS;
    let mut power = 10_u64.checked_pow(whole(axis.from)).unwrap_or(1);
    loop {
        let x = axis.x(power);
        let anchor = if x < LEFT + 30.0 {
            "start"
        } else if x > RIGHT - 30.0 {
            "end"
        } else {
            "middle"
        };
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{WORDS}\" y2=\"{floor}\"/><text class=\"tick\" x=\"{x:.1}\" \
             y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            floor + 18.0,
            short(power)
        );
        match power.checked_mul(10) {
            Some(next) if (next as f64).log10() <= axis.to + 1e-9 => power = next,
            _ => break,
        }
    }
    for (row, per) in measured.iter().enumerate() {
        bars(&axis, per, row as f64 * (WORDS + BARS), out);
    }
    out.push_str("</svg>\n");
}

/// A tenth power of nanoseconds: `10 µs`.
fn short(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} µs", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", count(ns / 1_000_000_000)),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the logarithm of 64 bits, not negative")]
fn whole(figure: f64) -> u32 {
    figure as u32
}

fn bars(axis: &Axis, per: &PerOperation, top: f64, out: &mut String) {
    let latency = &per.latency;
    let floor = top + WORDS + BARS;
    // Bins differ in width on this axis, so the bars are of equal area for equal counts.
    let width = |from: u64, to: u64| (axis.x(to) - axis.x(from)).max(0.5);
    let dense = |count: u64, from: u64, to: u64| count as f64 / width(from, to);
    let most = latency.bins.iter().map(|bin| dense(bin.count, bin.from_ns, bin.to_ns)).fold(0.0, f64::max);
    let _ = writeln!(out, "<line class=\"floor\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{floor}\" y2=\"{floor}\"/>");
    for bin in &latency.bins {
        let (x, wide) = (axis.x(bin.from_ns), width(bin.from_ns, bin.to_ns));
        let high = (dense(bin.count, bin.from_ns, bin.to_ns) / most.max(f64::MIN_POSITIVE) * BARS).max(1.5);
        let _ = writeln!(
            out,
            "<rect class=\"bar\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{high:.1}\"><title>{} to {}: {}</title></rect>",
            floor - high,
            (wide - 0.6).max(0.6),
            duration(bin.from_ns),
            duration(bin.to_ns),
            count(bin.count)
        );
    }
    let mut said = Vec::new();
    for (percent, name) in [(50.0, "p50"), (99.0, "p99"), (99.9, "p99.9")] {
        let Some(ns) = latency.percentile(percent) else { continue };
        let x = axis.x(ns);
        let _ = writeln!(
            out,
            "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{floor}\"><title>{name} {}</title></line>",
            top + WORDS,
            duration(ns)
        );
        said.push(format!("{name} {}", duration(ns)));
    }
    said.push(format!("max {}", duration(latency.max_ns)));
    let _ = writeln!(
        out,
        "<text class=\"name\" x=\"{LEFT}\" y=\"{:.1}\">{} <tspan class=\"more\" dx=\"6\">{}</tspan></text>",
        top + 18.0,
        per.operation,
        markup(&format!("{} requests · {}", count(latency.count), said.join(" · ")))
    );
}
