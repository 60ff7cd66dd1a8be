//! Durations, rates and shares in words.

use blkproof_fault::request::Operation;
use blkproof_fault::stats::{PerOperation, Snapshot};

use crate::text::{count, size};

/// A duration with three digits: `980 ns`, `12.3 µs`, `1.20 s`, `2 h 05 min`.
pub(super) fn duration(ns: u64) -> String {
    let (unit, name) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => (1_000_000_000, "s"),
        60_000_000_000..3_600_000_000_000 => {
            return format!("{} min {:02} s", ns / 60_000_000_000, ns / 1_000_000_000 % 60);
        }
        _ => return format!("{} h {:02} min", count(ns / 3_600_000_000_000), ns / 60_000_000_000 % 60),
    };
    let (whole, rest) = (ns / unit, u128::from(ns % unit) * 1000 / u128::from(unit));
    match whole {
        0..10 => format!("{whole}.{:02} {name}", rest / 10),
        10..100 => format!("{whole}.{} {name}", rest / 100),
        _ => format!("{whole} {name}"),
    }
}

/// So many in so much time, by the second.
pub(super) fn rate(number: u64, ns: u64) -> u64 {
    let by_second = u128::from(number) * 1_000_000_000 / u128::from(ns.max(1));
    if ns == 0 { 0 } else { u64::try_from(by_second).unwrap_or(u64::MAX) }
}

/// A share in whole per cent; neither 0 nor 100 unless it is.
pub(super) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    match u128::from(part) * 100 / u128::from(whole) {
        0 if part > 0 => "<1 %".to_owned(),
        percent => format!("{percent} %"),
    }
}

/// The operations worth a line: those that anybody asked for.
pub(super) fn asked(snapshot: &Snapshot) -> impl Iterator<Item = &PerOperation> {
    snapshot.operations.iter().filter(|per| per.submitted > 0)
}

/// Whether the operation is about bytes whose number, size and place mean something.
pub(super) fn has_range(operation: Operation) -> bool {
    matches!(operation, Operation::Read | Operation::Write | Operation::WriteZeroes | Operation::Discard)
}

/// The queue in one line.
pub(super) fn queue(snapshot: &Snapshot) -> String {
    let queue = &snapshot.queue;
    format!("{} now, {} at most, {:.2} on average", count(queue.in_flight), count(queue.max), queue.average)
}

/// The name of a class of sizes: `≤ 4 KiB`.
pub(super) fn size_class(class: usize) -> String {
    match u32::try_from(class).ok().and_then(|class| 1_u64.checked_shl(class)) {
        Some(bound) if class < blkproof_fault::stats::shape::SIZES - 1 => format!("≤ {}", size(bound)),
        _ => format!("> {}", size(1 << (blkproof_fault::stats::shape::SIZES - 2))),
    }
}

/// The name of a class of alignments: `4 KiB`.
pub(super) fn alignment_class(class: usize) -> String {
    let bytes = u32::try_from(class).ok().and_then(|class| 1_u64.checked_shl(class)).unwrap_or(u64::MAX);
    let more = if class + 1 == blkproof_fault::stats::shape::ALIGNMENTS { " or more" } else { "" };
    format!("{}{more}", size(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (ns, want) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (12_345, "12.3 µs"),
            (999_999, "999 µs"),
            (1_200_000_000, "1.20 s"),
            (59_999_999_999, "59.9 s"),
            (61_000_000_000, "1 min 01 s"),
            (7_500_000_000_000, "2 h 05 min"),
            (u64::MAX, "5 124 095 h 34 min"),
        ] {
            assert_eq!(duration(ns), want);
        }
    }

    #[test]
    fn rates_shares_and_classes() {
        assert_eq!((rate(10, 0), rate(10, 2_000_000_000), rate(u64::MAX, 1)), (0, 5, u64::MAX));
        assert_eq!((share(0, 0), share(0, 5), share(1, 1000), share(999, 1000), share(5, 5)).3, "99 %");
        assert_eq!((share(1, 1000), share(5, 5)), ("<1 %".to_owned(), "100 %".to_owned()));
        assert_eq!((size_class(0), size_class(12)), ("≤ 1 byte".to_owned(), "≤ 4 KiB".to_owned()));
        assert_eq!((size_class(32), size_class(33)), ("≤ 4 GiB".to_owned(), "> 4 GiB".to_owned()));
        assert_eq!((alignment_class(9), alignment_class(21)), ("512 bytes".to_owned(), "2 MiB or more".to_owned()));
    }
}
