//! Counts every reference in an image and compares with the stored counts. Written for the tests alone, from the
//! specification, sharing nothing with the driver: it judges the driver's images where qemu-img would take too long.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

/// What the walk found.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Clusters whose count is higher than the references found.
    pub(crate) leaks: Vec<String>,
    /// Everything worse.
    pub(crate) damage: Vec<String>,
    pub(crate) dirty: bool,
}

struct Image<'a> {
    bytes: &'a [u8],
    bits: u32,
}

impl Image<'_> {
    fn be(&self, at: u64, len: usize) -> u64 {
        let mut word = 0;
        for i in 0..len {
            word = word << 8 | u64::from(self.bytes.get(at as usize + i).copied().unwrap_or(0));
        }
        word
    }
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Walks a whole image.
pub(crate) fn walk(bytes: &[u8]) -> Walk {
    let mut found = Walk::default();
    if bytes.len() < 112 || &bytes[..4] != b"QFI\xfb" {
        found.damage.push("no qcow2 header".into());
        return found;
    }
    let image = Image { bytes, bits: 0 };
    let image = Image { bits: image.be(20, 4) as u32, ..image };
    let bits = image.bits;
    let cluster = 1u64 << bits;
    let version = image.be(4, 4);
    let incompatible = if version >= 3 { image.be(72, 8) } else { 0 };
    let order = if version >= 3 { image.be(96, 4) } else { 4 };
    let extended = incompatible & 16 != 0;
    found.dirty = incompatible & 1 != 0;
    if incompatible & 2 != 0 {
        found.damage.push("marked corrupt".into());
    }
    // One count too many for what lies past the end, so that a partial last cluster has its place.
    let mut counts = vec![0u32; bytes.len().div_ceil(cluster as usize) + 1];
    let mut refer = |found: &mut Walk, at: u64, len: u64, what: &str| {
        for number in at >> bits..(at + len).div_ceil(cluster) {
            match counts.get_mut(number as usize) {
                Some(count) => *count += 1,
                None => found.damage.push(format!("{what} at {at:#x} past end of file")),
            }
        }
    };
    refer(&mut found, 0, cluster, "header");
    let (reftable, reftable_len) = (image.be(48, 8), image.be(56, 4) << bits);
    refer(&mut found, reftable, reftable_len, "refcount table");
    let blocks: Vec<u64> = (0..reftable_len / 8).map(|slot| image.be(reftable + slot * 8, 8)).collect();
    for &block in blocks.iter().filter(|&&block| block != 0) {
        refer(&mut found, block, cluster, "refcount block");
    }
    let mut tables = vec![(image.be(40, 8), image.be(36, 4), true)];
    let mut at = image.be(64, 8);
    let start = at;
    for _ in 0..image.be(60, 4) {
        tables.push((image.be(at, 8), image.be(at + 8, 4), false));
        let len = 40 + image.be(at + 36, 4) + image.be(at + 12, 2) + image.be(at + 14, 2);
        at += len.next_multiple_of(8);
    }
    refer(&mut found, start, at - start, "snapshot table");
    // Places whose COPIED flag has to say whether the count is one.
    let mut copied = Vec::new();
    for (l1, entries, active) in tables {
        refer(&mut found, l1, entries * 8, "L1 table");
        for slot in 0..entries {
            let raw = image.be(l1 + slot * 8, 8);
            let l2 = raw & OFFSET;
            if l2 == 0 {
                continue;
            }
            if l2 & (cluster - 1) != 0 || raw & 0x7f00_0000_0000_01ff != 0 {
                found.damage.push(format!("L1 entry {raw:#x}"));
                continue;
            }
            refer(&mut found, l2, cluster, "L2 table");
            if active {
                copied.push((l2, raw >> 63 == 1, "L1"));
            }
            let step = if extended { 16 } else { 8 };
            for entry in 0..cluster / step {
                let raw = image.be(l2 + entry * step, 8);
                if raw & 1 << 62 != 0 {
                    let shift = 62 - (bits - 8);
                    let offset = raw & ((1 << shift) - 1) & 0x00ff_ffff_ffff_ffff;
                    let sectors = (raw & !(3 << 62)) >> shift;
                    refer(&mut found, offset, (sectors + 1) * 512 - (offset & 511), "compressed cluster");
                    continue;
                }
                let host = raw & OFFSET;
                if host & (cluster - 1) != 0 || raw & 0x3f00_0000_0000_01fe != 0 {
                    found.damage.push(format!("L2 entry {raw:#x}"));
                    continue;
                }
                if extended {
                    let bitmap = image.be(l2 + entry * step + 8, 8);
                    if bitmap >> 32 & bitmap & 0xffff_ffff != 0
                        || (bitmap & 0xffff_ffff != 0 && host == 0 && raw >> 63 == 0)
                    {
                        found.damage.push(format!("subcluster bitmap {bitmap:#x}"));
                    }
                }
                // An external data file has no counts.
                if host != 0 && incompatible & 4 == 0 {
                    refer(&mut found, host, cluster, "data cluster");
                    if active {
                        copied.push((host, raw >> 63 == 1, "L2"));
                    }
                }
            }
        }
    }
    let width = 1u64 << order;
    let per_block = cluster * 8 / width;
    let stored = |number: u64| {
        let block = blocks.get((number / per_block) as usize).copied().unwrap_or(0);
        let index = number % per_block;
        match block {
            0 => 0,
            _ if width >= 8 => image.be(block + index * (width / 8), (width / 8) as usize),
            _ => image.be(block + index * width / 8, 1) >> (index * width % 8) & ((1 << width) - 1),
        }
    };
    let last_block = blocks.iter().rposition(|&block| block != 0).map_or(0, |last| last as u64 + 1);
    for number in 0..(last_block * per_block).max(counts.len() as u64) {
        let references = u64::from(counts.get(number as usize).copied().unwrap_or(0));
        let count = stored(number);
        if count > references {
            found.leaks.push(format!("cluster {number} refcount={count} reference={references}"));
        } else if count < references {
            found.damage.push(format!("cluster {number} refcount={count} reference={references}"));
        }
    }
    for (at, flag, what) in copied {
        let one = stored(at >> bits) == 1;
        // A leak makes a count too high for the flag, as it does for the count itself.
        if flag && !one && counts.get((at >> bits) as usize).is_some_and(|&count| count != 1) {
            found.damage.push(format!("COPIED {what} entry for {at:#x} with a count other than one"));
        }
    }
    found
}
