//! Sound VMDK images of every kind are healthy, and the maps say what lies where.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, unreachable_pub)]

mod vmdk_support;

use blkproof_check::map::{Class, GuestState};
use blkproof_check::{Options, Verdict};
use vmdk_support::{create, look, maps_are_whole, must, qemu_check, run, told};

const KINDS: [&str; 5] =
    ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"];

fn open() -> Options {
    Options { allow_backing: true, data: true, ..Options::default() }
}

#[test]
fn what_qemu_img_creates_is_healthy() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS {
        for size in ["64k", "1M", "5G", "10G"] {
            let path = dir.path().join(format!("{kind}-{size}.vmdk"));
            let options = format!("subformat={kind}");
            must("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &options, path.to_str().unwrap(), size]);
            let report = look(&path, &open());
            assert_eq!(report.verdict, Verdict::Healthy, "{kind} {size}: {}", told(&report));
            assert!(report.findings.is_empty(), "{kind} {size}: {}", told(&report));
            maps_are_whole(&report, kind);
            assert_eq!(qemu_check(&path), 0, "{kind} {size}");
        }
    }
}

#[test]
fn what_qemu_writes_is_healthy_and_mapped() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let path = dir.path().join(format!("{kind}.vmdk"));
        let text = path.to_str().unwrap();
        let source = create(dir.path(), "source.vmdk", "subformat=monolithicSparse,zeroed_grain=on");
        let zeroes = "write -z 150M 1M";
        must("qemu-io", &["-f", "vmdk", "-c", zeroes, source.to_str().unwrap()]);
        let options = format!("subformat={kind}");
        must("qemu-img", &["convert", "-O", "vmdk", "-o", &options, source.to_str().unwrap(), text]);
        for path in [&source, &path] {
            let report = look(path, &open());
            assert_eq!(report.verdict, Verdict::Healthy, "{kind}: {}", told(&report));
            assert!(report.findings.is_empty(), "{kind}: {}", told(&report));
            maps_are_whole(&report, kind);
        }
        let report = look(&path, &open());
        let guest = report.guest.as_ref().unwrap();
        let (data, state) = match kind {
            "monolithicFlat" | "twoGbMaxExtentFlat" => (200 << 20, GuestState::Data),
            "streamOptimized" => ((2 << 20) + (192 << 10), GuestState::Compressed),
            _ => ((2 << 20) + (192 << 10), GuestState::Data),
        };
        assert_eq!(guest.bytes(state), data, "{kind}");
        assert_eq!(qemu_check(&path), 0, "{kind}");
        assert_eq!(report.lost.bytes, 0, "{kind}");
    }
    let report = look(&dir.path().join("source.vmdk"), &Options::default());
    assert_eq!(report.guest.as_ref().unwrap().bytes(GuestState::Zero), 1 << 20);
    let host = report.host.as_ref().unwrap();
    assert_eq!(host.bytes(Class::Data), (2 << 20) + (192 << 10));
    assert_eq!((host.bytes(Class::L1), host.bytes(Class::L2), host.bytes(Class::Header)), (28, 7 * 2048, 512));
    assert_eq!(host.bytes(Class::Copy), 28 + 7 * 2048);
    assert_eq!(report.numbers.allocated_clusters, Some(35));
}

#[test]
fn extents_are_not_opened_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let path = create(dir.path(), "split.vmdk", "subformat=twoGbMaxExtentSparse");
    let report = look(&path, &Options::default());
    assert_eq!(report.verdict, Verdict::Undecided, "{}", told(&report));
    assert_eq!(report.references.len(), 1);
    assert_eq!(report.references[0].name, "split-s001.vmdk");
    // The extent by itself is an image like any other.
    let report = look(&dir.path().join("split-s001.vmdk"), &Options::default());
    assert_eq!(report.verdict, Verdict::Healthy, "{}", told(&report));
}

#[test]
fn a_delta_disk_knows_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let parent = create(dir.path(), "parent.vmdk", "subformat=monolithicSparse");
    let child = dir.path().join("child.vmdk");
    let text = child.to_str().unwrap();
    let backing = parent.to_str().unwrap();
    let in_dir = std::process::Command::new("qemu-img")
        .current_dir(dir.path())
        .args(["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", "parent.vmdk", "child.vmdk"])
        .status()
        .unwrap();
    assert!(in_dir.success());
    must("qemu-io", &["-f", "vmdk", "-c", "write -P 9 1M 64k", text]);
    for allow_backing in [false, true] {
        let report = look(&child, &Options { allow_backing, ..Options::default() });
        assert_eq!(report.verdict, Verdict::Healthy, "{}", told(&report));
        assert!(report.findings.is_empty(), "{}", told(&report));
        assert!(report.references.iter().any(|one| one.role == "parent" && one.name == "parent.vmdk"));
    }
    // The parent is written to: its content id moves on.
    must("qemu-io", &["-f", "vmdk", "-c", "write -P 7 1M 64k", backing]);
    let report = look(&child, &Options { allow_backing: true, ..Options::default() });
    assert_eq!(report.verdict, Verdict::Damaged, "{}", told(&report));
    assert_eq!(report.findings[0].code.name, "VMDK-PARENT-CID");
}

#[test]
fn little_memory_and_fragmented_grains_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("random.vmdk");
    let text = path.to_str().unwrap();
    must("qemu-img", &["create", "-q", "-f", "vmdk", text, "3G"]);
    let mut arguments = vec!["-f".to_owned(), "vmdk".to_owned()];
    for step in 0..400u64 {
        arguments.extend(["-c".to_owned(), format!("write {} 64k", (step * 7919 % 49_152) * 65_536)]);
    }
    arguments.push(text.to_owned());
    must("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let whole = look(&path, &Options::default());
    assert_eq!(whole.verdict, Verdict::Healthy, "{}", told(&whole));
    let small = look(&path, &Options { memory: 256 << 10, ..Options::default() });
    assert_eq!(told(&small), told(&whole));
    assert_eq!(small.host.unwrap().totals, whole.host.unwrap().totals);
}

/// Images written by VMware and a fuzzer's crash input, where they are at hand.
#[test]
fn images_of_other_programs() {
    let Some(folder) = std::env::var_os("BLKPROOF_SAMPLE_IMAGES") else {
        eprintln!("skipped: BLKPROOF_SAMPLE_IMAGES is not set");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for (name, verdict) in [("iotest-version3.vmdk", Verdict::Healthy), ("afl9.vmdk", Verdict::Damaged)] {
        let from = std::path::Path::new(&folder).join(format!("qemu-iotests/{name}.bz2"));
        let path = dir.path().join(name);
        let (status, text) = run("sh", &["-c", &format!("bzip2 -dc '{}' > '{}'", from.display(), path.display())]);
        assert_eq!(status, 0, "{text}");
        let report = look(&path, &Options { data: true, ..Options::default() });
        assert_eq!(report.verdict, verdict, "{name}: {}", told(&report));
        maps_are_whole(&report, name);
        if verdict == Verdict::Healthy {
            assert!(report.findings.is_empty(), "{name}: {}", told(&report));
        }
    }
}
