//! VDI images with blocks of 4 KiB: the option `block_size=4096` of a target.
//!
//! Every known program writes blocks of 1 MiB, and so does ours; it reads any size, which leaves it to us to make them.

use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{Content, variant as plain};
use blkproof_torture::workload::{Features, Variant};

const OPTION: (&str, &str) = ("block_size", "4096");
const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
/// Entries for which the map has room.
const ROOM: u64 = 384;

/// Whether such an image is asked for.
pub(super) fn asked(spec: &TargetSpec) -> bool {
    spec.options.iter().any(|(name, value)| (name.as_str(), value.as_str()) == OPTION)
}

/// Such an image, as the generator sees it.
pub(super) fn variant(size: u64) -> Variant {
    let plain = plain(&[OPTION], size, BLOCK);
    let features = Features { grow: true, shrink: true, compressed: false, ..plain.features };
    Variant { features, spans: vec![BLOCK * SECTOR / 4], ..plain }
}

/// Makes one: a header, a map of free entries, no blocks.
pub(super) fn create(spec: &TargetSpec) -> Result<Content, String> {
    let size = spec.size.next_multiple_of(SECTOR);
    let blocks = size.div_ceil(BLOCK);
    let map = (blocks.max(ROOM) * 4).next_multiple_of(SECTOR);
    let (map_at, data_at) = (SECTOR, SECTOR.saturating_add(map));
    let short = |value: u64| u32::try_from(value).map_err(|_| format!("{size:#x} bytes are too many for small blocks"));
    let mut head = vec![0; 512];
    let fields = [
        (0x40, 0xbeda_107f),
        (0x44, 0x0001_0001),
        (0x48, 0x180),
        (0x4c, 1),
        (0x154, short(map_at)?),
        (0x158, short(data_at)?),
        (0x168, 512),
        (0x170, short(size)?),
        (0x178, short(BLOCK)?),
        (0x180, short(blocks)?),
        (0x188, 0x626c_6b70),
        (0x198, 0x7665_7269),
    ];
    for (at, value) in fields {
        let place: Option<&mut [u8]> = head.get_mut(at..at + 4);
        if let Some(place) = place {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }
    let mut image = Content::new(data_at);
    image.write(0, &head);
    image.write(map_at, &vec![0xff; usize::try_from(blocks * 4).unwrap_or(0)]);
    Ok(image)
}
