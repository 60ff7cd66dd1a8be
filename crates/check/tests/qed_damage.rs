//! QED: every code is raised by an image that deserves it, and sound images are called healthy.

#![allow(missing_docs, clippy::single_range_in_vec_init, clippy::unwrap_used, clippy::panic)]

mod edit;

use blkproof_check::{Format, Options, Verdict};
use edit::*;

const MIB: u64 = 1 << 20;
const L1: usize = 0x1_0000;
const L2: usize = 0x15_0000;
/// Guest clusters 0, 1, 16..32 and 80 are allocated; this is where cluster 17 lies.
const SECOND: u64 = 0x6_0000;

/// 20 MiB in clusters of 64 KiB.
fn base() -> Vec<u8> {
    let image = image("qed", &[], "20M", &["write -P 7 1M 1M", "write -P 8 5M 64k", "write -P 9 0 100k"]);
    assert_eq!(u64_at(&image, L1), L2 as u64, "qemu-img lays out what the cases change");
    assert_eq!(u64_at(&image, L2 + 17 * 8), SECOND, "qemu-img lays out what the cases change");
    image
}

/// Entry of guest cluster 16, which is at 1 MiB.
fn entry(image: &mut Vec<u8>, value: u64) {
    put_u64(image, L2 + 16 * 8, value);
}

const REFUSED: &str = "it refuses the image and says nothing else";

const TABLE: &[Case] = &[
    Case { name: "as written", ..SOUND },
    Case {
        name: "magic",
        damage: |i| put(i, 0, b"XXXX"),
        codes: &["QED-HEADER-MAGIC"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "cut in the header",
        damage: |i| i.truncate(63),
        codes: &["QED-HEADER-CUT"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "cluster size 0",
        damage: |i| put_u32(i, 4, 0),
        codes: &["QED-HEADER-GEOMETRY"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "cluster size no power of two",
        damage: |i| put_u32(i, 4, 65537),
        codes: &["QED-HEADER-GEOMETRY"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "cluster size 2^27",
        damage: |i| put_u32(i, 4, 1 << 27),
        codes: &["QED-HEADER-GEOMETRY"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "table size 32",
        damage: |i| put_u32(i, 8, 32),
        codes: &["QED-HEADER-GEOMETRY"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "table size 3, supplied",
        damage: |i| put_u32(i, 8, 3),
        exit: (0, 1),
        differs: "it can not be told",
        assume: "table_size=4",
        ..SOUND
    },
    Case {
        name: "header of no cluster",
        damage: |i| put_u32(i, 12, 0),
        codes: &["QED-HEADER-SIZE"],
        exit: (2, 3),
        differs: "it calls the header itself leaked, and its repair would free it",
        ..SOUND
    },
    Case {
        name: "header up to behind the L1 table",
        damage: |i| put_u32(i, 12, 0xffff_ffff),
        codes: &["QED-HEADER-SIZE"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "a feature of tomorrow",
        damage: |i| put_u64(i, 0x10, 8),
        codes: &["QED-HEADER-FEATURES"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case { name: "not closed", damage: |i| put_u64(i, 0x10, 2), codes: &["QED-HEADER-NEED-CHECK"], ..SOUND },
    Case {
        name: "other bits",
        damage: |i| {
            put_u64(i, 0x18, 1);
            put_u64(i, 0x20, 1);
        },
        codes: &["QED-HEADER-UNKNOWN-BITS"],
        ..SOUND
    },
    Case {
        name: "no backing file, and a name that nothing asks for",
        damage: |i| put_u32(i, 0x38, 0xffff_ffff),
        ..SOUND
    },
    Case {
        name: "backing file's name outside the header",
        damage: |i| {
            put_u64(i, 0x10, 5);
            put_u32(i, 0x38, 0x1_0000);
            put_u32(i, 0x3c, 10);
        },
        codes: &["QED-HEADER-BACKING"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "a backing file that is not there",
        damage: |i| {
            put_u64(i, 0x10, 5);
            put_u32(i, 0x38, 0x40);
            put_u32(i, 0x3c, 4);
            put(i, 0x40, b"/nox");
        },
        exit: (0, 1),
        differs: "it opens the backing file, whose absence says nothing of this image",
        ..SOUND
    },
    Case {
        name: "size of half a sector",
        damage: |i| put_u64(i, 0x30, 20 * MIB + 1),
        codes: &["QED-HEADER-DISK-SIZE"],
        exit: (2, 1),
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "size out of the tables' reach",
        damage: |i| put_u64(i, 0x30, (1 << 46) + 512),
        codes: &["QED-HEADER-DISK-SIZE"],
        exit: (2, 1),
        lost: &[1 << 46..(1 << 46) + 512],
        differs: REFUSED,
        ..SOUND
    },
    Case { name: "the largest size there is", damage: |i| put_u64(i, 0x30, 1 << 46), ..SOUND },
    Case {
        name: "L1 table in the header",
        damage: |i| put_u64(i, 0x28, 0),
        codes: &["QED-L1-PLACE"],
        exit: (2, 1),
        lost: &[0..20 * MIB],
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "L1 table unaligned",
        damage: |i| put_u64(i, 0x28, 0x1_0200),
        codes: &["QED-L1-PLACE"],
        exit: (2, 1),
        lost: &[0..20 * MIB],
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "L1 table past the end",
        damage: |i| put_u64(i, 0x28, u64::MAX << 16),
        codes: &["QED-L1-PLACE"],
        exit: (2, 1),
        lost: &[0..20 * MIB],
        differs: REFUSED,
        ..SOUND
    },
    Case {
        name: "L1 table's place supplied",
        damage: |i| put_u64(i, 0x28, u64::MAX),
        exit: (0, 1),
        differs: "it can not be told",
        assume: "l1_offset=64K",
        ..SOUND
    },
    Case {
        name: "L1 entry unaligned",
        damage: |i| put_u64(i, L1, L2 as u64 + 512),
        codes: &["QED-L1-UNALIGNED", "QED-CLUSTER-ORPHAN"],
        exit: (2, 2),
        lost: &[0..20 * MIB],
        ..SOUND
    },
    Case {
        name: "L1 entry 1 means nothing",
        damage: |i| put_u64(i, L1, 1),
        codes: &["QED-L1-UNALIGNED", "QED-TABLE-TWICE", "QED-CLUSTER-ORPHAN", "QED-L2-ORPHAN"],
        exit: (2, 2),
        lost: &[0..20 * MIB],
        ..SOUND
    },
    Case {
        name: "L2 table past the end",
        damage: |i| put_u64(i, L1, 0x1000_0000),
        codes: &["QED-L1-PAST-END", "QED-CLUSTER-ORPHAN", "QED-L2-ORPHAN"],
        exit: (2, 2),
        lost: &[0..20 * MIB],
        ..SOUND
    },
    Case {
        name: "L1 entry of zero: the lost table is found by its shape",
        damage: |i| put_u64(i, L1, 0),
        codes: &["QED-CLUSTER-LEAKED", "QED-L2-ORPHAN"],
        exit: (2, 3),
        differs: "it calls the table and all data leaked, and its repair would free them",
        ..SOUND
    },
    Case {
        name: "the same after a crash",
        damage: |i| {
            put_u64(i, L1, 0);
            put_u64(i, 0x10, 2);
        },
        codes: &["QED-CLUSTER-LEAKED", "QED-L2-ORPHAN", "QED-HEADER-NEED-CHECK"],
        exit: (3, 3),
        ..SOUND
    },
    Case {
        name: "one L2 table in two L1 entries",
        damage: |i| {
            put_u64(i, L1 + 8, L2 as u64);
            put_u64(i, 0x30, 4 << 30);
        },
        codes: &["QED-TABLE-TWICE"],
        exit: (2, 2),
        lost: &[0..4 << 30],
        ..SOUND
    },
    Case {
        name: "L1 table as L2 table",
        damage: |i| put_u64(i, L1, L1 as u64),
        codes: &["QED-TABLE-TWICE", "QED-CLUSTER-ORPHAN", "QED-L2-ORPHAN"],
        exit: (2, 2),
        lost: &[0..20 * MIB],
        ..SOUND
    },
    Case {
        name: "data unaligned",
        damage: |i| entry(i, SECOND + 512),
        codes: &["QED-L2-UNALIGNED", "QED-CLUSTER-TWICE", "QED-CLUSTER-ORPHAN"],
        exit: (2, 2),
        lost: &[MIB..MIB + 0x1_0000, MIB + 0x1_0200..MIB + 0x2_0200],
        ..SOUND
    },
    Case {
        name: "data past the end",
        damage: |i| entry(i, 0x100_0000),
        codes: &["QED-L2-PAST-END", "QED-CLUSTER-LEAKED"],
        exit: (2, 2),
        lost: &[MIB..MIB + 0x1_0000],
        ..SOUND
    },
    Case {
        name: "data past every end",
        damage: |i| entry(i, u64::MAX << 16),
        codes: &["QED-L2-PAST-END", "QED-CLUSTER-LEAKED"],
        exit: (2, 2),
        lost: &[MIB..MIB + 0x1_0000],
        ..SOUND
    },
    Case {
        name: "a data cluster in two places",
        damage: |i| entry(i, SECOND),
        codes: &["QED-CLUSTER-TWICE", "QED-CLUSTER-LEAKED"],
        exit: (2, 2),
        lost: &[MIB..MIB + 0x2_0000],
        ..SOUND
    },
    Case {
        name: "data on the L1 table",
        damage: |i| entry(i, L1 as u64),
        codes: &["QED-TABLE-TWICE", "QED-CLUSTER-LEAKED"],
        exit: (2, 2),
        lost: &[MIB..MIB + 0x1_0000],
        ..SOUND
    },
    Case {
        name: "data on its own L2 table",
        damage: |i| entry(i, L2 as u64),
        codes: &["QED-TABLE-TWICE", "QED-CLUSTER-LEAKED"],
        exit: (2, 2),
        lost: &[0..20 * MIB],
        ..SOUND
    },
    Case {
        name: "a cluster made zero leaks the old one",
        damage: |i| entry(i, 1),
        codes: &["QED-CLUSTER-LEAKED"],
        exit: (3, 3),
        ..SOUND
    },
    Case {
        name: "mapped past the end of the disk",
        damage: |i| {
            entry(i, 0);
            put_u64(i, L2 + 330 * 8, SECOND - 0x1_0000);
        },
        codes: &["QED-L2-STRAY"],
        ..SOUND
    },
    Case {
        name: "cut in the last cluster",
        damage: |i| i.truncate(0x1b_f000),
        codes: &["QED-L2-PAST-END"],
        exit: (2, 2),
        lost: &[0x1_f000..0x2_0000],
        ..SOUND
    },
    Case {
        name: "cut by two clusters",
        damage: |i| i.truncate(0x1a_0000),
        codes: &["QED-L2-PAST-END"],
        exit: (2, 2),
        lost: &[0..0x2_0000],
        ..SOUND
    },
    Case {
        name: "cut in the L2 table",
        damage: |i| i.truncate(0x15_0000 + 100 * 8),
        codes: &["QED-L1-PAST-END", "QED-L2-PAST-END"],
        exit: (2, 2),
        lost: &[0..0x2_0000, 80 * 0x1_0000..81 * 0x1_0000, 100 * 0x1_0000..20 * MIB],
        ..SOUND
    },
    Case {
        name: "cut in the L1 table",
        damage: |i| i.truncate(L1 + 4096),
        codes: &["QED-L1-PLACE", "QED-L1-PAST-END"],
        exit: (2, 1),
        lost: &[0..20 * MIB],
        differs: REFUSED,
        ..SOUND
    },
    Case { name: "less than a cluster behind the last one", damage: |i| i.resize(i.len() + 0x1000, 0), ..SOUND },
    Case {
        name: "a cluster behind the last one",
        damage: |i| i.resize(i.len() + 0x1_0000, 0),
        codes: &["QED-CLUSTER-LEAKED"],
        exit: (3, 3),
        ..SOUND
    },
];

#[test]
fn every_damage_has_its_code() {
    let raised = go_through(Format::Qed, &base(), TABLE);
    all_raised("QED-", &raised);
}

#[test]
fn sound_images_are_healthy() {
    for (options, size, commands) in [
        (&[][..], "0", &[][..]),
        (&[], "512", &["write 0 512"]),
        (&[], "20000256", &["write -P 1 19M 64k", "write -z 1M 1M"]),
        (
            &["-o", "cluster_size=4k,table_size=2"],
            "200M",
            &["write -P 1 0 3M", "write -P 1 150M 1M", "write -P 1 100M 1M"],
        ),
        (&["-o", "cluster_size=1M,table_size=16"], "60T", &["write -P 1 40T 1k"]),
        (&[], "64T", &["write -P 1 1T 64k", "write -P 2 0 3M", "write -P 3 63T 1M"]),
    ] {
        let image = image("qed", options, size, commands);
        assert_eq!(qemu_check("qed", &image), 0, "{size}");
        let report = check_as(Format::Qed, &image, Options::default());
        assert_eq!(report.verdict, Verdict::Healthy, "{options:?} {size}: {:?}", report.findings);
        assert!(report.findings.is_empty(), "{options:?} {size}: {:?}", report.findings);
        for (key, ours) in [
            ("total-clusters", report.numbers.total_clusters),
            ("allocated-clusters", report.numbers.allocated_clusters),
            ("fragmented-clusters", report.numbers.fragmented_clusters),
        ] {
            assert_eq!(ours, qemu_number("qed", &image, key), "{key} of {options:?} {size}");
        }
    }
}

/// An L1 table full of the same L2 table is read once, and told in a few lines.
#[test]
fn one_table_everywhere() {
    let mut image = base();
    put_u64(&mut image, 0x30, 1 << 46);
    for index in 0..32768 {
        put_u64(&mut image, L1 + index * 8, L2 as u64);
    }
    let report = check_as(Format::Qed, &image, Options { max_findings: 10, ..Options::default() });
    assert_eq!(report.verdict, Verdict::Damaged);
    assert_eq!(report.findings.len(), 10);
    assert_eq!(report.lost.bytes, 1 << 46);
}

/// Both owners of a shared cluster are named, with what each loses.
#[test]
fn both_owners_are_named() {
    let mut image = base();
    entry(&mut image, SECOND);
    let report = check_as(Format::Qed, &image, Options::default());
    let finding = report.findings.iter().find(|finding| finding.code.name == "QED-CLUSTER-TWICE").unwrap();
    let mut owners: Vec<_> = finding.owners.iter().map(|owner| owner.guest.clone().unwrap()).collect();
    owners.sort_by_key(|range| range.start);
    assert_eq!(owners, [MIB..MIB + 0x1_0000, MIB + 0x1_0000..MIB + 0x2_0000]);
}
