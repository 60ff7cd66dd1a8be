//! What `blkproof check` says of sound and damaged images, whole.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use common::{blkproof, run, shell};
use tempfile::tempdir;

/// A VDI of 64 MiB with four blocks, and a copy of it whose map names block 0 twice and a block that can not be.
fn vdi(dir: &Path) {
    run(dir, "qemu-img", &["create", "-q", "-f", "vdi", "a.vdi", "64M"]).exited(0);
    run(dir, "qemu-io", &["-f", "vdi", "-c", "write 0 3M", "-c", "write 10M 1M", "a.vdi"]).exited(0);
    std::fs::copy(dir.join("a.vdi"), dir.join("d.vdi")).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(dir.join("d.vdi")).unwrap();
    for (entry, block) in [(2u64, 77u32), (10, 0)] {
        file.write_all_at(&block.to_le_bytes(), 0x200 + 4 * entry).unwrap();
    }
}

#[test]
fn a_sound_image_takes_four_lines() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    vdi(dir);
    let want = "\
a.vdi: healthy
  vdi, disk 64 MiB, file 4 MiB: guest data 4 MiB, metadata 768 bytes, free 256 bytes
NOT CHECKED
  - guest data: the format keeps no checksums of it
";
    let outcome = blkproof(dir, &["check", "a.vdi"]).exited(0);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), (want, ""));
}

#[test]
fn a_damaged_image_is_explained_and_its_losses_are_written() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    vdi(dir);
    let args = ["check", "--ddrescue-map", "lost.map", "--map", "svg=a.svg", "--map", "html=a.html", "d.vdi"];
    let outcome = blkproof(dir, &args).exited(2);
    assert_eq!(outcome.stderr, "");
    let want = r#"d.vdi: damaged: 3 MiB of the guest's disk lost, in 3 ranges
  vdi, disk 64 MiB, file 4 MiB: guest data 1 MiB, metadata 768 bytes, claimed twice 1 MiB, unknown 2 MiB, free 256 bytes
CAUSES
  1. two guest ranges are mapped to the same block; usual cause: a map written by two programs at once, or a map sector put in a wrong place (possible, 1 error)
     image 0x400..0x100400; guest 0xa00000..0xb00000, 0x0..0x100000; VDI-BLOCK-TWICE
  2. the header counts other blocks than the map has; usual cause: a crash between writing the map and the header, or a damaged map (possible, 1 error)
     image 0x184..0x188; VDI-HEADER-ALLOCATED
  3. map entries name blocks that can not be; usual cause: the block map was overwritten by something else (possible, 1 error)
     image 0x208..0x20c; guest 0x200000..0x300000; VDI-MAP-RANGE
FINDINGS  (`blkproof explain CODE` says what one means)
  corruption VDI-BLOCK-TWICE
    0x400..0x100400 is claimed by guest data of 0xa00000..0xb00000 and by guest data of 0x0..0x100000
    image 0x400..0x100400; guest 0xa00000..0xb00000, 0x0..0x100000
  corruption VDI-HEADER-ALLOCATED (likely)
    3 blocks are mapped, the header counts 4 as allocated
    image 0x184..0x188
  corruption VDI-MAP-RANGE
    map entry 2 (0x4d): the image has 64 blocks only
    image 0x208..0x20c; guest 0x200000..0x300000
  warning VDI-BLOCK-ORPHAN
    blocks 2..4 (0x200400..0x400400) are counted as allocated and mapped by nothing (2 errors)
    image 0x200400..0x400400
LOST GUEST RANGES  (3 MiB)
  0x0..0x100000  1 MiB
  0x200000..0x300000  1 MiB
  0xa00000..0xb00000  1 MiB
NOT CHECKED
  - guest data: the format keeps no checksums of it
NEXT
  1. keep this file as it is: work on a copy, and do not start the virtual machine on it
  2. do not write to the image; copy the disk and let the guest's file system decide whose the block is
  3. do not write to the image; let `VBoxManage clonemedium` or `qemu-img convert` make a new one from it
  4. look at what lies in the map now; copy the rest of the disk with `qemu-img convert --salvage`
"#;
    assert_eq!(outcome.stdout, want);
    let bad = run(dir, "ddrescuelog", &["-b1048576", "-l-", "lost.map"]).exited(0).stdout;
    assert_eq!(bad, "0\n2\n10\n");
    let good = run(dir, "ddrescuelog", &["-b1048576", "-l+", "lost.map"]).exited(0).stdout;
    assert_eq!(good.lines().count(), 61);
    for (file, begins) in [("a.svg", "<svg"), ("a.html", "<!DOCTYPE html>")] {
        let text = std::fs::read_to_string(dir.join(file)).unwrap();
        assert!(text.contains(begins), "{file}: {}", text.chars().take(80).collect::<String>());
    }
    let term = blkproof(dir, &["check", "--map", "term", "a.vdi"]).exited(0).stdout;
    assert!(term.starts_with("a.vdi: healthy\n") && term.contains("guest data"), "{term}");
}

#[test]
fn findings_are_bounded_and_the_rest_is_counted() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    run(dir, "qemu-img", &["create", "-q", "-f", "vdi", "-o", "static=on", "a.vdi", "64M"]).exited(0);
    // Every other entry names a block that can not be: thirty runs.
    let file = std::fs::OpenOptions::new().write(true).open(dir.join("a.vdi")).unwrap();
    for entry in (2u32..62).step_by(2) {
        file.write_all_at(&(1000 + entry).to_le_bytes(), 0x200 + 4 * u64::from(entry)).unwrap();
    }
    let shown = |args: &[&str]| {
        let report = blkproof(dir, &[&["check"][..], args, &["a.vdi"]].concat()).exited(2).stdout;
        (report.matches("  corruption VDI-MAP-RANGE\n").count(), report)
    };
    let (few, report) = shown(&[]);
    assert!(few == 5 && report.contains("  … and 25 more of VDI-MAP-RANGE; --max-findings\n"), "{report}");
    assert!(report.contains("  … and 18 more; --ddrescue-map FILE lists them\n"), "{report}");
    let (all, report) = shown(&["--max-findings", "1000"]);
    assert!(all == 30 && !report.contains("--max-findings"), "{report}");
    let (none, report) = shown(&["--max-findings", "0"]);
    assert!(none == 0 && report.contains("  … and 30 more of VDI-MAP-RANGE; --max-findings\n"), "{report}");
}

#[test]
fn several_images_stand_apart_and_the_worst_counts() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    vdi(dir);
    shell(dir, "truncate -s 1M a.raw").exited(0);
    for (images, code) in [
        (&["a.vdi", "a.vdi"][..], 0),
        (&["a.vdi", "a.raw"], 63),
        (&["a.raw", "d.vdi", "a.vdi"], 2),
        (&["nix", "a.raw"], 1),
        (&["nix", "d.vdi"], 2),
    ] {
        let outcome = blkproof(dir, &[&["check"][..], images].concat()).exited(code);
        let there = images.iter().filter(|image| **image != "nix").count();
        assert_eq!(outcome.stdout.matches("\n\n").count(), there - 1, "{images:?}: {}", outcome.stdout);
    }
}
