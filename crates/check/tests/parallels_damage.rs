//! Parallels: every code is raised by an image that deserves it, and sound images are called healthy.

#![allow(missing_docs, clippy::single_range_in_vec_init, clippy::unwrap_used, clippy::panic)]

mod edit;

use std::collections::BTreeSet;

use blkproof_check::map::Class;
use blkproof_check::{Format, Options, Verdict};
use edit::*;
use md5::{Digest as _, Md5};

const MIB: u64 = 1 << 20;
const BAT: usize = 0x40;

/// 20 MiB in clusters of 1 MiB; guest clusters 0, 1 and 5 are at 3, 1 and 2 MiB.
fn base() -> Vec<u8> {
    let image = image("parallels", &[], "20M", &["write -P 7 1M 1M", "write -P 8 5M 64k", "write -P 9 0 100k"]);
    let entries: Vec<u32> = [0, 1, 2, 5].map(|index| u32_at(&image, BAT + index * 4)).to_vec();
    assert_eq!(entries, [3, 1, 0, 2], "qemu-img lays out what the cases change");
    image
}

fn entry(image: &mut Vec<u8>, index: usize, value: u32) {
    put_u32(image, BAT + index * 4, value);
}

/// The same as an image of the old kind, whose BAT counts sectors.
fn old_kind(image: &mut Vec<u8>) {
    put(image, 0, b"WithoutFreeSpace");
    for (index, cluster) in [(0, 3), (1, 1), (5, 2)] {
        entry(image, index, cluster * 2048);
    }
}

/// The base with an extension at 4 MiB, whose one bitmap has its cluster at 5 MiB.
fn with_bitmap() -> Vec<u8> {
    let mut image = base();
    put_u32(&mut image, 0x2c, 0x312e_3276);
    put_u64(&mut image, 0x38, 4 * 2048);
    put(&mut image, 5 << 20, &[0xff; 40]);
    image.resize(6 << 20, 0);
    put_u64(&mut image, EXT, 0xab23_4cef_23dc_ea87);
    put_u64(&mut image, SECTION, 0x2038_5fae_252c_b34a);
    put_u32(&mut image, SECTION + 16, 40);
    put_u64(&mut image, BITMAP, 20 * 2048);
    put_u32(&mut image, BITMAP + 24, 128);
    put_u32(&mut image, BITMAP + 28, 1);
    put_u64(&mut image, BITMAP + 32, 5 * 2048);
    seal(&mut image);
    image
}

const EXT: usize = 4 << 20;
const SECTION: usize = EXT + 24;
const BITMAP: usize = SECTION + 24;

/// Sets the checksum to that of what is there.
fn seal(image: &mut Vec<u8>) {
    let sum = Md5::digest(&image[EXT + 24..EXT + (1 << 20)]);
    put(image, EXT + 8, &sum);
}

const REFUSED: &str = "it refuses the image and says nothing else";
const GIVES_UP: &str = "it finds the cluster used twice, and its check fails with EBUSY";
const ABORTS: &str = "it aborts on an assertion";

const TABLE: &[Case] = &[
    Case { name: "as written", ..SOUND },
    Case { name: "closed by a newer program", damage: |i| put_u32(i, 0x2c, 0x312e_3276), ..SOUND },
    Case { name: "of the old kind", damage: old_kind, ..SOUND },
    Case {
        name: "magic",
        damage: |i| put(i, 0, b"X"),
        codes: &["PRL-HEADER-MAGIC"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case { name: "cut in the header", damage: |i| i.truncate(63), codes: &["PRL-HEADER-CUT"], exit: (2, 2), ..SOUND },
    Case {
        name: "version 3",
        damage: |i| put_u32(i, 0x10, 3),
        codes: &["PRL-HEADER-VERSION"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "clusters of no sector",
        damage: |i| put_u32(i, 0x1c, 0),
        codes: &["PRL-HEADER-CLUSTER"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "clusters of 2 TiB",
        damage: |i| put_u32(i, 0x1c, u32::MAX),
        codes: &["PRL-HEADER-CLUSTER"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "cluster size supplied",
        damage: |i| put_u32(i, 0x1c, 0),
        exit: (0, 1),
        differs: "it can not be told",
        assume: "tracks=2048",
        ..SOUND
    },
    Case {
        name: "a BAT of 16 GiB",
        damage: |i| put_u32(i, 0x20, u32::MAX),
        codes: &["PRL-HEADER-ENTRIES"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "a BAT with more entries than room",
        damage: |i| put_u32(i, 0x20, 1_000_000),
        codes: &["PRL-HEADER-ENTRIES"],
        exit: (2, 2),
        ..SOUND
    },
    Case {
        name: "a BAT that is too small",
        damage: |i| put_u32(i, 0x20, 19),
        codes: &["PRL-HEADER-SIZE"],
        exit: (2, 0),
        lost: &[19 * MIB..20 * MIB],
        differs: "it does not compare the disk's size with the BAT's",
        ..SOUND
    },
    Case { name: "a BAT that is larger than needed", damage: |i| put_u32(i, 0x20, 21), ..SOUND },
    Case {
        name: "upper half of the size, old kind",
        damage: |i| {
            old_kind(i);
            put_u32(i, 0x28, 1);
        },
        codes: &["PRL-HEADER-SIZE-HIGH"],
        ..SOUND
    },
    Case {
        name: "not closed",
        damage: |i| put_u32(i, 0x2c, 0x746f_6e59),
        codes: &["PRL-HEADER-IN-USE"],
        exit: (2, 2),
        ..SOUND
    },
    Case {
        name: "in use by somebody else",
        damage: |i| put_u32(i, 0x2c, 5),
        codes: &["PRL-HEADER-IN-USE-VALUE"],
        ..SOUND
    },
    Case {
        name: "no data offset",
        damage: |i| put_u32(i, 0x30, 0),
        codes: &["PRL-HEADER-DATA-OFFSET"],
        exit: (2, 2),
        ..SOUND
    },
    Case {
        name: "data offset past the end",
        damage: |i| put_u32(i, 0x30, 0x7fff_f800),
        codes: &["PRL-HEADER-DATA-OFFSET"],
        exit: (2, 2),
        ..SOUND
    },
    Case {
        name: "data offset behind a cluster",
        damage: |i| put_u32(i, 0x30, 4096),
        codes: &["PRL-BAT-BEFORE-DATA"],
        exit: (2, -6),
        differs: ABORTS,
        ..SOUND
    },
    Case {
        name: "no data offset, old kind: the end of the BAT counts",
        damage: |i| {
            old_kind(i);
            put_u32(i, 0x30, 0);
            for (index, sector) in [(0, 4097), (1, 1), (5, 2049)] {
                entry(i, index, sector);
            }
            i.truncate(512 + (3 << 20));
        },
        ..SOUND
    },
    Case { name: "empty, and it is not", damage: |i| put_u32(i, 0x34, 1), codes: &["PRL-HEADER-EMPTY"], ..SOUND },
    Case { name: "other flags", damage: |i| put_u32(i, 0x34, 2), codes: &["PRL-HEADER-FLAGS"], ..SOUND },
    Case {
        name: "cut in the BAT",
        damage: |i| i.truncate(BAT + 8 * 4),
        codes: &["PRL-BAT-CUT", "PRL-BAT-PAST-END", "PRL-HEADER-DATA-OFFSET"],
        exit: (2, 2),
        lost: &[0..2 * MIB, 5 * MIB..6 * MIB, 8 * MIB..20 * MIB],
        ..SOUND
    },
    Case {
        name: "cut in the last cluster",
        damage: |i| i.truncate(0x38_0000),
        codes: &["PRL-BAT-PAST-END"],
        exit: (2, -6),
        lost: &[0x8_0000..MIB],
        differs: ABORTS,
        ..SOUND
    },
    Case {
        name: "a cluster past the end",
        damage: |i| entry(i, 1, 1000),
        codes: &["PRL-BAT-PAST-END"],
        exit: (2, -6),
        lost: &[MIB..2 * MIB],
        differs: ABORTS,
        ..SOUND
    },
    Case {
        name: "a cluster past the end of everything, and the last one lost",
        damage: |i| {
            entry(i, 1, u32::MAX);
            entry(i, 0, 0);
        },
        codes: &["PRL-BAT-PAST-END", "PRL-CLUSTER-ORPHAN"],
        exit: (2, -6),
        lost: &[MIB..2 * MIB],
        differs: ABORTS,
        ..SOUND
    },
    Case {
        name: "a cluster in two places",
        damage: |i| entry(i, 1, 3),
        codes: &["PRL-CLUSTER-TWICE"],
        exit: (2, 2),
        lost: &[0..2 * MIB],
        ..SOUND
    },
    Case {
        name: "a cluster in two places, apart",
        damage: |i| entry(i, 7, 3),
        codes: &["PRL-CLUSTER-TWICE"],
        exit: (2, 1),
        lost: &[0..MIB, 7 * MIB..8 * MIB],
        differs: GIVES_UP,
        ..SOUND
    },
    Case {
        name: "a cluster in the BAT, old kind",
        damage: |i| {
            old_kind(i);
            entry(i, 7, 0x1);
            put_u32(i, 0x30, 1);
        },
        codes: &["PRL-CLUSTER-TWICE", "PRL-BAT-UNALIGNED"],
        exit: (2, 1),
        differs: GIVES_UP,
        lost: &[MIB..MIB + 512, 7 * MIB + (1 << 20) - 512..8 * MIB],
        ..SOUND
    },
    Case {
        name: "a mapping lost in the middle: the cluster is free and will be used again",
        damage: |i| entry(i, 1, 0),
        ..SOUND
    },
    Case {
        name: "a mapping lost at the end",
        damage: |i| entry(i, 0, 0),
        codes: &["PRL-CLUSTER-LEAKED"],
        exit: (3, 3),
        ..SOUND
    },
    Case {
        name: "half a cluster behind the last one",
        damage: |i| i.resize(0x48_0000, 0),
        codes: &["PRL-CLUSTER-LEAKED"],
        exit: (3, 3),
        ..SOUND
    },
    Case {
        name: "mapped past the end of the disk",
        damage: |i| put_u64(i, 0x24, 5 * 2048),
        codes: &["PRL-BAT-STRAY"],
        ..SOUND
    },
    Case {
        name: "the last cluster is short, where the disk ends",
        damage: |i| {
            put_u64(i, 0x24, 5 * 2048 + 128);
            entry(i, 5, 3);
            entry(i, 0, 2);
            i.truncate((3 << 20) + 65536);
        },
        codes: &["PRL-CLUSTER-SHORT"],
        exit: (0, -6),
        differs: ABORTS,
        ..SOUND
    },
    Case {
        name: "not on the grid, old kind",
        damage: |i| {
            old_kind(i);
            entry(i, 1, 2048 - 1024);
            put_u32(i, 0x30, 8);
        },
        codes: &["PRL-BAT-UNALIGNED"],
        ..SOUND
    },
    Case {
        name: "extension nowhere",
        damage: |i| put_u64(i, 0x38, u64::MAX),
        codes: &["PRL-EXT-PLACE", "PRL-EXT-STALE"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
];

const NO_BITMAPS: &str = "it does not know the bitmaps' clusters, which it calls leaked";

const BITMAPS: &[Case] = &[
    Case { name: "as written", exit: (0, 3), differs: NO_BITMAPS, ..SOUND },
    Case {
        name: "opened by an old program",
        damage: |i| put_u32(i, 0x2c, 0),
        codes: &["PRL-EXT-STALE"],
        exit: (0, 3),
        differs: NO_BITMAPS,
        ..SOUND
    },
    Case {
        name: "a byte changed",
        damage: |i| put(i, EXT + 5000, &[1]),
        codes: &["PRL-EXT-CHECKSUM"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "magic",
        damage: |i| put(i, EXT, &[1]),
        codes: &["PRL-EXT-MAGIC", "PRL-CLUSTER-ORPHAN"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "a section of 4 GiB",
        damage: |i| {
            put_u32(i, SECTION + 16, u32::MAX);
            seal(i);
        },
        codes: &["PRL-EXT-SECTION", "PRL-CLUSTER-ORPHAN"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "a section of tomorrow: its clusters are not called leaked",
        damage: |i| {
            put_u64(i, SECTION, 7);
            seal(i);
        },
        codes: &["PRL-EXT-UNKNOWN", "PRL-CLUSTER-ORPHAN"],
        exit: (0, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "bitmap of another disk",
        damage: |i| {
            put_u64(i, BITMAP, 5);
            seal(i);
        },
        codes: &["PRL-BITMAP-SHAPE"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "granularity 0",
        damage: |i| {
            put_u32(i, BITMAP + 24, 0);
            seal(i);
        },
        codes: &["PRL-BITMAP-SHAPE"],
        exit: (2, -6),
        differs: ABORTS,
        ..SOUND
    },
    Case {
        name: "a table of 32 GiB",
        damage: |i| {
            put_u32(i, BITMAP + 28, u32::MAX);
            seal(i);
        },
        codes: &["PRL-BITMAP-SHAPE"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "bitmap cluster past the end",
        damage: |i| {
            put_u64(i, BITMAP + 32, 1 << 50);
            seal(i);
        },
        codes: &["PRL-BITMAP-CLUSTER", "PRL-CLUSTER-LEAKED"],
        exit: (2, 3),
        differs: "it does not look where a bitmap's clusters are",
        ..SOUND
    },
    Case {
        name: "guest data on the bitmap",
        damage: |i| entry(i, 3, 5),
        codes: &["PRL-CLUSTER-ON-METADATA"],
        exit: (2, 0),
        lost: &[3 * MIB..4 * MIB],
        differs: "it does not know the bitmaps' clusters",
        ..SOUND
    },
    Case {
        name: "bitmap on the extension",
        damage: |i| {
            put_u64(i, BITMAP + 32, 4 * 2048);
            seal(i);
        },
        codes: &["PRL-METADATA-TWICE", "PRL-CLUSTER-LEAKED"],
        exit: (2, 3),
        differs: "it does not look where a bitmap's clusters are",
        ..SOUND
    },
];

#[test]
fn every_damage_has_its_code() {
    let mut raised: BTreeSet<_> = go_through(Format::Parallels, &base(), TABLE);
    raised.extend(go_through(Format::Parallels, &with_bitmap(), BITMAPS));
    all_raised("PRL-", &raised);
}

#[test]
fn sound_images_are_healthy() {
    for (options, size, commands) in [
        (&[][..], "0", &[][..]),
        (&[], "512", &["write 0 512"]),
        (&[], "20000256", &["write -P 1 19M 64k", "write -P 1 3M 2M", "write -P 1 1M 1M"]),
        (&["-o", "cluster_size=64k"], "100M", &["write -P 1 0 1M", "write -P 1 50M 3M", "write -P 1 9M 1M"]),
        (&[], "2T", &["write -P 1 1T 64k", "write -P 2 0 3M"]),
        (&[], "20M", &["write -P 1 0 10M", "discard 2M 1M", "discard 5M 3M"]),
    ] {
        let image = image("parallels", options, size, commands);
        assert_eq!(qemu_check("parallels", &image), 0, "{size}");
        let report = check_as(Format::Parallels, &image, Options::default());
        assert_eq!(report.verdict, Verdict::Healthy, "{options:?} {size}: {:?}", report.findings);
        assert!(report.findings.is_empty(), "{options:?} {size}: {:?}", report.findings);
        numbers(&image, &report, &format!("{options:?} {size} {commands:?}"));
    }
}

fn numbers(image: &[u8], report: &blkproof_check::Report, what: &str) {
    for (key, ours) in [
        ("image-end-offset", report.numbers.image_end_offset),
        ("total-clusters", report.numbers.total_clusters),
        ("allocated-clusters", report.numbers.allocated_clusters),
        ("fragmented-clusters", report.numbers.fragmented_clusters),
    ] {
        assert_eq!(ours, qemu_number("parallels", image, key), "{key} of {what}");
    }
}

/// Images that Parallels wrote. The one with a dirty bitmap is what `qemu-img check` calls leaked.
#[test]
fn images_of_parallels_are_healthy() {
    for (name, qemu) in [("parallels-v1", 0), ("parallels-v2", 0), ("parallels-with-bitmap", 3)] {
        let Some(image) = sample(&format!("qemu-iotests/{name}.bz2")) else { return };
        assert_eq!(qemu_check("parallels", &image), qemu, "{name}");
        let report = check_as(Format::Parallels, &image, Options::default());
        assert_eq!(report.verdict, Verdict::Healthy, "{name}: {:?}", report.findings);
        assert!(report.findings.is_empty(), "{name}: {:?}", report.findings);
        assert_eq!(bytes(&report, Class::BitmapData) > 0, qemu == 3, "{name}");
        if qemu == 0 {
            numbers(&image, &report, name);
        }
    }
}

#[test]
fn a_descriptor_names_its_images_and_opens_none() {
    let text = b"<?xml version='1.0'?><Parallels_disk_image><StorageData><Storage><Image><File>disk.hdd.0.{5fba}.hds\x1b[2J</File>\
                 </Image></Storage></StorageData></Parallels_disk_image>";
    let report = check_as(Format::Parallels, text, Options::default());
    assert_eq!(report.verdict, Verdict::Undecided);
    let names: Vec<_> = report.references.iter().map(|reference| reference.name.as_str()).collect();
    assert_eq!(names, ["disk.hdd.0.{5fba}.hds\\u{1b}[2J"]);
}

/// Both owners of a shared cluster are named, with what each loses.
#[test]
fn both_owners_are_named() {
    let mut image = base();
    entry(&mut image, 7, 3);
    let report = check_as(Format::Parallels, &image, Options::default());
    let finding = report.findings.iter().find(|finding| finding.code.name == "PRL-CLUSTER-TWICE").unwrap();
    let mut owners: Vec<_> = finding.owners.iter().map(|owner| owner.guest.clone().unwrap()).collect();
    owners.sort_by_key(|range| range.start);
    assert_eq!(owners, [0..MIB, 7 * MIB..8 * MIB]);
}
