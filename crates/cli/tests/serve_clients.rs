//! Real NBD clients against `blkproof serve`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Served, blkproof, run};
use tempfile::tempdir;

/// Fills `name` with `size` bytes that name their place.
fn patterned(dir: &std::path::Path, name: &str, size: usize) {
    let mut bytes = Vec::with_capacity(size);
    let mut at = 0u64;
    while bytes.len() < size {
        // Every third 64 KiB is left a hole's worth of zeroes.
        let word = if at >> 16 & 3 == 3 { 0 } else { at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 };
        bytes.extend_from_slice(&word.to_le_bytes());
        at += 8;
    }
    bytes.truncate(size);
    std::fs::write(dir.join(name), bytes).unwrap();
}

#[test]
fn nbdinfo_sees_the_export_and_its_map() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    patterned(dir, "a.raw", 1 << 20);
    run(dir, "qemu-img", &["convert", "-O", "qcow2", "a.raw", "a.qcow2"]).exited(0);
    let served = Served::start(dir, 1, &["-x", "disk", "--description", "a test", "-f", "qcow2", "a.qcow2"]);
    let json = run(dir, "nbdinfo", &["--json", served.uri()]).exited(0).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let export = &json["exports"][0];
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(export["export-name"], "disk");
    assert_eq!(export["export-size"], 1 << 20);
    for (key, want) in
        [("can_flush", true), ("can_fua", true), ("can_zero", true), ("can_trim", true), ("is_read_only", false)]
    {
        assert_eq!(export[key], want, "{key} of {export}");
    }
    let map = run(dir, "nbdinfo", &["--map", served.uri()]).exited(0).stdout;
    assert!(map.contains("hole,zero") || map.contains("zero"), "the zero parts are seen: {map}");
}

#[test]
fn nbdcopy_and_qemu_img_copy_both_ways() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    patterned(dir, "a.raw", (4 << 20) + 512);
    for format in ["raw", "qcow2", "vdi"] {
        let target = format!("t.{format}");
        blkproof(dir, &["create", "-q", "-f", format, &target, &((4 << 20) + 512).to_string()]).exited(0);
        let mut served = Served::start(dir, 1, &["-f", format, &target]);
        run(dir, "nbdcopy", &["a.raw", served.uri()]).exited(0);
        run(dir, "nbdcopy", &[served.uri(), "back.raw"]).exited(0);
        run(dir, "cmp", &["a.raw", "back.raw"]).exited(0);
        run(dir, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "a.raw", served.uri()]).exited(0);
        run(dir, "qemu-img", &["compare", "-f", "raw", "-F", "raw", "a.raw", served.uri()]).exited(0);
        let map = run(dir, "qemu-img", &["map", "--output=json", "-f", "raw", served.uri()]).exited(0).stdout;
        assert!(map.contains("\"zero\": true"), "{map}");
        served.stop().exited(0);
        run(dir, "qemu-img", &["compare", "-f", "raw", "-F", format, "a.raw", &target]).exited(0);
        if format != "raw" {
            run(dir, "qemu-img", &["check", "-f", format, &target]).exited(0);
        }
        std::fs::remove_file(dir.join("back.raw")).unwrap();
    }
}

#[test]
fn fio_verifies_what_it_wrote_through_the_mirror() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    blkproof(dir, &["create", "-q", "ref.raw", "32M"]).exited(0);
    blkproof(dir, &["create", "-q", "-f", "qcow2", "test.qcow2", "32M"]).exited(0);
    let mut served = Served::start(dir, 1, &["blkverify:ref.raw:test.qcow2"]);
    let uri = format!("--uri={}", served.uri());
    let args = ["--name=mix", "--ioengine=nbd", &uri, "--rw=randrw", "--bsrange=512-64k", "--iodepth=32", "--size=32M"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--fsync=64", "--randseed=7"];
    run(dir, "fio", &[&args[..], &verify[..]].concat()).exited(0);
    let outcome = served.stop().exited(0);
    assert!(!outcome.stderr.contains("mismatch"), "{}", outcome.stderr);
    run(dir, "qemu-img", &["check", "test.qcow2"]).exited(0);
    run(dir, "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "ref.raw", "test.qcow2"]).exited(0);
}

#[test]
fn a_flipped_byte_is_caught_at_the_first_read_of_its_sector() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    blkproof(dir, &["create", "-q", "ref.raw", "8M"]).exited(0);
    blkproof(dir, &["create", "-q", "-f", "qcow2", "test.qcow2", "8M"]).exited(0);
    let mut served = Served::start(dir, 1, &["blkverify:ref.raw:test.qcow2"]);
    let uri = served.uri().to_owned();
    run(
        dir,
        "qemu-io",
        &["-f", "raw", "-c", "write -P 0x11 1M 128k", "-c", "write -P 0x22 1M 4k", "-c", "flush", &uri],
    )
    .exited(0);
    let map =
        blkproof(dir, &["map", "-U", "-f", "qcow2", "-s", "1049088", "-l", "512", "--format", "json", "test.qcow2"]);
    let map: serde_json::Value = serde_json::from_str(&map.exited(0).stdout).unwrap();
    let host = map[0]["offset"].as_u64().unwrap();
    flip(&dir.join("test.qcow2"), host + 100);

    // The neighbours are sound, and nothing is said about them.
    run(dir, "qemu-io", &["-r", "-f", "raw", "-c", "read 1M 512", "-c", "read 1049600 64k", &uri]).exited(0);
    run(dir, "qemu-io", &["-r", "-f", "raw", "-c", "read 1M 4k", &uri]).exited(0);
    let outcome = served.stop().exited(1);
    assert_eq!(outcome.stderr.matches("contents mismatch at offset").count(), 1, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("blkverify: read offset=1048576 bytes=4096 contents mismatch at offset 1049188"),
        "{}",
        outcome.stderr
    );
}

fn flip(path: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}
