//! VDI: every code is raised by an image that deserves it, and sound images are called healthy.

#![allow(
    missing_docs,
    clippy::single_range_in_vec_init,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod edit;

use blkproof_check::{Format, Options, Verdict};
use edit::*;

const MIB: u64 = 1 << 20;
const MAP: usize = 0x200;
const FREE: u32 = 0xffff_ffff;

/// 20 MiB; guest blocks 0, 1 and 5 are blocks 2, 0 and 1.
fn base() -> Vec<u8> {
    let image = image("vdi", &[], "20M", &["write -P 7 1M 1M", "write -P 8 5M 64k", "write -P 9 0 100k"]);
    let entries: Vec<u32> = [0, 1, 2, 5].map(|index| u32_at(&image, MAP + index * 4)).to_vec();
    assert_eq!(entries, [2, 0, FREE, 1], "qemu-img lays out what the cases change");
    image
}

fn entry(image: &mut Vec<u8>, index: usize, value: u32) {
    put_u32(image, MAP + index * 4, value);
}

const TABLE: &[Case] = &[
    Case { name: "as written", ..SOUND },
    Case {
        name: "signature",
        damage: |i| put_u32(i, 0x40, 1),
        codes: &["VDI-HEADER-SIGNATURE"],
        exit: (2, 1),
        differs: "it refuses the image and says nothing else",
        ..SOUND
    },
    Case {
        name: "cut in the header",
        damage: |i| i.truncate(300),
        codes: &["VDI-HEADER-CUT"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "empty file",
        damage: |i| i.clear(),
        codes: &["VDI-HEADER-CUT"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "version 2.3",
        damage: |i| put_u32(i, 0x44, 0x2_0003),
        codes: &["VDI-HEADER-VERSION"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "version 0.0 exists, with another header: nothing can be said",
        damage: |i| put_u32(i, 0x44, 0),
        exit: (1, 1),
        ..SOUND
    },
    Case { name: "header size", damage: |i| put_u32(i, 0x48, 0x100), codes: &["VDI-HEADER-SIZE"], ..SOUND },
    Case {
        name: "type 9",
        damage: |i| put_u32(i, 0x4c, 9),
        codes: &["VDI-HEADER-TYPE"],
        exit: (2, 0),
        differs: "it does not look at the type, which decides what free blocks read as",
        ..SOUND
    },
    Case { name: "fixed with free blocks", damage: |i| put_u32(i, 0x4c, 2), codes: &["VDI-MAP-FIXED-FREE"], ..SOUND },
    Case {
        name: "differencing without a parent",
        damage: |i| put_u32(i, 0x4c, 4),
        codes: &["VDI-HEADER-CHAIN"],
        exit: (2, 0),
        differs: "it does not look at the type",
        ..SOUND
    },
    Case {
        name: "dynamic with a link",
        damage: |i| put(i, 0x1a8, &[1; 16]),
        codes: &["VDI-HEADER-CHAIN"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "dynamic with a parent",
        damage: |i| put(i, 0x1b8, &[1; 16]),
        codes: &["VDI-HEADER-CHAIN"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "a snapshot of VirtualBox",
        damage: |i| {
            put_u32(i, 0x4c, 4);
            put(i, 0x1a8, &[1; 32]);
        },
        exit: (0, 1),
        differs: "it does not open differencing images, which are sound",
        ..SOUND
    },
    Case {
        name: "sector size",
        damage: |i| put_u32(i, 0x168, 4096),
        codes: &["VDI-HEADER-SECTOR-SIZE"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "block size 0",
        damage: |i| put_u32(i, 0x178, 0),
        codes: &["VDI-HEADER-BLOCK-SIZE"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "block size 0, supplied",
        damage: |i| put_u32(i, 0x178, 0),
        exit: (0, 1),
        differs: "it can not be told",
        assume: "block_size=1M",
        ..SOUND
    },
    Case {
        name: "blocks of 512 KiB, with room for it",
        damage: |i| {
            put_u32(i, 0x178, 512 << 10);
            put_u64(i, 0x170, 10 * MIB);
            i.truncate(0x400 + 3 * (512 << 10));
        },
        codes: &["VDI-HEADER-UNUSUAL-BLOCK"],
        exit: (0, 1),
        differs: "it refuses other block sizes, which the format allows",
        ..SOUND
    },
    Case {
        name: "extra bytes in front of each block",
        damage: |i| {
            put_u32(i, 0x17c, 512);
            i.resize(0x400 + 3 * ((1 << 20) + 512), 0);
        },
        codes: &["VDI-HEADER-UNUSUAL-BLOCK"],
        ..SOUND
    },
    Case {
        name: "data offset in the map",
        damage: |i| put_u32(i, 0x158, 0x200),
        codes: &["VDI-HEADER-OFFSETS", "VDI-BLOCK-ON-METADATA"],
        exit: (2, 0),
        lost: &[MIB..MIB + 80],
        differs: "it does not look where the data begins",
        ..SOUND
    },
    Case {
        name: "data offset unaligned",
        damage: |i| put_u32(i, 0x158, 0x3ff),
        codes: &["VDI-HEADER-OFFSETS"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "map in the header",
        damage: |i| put_u32(i, 0x154, 0x100),
        codes: &["VDI-HEADER-OFFSETS", "VDI-MAP-ZEROED", "VDI-HEADER-ALLOCATED", "VDI-BLOCK-ORPHAN"],
        exit: (2, 1),
        lost: &[0..20 * MIB],
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "map in the header, its place supplied",
        damage: |i| put_u32(i, 0x154, 0x100),
        exit: (0, 1),
        differs: "it can not be told",
        assume: "map_offset=0x200",
        ..SOUND
    },
    Case {
        name: "disk larger than its map",
        damage: |i| put_u64(i, 0x170, 20 * MIB + 1),
        codes: &["VDI-HEADER-DISK-SIZE"],
        exit: (2, 1),
        lost: &[20 * MIB..20 * MIB + 1],
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "absurdly many blocks: one line, and no table of that size is asked for",
        damage: |i| put_u32(i, 0x180, 0xffff_ffff),
        codes: &["VDI-HEADER-BLOCKS"],
        exit: (2, 1),
        differs: "it refuses the image",
        ..SOUND
    },
    Case {
        name: "count too small",
        damage: |i| put_u32(i, 0x184, 2),
        codes: &["VDI-HEADER-ALLOCATED", "VDI-MAP-UNALLOCATED"],
        exit: (2, 2),
        ..SOUND
    },
    Case {
        name: "count too large",
        damage: |i| put_u32(i, 0x184, 4),
        codes: &["VDI-HEADER-ALLOCATED"],
        exit: (2, 2),
        ..SOUND
    },
    Case {
        name: "a mapping lost",
        damage: |i| entry(i, 5, FREE),
        codes: &["VDI-HEADER-ALLOCATED", "VDI-BLOCK-LEAKED"],
        exit: (2, 2),
        ..SOUND
    },
    Case {
        name: "a mapping made zero",
        damage: |i| entry(i, 0, 0xffff_fffe),
        codes: &["VDI-HEADER-ALLOCATED", "VDI-BLOCK-LEAKED"],
        exit: (2, 2),
        ..SOUND
    },
    Case {
        name: "the file is cut in the last block",
        damage: |i| i.truncate(0x400 + 0x28_0000),
        codes: &["VDI-MAP-PAST-END"],
        exit: (2, 0),
        lost: &[0x8_0000..MIB],
        differs: "it does not compare with the file's length",
        ..SOUND
    },
    Case {
        name: "the file is cut by two blocks",
        damage: |i| i.truncate(0x400 + 0x10_0000),
        codes: &["VDI-MAP-PAST-END"],
        exit: (2, 0),
        lost: &[0..MIB, 5 * MIB..6 * MIB],
        differs: "it does not compare with the file's length",
        ..SOUND
    },
    Case {
        name: "the file is cut in the map",
        damage: |i| i.truncate(0x220),
        codes: &["VDI-MAP-CUT", "VDI-MAP-PAST-END"],
        exit: (2, 2),
        lost: &[0..2 * MIB, 5 * MIB..6 * MIB, 8 * MIB..20 * MIB],
        ..SOUND
    },
    Case {
        name: "a block that can not be",
        damage: |i| entry(i, 1, 1000),
        codes: &["VDI-MAP-RANGE", "VDI-HEADER-ALLOCATED", "VDI-BLOCK-ORPHAN"],
        exit: (2, 2),
        lost: &[MIB..2 * MIB],
        ..SOUND
    },
    Case {
        name: "a block not allocated, and in the file",
        damage: |i| {
            entry(i, 1, 3);
            i.resize(0x400 + (4 << 20), 0);
        },
        codes: &["VDI-MAP-UNALLOCATED", "VDI-BLOCK-LEAKED"],
        exit: (2, 0),
        differs: "it does not look whether the next allocation overwrites the block",
        ..SOUND
    },
    Case {
        name: "a block mapped twice",
        damage: |i| entry(i, 7, 1),
        codes: &["VDI-BLOCK-TWICE", "VDI-HEADER-ALLOCATED"],
        exit: (2, 2),
        lost: &[5 * MIB..6 * MIB, 7 * MIB..8 * MIB],
        ..SOUND
    },
    Case {
        name: "a block mapped twice by neighbours",
        damage: |i| {
            entry(i, 6, 1);
            put_u32(i, 0x184, 4);
        },
        codes: &["VDI-BLOCK-TWICE"],
        exit: (2, 2),
        lost: &[5 * MIB..7 * MIB],
        ..SOUND
    },
    Case {
        name: "a stretch of the map is zero",
        damage: |i| (8..20).for_each(|index| entry(i, index, 0)),
        codes: &["VDI-MAP-ZEROED", "VDI-BLOCK-TWICE", "VDI-HEADER-ALLOCATED"],
        exit: (2, 2),
        lost: &[MIB..2 * MIB, 8 * MIB..20 * MIB],
        ..SOUND
    },
    Case {
        name: "mapped past the end of the disk",
        damage: |i| put_u64(i, 0x170, 5 * MIB),
        codes: &["VDI-MAP-STRAY"],
        ..SOUND
    },
    Case {
        name: "the last block is short, where the disk ends",
        damage: |i| {
            put_u64(i, 0x170, 5 * MIB + 65536);
            entry(i, 0, 1);
            entry(i, 5, 2);
            i.truncate(0x400 + (2 << 20) + 65536);
        },
        codes: &["VDI-BLOCK-SHORT"],
        ..SOUND
    },
    Case {
        name: "bytes behind the last block are room for the next one",
        damage: |i| i.resize(i.len() + 1_234_567, 0),
        ..SOUND
    },
];

#[test]
fn every_damage_has_its_code() {
    let raised = go_through(Format::Vdi, &base(), TABLE);
    all_raised("VDI-", &raised);
}

#[test]
fn sound_images_are_healthy() {
    for (options, size, commands) in [
        (&[][..], "0", &[][..]),
        (&[], "512", &["write 0 512"]),
        (&[], "20000001", &["write -P 1 19M 64k"]),
        (&["-o", "static=on"], "20M", &[]),
        (&["-o", "static=on"], "7777777", &["write -P 1 0 1M"]),
        (&[], "2T", &["write -P 1 1T 64k", "write -P 2 0 3M"]),
    ] {
        let image = image("vdi", options, size, commands);
        assert_eq!(qemu_check("vdi", &image), 0, "{size}");
        let report = check_as(Format::Vdi, &image, Options::default());
        assert_eq!(report.verdict, Verdict::Healthy, "{options:?} {size}: {:?}", report.findings);
        assert!(report.findings.is_empty(), "{options:?} {size}: {:?}", report.findings);
    }
}

/// Both owners of a block are named, with what each loses.
#[test]
fn both_owners_are_named() {
    let mut image = base();
    entry(&mut image, 7, 1);
    let report = check_as(Format::Vdi, &image, Options::default());
    let finding = report.findings.iter().find(|finding| finding.code.name == "VDI-BLOCK-TWICE").unwrap();
    let mut owners: Vec<_> = finding.owners.iter().map(|owner| owner.guest.clone().unwrap()).collect();
    owners.sort_by_key(|range| range.start);
    assert_eq!(owners, [5 * MIB..6 * MIB, 7 * MIB..8 * MIB]);
    assert_eq!(finding.host, [0x400 + MIB..0x400 + 2 * MIB]);
}

/// 200,000 blocks in a shuffled order: the answer is the same with memory for a few thousand of them at a time.
#[test]
fn a_large_shuffled_map_in_little_memory() {
    let blocks = 200_000u32;
    let mut image = image("vdi", &[], "200000M", &[]);
    for index in 0..blocks {
        // 77,777 and 200,000 have no common factor.
        let entry = u32::try_from(u64::from(index) * 77_777 % u64::from(blocks)).unwrap();
        put_u32(&mut image, MAP + index as usize * 4, entry);
    }
    put_u32(&mut image, 0x184, blocks);
    // Two of them share one, which leaves one unused.
    let taken = u32_at(&image, MAP + 8000);
    put_u32(&mut image, MAP + 4000, taken);
    let data = u64::from(u32_at(&image, 0x158));
    let source = Sparse { head: image, len: data + u64::from(blocks) * MIB };
    for memory in [64 << 20, 4 << 20] {
        let options = Options { memory, cells: 100, ..Options::default() };
        let report = blkproof_check::check(&source, &options, &blkproof_check::watch::Silent);
        assert_eq!(codes(&report).into_iter().collect::<Vec<_>>(), ["VDI-BLOCK-LEAKED", "VDI-BLOCK-TWICE"], "{memory}");
        assert_eq!(report.findings.len(), 2, "{memory}");
        assert_eq!(report.lost.ranges, [1000 * MIB..1001 * MIB, 2000 * MIB..2001 * MIB], "{memory}");
        assert_eq!(report.host.unwrap().totals.iter().sum::<u64>(), source.len, "{memory}");
    }
}

/// A file whose data is a hole.
struct Sparse {
    head: Vec<u8>,
    len: u64,
}

impl blkproof_check::source::Source for Sparse {
    fn name(&self) -> String {
        "sparse".to_owned()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        buf.fill(0);
        let head = usize::try_from(at).ok().and_then(|at| self.head.get(at..)).unwrap_or_default();
        let len = head.len().min(buf.len());
        buf[..len].copy_from_slice(&head[..len]);
        Ok(buf.len().min(usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX)))
    }
}
