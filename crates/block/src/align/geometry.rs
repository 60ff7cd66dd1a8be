//! Where requests are cut: pure arithmetic over a device's limits and size.

use super::Change;
use crate::DeviceInfo;
use crate::units::ByteRange;

/// Largest buffer that is filled for a piece of a request, unless one block is larger.
const BOUNCE_MAX: u64 = 1 << 20;

/// Limits made usable: powers of two that are not 0, maxima that are whole granules and never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    /// Granule of reads and writes.
    pub(super) block: u64,
    /// Alignment of buffers.
    pub(super) memory: usize,
    /// Largest read or write.
    pub(super) transfer_max: u64,
    /// Granule of write zeroes.
    pub(super) zero: u64,
    /// Largest write zeroes.
    pub(super) zero_max: u64,
    /// Granule of discards.
    pub(super) discard: u64,
    /// Largest discard.
    pub(super) discard_max: u64,
    /// Bytes of the device.
    pub(super) size: u64,
}

/// What has to be locked for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    pub(super) range: ByteRange,
    /// The request reads what it writes back, or moves the end.
    pub(super) exclusive: bool,
}

/// A sum that stops at 2^64 - 1, which no device reaches.
pub(super) fn add(a: u64, b: u64) -> u64 {
    a.saturating_add(b)
}

fn granule(wanted: u32) -> u64 {
    u64::from(wanted.max(1).checked_next_power_of_two().unwrap_or(1 << 31))
}

fn maximum(wanted: u64, granule: u64) -> u64 {
    let most = if wanted == 0 { u64::MAX } else { wanted };
    down(most, granule).max(granule)
}

/// The multiple of a power of two at or below `at`.
fn down(at: u64, granule: u64) -> u64 {
    at & !granule.saturating_sub(1)
}

/// The multiple of a power of two at or above `at`; 2^64 - 1 if that is out of reach.
fn up(at: u64, granule: u64) -> u64 {
    match at.checked_add(granule.saturating_sub(1)) {
        Some(end) => down(end, granule),
        None => u64::MAX,
    }
}

impl Geometry {
    pub(super) fn of(info: &DeviceInfo) -> Self {
        let limits = info.limits;
        let block = granule(limits.alignment);
        let zero = granule(limits.zero_alignment).max(block);
        let discard = granule(limits.discard_alignment).max(block);
        Self {
            block,
            memory: usize::try_from(granule(limits.memory_alignment)).unwrap_or(1),
            transfer_max: maximum(u64::from(limits.max_transfer), block),
            zero,
            zero_max: maximum(limits.max_zero, zero),
            discard,
            discard_max: maximum(limits.max_discard, discard),
            size: info.size,
        }
    }

    /// Whether some request has to be padded at all.
    pub(super) fn pads(&self) -> bool {
        self.block > 1
    }

    pub(super) fn fits_memory(&self, buffer: &[u8]) -> bool {
        buffer.as_ptr().addr().checked_rem(self.memory) == Some(0)
    }

    /// What is read for the sake of `range`, which lies inside the device.
    pub(super) fn pad_read(&self, range: ByteRange) -> ByteRange {
        ByteRange { start: down(range.start, self.block), end: up(range.end, self.block).min(self.size.max(range.end)) }
    }

    /// What is written for the sake of `range`. A write that reaches the end, or beyond it, ends where it ends:
    /// padding would move the end of a growing device.
    pub(super) fn pad_write(&self, range: ByteRange) -> ByteRange {
        self.pad_read(range)
    }

    /// The lock for a request. Zero edges and fallbacks need no more than a write of the same range.
    pub(super) fn claim(&self, range: ByteRange, change: Change) -> Claim {
        let blocks = range.aligned_out(self.block);
        let inside = up(range.end, self.block) <= self.size;
        let padded = down(range.start, self.block) != range.start || up(range.end, self.block) != range.end;
        match change {
            Change::Resize => Claim { range: ByteRange { start: blocks.start, end: u64::MAX }, exclusive: true },
            Change::Discard if inside => Claim { range: blocks, exclusive: false },
            Change::Write if !padded => Claim { range: blocks, exclusive: false },
            Change::Write if inside => Claim { range: blocks, exclusive: true },
            // Cut at the end of the device: nobody may move it meanwhile (invariant 3).
            Change::Write | Change::Discard => {
                Claim { range: ByteRange { start: blocks.start, end: u64::MAX }, exclusive: true }
            }
        }
    }

    /// The first block from `at`, cut at `end`.
    pub(super) fn block_at(&self, at: u64, end: u64) -> ByteRange {
        ByteRange { start: at, end: add(at, self.block).min(end) }
    }

    /// The last block that ends at `end`, or is cut there.
    pub(super) fn block_before(&self, end: u64) -> ByteRange {
        ByteRange { start: down(end.saturating_sub(1), self.block), end }
    }

    /// The whole granules inside `range`; the end of the device counts as an end of a granule.
    pub(super) fn granules(&self, range: ByteRange, granule: u64) -> Option<ByteRange> {
        let end = if range.end >= self.size { range.end } else { down(range.end, granule) };
        let whole = ByteRange { start: up(range.start, granule), end };
        (!whole.is_empty()).then_some(whole)
    }

    /// The next piece of a padded request: as much as may go in one transfer. A piece that needs a buffer (it has
    /// padding in it, or does not lie right in memory: not `direct`) is bounded; a short request is one piece.
    pub(super) fn piece(&self, at: u64, request: ByteRange, padded: ByteRange, direct: bool) -> ByteRange {
        let bounce_max = down(BOUNCE_MAX, self.block).max(self.block).min(self.transfer_max);
        let rest = ByteRange { start: at, end: padded.end };
        let end = if rest.len() <= bounce_max && !(direct && rest.end == request.end) {
            rest.end
        } else if direct {
            // The whole blocks of the caller's own memory.
            let own = if padded.end == request.end { request.end } else { down(request.end, self.block) };
            let end = own.min(add(at, self.transfer_max));
            if end > at { end } else { add(at, bounce_max).min(padded.end) }
        } else if at < request.start {
            // The head's block alone: what follows it may need no copy.
            add(at, self.block).min(padded.end)
        } else {
            add(at, bounce_max).min(padded.end)
        };
        ByteRange { start: at, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;

    fn geometry(alignment: u32, size: u64) -> Geometry {
        let limits = Limits { alignment, ..Limits::NONE };
        Geometry::of(&DeviceInfo { limits, ..DeviceInfo::new("test", size) })
    }

    #[test]
    fn padding_stops_at_an_odd_end() {
        let g = geometry(512, 1000);
        for (start, end, want) in [
            (0, 512, (0, 512)),
            (1, 2, (0, 512)),
            (511, 513, (0, 1000)),
            (600, 1000, (512, 1000)),
            (600, 999, (512, 1000)),
            (990, 1100, (512, 1100)),
            (1100, 1200, (1024, 1200)),
        ] {
            let padded = g.pad_write(ByteRange { start, end });
            assert_eq!((padded.start, padded.end), want, "{start}..{end}");
        }
    }

    #[test]
    fn arithmetic_holds_at_the_edge_of_64_bits() {
        let g = geometry(1 << 31, u64::MAX);
        let top = ByteRange { start: u64::MAX - 5, end: u64::MAX };
        let padded = g.pad_write(top);
        assert_eq!((padded.start, padded.end), (!((1 << 31) - 1), u64::MAX));
        assert_eq!(g.piece(padded.start, top, padded, false), padded);
        let odd = Limits {
            alignment: 0,
            memory_alignment: 0,
            max_transfer: 1,
            zero_alignment: u32::MAX,
            max_zero: 1,
            ..Limits::NONE
        };
        let g = Geometry::of(&DeviceInfo { limits: odd, ..DeviceInfo::new("test", 10) });
        assert_eq!((g.block, g.memory, g.transfer_max, g.zero, g.zero_max), (1, 1, 1, 1 << 31, 1 << 31));
    }
}
