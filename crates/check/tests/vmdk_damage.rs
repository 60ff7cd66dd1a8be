//! Damaged VMDK images: what is said, where, and what is lost; every code of the catalogue is raised by one of them.
//!
//! Each row damages an image that qemu-img made (or, of variants it can not make, one built here) and says what must be
//! found. The row also says what `qemu-img check` answers: 0 where it sees nothing, 1 where it refuses the image or
//! stops at the first bad grain. It never answers 2 or 3 for this format.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init
)]

mod vmdk_support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use blkproof_check::{Assume, Format, Options, Report, Verdict, catalogue};
use vmdk_support::{create, look, maps_are_whole, must, qemu_check, run, told};

const MIB: u64 = 1 << 20;
const GRAIN: u64 = 65_536;

/// An image's bytes, and where its parts are.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
    fn set32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    fn set64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    fn fill(&mut self, at: usize, len: usize, with: &[u8]) {
        for (byte, value) in self.bytes[at..at + len].iter_mut().zip(with.iter().cycle()) {
            *byte = *value;
        }
    }
    fn gd(&self) -> usize {
        self.u64(56) as usize * 512
    }
    fn rgd(&self) -> usize {
        self.u64(48) as usize * 512
    }
    fn gt(&self, table: usize) -> usize {
        self.u32(self.gd() + table * 4) as usize * 512
    }
    fn rgt(&self, table: usize) -> usize {
        self.u32(self.rgd() + table * 4) as usize * 512
    }
    /// Place of the entry for a guest offset.
    fn gte(&self, guest: u64) -> usize {
        let entry = (guest / GRAIN) as usize;
        self.gt(entry / 512) + entry % 512 * 4
    }
    fn rgte(&self, guest: u64) -> usize {
        let entry = (guest / GRAIN) as usize;
        self.rgt(entry / 512) + entry % 512 * 4
    }
    /// Sets the entry in both copies.
    fn map(&mut self, guest: u64, sector: u32) {
        let (first, second) = (self.gte(guest), self.rgte(guest));
        self.set32(first, sector);
        self.set32(second, sector);
    }
    fn sector(&self, guest: u64) -> u32 {
        self.u32(self.gte(guest))
    }
    fn replace(&mut self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        let at = self.bytes.windows(from.len()).position(|piece| piece == from.as_bytes()).unwrap();
        self.bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    fn append(&mut self, with: u8, len: usize) {
        let end = self.bytes.len() + len;
        self.bytes.resize(end, with);
    }
}

/// What the image is damaged from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Base {
    Sparse,
    Zeroed,
    Stream,
    /// A true stream, as VMware writes it: built from the one above.
    TrueStream,
    Cowd,
    SeSparse,
}

struct Row {
    name: &'static str,
    base: Base,
    damage: fn(&mut Image),
    /// Codes that must be found; others of severity above note must not.
    codes: &'static [&'static str],
    verdict: Verdict,
    lost: &'static [std::ops::Range<u64>],
    /// Exit status of qemu-img check; `None` where it can not open that variant by itself.
    qemu: Option<i32>,
}

const LAST: u64 = 200 * MIB;

const ROWS: &[Row] = &[
    Row {
        name: "version 9",
        base: Base::Sparse,
        damage: |image| image.set32(4, 9),
        codes: &["VMDK-HEADER-VERSION"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "unknown flag",
        base: Base::Sparse,
        damage: |image| image.set32(8, image.u32(8) | 1 << 9),
        codes: &["VMDK-HEADER-FLAGS"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "line feeds became CR LF",
        base: Base::Sparse,
        damage: |image| image.fill(73, 4, b"\r\n \r"),
        codes: &["VMDK-HEADER-TEXT-MODE"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "not closed",
        base: Base::Sparse,
        damage: |image| image.bytes[72] = 1,
        codes: &["VMDK-HEADER-UNCLEAN"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "compression algorithm 7",
        base: Base::Sparse,
        damage: |image| image.bytes[77] = 7,
        codes: &["VMDK-HEADER-COMPRESSION"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "capacity 2^60 sectors",
        base: Base::Sparse,
        damage: |image| image.set64(12, 1 << 60),
        codes: &["VMDK-HEADER-CAPACITY"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "a directory of 2^37 entries",
        base: Base::Sparse,
        damage: |image| image.set64(12, 1 << 53),
        codes: &["VMDK-HEADER-CAPACITY"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "grain of no sectors",
        base: Base::Sparse,
        damage: |image| image.set64(20, 0),
        codes: &["VMDK-HEADER-GRAIN-SIZE"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "grain of 2^63 sectors",
        base: Base::Sparse,
        damage: |image| image.set64(20, 1 << 63),
        codes: &["VMDK-HEADER-GRAIN-SIZE"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "tables of 0 entries",
        base: Base::Sparse,
        damage: |image| image.set32(44, 0),
        codes: &["VMDK-HEADER-TABLE-SIZE"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "cut off within the tables",
        base: Base::Sparse,
        damage: |image| image.bytes.truncate(image.gt(3)),
        codes: &["VMDK-HEADER-OVERHEAD", "VMDK-GD-ENTRY", "VMDK-GTE-PAST-END"],
        verdict: Verdict::Damaged,
        lost: &[0..MIB, 100 * MIB..100 * MIB + 3 * GRAIN, 199 * MIB..LAST],
        qemu: Some(1),
    },
    Row {
        name: "overhead too small",
        base: Base::Sparse,
        damage: |image| image.set64(64, 1),
        codes: &["VMDK-HEADER-OVERHEAD-SMALL"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "overhead too large",
        base: Base::Sparse,
        damage: |image| image.set64(64, u64::from(image.sector(0)) + 128),
        codes: &["VMDK-GTE-BEFORE-GRAINS"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "descriptor overwritten",
        base: Base::Sparse,
        damage: |image| image.fill(512, 512, b"junk"),
        codes: &["VMDK-DESCRIPTOR-AREA"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "descriptor of 100 sectors",
        base: Base::Sparse,
        damage: |image| image.set64(36, 100),
        codes: &["VMDK-DESCRIPTOR-AREA"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "no content id",
        base: Base::Sparse,
        damage: |image| image.replace("\nCID=", "\n#ID="),
        codes: &["VMDK-DESCRIPTOR-FIELD"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "no content id of the parent",
        base: Base::Sparse,
        damage: |image| image.replace("parentCID=", "qarentCID="),
        codes: &["VMDK-DESCRIPTOR-FIELD"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "the redundant directory behind everything",
        base: Base::Sparse,
        damage: |image| image.set64(48, 0x007f_0000_0000_0015),
        codes: &["VMDK-COPY-DIRECTORY"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "descriptor's size differs",
        base: Base::Sparse,
        damage: |image| image.replace("RW 409600", "RW 409601"),
        codes: &["VMDK-DESCRIPTOR-SIZE"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "both directories behind the end",
        base: Base::Sparse,
        damage: |image| {
            image.set64(56, 1 << 40);
            image.set64(48, 1 << 40);
        },
        codes: &["VMDK-GD-OUTSIDE", "VMDK-COPY-DIRECTORY"],
        verdict: Verdict::Damaged,
        lost: &[0..LAST],
        qemu: Some(0),
    },
    Row {
        name: "the directory behind the end, its copy sound",
        base: Base::Sparse,
        damage: |image| image.set64(56, 1 << 40),
        codes: &["VMDK-GD-OUTSIDE"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "directory entries past the end, the copy's sound",
        base: Base::Sparse,
        damage: |image| {
            let gd = image.gd();
            image.fill(gd + 4, 8, &[0xff, 0xff, 0xff, 0x7f]);
        },
        codes: &["VMDK-GD-ENTRY"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "directory entries past the end, in both",
        base: Base::Sparse,
        damage: |image| {
            let (gd, rgd) = (image.gd(), image.rgd());
            image.set32(gd + 12, 0x7fff_ffff);
            image.set32(rgd + 12, 0x7fff_ffff);
        },
        codes: &["VMDK-GD-ENTRY"],
        verdict: Verdict::Damaged,
        lost: &[96 * MIB..128 * MIB],
        qemu: Some(0),
    },
    Row {
        name: "a redundant directory of garbage",
        base: Base::Sparse,
        damage: |image| {
            let rgd = image.rgd();
            image.fill(rgd, 512, &[0x77]);
        },
        codes: &["VMDK-COPY-DIRECTORY"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "two directory entries, one table",
        base: Base::Sparse,
        damage: |image| {
            let gd = image.gd();
            let first = image.u32(gd);
            image.set32(gd + 4, first);
        },
        codes: &["VMDK-LAYOUT-OVERLAP"],
        verdict: Verdict::Damaged,
        lost: &[0..64 * MIB],
        qemu: Some(0),
    },
    Row {
        name: "a table overwritten by text, its copy sound",
        base: Base::Sparse,
        damage: |image| {
            let gt = image.gt(0);
            image.fill(gt, 2048, b"these are the guest's own words\n");
        },
        codes: &["VMDK-GT-DESTROYED"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "a table and its copy overwritten",
        base: Base::Sparse,
        damage: |image| {
            let (gt, rgt) = (image.gt(0), image.rgt(0));
            image.fill(gt, 2048, b"these are the guest's own words\n");
            image.fill(rgt, 2048, b"these are the guest's own words\n");
        },
        codes: &["VMDK-GT-DESTROYED"],
        verdict: Verdict::Damaged,
        lost: &[0..32 * MIB],
        qemu: Some(1),
    },
    Row {
        name: "an entry past the end, in both",
        base: Base::Sparse,
        damage: |image| image.map(100 * MIB, 0x7fff_ffff),
        codes: &["VMDK-GTE-PAST-END", "VMDK-GRAIN-UNREFERENCED"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB..100 * MIB + GRAIN],
        qemu: Some(1),
    },
    Row {
        name: "an entry past the end, its copy sound",
        base: Base::Sparse,
        damage: |image| {
            let at = image.gte(100 * MIB);
            image.set32(at, 0x7fff_ffff);
        },
        codes: &["VMDK-COPY-HAS-GRAIN"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "the last grain is cut off",
        base: Base::Sparse,
        damage: |image| image.bytes.truncate(image.bytes.len() - 512),
        codes: &["VMDK-GTE-CUT"],
        verdict: Verdict::Damaged,
        lost: &[LAST - 512..LAST],
        qemu: Some(0),
    },
    Row {
        name: "an entry on the directory",
        base: Base::Sparse,
        damage: |image| {
            let gd = image.gd();
            image.map(100 * MIB, gd as u32 / 512);
        },
        codes: &["VMDK-GTE-METADATA", "VMDK-GRAIN-UNREFERENCED"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB..100 * MIB + GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "entry 1 without the flag",
        base: Base::Sparse,
        damage: |image| image.map(150 * MIB, 1),
        codes: &["VMDK-GTE-METADATA"],
        verdict: Verdict::Damaged,
        lost: &[150 * MIB..150 * MIB + GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "a grain mapped behind the end of the disk",
        base: Base::Sparse,
        damage: |image| image.map(200 * MIB, image.sector(0)),
        codes: &["VMDK-GTE-STRAY"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "grains mapped twice",
        base: Base::Sparse,
        damage: |image| {
            for step in 0..3 {
                image.map(120 * MIB + step * GRAIN, image.sector(100 * MIB + step * GRAIN));
            }
        },
        codes: &["VMDK-GRAIN-SHARED"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB..100 * MIB + 3 * GRAIN, 120 * MIB..120 * MIB + 3 * GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "a grain across two others",
        base: Base::Sparse,
        damage: |image| image.map(120 * MIB, image.sector(100 * MIB) + 64),
        codes: &["VMDK-GRAIN-SHARED"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB + GRAIN / 2..100 * MIB + 3 * GRAIN / 2, 120 * MIB..120 * MIB + GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "a table zeroed, its copy sound",
        base: Base::Sparse,
        damage: |image| {
            let gt = image.gt(0);
            image.fill(gt, 2048, &[0]);
        },
        codes: &["VMDK-COPY-HAS-GRAIN"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "both copies name a sound grain, and not the same",
        base: Base::Sparse,
        damage: |image| {
            let at = image.rgte(100 * MIB);
            let end = image.bytes.len();
            image.append(5, GRAIN as usize);
            image.set32(at, end as u32 / 512);
        },
        codes: &["VMDK-COPY-DIFFERS", "VMDK-GRAIN-UNREFERENCED"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB..100 * MIB + GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "redundant tables zeroed",
        base: Base::Sparse,
        damage: |image| {
            let rgt = image.rgt(0);
            image.fill(rgt, 7 * 2048, &[0]);
        },
        codes: &["VMDK-COPY-STALE"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "a grain nobody maps any more",
        base: Base::Sparse,
        damage: |image| image.map(100 * MIB, 0),
        codes: &["VMDK-GRAIN-UNREFERENCED"],
        verdict: Verdict::Leaks,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "a grain made zero, its space kept",
        base: Base::Zeroed,
        damage: |image| image.map(100 * MIB, 1),
        codes: &["VMDK-GRAIN-UNREFERENCED"],
        verdict: Verdict::Leaks,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "a write cut off before it was mapped",
        base: Base::Sparse,
        damage: |image| image.append(7, GRAIN as usize),
        codes: &["VMDK-GRAIN-UNREFERENCED"],
        verdict: Verdict::Leaks,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "space kept in reserve at the end",
        base: Base::Sparse,
        damage: |image| image.append(0, 4 * GRAIN as usize),
        codes: &["VMDK-FILE-TAIL"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "stream: an entry points at its neighbour's grain",
        base: Base::Stream,
        damage: |image| image.map(100 * MIB, image.sector(100 * MIB + GRAIN)),
        codes: &["VMDK-GRAIN-LBA"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB..100 * MIB + GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "stream: a grain of 4 GiB",
        base: Base::Stream,
        damage: |image| {
            let at = image.sector(100 * MIB) as usize * 512;
            image.set32(at + 8, u32::MAX);
        },
        codes: &["VMDK-GRAIN-LENGTH"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB..100 * MIB + GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "stream: damage inside a grain",
        base: Base::Stream,
        damage: |image| {
            let at = image.sector(100 * MIB) as usize * 512;
            image.fill(at + 14, 8, &[0xff]);
        },
        codes: &["VMDK-GRAIN-INFLATE"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB..100 * MIB + GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "stream: a grain that is longer than it was",
        base: Base::Stream,
        damage: |image| {
            let at = image.sector(100 * MIB) as usize * 512;
            image.set32(at + 8, 600);
        },
        codes: &["VMDK-GRAIN-SHARED"],
        verdict: Verdict::Damaged,
        lost: &[100 * MIB..100 * MIB + 2 * GRAIN],
        qemu: Some(0),
    },
    Row {
        name: "true stream: the end is gone",
        base: Base::TrueStream,
        damage: |image| image.bytes.truncate(128 * 512 + 15 * 512 + 50),
        codes: &["VMDK-FOOTER-MISSING", "VMDK-GRAIN-LENGTH"],
        verdict: Verdict::Damaged,
        lost: &[15 * GRAIN..LAST],
        qemu: Some(1),
    },
    Row {
        name: "true stream: bytes behind the end",
        base: Base::TrueStream,
        damage: |image| image.append(0, 1024),
        codes: &["VMDK-FOOTER-MISSING"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "true stream: header and footer differ",
        base: Base::TrueStream,
        damage: |image| image.set64(12, 409_728),
        codes: &["VMDK-FOOTER-DIFFERS"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "true stream: a table's marker is overwritten",
        base: Base::TrueStream,
        damage: |image| {
            let gd = image.u64(image.bytes.len() - 1024 + 56) as usize * 512;
            let marker = image.u32(gd) as usize * 512 - 512;
            image.fill(marker, 16, &[0xaa]);
        },
        codes: &["VMDK-STREAM-MARKER"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: Some(0),
    },
    Row {
        name: "true stream: the header is gone, the footer is not",
        base: Base::TrueStream,
        damage: |image| image.fill(0, 512, &[0]),
        codes: &["VMDK-HEADER-MAGIC", "VMDK-HEADER-RECONSTRUCTED"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "the header is gone, the descriptor is not",
        base: Base::Sparse,
        damage: |image| image.fill(0, 512, &[0]),
        codes: &["VMDK-HEADER-MAGIC", "VMDK-HEADER-RECONSTRUCTED"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: Some(1),
    },
    Row {
        name: "COWD: a directory too short",
        base: Base::Cowd,
        damage: |image| image.set32(24, 1),
        codes: &["VMDK-GD-SHORT"],
        verdict: Verdict::Damaged,
        lost: &[2 * MIB..4 * MIB],
        qemu: None,
    },
    Row {
        name: "COWD: version 2",
        base: Base::Cowd,
        damage: |image| image.set32(4, 2),
        codes: &["VMDK-HEADER-VERSION"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: None,
    },
    Row {
        name: "COWD: a grain mapped twice",
        base: Base::Cowd,
        damage: |image| {
            let gt = image.u32(4 * 512) as usize * 512;
            image.set32(gt + 400, image.u32(gt));
        },
        codes: &["VMDK-GRAIN-SHARED"],
        verdict: Verdict::Damaged,
        lost: &[0..512, 100 * 512..101 * 512],
        qemu: None,
    },
    Row {
        name: "seSparse: an entry of a type that does not exist",
        base: Base::SeSparse,
        damage: |image| {
            let gt = image.u64(144) as usize * 512;
            image.set64(gt, 0x7000_0000_0000_0000);
        },
        codes: &["VMDK-GTE-TYPE"],
        verdict: Verdict::Damaged,
        lost: &[0..4096],
        qemu: None,
    },
    Row {
        name: "seSparse: a directory entry without its type",
        base: Base::SeSparse,
        damage: |image| {
            let gd = image.u64(128) as usize * 512;
            image.set64(gd, 7);
        },
        codes: &["VMDK-GD-ENTRY"],
        verdict: Verdict::Damaged,
        lost: &[0..16 * MIB],
        qemu: None,
    },
    Row {
        name: "seSparse: grains off 4 KiB",
        base: Base::SeSparse,
        damage: |image| image.set64(192, image.u64(192) + 1),
        codes: &["VMDK-SESPARSE-ALIGNMENT", "VMDK-GTE-CUT"],
        verdict: Verdict::Damaged,
        lost: &[20_480 - 512..20_480],
        qemu: None,
    },
    Row {
        name: "seSparse: the second header is gone",
        base: Base::SeSparse,
        damage: |image| {
            let at = image.u64(80) as usize * 512;
            image.fill(at, 512, &[0]);
        },
        codes: &["VMDK-SESPARSE-VOLATILE"],
        verdict: Verdict::Damaged,
        lost: &[],
        qemu: None,
    },
    Row {
        name: "seSparse: a journal to be replayed",
        base: Base::SeSparse,
        damage: |image| {
            let at = image.u64(80) as usize * 512;
            image.set64(at + 24, 1);
        },
        codes: &["VMDK-HEADER-UNCLEAN"],
        verdict: Verdict::Healthy,
        lost: &[],
        qemu: None,
    },
];

fn base(dir: &Path, which: Base) -> Image {
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
fn true_stream(from: &Image) -> Image {
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
fn cowd() -> Image {
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
fn se_sparse() -> Image {
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

fn options() -> Options {
    Options { data: true, format: Some(Format::Vmdk), ..Options::default() }
}

fn codes(report: &Report) -> BTreeSet<&'static str> {
    report.findings.iter().map(|one| one.code.name).collect()
}

#[test]
fn every_damage_is_named_with_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut raised: BTreeSet<&'static str> = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut sound: BTreeMap<Base, Vec<u8>> = BTreeMap::new();
    for row in ROWS {
        let path = dir.path().join("row.vmdk");
        let bytes = sound.entry(row.base).or_insert_with(|| {
            let image = base(dir.path(), row.base);
            std::fs::write(&path, &image.bytes).unwrap();
            let before = look(&path, &options());
            assert_eq!(before.verdict, Verdict::Healthy, "{} before the damage: {}", row.name, told(&before));
            assert!(before.findings.is_empty(), "{} before the damage: {}", row.name, told(&before));
            image.bytes
        });
        let mut image = Image { bytes: bytes.clone() };
        (row.damage)(&mut image);
        std::fs::write(&path, &image.bytes).unwrap();
        let report = look(&path, &options());
        let want: BTreeSet<&'static str> = row.codes.iter().copied().collect();
        let got = codes(&report);
        raised.extend(&got);
        let same = got == want && report.verdict == row.verdict && report.lost.ranges == row.lost;
        let qemu = row.qemu.map(|_| qemu_check(&path));
        if !same || qemu != row.qemu {
            wrong.push(format!(
                "{}: want {want:?} {:?} lost {:x?} qemu {:?}\ngot qemu {qemu:?}: {}",
                row.name,
                row.verdict,
                row.lost,
                row.qemu,
                told(&report)
            ));
        }
        maps_are_whole(&report, row.name);
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n\n"));
    raised.extend(descriptors(dir.path()));
    let all: BTreeSet<&'static str> =
        catalogue::all().map(|one| one.name).filter(|name| name.starts_with("VMDK-")).collect();
    let missing: Vec<_> = all.difference(&raised).collect();
    assert!(missing.is_empty(), "no image raises {missing:?}");
}

/// Descriptor files with damage, and the codes they raise.
fn descriptors(dir: &Path) -> BTreeSet<&'static str> {
    let mut raised = BTreeSet::new();
    let folder = dir.join("split");
    std::fs::create_dir(&folder).unwrap();
    let sparse = create(&folder, "sparse.vmdk", "subformat=twoGbMaxExtentSparse");
    let flat = create(&folder, "flat.vmdk", "subformat=monolithicFlat");
    let text = std::fs::read_to_string(&sparse).unwrap();
    let flat_text = std::fs::read_to_string(&flat).unwrap();
    let mut see =
        |name: &str, path: &Path, options: &Options, want: &[&'static str], verdict, lost: &[std::ops::Range<u64>]| {
            let report = look(path, options);
            let want: BTreeSet<&'static str> = want.iter().copied().collect();
            assert_eq!((codes(&report), report.verdict), (want, verdict), "{name}: {}", told(&report));
            assert_eq!(report.lost.ranges, lost, "{name}: {}", told(&report));
            maps_are_whole(&report, name);
            raised.extend(codes(&report));
        };
    let open = Options { allow_backing: true, ..Options::default() };
    let untrusted = Options { untrusted: true, ..open.clone() };
    see("untrusted", &sparse, &untrusted, &["VMDK-EXTENT-NAMED"], Verdict::Healthy, &[]);
    let path = folder.join("edited.vmdk");
    for (name, from, to, want, verdict, lost) in [
        (
            "none",
            "RW 409600 SPARSE",
            "XX 409600 SPARSE",
            &["VMDK-DESCRIPTOR-EXTENTS", "VMDK-DESCRIPTOR-FIELD"][..],
            Verdict::Damaged,
            &[][..],
        ),
        ("absolute", "\"sparse-s001", "\"/etc/sparse-s001", &["VMDK-EXTENT-PATH"], Verdict::Undecided, &[]),
        ("upwards", "\"sparse-s001", "\"../sparse-s001", &["VMDK-EXTENT-PATH"], Verdict::Undecided, &[]),
        ("missing", "sparse-s001", "sparse-s002", &["VMDK-EXTENT-MISSING"], Verdict::Damaged, &[0..LAST]),
        ("larger", "RW 409600", "RW 409728", &["VMDK-DESCRIPTOR-SIZE"], Verdict::Damaged, &[LAST..LAST + GRAIN]),
        ("smaller", "RW 409600", "RW 409472", &["VMDK-DESCRIPTOR-SIZE"], Verdict::Healthy, &[]),
        ("sparse that is not", "sparse-s001", "flat-flat", &["VMDK-EXTENT-KIND"], Verdict::Damaged, &[0..LAST]),
    ] {
        let edited = text.replace(from, to);
        assert_ne!(edited, text, "{name}");
        std::fs::write(&path, edited).unwrap();
        see(name, &path, &open, want, verdict, lost);
    }
    std::fs::write(&path, flat_text.replace("RW 409600", "RW 409601")).unwrap();
    see("short", &path, &open, &["VMDK-EXTENT-SHORT"], Verdict::Damaged, &[LAST..LAST + 512]);
    // A link that leads out of the folder is not followed.
    std::fs::write(dir.join("elsewhere.vmdk"), [0; 512]).unwrap();
    std::os::unix::fs::symlink(dir.join("elsewhere.vmdk"), folder.join("link.vmdk")).unwrap();
    std::fs::write(&path, text.replace("sparse-s001", "link")).unwrap();
    see("link", &path, &open, &[], Verdict::Undecided, &[]);

    let twice = "RW 409600 SPARSE \"sparse-s001.vmdk\"\nRW 409600 SPARSE \"sparse-s001.vmdk\"";
    std::fs::write(&path, text.replace("RW 409600 SPARSE \"sparse-s001.vmdk\"", twice)).unwrap();
    see("twice", &path, &open, &["VMDK-EXTENT-TWICE"], Verdict::Damaged, &[0..2 * LAST]);

    // What is wrong in an extent is told with its name and with places on the whole disk.
    let two = "RW 100 ZERO\nRW 409600 SPARSE \"sparse-s001.vmdk\"";
    std::fs::write(&path, text.replace("RW 409600 SPARSE \"sparse-s001.vmdk\"", two)).unwrap();
    let extent = folder.join("sparse-s001.vmdk");
    let sound = std::fs::read(&extent).unwrap();
    let mut image = Image { bytes: sound };
    image.map(100 * MIB, 0x7fff_ffff);
    std::fs::write(&extent, &image.bytes).unwrap();
    let start = 100 * MIB + 100 * 512;
    let want = &["VMDK-GTE-PAST-END", "VMDK-GRAIN-UNREFERENCED"];
    see("in an extent", &path, &open, want, Verdict::Damaged, &[start..start + GRAIN]);

    let parent = create(&folder, "parent.vmdk", "subformat=monolithicSparse");
    let delta = std::fs::read_to_string(&sparse).unwrap();
    let delta = delta.replace("parentCID=ffffffff", "parentCID=12345678\nparentFileNameHint=\"parent.vmdk\"");
    image.map(100 * MIB, 0);
    std::fs::write(&path, delta).unwrap();
    assert!(parent.exists());
    let report = look(&path, &open);
    assert!(codes(&report).contains("VMDK-PARENT-CID"), "{}", told(&report));
    raised.extend(codes(&report));
    raised
}

/// What QEMU opens, we judge like QEMU: variants that are built here are what it takes them for.
#[test]
fn built_variants_are_what_qemu_takes_them_for() {
    let dir = tempfile::tempdir().unwrap();
    let stream = base(dir.path(), Base::TrueStream);
    let path = dir.path().join("stream.vmdk");
    std::fs::write(&path, &stream.bytes).unwrap();
    assert_eq!(qemu_check(&path), 0);
    let from = dir.path().join("from.vmdk");
    must("qemu-img", &["compare", from.to_str().unwrap(), path.to_str().unwrap()]);

    std::fs::write(dir.path().join("cowd.vmdk"), cowd().bytes).unwrap();
    std::fs::write(dir.path().join("se.vmdk"), se_sparse().bytes).unwrap();
    for (name, kind, sectors, pattern) in
        [("cowd.vmdk", "vmfsSparse", 8192, "read -P 3 0 2k"), ("se.vmdk", "seSparse", 32_768, "read -P 4 0 20k")]
    {
        let word = if kind == "seSparse" { "SESPARSE" } else { "VMFSSPARSE" };
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{kind}\"\nRW {sectors} {word} \"{name}\"\n"
        );
        let path = dir.path().join(format!("of-{name}"));
        std::fs::write(&path, text).unwrap();
        must("qemu-io", &["-r", "-f", "vmdk", "-c", pattern, path.to_str().unwrap()]);
        let report = look(&path, &Options { allow_backing: true, ..Options::default() });
        assert_eq!(report.verdict, Verdict::Healthy, "{}", told(&report));
        let (status, text) = run("qemu-img", &["check", "-f", "vmdk", path.to_str().unwrap()]);
        assert_eq!(status, 0, "{text}");
    }
}

/// A truncated file has one cause, whatever number of findings.
#[test]
fn a_truncated_file_is_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = base(dir.path(), Base::Sparse);
    let whole = image.bytes.len();
    image.bytes.truncate(whole - 10 * GRAIN as usize - 1000);
    let path = dir.path().join("row.vmdk");
    std::fs::write(&path, &image.bytes).unwrap();
    let report = look(&path, &options());
    assert_eq!(report.causes.len(), 1, "{:?}", report.causes);
    assert_eq!(report.causes[0].codes, ["VMDK-GTE-PAST-END", "VMDK-GTE-CUT"]);
    assert!(report.causes[0].what.contains(&format!("{whole:#x}")), "{:?}", report.causes);
    assert_eq!(report.lost.ranges, [199 * MIB + 5 * GRAIN + GRAIN - 1000..LAST]);
}

/// Fields a header does not supply any more come from the user.
#[test]
fn assumed_fields_replace_what_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    for (field, value, at) in [("capacity", 409_600, 12usize), ("grain", 128, 20), ("gtes", 512, 44)] {
        let mut image = base(dir.path(), Base::Sparse);
        image.set32(at, 0);
        let path = dir.path().join("row.vmdk");
        std::fs::write(&path, &image.bytes).unwrap();
        assert_eq!(look(&path, &options()).verdict, Verdict::Damaged, "{field}");
        let report = look(&path, &Options { assume: Assume::default().with(field, value), ..options() });
        assert_eq!(report.verdict, Verdict::Healthy, "{field}: {}", told(&report));
    }
}

/// A full table of equal entries, and tables behind tables: memory and output stay bounded (H9, H19).
#[test]
fn a_thousand_entries_for_one_grain() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = base(dir.path(), Base::Sparse);
    let sector = image.sector(0);
    for grain in 0..3200 {
        image.map(grain * GRAIN, sector);
    }
    let path = dir.path().join("row.vmdk");
    std::fs::write(&path, &image.bytes).unwrap();
    let report = look(&path, &Options { max_findings: 10, ..options() });
    assert_eq!(report.verdict, Verdict::Damaged);
    assert_eq!(report.findings.len(), 10);
    assert_eq!(report.lost.bytes, LAST, "{}", told(&report));
    let shared = report.sums.iter().find(|(name, ..)| *name == "VMDK-GRAIN-SHARED").unwrap();
    assert_eq!(shared.2.errors, 3199);
}

/// A directory whose entries all name one table: one finding, and the table is read once (H19).
#[test]
fn a_directory_of_equal_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = base(dir.path(), Base::Sparse);
    let (gd, rgd) = (image.gd(), image.rgd());
    let (first, second) = (image.u32(gd), image.u32(rgd));
    for table in 0..7 {
        image.set32(gd + table * 4, first);
        image.set32(rgd + table * 4, second);
    }
    let path = dir.path().join("row.vmdk");
    std::fs::write(&path, &image.bytes).unwrap();
    let report = look(&path, &options());
    assert_eq!(report.lost.ranges, [0..LAST], "{}", told(&report));
    let found: Vec<_> = report.findings.iter().filter(|one| one.code.name == "VMDK-LAYOUT-OVERLAP").collect();
    assert_eq!((found.len(), found[0].count), (1, 6), "{}", told(&report));
}

/// Every byte of the first sectors and of the tables set to every extreme: a verdict each time, and never a panic.
#[test]
fn no_byte_makes_it_panic() {
    use blkproof_check::source::MemorySource;
    use blkproof_check::watch::Silent;
    let dir = tempfile::tempdir().unwrap();
    for which in [Base::Sparse, Base::Stream, Base::TrueStream, Base::Cowd, Base::SeSparse] {
        let sound = base(dir.path(), which).bytes;
        let mut places: Vec<usize> = (0..96).collect();
        let step = sound.len() / 20;
        places.extend((512..sound.len()).step_by(step.max(1)));
        for at in places {
            for value in [0x80u8, 0xff] {
                let mut bytes = sound.clone();
                bytes[at] = value;
                let report = blkproof_check::check(&MemorySource(bytes), &options(), &Silent);
                maps_are_whole(&report, &format!("{at} of {} = {value}", sound.len()));
            }
        }
        for len in (0..sound.len()).step_by(step.max(1)) {
            let report = blkproof_check::check(&MemorySource(sound[..len].to_vec()), &options(), &Silent);
            maps_are_whole(&report, &format!("{len} bytes"));
        }
    }
}
