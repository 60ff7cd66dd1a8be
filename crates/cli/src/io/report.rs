//! Result lines, statistics and dumps.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::reply::Reply;

/// How a command wants its result shown.
#[derive(Clone, Copy, Default)]
pub(super) struct Manner {
    /// `-q`: nothing but failures.
    pub(super) quiet: bool,
    /// `-C`: one line of comma-separated figures.
    pub(super) machine: bool,
}

/// A request that succeeded.
pub(super) struct Transfer {
    /// `read`, `wrote` or `discard`.
    pub(super) verb: &'static str,
    /// First byte.
    pub(super) offset: u64,
    /// Number of bytes, asked for and done.
    pub(super) bytes: u64,
    /// How long it took.
    pub(super) elapsed: Duration,
}

impl Transfer {
    /// Prints the result line and the statistics, or what is left of them.
    pub(super) fn report(&self, manner: Manner, reply: &mut Reply) {
        reply.set("offset", self.offset);
        reply.set("bytes", self.bytes);
        reply.set("seconds", self.elapsed.as_secs_f64());
        if manner.quiet || reply.is_json() {
            return;
        }
        // Never a division by zero: the filters of test suites know `inf`, but not `nan`.
        let seconds = self.elapsed.max(Duration::from_nanos(1)).as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // A rate has no more than four digits after the point anyway.
        let bytes_per_second = self.bytes as f64 / seconds;
        let ops_per_second = 1.0 / seconds;
        if manner.machine {
            reply.out(&format!(
                "{},1,{},{bytes_per_second:.3},{ops_per_second:.3}",
                self.bytes,
                clock(self.elapsed, true)
            ));
            return;
        }
        reply.out(&format!("{} {}/{} bytes at offset {}", self.verb, self.bytes, self.bytes, self.offset));
        reply.out(&format!(
            "{}, 1 ops; {} ({}/sec and {ops_per_second:.4} ops/sec)",
            size(self.bytes),
            clock(self.elapsed, false),
            size_of(bytes_per_second),
        ));
    }
}

/// A size as qemu-io writes it: `512 bytes`, `64 KiB`, `1.996 MiB`.
pub(super) fn size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // Three digits are shown.
    size_of(bytes as f64)
}

/// The text is cut at the first `.000`, whatever follows: that is the format scripts know.
fn size_of(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut number = format!("{bytes:.6}");
    let mut unit = "bytes";
    let mut scaled = bytes;
    for name in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        number = format!("{scaled:.3}");
        unit = name;
    }
    let number = number.split(".000").next().unwrap_or(&number);
    format!("{number} {unit}")
}

/// `00.00 sec` below a second, then `H:MM:SS.ss`; always the latter for machines.
fn clock(elapsed: Duration, fixed: bool) -> String {
    let seconds = elapsed.as_secs();
    let hundredths = elapsed.subsec_millis() / 10;
    if seconds == 0 && !fixed {
        return format!("00.{hundredths:02} sec");
    }
    format!("{}:{:02}:{:02}.{hundredths:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Prints `data` in hexadecimal and as letters, sixteen bytes a line, under the offsets it was read from.
pub(super) fn dump(offset: u64, data: &[u8], reply: &mut Reply) {
    if reply.is_json() {
        let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        reply.set("data", hex);
        return;
    }
    let mut at = offset;
    for row in data.chunks(16) {
        let hex: String = row.iter().map(|byte| format!("{byte:02x} ")).collect();
        let letters: String =
            row.iter().map(|byte| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '.' }).collect();
        reply.out(&format!("{at:08x}:  {hex} {letters}"));
        at = at.saturating_add(16);
    }
}

/// Compares `data`, which lies at `offset`, with a pattern byte; says so and returns `false` if it is something else.
pub(super) fn verify(offset: u64, data: &[u8], pattern: u8, reply: &mut Reply) -> bool {
    let Some((index, found)) = data.iter().enumerate().find(|(_, byte)| **byte != pattern) else { return true };
    let first_bad = offset.saturating_add(index as u64);
    reply.out(&format!("Pattern verification failed at offset {offset}, {} bytes", data.len()));
    if !reply.as_qemu_io() {
        reply.out(&format!("first wrong byte at offset {first_bad}: expected {pattern:#04x}, found {found:#04x}"));
    }
    let mut mismatch = Map::new();
    mismatch.insert("offset".into(), json!(offset));
    mismatch.insert("bytes".into(), json!(data.len()));
    mismatch.insert("first_bad".into(), json!(first_bad));
    mismatch.insert("expected".into(), json!(pattern));
    mismatch.insert("found".into(), json!(found));
    reply.set("mismatch", Value::Object(mismatch));
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_cut_as_scripts_expect() {
        for (bytes, want) in [
            (0.0, "0 bytes"),
            (512.0, "512 bytes"),
            (102.4, "102.400000 bytes"),
            (1000.0004, "1000 bytes"),
            (1024.0, "1 KiB"),
            (1536.0, "1.500 KiB"),
            (1_048_575.0, "1023.999 KiB"),
            (2_093_056.0, "1.996 MiB"),
            (1_099_511_627_776.0, "1 TiB"),
            (9_223_372_036_854_775_807.0, "8 EiB"),
        ] {
            assert_eq!(size_of(bytes), want);
        }
    }

    #[test]
    fn times_change_shape_at_one_second() {
        for (millis, fixed, want) in [
            (0, false, "00.00 sec"),
            (999, false, "00.99 sec"),
            (1000, false, "0:00:01.00"),
            (3_723_450, false, "1:02:03.45"),
            (5, true, "0:00:00.00"),
        ] {
            assert_eq!(clock(Duration::from_millis(millis), fixed), want);
        }
    }
}
