//! VMDK images in memory: those qemu-img makes and the variants it can not make, and the places in them that are damaged.

#![allow(dead_code)]

use std::collections::BTreeSet;
use std::path::Path;

use blkproof_check::{Format, Options, Report};

use super::vmdk_support::{create, must};

pub const MIB: u64 = 1 << 20;
pub const GRAIN: u64 = 65_536;
/// Bytes of the disk.
pub const LAST: u64 = 200 * MIB;

/// An image's bytes, and where its parts are.
pub struct Image {
    pub bytes: Vec<u8>,
}

impl Image {
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
    pub fn set32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    pub fn set64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    pub fn fill(&mut self, at: usize, len: usize, with: &[u8]) {
        for (byte, value) in self.bytes[at..at + len].iter_mut().zip(with.iter().cycle()) {
            *byte = *value;
        }
    }
    pub fn gd(&self) -> usize {
        self.u64(56) as usize * 512
    }
    pub fn rgd(&self) -> usize {
        self.u64(48) as usize * 512
    }
    pub fn gt(&self, table: usize) -> usize {
        self.u32(self.gd() + table * 4) as usize * 512
    }
    pub fn rgt(&self, table: usize) -> usize {
        self.u32(self.rgd() + table * 4) as usize * 512
    }
    /// Place of the entry for a guest offset.
    pub fn gte(&self, guest: u64) -> usize {
        let entry = (guest / GRAIN) as usize;
        self.gt(entry / 512) + entry % 512 * 4
    }
    pub fn rgte(&self, guest: u64) -> usize {
        let entry = (guest / GRAIN) as usize;
        self.rgt(entry / 512) + entry % 512 * 4
    }
    /// Sets the entry in both copies.
    pub fn map(&mut self, guest: u64, sector: u32) {
        let (first, second) = (self.gte(guest), self.rgte(guest));
        self.set32(first, sector);
        self.set32(second, sector);
    }
    pub fn sector(&self, guest: u64) -> u32 {
        self.u32(self.gte(guest))
    }
    pub fn replace(&mut self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        let at = self.bytes.windows(from.len()).position(|piece| piece == from.as_bytes()).unwrap();
        self.bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    pub fn append(&mut self, with: u8, len: usize) {
        let end = self.bytes.len() + len;
        self.bytes.resize(end, with);
    }
}

/// What the image is damaged from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Base {
    Sparse,
    Zeroed,
    Stream,
    /// A true stream, as VMware writes it: built from the one above.
    TrueStream,
    Cowd,
    SeSparse,
}

pub fn base(dir: &Path, which: Base) -> Image {
    let make = |options| Image { bytes: std::fs::read(create(dir, "base.vmdk", options)).unwrap() };
    match which {
        Base::Sparse => make("subformat=monolithicSparse"),
        Base::Zeroed => make("subformat=monolithicSparse,zeroed_grain=on"),
        Base::Stream | Base::TrueStream => {
            let from = create(dir, "from.vmdk", "subformat=monolithicSparse");
            let to = dir.join("base.vmdk");
            let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
            must("qemu-img", &["convert", "-O", "vmdk", "-o", "subformat=streamOptimized", from, to]);
            let image = Image { bytes: std::fs::read(to).unwrap() };
            if which == Base::Stream { image } else { true_stream(&image) }
        }
        Base::Cowd => cowd(),
        Base::SeSparse => se_sparse(),
    }
}

/// The grains of a stream QEMU wrote, in the layout of VMware: behind the header, each table behind its grains,
/// directory, footer.
pub fn true_stream(from: &Image) -> Image {
    let marker = |value: u64, kind: u32| {
        let mut sector = vec![0u8; 512];
        sector[..8].copy_from_slice(&value.to_le_bytes());
        sector[12..16].copy_from_slice(&kind.to_le_bytes());
        sector
    };
    let mut header = from.bytes[..512].to_vec();
    header[8..12].copy_from_slice(&0x3_0001u32.to_le_bytes());
    header[48..56].copy_from_slice(&0u64.to_le_bytes());
    header[64..72].copy_from_slice(&128u64.to_le_bytes());
    let mut out = from.bytes[..128 * 512].to_vec();
    out[21 * 512..].fill(0);
    out[..512].copy_from_slice(&header);
    out[56..64].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut directory = vec![0u8; 512];
    for table in 0..7usize {
        let mut entries = vec![0u8; 2048];
        for entry in 0..512usize {
            let sector = from.u32(from.gt(table) + entry * 4) as usize;
            if sector == 0 {
                continue;
            }
            let len = (12 + from.u32(sector * 512 + 8) as usize).next_multiple_of(512);
            entries[entry * 4..entry * 4 + 4].copy_from_slice(&(out.len() as u32 / 512).to_le_bytes());
            out.extend_from_slice(&from.bytes[sector * 512..sector * 512 + len]);
        }
        if entries.iter().any(|byte| *byte != 0) {
            out.extend(marker(4, 1));
            directory[table * 4..table * 4 + 4].copy_from_slice(&(out.len() as u32 / 512).to_le_bytes());
            out.extend(entries);
        }
    }
    out.extend(marker(1, 2));
    header[56..64].copy_from_slice(&(out.len() as u64 / 512).to_le_bytes());
    out.extend(directory);
    out.extend(marker(1, 3));
    out.extend(header);
    out.extend(marker(0, 0));
    Image { bytes: out }
}

/// 4 MiB in grains of one sector, two tables; the first has 4 grains, the second one.
pub fn cowd() -> Image {
    let mut image = Image { bytes: vec![0; 128 * 512] };
    image.bytes[..4].copy_from_slice(b"COWD");
    for (at, value) in [(4, 1), (8, 3), (12, 8192), (16, 1), (20, 4), (24, 2), (28, 78)] {
        image.set32(at, value);
    }
    image.set32(4 * 512, 8);
    image.set32(4 * 512 + 4, 40);
    for entry in 0..4 {
        image.set32(8 * 512 + entry * 4, 72 + entry as u32);
    }
    image.set32(40 * 512 + 4, 76);
    image.bytes[72 * 512..77 * 512].fill(3);
    image
}

/// 16 MiB, one table, five grains in a row.
pub fn se_sparse() -> Image {
    let mut image = Image { bytes: vec![0; 200 * 512] };
    for (at, value) in [
        (0, 0xcafe_babe),
        (8, 0x2_0000_0001),
        (16, 32_768),
        (24, 8),
        (32, 64),
        (80, 8),
        (88, 1),
        (96, 16),
        (104, 1),
        (112, 24),
        (120, 8),
        (128, 32),
        (136, 8),
        (144, 64),
        (152, 64),
        (160, 40),
        (168, 8),
        (176, 48),
        (184, 8),
        (192, 160),
        (200, 40),
    ] {
        image.set64(at, value);
    }
    image.set64(8 * 512, 0xcafe_cafe);
    image.set64(32 * 512, 0x1000_0000_0000_0000);
    for entry in 0..5u64 {
        // The number's lower 12 bits stand in bits 48..60, the upper ones in bits 0..48.
        image.set64(64 * 512 + entry as usize * 8, 0x3000_0000_0000_0000 | (entry & 0xfff) << 48);
    }
    image.bytes[160 * 512..].fill(4);
    image
}

pub fn options() -> Options {
    Options { data: true, format: Some(Format::Vmdk), ..Options::default() }
}

pub fn codes(report: &Report) -> BTreeSet<&'static str> {
    report.findings.iter().map(|one| one.code.name).collect()
}
