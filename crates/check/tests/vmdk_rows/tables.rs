//! Damage to grain directories, grain tables and grains.

use blkproof_check::Verdict;

use super::super::vmdk_image::{Base, GRAIN, LAST, MIB};
use super::Row;

pub const ROWS: &[Row] = &[
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
];
