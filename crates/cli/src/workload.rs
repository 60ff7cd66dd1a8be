//! A seeded random workload: reads, writes, zeroes, discards and flushes, many in flight.
//!
//! It judges nothing but success: what was read is for a mirror below to judge. Every decision is a hash of the seed
//! and the operation's number, never "the next random number", so that operation 17 is the same whatever became of 16.

use std::fmt;

use blkproof_block::{BlockDevice as _, IoError, Node, WriteFlags, ZeroFlags};
use futures_util::stream::{FuturesUnordered, StreamExt as _};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// Decides everything.
    pub(crate) seed: u64,
    /// Number of operations.
    pub(crate) operations: u64,
    /// Operations in flight.
    pub(crate) depth: usize,
    /// Largest request in bytes.
    pub(crate) length_max: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    reads: u64,
    writes: u64,
    zeroes: u64,
    discards: u64,
    flushes: u64,
    bytes: u64,
}

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("operation {number} ({operation}) failed: {source}")]
pub(crate) struct Failure {
    number: u64,
    operation: Operation,
    source: IoError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operation {
    kind: Kind,
    at: u64,
    len: u64,
    fua: bool,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, at, len, fua } = self;
        match kind {
            Kind::Flush => f.write_str("flush"),
            _ => write!(f, "{kind:?} of {len} bytes at {at:#x}{}", if *fua { ", FUA" } else { "" }),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reads, writes, zeroes, discards, flushes, bytes } = self;
        write!(
            f,
            "{reads} reads, {writes} writes, {zeroes} write zeroes, {discards} discards, {flushes} flushes; {} moved",
            crate::messages::human_size(*bytes)
        )
    }
}

impl Workload {
    /// Runs on `node` to the end, then flushes.
    ///
    /// # Errors
    /// The first operation that failed; those in flight beside it are awaited first.
    pub(crate) async fn run(self, node: &Node) -> Result<Summary, Failure> {
        let size = node.info().size;
        let mut summary = Summary::default();
        let mut running = FuturesUnordered::new();
        let mut failure = None;
        let mut numbers = 0..self.operations;
        loop {
            while failure.is_none() && running.len() < self.depth.max(1) {
                let Some(number) = numbers.next() else { break };
                let operation = self.operation(number, size);
                summary.count(operation);
                running.push(async move { (number, operation, self.perform(node, number, operation).await) });
            }
            match running.next().await {
                None => break,
                Some((_, _, Ok(()))) => {}
                Some((number, operation, Err(source))) => {
                    failure.get_or_insert(Failure { number, operation, source });
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let last = Operation { kind: Kind::Flush, at: 0, len: 0, fua: false };
        node.flush().await.map_err(|source| Failure { number: self.operations, operation: last, source })?;
        Ok(summary)
    }

    /// Operation `number` on a disk of `size` bytes; a pure function of the seed.
    fn operation(&self, number: u64, size: u64) -> Operation {
        let draw = |site: u64| hash(self.seed, number, site);
        let kind = match draw(0) % 100 {
            0..40 => Kind::Read,
            40..78 => Kind::Write,
            78..87 => Kind::Zero,
            87..95 => Kind::Discard,
            _ => Kind::Flush,
        };
        // Lengths of every magnitude are equally likely; every eighth request is at odd bytes.
        let magnitude = draw(1) % (64 - self.length_max.max(1).leading_zeros().min(63)) as u64;
        let unit = if draw(2).is_multiple_of(8) { 1 } else { 512 };
        let len = (1 + draw(3) % (1 << magnitude)).next_multiple_of(unit).min(self.length_max).min(size);
        let room = size - len;
        // Half of the requests go to a few hot places, so that they meet each other.
        let at = match draw(4) % 2 {
            0 => draw(5) % (room + 1),
            _ => hash(self.seed, draw(6) % 16, 7) % (room + 1) + draw(8) % (room / 64 + 1),
        };
        let at = at.min(room) / unit * unit;
        Operation { kind, at, len, fua: draw(9).is_multiple_of(16) }
    }

    async fn perform(&self, node: &Node, number: u64, operation: Operation) -> Result<(), IoError> {
        let Operation { kind, at, len, fua } = operation;
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        match kind {
            Kind::Read => node.read(at, &mut vec![0; bytes]).await,
            Kind::Write => {
                let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
                node.write(at, &self.payload(number, at, bytes), flags).await
            }
            Kind::Zero => {
                let unmap = if number.is_multiple_of(2) { ZeroFlags::MAY_UNMAP } else { ZeroFlags::empty() };
                node.write_zeroes(at, len, unmap).await
            }
            Kind::Discard => node.discard(at, len).await,
            Kind::Flush => node.flush().await,
        }
    }

    /// Bytes that no other operation writes, and that fit no other address.
    fn payload(&self, number: u64, at: u64, len: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(len.saturating_add(8));
        let mut word = 0;
        while data.len() < len {
            data.extend_from_slice(&hash(self.seed ^ at, number, 16 + word).to_le_bytes());
            word += 1;
        }
        data.truncate(len);
        data
    }
}

impl Summary {
    fn count(&mut self, operation: Operation) {
        let counter = match operation.kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
            Kind::Zero => &mut self.zeroes,
            Kind::Discard => &mut self.discards,
            Kind::Flush => &mut self.flushes,
        };
        *counter += 1;
        if matches!(operation.kind, Kind::Read | Kind::Write) {
            self.bytes = self.bytes.saturating_add(operation.len);
        }
    }
}

/// Mixes three numbers into one that looks random; the finaliser is that of SplitMix64 (Steele, Lea, Flood 2014).
///
/// Must never change: a seed means the same workload for ever.
fn hash(seed: u64, number: u64, site: u64) -> u64 {
    // Each word is mixed in by itself: seeds 1 and 2 would else draw the same operations in another order.
    let mut x = 0;
    for word in [seed, number, site] {
        x = (x ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOAD: Workload = Workload { seed: 2010, operations: 0, depth: 1, length_max: 128 << 10 };

    #[test]
    fn a_seed_means_the_same_for_ever() {
        assert_eq!([hash(0, 0, 0), hash(2010, 17, 3)], [0x2382_75bc_38fc_be91, 0xa0e3_f3e0_4d2c_6dac], "test vectors");
        let drawn = [15, 16, 17].map(|number| WORKLOAD.operation(number, 64 << 20).to_string());
        assert_eq!(drawn, ["Read of 5632 bytes at 0x38e1c00", "Write of 512 bytes at 0x2b02200", "flush"]);
    }

    #[test]
    fn seeds_draw_different_operations() {
        let drawn = |seed| -> Vec<_> {
            let workload = Workload { seed, ..WORKLOAD };
            let mut drawn: Vec<_> = (0..256).map(|number| workload.operation(number, 64 << 20).to_string()).collect();
            drawn.sort();
            drawn
        };
        assert_ne!(drawn(1), drawn(2), "not even in another order");
    }

    #[test]
    fn operations_stay_inside_disks_of_any_size() {
        for size in [1, 511, 512, 4097, 1 << 20, (1 << 40) + 1] {
            for number in 0..2000 {
                let Operation { at, len, .. } = WORKLOAD.operation(number, size);
                assert!(len > 0 && at + len <= size, "size {size}, operation {number}: {len} bytes at {at}");
            }
        }
    }
}
