//! VMDK variants that are built here are what QEMU takes them for.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod vmdk_image;
mod vmdk_support;

use blkproof_check::{Options, Verdict};
use vmdk_image::{Base, base, cowd, se_sparse};
use vmdk_support::{look, must, qemu_check, run, told};

/// What QEMU opens, we judge like QEMU: variants that are built here are what it takes them for.
#[test]
fn built_variants_are_what_qemu_takes_them_for() {
    let dir = tempfile::tempdir().unwrap();
    let stream = base(dir.path(), Base::TrueStream);
    let path = dir.path().join("stream.vmdk");
    std::fs::write(&path, &stream.bytes).unwrap();
    assert_eq!(qemu_check(&path), 0);
    let from = dir.path().join("from.vmdk");
    must("qemu-img", &["compare", from.to_str().unwrap(), path.to_str().unwrap()]);

    std::fs::write(dir.path().join("cowd.vmdk"), cowd().bytes).unwrap();
    std::fs::write(dir.path().join("se.vmdk"), se_sparse().bytes).unwrap();
    for (name, kind, sectors, pattern) in
        [("cowd.vmdk", "vmfsSparse", 8192, "read -P 3 0 2k"), ("se.vmdk", "seSparse", 32_768, "read -P 4 0 20k")]
    {
        let word = if kind == "seSparse" { "SESPARSE" } else { "VMFSSPARSE" };
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{kind}\"\nRW {sectors} {word} \"{name}\"\n"
        );
        let path = dir.path().join(format!("of-{name}"));
        std::fs::write(&path, text).unwrap();
        must("qemu-io", &["-r", "-f", "vmdk", "-c", pattern, path.to_str().unwrap()]);
        let report = look(&path, &Options { allow_backing: true, ..Options::default() });
        assert_eq!(report.verdict, Verdict::Healthy, "{}", told(&report));
        let (status, text) = run("qemu-img", &["check", "-f", "vmdk", path.to_str().unwrap()]);
        assert_eq!(status, 0, "{text}");
    }
}
