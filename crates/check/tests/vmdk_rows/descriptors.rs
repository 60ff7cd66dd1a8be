//! Damage to descriptor files and to what they name.

use std::collections::BTreeSet;
use std::path::Path;

use blkproof_check::{Options, Verdict};

use super::super::vmdk_image::{GRAIN, Image, LAST, MIB, codes};
use super::super::vmdk_support::{create, look, maps_are_whole, told};

/// Descriptor files with damage, and the codes they raise.
pub fn raised_codes(dir: &Path) -> BTreeSet<&'static str> {
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
