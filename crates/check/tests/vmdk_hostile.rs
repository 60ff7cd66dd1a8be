//! VMDK images that are cut, assumed about, full of equal entries, or changed at any byte.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::single_range_in_vec_init)]

mod vmdk_image;
mod vmdk_support;

use blkproof_check::{Assume, Options, Verdict};
use vmdk_image::{Base, GRAIN, LAST, MIB, base, options};
use vmdk_support::{look, maps_are_whole, told};

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
