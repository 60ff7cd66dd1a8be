//! Puts an internal snapshot into a qcow2 image.
//!
//! Our driver keeps snapshots and makes none, so that an image with one has to come from elsewhere. This is what `qemu-img
//! snapshot -c` does, for images whose counts are 16 bits wide and fit into one refcount block, as those of small disks
//! do (qcow2 specification, "Snapshots"). [`reverted`] is what `snapshot -a` would do, to see what the snapshot holds.

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// The image, as words.
struct Image<'a> {
    bytes: &'a mut Vec<u8>,
    cluster: u64,
}

impl Image<'_> {
    fn place(at: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let at = usize::try_from(at).ok()?;
        Some(at..at.checked_add(len)?)
    }

    fn word(&self, at: u64) -> Result<u64, String> {
        let word = Self::place(at, 8).and_then(|place| self.bytes.get(place)).and_then(|word| word.try_into().ok());
        word.map(u64::from_be_bytes).ok_or_else(|| format!("the image ends before {at:#x}"))
    }

    fn half(&self, at: u64) -> Result<u32, String> {
        self.word(at).map(|word| u32::try_from(word >> 32).unwrap_or(0))
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let place = Self::place(at, bytes.len()).and_then(|place| self.bytes.get_mut(place));
        place.ok_or_else(|| format!("the image ends before {at:#x}"))?.copy_from_slice(bytes);
        Ok(())
    }

    /// A new cluster at the end.
    fn append(&mut self) -> u64 {
        let at = (self.bytes.len() as u64).next_multiple_of(self.cluster);
        let end = at.saturating_add(self.cluster);
        self.bytes.resize(usize::try_from(end).unwrap_or(0), 0);
        at
    }

    /// Sets the count of the cluster at `offset`.
    fn count(&mut self, offset: u64, count: u16) -> Result<(), String> {
        let block = self.word(self.word(48)?)?;
        let index = offset / self.cluster;
        if index >= self.cluster / 2 {
            return Err("the image needs more than one refcount block".into());
        }
        self.put(block.saturating_add(index * 2), &count.to_be_bytes())
    }
}

/// Adds one snapshot of what the image in `bytes` holds: an image file that was closed, without snapshots, compressed
/// clusters or an external data file.
///
/// # Errors
/// In words, if it is none of that kind.
pub fn add(bytes: &mut Vec<u8>) -> Result<(), String> {
    let mut image = Image { bytes, cluster: 0 };
    let bits = image.half(20)?;
    if image.half(0)? != 0x5146_49fb || !(9..=21).contains(&bits) || image.half(60)? != 0 {
        return Err("no qcow2 image without snapshots".into());
    }
    if image.half(4)? >= 3 && image.half(96)? != 4 {
        return Err("the refcounts are not 16 bits wide".into());
    }
    image.cluster = 1 << bits;
    let (entries, l1) = (u64::from(image.half(36)?), image.word(40)?);
    if entries * 8 > image.cluster {
        return Err("the L1 table is larger than a cluster".into());
    }
    // Whatever the active tables refer to has two owners from now on.
    let extended = image.half(4)? >= 3 && image.word(72)? & 16 != 0;
    let step = if extended { 16 } else { 8 };
    for slot in 0..entries {
        let entry = image.word(l1 + slot * 8)?;
        let table = entry & OFFSET;
        if table == 0 {
            continue;
        }
        image.put(l1 + slot * 8, &(entry & !COPIED).to_be_bytes())?;
        image.count(table, 2)?;
        for at in (table..table + image.cluster).step_by(step) {
            let entry = image.word(at)?;
            if entry & COMPRESSED != 0 {
                return Err("compressed clusters are not supported".into());
            }
            if entry & OFFSET != 0 {
                image.put(at, &(entry & !COPIED).to_be_bytes())?;
                image.count(entry & OFFSET, 2)?;
            }
        }
    }
    let copy = image.append();
    image.count(copy, 1)?;
    for slot in 0..entries {
        let entry = image.word(l1 + slot * 8)?;
        image.put(copy + slot * 8, &entry.to_be_bytes())?;
    }
    let table = image.append();
    image.count(table, 1)?;
    image.put(table, &copy.to_be_bytes())?;
    image.put(table + 8, &image.half(36)?.to_be_bytes())?;
    image.put(table + 12, &[0, 1, 0, 1])?; // lengths of id and name
    image.put(table + 36, &16u32.to_be_bytes())?; // extra data: size of the VM state, size of the disk
    let size = image.word(24)?;
    image.put(table + 48, &size.to_be_bytes())?;
    image.put(table + 56, b"1s")?;
    image.put(60, &1u32.to_be_bytes())?;
    image.put(64, &table.to_be_bytes())
}

/// Makes the guest's disk in `header` that of the first snapshot, with which nothing else is to be done than to read it.
/// `bytes_at` reads words of the image.
///
/// # Errors
/// In words, if there is no such snapshot.
pub(super) fn reverted(header: &mut [u8], bytes_at: impl Fn(u64, &mut [u8])) -> Result<(), String> {
    let half = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_be_bytes)
    };
    if half(header, 60) != 1 {
        return Err(format!("the image has {} snapshots instead of one", half(header, 60)));
    }
    let table = u64::from(half(header, 64)) << 32 | u64::from(half(header, 68));
    let mut entry = [0; 56];
    bytes_at(table, &mut entry);
    let (version, [.., a, b, c, d, e, f, g, h]) = (half(header, 4), entry);
    // The table of the snapshot, the size of its disk; no other snapshot, and nothing to be repaired.
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = header.get_mut(at..at.saturating_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
    };
    put(24, &[a, b, c, d, e, f, g, h]);
    put(36, &entry[8..12]);
    put(40, &entry[..8]);
    put(60, &[0; 12]);
    if version >= 3 {
        // Bits 0 and 1 of the incompatible features: dirty, corrupt.
        if let Some(bits) = header.get_mut(79) {
            *bits &= !3;
        }
    }
    Ok(())
}
