//! Which bytes are worth reading when everything is over.

use blkproof_block::ByteRange;
use blkproof_block::choice::hash;

use crate::plan::{Act, Op, Plan};

/// Bytes of one request.
const CHUNK: u64 = 256 << 10;

/// How closely to look.
#[derive(Debug)]
struct Look {
    /// Neighbours that are looked at too: what lands beside its place mostly lands near it.
    around: u64,
    /// A request longer than this is not looked at whole, but
    whole: u64,
    /// so far around its ends and its middle,
    edge: u64,
    /// and in so many other places.
    samples: u64,
}

/// Once in a run.
const CLOSE: Look = Look { around: 4 << 10, whole: 1 << 20, edge: 64 << 10, samples: 0 };

/// In each of thousands of states: long requests in parts that their number chooses. A short one, which is what shrinking
/// makes of them, is looked at whole.
const QUICK: Look = Look { around: 1 << 10, whole: 32 << 10, edge: 4 << 10, samples: 3 };

/// Everything that requests of a plan were about, with what lies around it, and both ends of the disk.
#[derive(Debug)]
pub(crate) struct Touched(Vec<ByteRange>);

impl Touched {
    /// For a comparison at the end of a life.
    pub(crate) fn closely(plan: &Plan) -> Self {
        Self::by(plan, &CLOSE)
    }

    /// For a look at what a power cut left.
    pub(crate) fn quickly(plan: &Plan) -> Self {
        Self::by(plan, &QUICK)
    }

    fn by(plan: &Plan, look: &Look) -> Self {
        let size = plan.target.size;
        let ends = [0, size].into_iter().chain(plan.target.base);
        let around = |range: ByteRange| around(range, look.around);
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
            // Zeroes and discards may cover the whole disk.
            if about.len() > look.whole {
                ranges.extend(places(op, about, look).map(|at| {
                    around(ByteRange { start: at.saturating_sub(look.edge), end: at.saturating_add(look.edge) })
                }));
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

/// Where to look at what a long request was about.
fn places(op: &Op, about: ByteRange, look: &Look) -> impl Iterator<Item = u64> {
    let (start, len) = (about.start, about.len().max(1));
    let id = u64::from(op.id);
    let samples = (0..look.samples).map(move |number| start.saturating_add(hash(id, number) % len));
    [start, start.saturating_add(len / 2), about.end].into_iter().chain(samples)
}

fn around(range: ByteRange, by: u64) -> ByteRange {
    ByteRange {
        start: range.start.saturating_sub(by) / 512 * 512,
        end: range.end.saturating_add(by).div_ceil(512).saturating_mul(512),
    }
}
