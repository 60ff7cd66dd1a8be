//! Sets the checksums of VHDX and VHD structures right, so that a changed field is looked at and not only its checksum.

use super::sparse::Sparse;

pub fn seal(image: &mut Sparse) {
    if image.bytes(0, 8) == b"vhdxfile" {
        seal_vhdx(image);
    } else if [0, image.len.saturating_sub(512)].iter().any(|at| image.bytes(*at, 8) == b"conectix") {
        seal_vhd(image);
    }
}

/// CRC-32C, its own field zero, of headers, region tables and log entries ([MS-VHDX] 2.2.2, 2.2.3, 2.3.1).
fn seal_vhdx(image: &mut Sparse) {
    for (at, len) in [(64u64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536), (256 << 10, 65536)] {
        seal_crc(image, at, len);
    }
    let entries: Vec<u64> = image
        .sectors()
        .filter(|(at, sector)| at % 4096 == 0 && sector.starts_with(b"loge"))
        .map(|(at, _)| at)
        .collect();
    for at in entries.into_iter().take(64) {
        let len = image.number(at + 8, 4, false);
        if len <= 1 << 20 {
            seal_crc(image, at, len as usize);
        }
    }
}

fn seal_crc(image: &mut Sparse, at: u64, len: usize) {
    let mut bytes = image.bytes(at, len);
    if bytes.len() < 8 || bytes.iter().all(|byte| *byte == 0) {
        return;
    }
    bytes[4..8].fill(0);
    image.set_number(at + 4, 4, false, u64::from(crc32c::crc32c(&bytes)));
}

/// One's complement of the byte sum, its own field zero, of footer, its copy and the dynamic header.
fn seal_vhd(image: &mut Sparse) {
    let footer = image.len.saturating_sub(512);
    let header = image.number(16, 8, true);
    for (at, len, field) in [(0, 512, 64), (footer, 512, 64), (header, 1024, 36)] {
        let magic = image.bytes(at, 8);
        if magic == b"conectix" || magic == b"cxsparse" {
            let mut bytes = image.bytes(at, len);
            bytes[field..field + 4].fill(0);
            let sum = bytes.iter().fold(0u32, |all, byte| all.wrapping_add(u32::from(*byte)));
            image.set_number(at + field as u64, 4, true, u64::from(!sum));
        }
    }
}
