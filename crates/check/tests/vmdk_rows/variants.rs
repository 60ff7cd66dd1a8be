//! Damage to the variants: streams of both kinds, COWD, seSparse.

use blkproof_check::Verdict;

use super::super::vmdk_image::{Base, GRAIN, LAST, MIB};
use super::Row;

pub const ROWS: &[Row] = &[
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
