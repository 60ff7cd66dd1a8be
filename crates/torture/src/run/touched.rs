//! Which bytes are worth reading when everything is over.

use blkproof_block::ByteRange;

use crate::plan::{Act, Plan};

/// Bytes of one request.
const CHUNK: u64 = 256 << 10;
/// Neighbours that are looked at too: what lands beside its place mostly lands near it.
const AROUND: u64 = 4 << 10;

/// A request longer than this is not looked at whole, but
const WHOLE: u64 = 1 << 20;
/// so far around its ends.
const EDGE: u64 = 64 << 10;

/// Everything that requests of a plan were about, with what lies around it, and both ends of the disk.
#[derive(Debug)]
pub(crate) struct Touched(Vec<ByteRange>);

impl Touched {
    pub(crate) fn by(plan: &Plan) -> Self {
        let size = plan.target.size;
        let ends = [0, size].into_iter().chain(plan.target.base);
        let mut ranges: Vec<_> = ends.map(|end| around(ByteRange { start: end, end })).collect();
        for op in &plan.ops {
            let about = match &op.act {
                Act::Read { range, .. }
                | Act::Write { range, .. }
                | Act::Zeroes { range, .. }
                | Act::Discard { range }
                | Act::Status { range } => *range,
                Act::Resize { size } => ByteRange { start: *size, end: *size },
                Act::Flush | Act::Drain | Act::Reopen | Act::Cut { .. } => continue,
            };
            // Of what is very long, both ends and the middle: zeroes and discards may cover the whole disk.
            if about.len() > WHOLE {
                let middle = about.start.saturating_add(about.len() / 2);
                let edges = [about.start, middle, about.end];
                ranges.extend(
                    edges.map(|at| around(ByteRange { start: at.saturating_sub(EDGE), end: at.saturating_add(EDGE) })),
                );
            } else {
                ranges.push(around(about));
            }
        }
        ranges.sort_unstable();
        let mut merged: Vec<ByteRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// Requests that read all of it, as far as it lies inside `size` bytes.
    pub(crate) fn pieces(&self, size: u64) -> impl Iterator<Item = ByteRange> + '_ {
        self.0.iter().flat_map(move |range| {
            let end = range.end.min(size);
            (range.start..end)
                .step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX))
                .map(move |at| ByteRange { start: at, end: at.saturating_add(CHUNK).min(end) })
        })
    }
}

fn around(range: ByteRange) -> ByteRange {
    ByteRange {
        start: range.start.saturating_sub(AROUND) / 512 * 512,
        end: range.end.saturating_add(AROUND).div_ceil(512).saturating_mul(512),
    }
}
