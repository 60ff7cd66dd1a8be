//! Snapshots in Prometheus' text format (version 0.0.4).
//!
//! Durations are in seconds, sizes in bytes. Durations are whole nanoseconds and the bounds of their buckets powers of
//! two of them: a bucket `le` ends one nanosecond below, because Prometheus includes the bound and the bins behind it
//! do not.

use std::fmt::{Display, Write as _};

use super::snapshot::{PerOperation, Snapshot};

/// Bounds of the buckets of durations, as powers of two of nanoseconds: from a microsecond to 17 seconds.
const DURATIONS: std::ops::RangeInclusive<u32> = 10..=34;

/// The figures of these nodes. Each metric has the label `node`, most have `op`.
pub fn prometheus_text(snapshots: &[Snapshot]) -> String {
    let mut out = Text(String::new());
    let out = &mut out;
    let node = |snapshot: &Snapshot| vec![("node", snapshot.node.clone())];
    let of_nodes = |out: &mut Text, name: &str, kind: &str, help: &str, figure: fn(&Snapshot) -> String| {
        out.head(name, kind, help);
        for snapshot in snapshots {
            out.sample(name, &node(snapshot), &figure(snapshot));
        }
    };
    of_nodes(out, "blkproof_running", "gauge", "Whether requests are being counted.", |of| {
        u8::from(of.running).to_string()
    });
    of_nodes(
        out,
        "blkproof_counted_seconds_total",
        "counter",
        "Time counted since the start or the last reset.",
        |of| seconds(of.elapsed_ns),
    );
    of_nodes(out, "blkproof_size_bytes", "gauge", "Bytes of the disk.", |of| of.size.to_string());
    of_nodes(out, "blkproof_write_highest_offset_bytes", "gauge", "End of the highest byte written.", |of| {
        of.wr_highest_offset.to_string()
    });
    of_nodes(out, "blkproof_queue_depth_max", "gauge", "Most requests under way at one time.", |of| {
        of.queue.max.to_string()
    });
    of_nodes(
        out,
        "blkproof_queue_depth_average",
        "gauge",
        "Requests under way, on average over the time counted.",
        |of| of.queue.average.to_string(),
    );
    of_nodes(out, "blkproof_busy_seconds_total", "counter", "Time with at least one request under way.", |of| {
        seconds(of.queue.busy_ns)
    });

    let label = |snapshot: &Snapshot, per: &PerOperation| {
        vec![("node", snapshot.node.clone()), ("op", per.operation.name().to_owned())]
    };
    let each = || snapshots.iter().flat_map(|snapshot| snapshot.operations.iter().map(move |per| (snapshot, per)));
    let of_operations = |out: &mut Text, name: &str, kind: &str, help: &str, figure: fn(&PerOperation) -> String| {
        out.head(name, kind, help);
        for (snapshot, per) in each() {
            out.sample(name, &label(snapshot, per), &figure(per));
        }
    };
    of_operations(out, "blkproof_in_flight", "gauge", "Requests under way.", |per| per.in_flight.to_string());
    for (name, help, figure) in [
        ("blkproof_submitted_total", "Requests that came.", (|per| per.submitted) as fn(&PerOperation) -> u64),
        ("blkproof_done_total", "Requests that succeeded.", |per| per.done),
        ("blkproof_bytes_total", "Bytes of requests that succeeded.", |per| per.bytes),
        ("blkproof_failed_total", "Requests that failed.", |per| per.failed),
        ("blkproof_invalid_total", "Requests that could not be done as they were.", |per| per.invalid),
        ("blkproof_cancelled_total", "Requests whose client gave up waiting.", |per| per.cancelled),
        ("blkproof_fua_total", "Requests that had to be durable when they completed.", |per| per.fua),
        ("blkproof_sequential_total", "Requests that began where an earlier one ended.", |per| per.sequential),
    ] {
        out.head(name, "counter", help);
        for (snapshot, per) in each() {
            out.sample(name, &label(snapshot, per), &figure(per).to_string());
        }
    }

    let name = "blkproof_request_duration_seconds";
    out.head(name, "histogram", "How long requests took that were done or failed.");
    for (snapshot, per) in each() {
        let below = |bound: u64| per.latency.bins.iter().filter(|bin| bin.to_ns <= bound).map(|bin| bin.count).sum();
        let buckets = DURATIONS.map(|power| (seconds((1 << power) - 1), below(1 << power)));
        out.histogram(name, label(snapshot, per), buckets, per.latency.count, seconds(per.latency.total_ns));
    }
    let name = "blkproof_request_size_bytes";
    out.head(name, "histogram", "Sizes of requests that came; the sum counts those that succeeded.");
    for (snapshot, per) in each().filter(|(_, per)| !per.sizes.is_empty()) {
        let mut sum = 0;
        let buckets = (0..super::shape::SIZES - 1).map(|power| {
            sum += per.sizes.get(power).unwrap_or(&0);
            ((1_u64 << power).to_string(), sum)
        });
        let all = per.sizes.iter().sum();
        out.histogram(name, label(snapshot, per), buckets, all, per.bytes);
    }
    errors(out, snapshots);
    std::mem::take(&mut out.0)
}

fn errors(out: &mut Text, snapshots: &[Snapshot]) {
    let name = "blkproof_errors_total";
    out.head(name, "counter", "Requests that failed or were invalid, by error, as rules write it, and rule.");
    for snapshot in snapshots {
        for error in &snapshot.errors {
            let labels = [
                ("node", snapshot.node.clone()),
                ("op", error.operation.name().to_owned()),
                ("error", error.name()),
                // With two kinds that differ in the errno alone, these labels still differ.
                ("errno", error.errno.0.to_string()),
                ("rule", error.rule.as_deref().unwrap_or_default().to_owned()),
            ];
            out.sample(name, &labels, &error.count.to_string());
        }
    }
    let name = "blkproof_errors_unlisted_total";
    out.head(name, "counter", "Failures of kinds that were too many to be listed.");
    for snapshot in snapshots {
        out.sample(name, &[("node", snapshot.node.clone())], &snapshot.errors_more.to_string());
    }
}

/// Nanoseconds as seconds, exactly.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let short = text.trim_end_matches('0');
    short.strip_suffix('.').unwrap_or(short).to_owned()
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, String)], value: &str) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }

    fn histogram(
        &mut self,
        name: &str,
        mut labels: Vec<(&'static str, String)>,
        buckets: impl Iterator<Item = (String, u64)>,
        count: u64,
        sum: impl Display,
    ) {
        let plain = labels.clone();
        labels.push(("le", String::new()));
        for (bound, below) in buckets.chain([("+Inf".to_owned(), count)]) {
            if let Some((_, le)) = labels.last_mut() {
                *le = bound;
            }
            self.sample(&format!("{name}_bucket"), &labels, &below.to_string());
        }
        self.sample(&format!("{name}_sum"), &plain, &sum.to_string());
        self.sample(&format!("{name}_count"), &plain, &count.to_string());
    }
}

/// A label's value: backslash, quote and line feed are written with a backslash.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_exact() {
        for (ns, want) in [
            (0, "0"),
            (1, "0.000000001"),
            (1023, "0.000001023"),
            (1_000_000_000, "1"),
            (1_500_000_000, "1.5"),
            (u64::MAX, "18446744073.709551615"),
        ] {
            assert_eq!(seconds(ns), want);
        }
    }
}
