//! Sectors that say who wrote them, and where (CM 3.1, without generation and disk id).
//!
//! A stamped sector of 512 bytes: magic (8), byte address (8), operation (8), then a keystream of both. Every byte is
//! a function of the address and the operation, so a request that begins or ends inside a sector writes the part of
//! the sector it covers, and any run of bytes can be compared with what an operation would have written there.

use crate::choice::hash;

/// Bytes of one stamped sector.
pub const SECTOR: usize = 512;
const MAGIC: u64 = u64::from_be_bytes(*b"blkproof");

/// What a sector holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stamp {
    /// Zero bytes only.
    Zero,
    /// What `op` wrote to this address.
    Written {
        /// The writer.
        op: u64,
    },
    /// What `op` wrote to another address.
    Misplaced {
        /// The writer.
        op: u64,
        /// Where it belongs.
        from: u64,
    },
    /// Begins as what `op` wrote to `from`, and goes on as something else.
    Torn {
        /// The writer of the first bytes.
        op: u64,
        /// Where they belong.
        from: u64,
    },
    /// No stamp.
    Garbage,
}

/// Fills `buf`, which lies at byte `at` of the disk, with what operation `op` writes there.
pub fn fill(buf: &mut [u8], at: u64, op: u64) {
    let mut done = 0;
    while done < buf.len() {
        let here = at.saturating_add(done as u64);
        let offset = (here % SECTOR as u64) as usize;
        let len = (SECTOR - offset).min(buf.len() - done);
        let sector = sector(here - offset as u64, op);
        buf[done..done + len].copy_from_slice(&sector[offset..offset + len]);
        done += len;
    }
}

/// `len` stamped bytes for `at`.
pub fn bytes(at: u64, len: usize, op: u64) -> Vec<u8> {
    let mut buf = vec![0; len];
    fill(&mut buf, at, op);
    buf
}

/// Says what the 512 bytes found at `at` (a multiple of 512) are.
pub fn decode(found: &[u8], at: u64) -> Stamp {
    if crate::buffer::is_zero(found) {
        return Stamp::Zero;
    }
    let word = |index: usize| match found.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => u64::from_be_bytes(bytes),
        None => 0,
    };
    if found.len() != SECTOR || word(0) != MAGIC {
        return Stamp::Garbage;
    }
    let (from, op) = (word(1), word(2));
    match (sector(from, op) == found, from == at) {
        (true, true) => Stamp::Written { op },
        (true, false) => Stamp::Misplaced { op, from },
        (false, _) => Stamp::Torn { op, from },
    }
}

fn sector(at: u64, op: u64) -> [u8; SECTOR] {
    let key = hash(at, op);
    let mut sector = [0; SECTOR];
    for (index, word) in sector.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => MAGIC,
            1 => at,
            2 => op,
            _ => hash(key, index as u64),
        };
        word.copy_from_slice(&value.to_be_bytes());
    }
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_names_its_writer() {
        let mut torn = bytes(1024, SECTOR, 7);
        torn[256..].copy_from_slice(&bytes(1024, SECTOR, 8)[256..]);
        let table = [
            (vec![0; SECTOR], Stamp::Zero),
            (bytes(1024, SECTOR, 7), Stamp::Written { op: 7 }),
            (bytes(2048, SECTOR, 7), Stamp::Misplaced { op: 7, from: 2048 }),
            (torn, Stamp::Torn { op: 7, from: 1024 }),
            (vec![1; SECTOR], Stamp::Garbage),
            (bytes(1024, 100, 7), Stamp::Garbage),
        ];
        for (found, want) in table {
            assert_eq!(decode(&found, 1024), want);
        }
    }

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let whole = bytes(512, 2048, 3);
        assert_eq!(bytes(700, 1000, 3), whole[188..1188]);
    }
}
