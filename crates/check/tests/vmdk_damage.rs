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

mod vmdk_image;
mod vmdk_rows;
mod vmdk_support;

use std::collections::{BTreeMap, BTreeSet};

use blkproof_check::{Verdict, catalogue};
use vmdk_image::{Base, Image, base, codes, options};
use vmdk_support::{look, maps_are_whole, qemu_check, told};

#[test]
fn every_damage_is_named_with_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut raised: BTreeSet<&'static str> = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut sound: BTreeMap<Base, Vec<u8>> = BTreeMap::new();
    for row in vmdk_rows::all() {
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
    raised.extend(vmdk_rows::descriptors::raised_codes(dir.path()));
    let all: BTreeSet<&'static str> =
        catalogue::all().map(|one| one.name).filter(|name| name.starts_with("VMDK-")).collect();
    let missing: Vec<_> = all.difference(&raised).collect();
    assert!(missing.is_empty(), "no image raises {missing:?}");
}
