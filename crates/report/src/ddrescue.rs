//! Lost ranges of the guest's disk as a map file of GNU ddrescue (its manual, section "Mapfile structure").
//!
//! Positions are on the guest's disk: the map fits a raw copy of it, such as `qemu-img convert --salvage` writes, so
//! that `ddrescuelog` lists, inverts and combines it, and `ddrescue --fill-mode` marks what is lost inside the copy.

use std::fmt::Write as _;
use std::ops::Range;

use blkproof_check::{Report, Verdict};

use crate::text;

/// The map: `+` for what the image still holds, `-` for what is lost, `?` where nobody can say.
///
/// Where the check did not come to its end, or more ranges are lost than a report keeps, everything that is not known
/// to be lost is `?`. `None` if the size of the guest's disk is not known.
#[must_use]
pub fn map(report: &Report) -> Option<String> {
    let size = report.guest.as_ref()?.size;
    let undecided = matches!(report.verdict, Verdict::Undecided | Verdict::Unsupported);
    let sound = if undecided || report.stopped || report.lost.left_out > 0 { '?' } else { '+' };
    let mut map = String::new();
    let _ = writeln!(map, "# Mapfile. Created by blkproof check");
    let _ = writeln!(map, "# Lost ranges of the guest's disk in {}", text::safe(&report.image));
    let _ = writeln!(map, "# current_pos  current_status  current_pass");
    let _ = writeln!(map, "0x00000000     {}               1", if sound == '+' { '+' } else { '?' });
    let _ = writeln!(map, "#      pos        size  status");
    let mut block = |range: Range<u64>, status: char| {
        if !range.is_empty() {
            let _ = writeln!(map, "{:#010x}  {:#010x}  {status}", range.start, range.end - range.start);
        }
    };
    let mut at = 0;
    for lost in &report.lost.ranges {
        let lost = lost.start.max(at)..lost.end.min(size);
        if lost.is_empty() {
            continue;
        }
        block(at..lost.start, sound);
        at = lost.end;
        block(lost, '-');
    }
    block(at..size, sound);
    Some(map)
}
