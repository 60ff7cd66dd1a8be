//! VHD and VHDX images written by Hyper-V, Windows, Virtual PC, Disk2vhd and old versions of QEMU: all of them are
//! healthy.
//!
//! They are not part of the project: the folder is named by `BLKPROOF_SAMPLE_IMAGES`.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use blkproof_check::source::FileSource;
use blkproof_check::watch::Silent;
use blkproof_check::{Format, Options, Verdict, check};

/// Name, format, bytes of the disk, blocks in the file, codes.
const SAMPLES: &[(&str, Format, u64, u64, &[&str])] = &[
    ("qemu-iotests/d2v-zerofilled.vhd.bz2", Format::Vhd, 263_454_720, 126, &[]),
    ("qemu-iotests/hyperv2012r2-dynamic.vhd.bz2", Format::Vhd, 136_365_211_648, 0, &[]),
    // Its geometry is 4064 sectors short of its size, as Virtual PC rounds.
    ("qemu-iotests/virtualpc-dynamic.vhd.bz2", Format::Vhd, 136_365_211_648, 0, &["VHD-SIZE-GEOMETRY"]),
    ("qemu-iotests/iotest-dynamic-1G.vhdx.bz2", Format::Vhdx, 1 << 30, 3, &[]),
    ("qemu-iotests/test-disk2vhd.vhdx.bz2", Format::Vhdx, 256 << 20, 128, &[]),
    // Four blocks in it hold data and have no entry: its writer was killed more than once.
    (
        "qemu-iotests/iotest-dirtylog-10G-4M.vhdx.bz2",
        Format::Vhdx,
        10 << 30,
        18,
        &["VHDX-BLOCK-ORPHAN", "VHDX-LOG-PENDING"],
    ),
    ("discutils/btrfs.vhdx.gz", Format::Vhdx, 1 << 30, 2, &[]),
    ("discutils/swap.vhdx.gz", Format::Vhdx, 10 << 30, 1, &[]),
    ("discutils/xfs5.vhdx.gz", Format::Vhdx, 10 << 30, 5, &[]),
    // Its block table is empty until the log is replayed.
    ("discutils/vhdx-log-replay.vhdx.gz", Format::Vhdx, 1 << 30, 1, &["VHDX-LOG-PENDING"]),
];

#[test]
fn images_of_other_programs_are_healthy() {
    let Some(folder) = std::env::var_os("BLKPROOF_SAMPLE_IMAGES") else {
        println!("skipped: BLKPROOF_SAMPLE_IMAGES does not name the folder of sample images");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for (name, format, size, blocks, codes) in SAMPLES {
        let program = if name.ends_with("gz") { "gzip" } else { "bzip2" };
        let path = dir.path().join("image");
        // Most of the files are zeroes: dd leaves them out.
        let script = format!("{program} -dc \"$1\" | dd of=\"$2\" bs=64k iflag=fullblock conv=sparse status=none");
        let file = Path::new(&folder).join(name);
        let done = Command::new("sh").args(["-ec", &script, "sh"]).arg(&file).arg(&path).status().unwrap();
        assert!(done.success(), "{name}");
        let report = check(&FileSource::open(&path).unwrap(), &Options::default(), &Silent);
        assert_eq!(
            (report.format, report.verdict),
            (Some(*format), Verdict::Healthy),
            "{name}: {:#?}",
            report.findings
        );
        assert_eq!(report.guest.map(|guest| guest.size), Some(*size), "{name}");
        assert_eq!(report.numbers.allocated_clusters, Some(*blocks), "{name}");
        let got: Vec<_> = report.sums.iter().map(|(name, ..)| *name).collect();
        assert_eq!(got, *codes, "{name}");
        std::fs::remove_file(&path).unwrap();
    }
}
