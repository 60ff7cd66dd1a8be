//! `blkproof compare` and `blkproof verify`: what they say, and the status they exit with.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use common::{Outcome, blkproof, run, shell};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// `a.raw`, its copies `a.qcow2` and `a.vdi`, and `d.qcow2`, which differs in two places.
fn images() -> TempDir {
    let dir = tempdir().unwrap();
    let path = dir.path();
    run(path, "qemu-img", &["create", "-q", "-f", "raw", "a.raw", "8M"]).exited(0);
    run(path, "qemu-io", &["-f", "raw", "-c", "write -P 1 1M 64k", "-c", "write -P 2 3M 320k", "a.raw"]).exited(0);
    for format in ["qcow2", "vdi"] {
        run(path, "qemu-img", &["convert", "-O", format, "a.raw", &format!("a.{format}")]).exited(0);
    }
    std::fs::copy(path.join("a.qcow2"), path.join("d.qcow2")).unwrap();
    run(path, "qemu-io", &["-f", "qcow2", "-c", "write -P 3 1049088 512", "-c", "write -P 4 5M 1M", "d.qcow2"])
        .exited(0);
    dir
}

fn big_endian(file: &std::fs::File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// Points the L1 entry, or the L2 entry of the cluster at 1 MiB, of a copy of `a.qcow2` past the end of the file.
fn damage(dir: &Path, name: &str, l1: bool) {
    std::fs::copy(dir.join("a.qcow2"), dir.join(name)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(dir.join(name)).unwrap();
    let l1_table = big_endian(&file, 40);
    let l2_table = big_endian(&file, l1_table) & 0x00ff_ffff_ffff_fe00;
    let at = if l1 { l1_table } else { l2_table + 16 * 8 };
    file.write_all_at(&(1u64 << 63 | 0x7_f000_0000).to_be_bytes(), at).unwrap();
}

#[test]
fn exit_statuses_are_those_of_qemu_img() {
    let dir = images();
    let dir = dir.path();
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2"]).exited(0);
    damage(dir, "l1.qcow2", true);
    damage(dir, "l2.qcow2", false);
    shell(dir, "cp a.raw long.raw && truncate -s 9M long.raw && cp long.raw tail.raw && printf x | dd of=tail.raw bs=1 seek=8800k conv=notrunc status=none").exited(0);
    let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}"#;
    let rows: &[(&[&str], i32, &str, &str)] = &[
        (&["a.raw", "a.qcow2"], 0, "Images are identical.\n", ""),
        (&["a.vdi", "a.qcow2"], 0, "Images are identical.\n", ""),
        (&["-f", "raw", "-F", "vdi", "a.raw", "a.vdi"], 0, "Images are identical.\n", ""),
        (&["a.raw", "a.raw"], 0, "Images are identical.\n", ""),
        (&[json, "a.raw"], 0, "Images are identical.\n", ""),
        (&["--image-opts", "driver=qcow2,file.filename=a.qcow2", "driver=raw,file.filename=a.raw"], 0, "identical", ""),
        (&["--allow-backing", "over.qcow2", "a.raw"], 0, "Images are identical.\n", ""),
        (
            &["a.raw", "long.raw"],
            0,
            "Warning: Image size mismatch! (8388608 and 9437184 bytes)\nImages are identical.\n",
            "",
        ),
        (&["-s", "a.raw", "long.raw"], 1, "Strict mode: Image size mismatch!", ""),
        (&["-s", "a.vdi", "a.qcow2"], 1, "Strict mode: Offset 1114112 block status mismatch!", ""),
        (&["-s", "a.qcow2", "a.qcow2"], 0, "Images are identical.\n", ""),
        (&["a.raw", "tail.raw"], 1, "Content mismatch at offset 9011200!\n", ""),
        (&["a.raw", "d.qcow2"], 1, "Content mismatch at offset 1049088!\n", ""),
        (&["nix.raw", "a.raw"], 2, "", "error: could not open 'nix.raw': No such file or directory\n"),
        (&["a.raw", "nix.raw"], 2, "", "error: could not open 'nix.raw': No such file or directory\n"),
        (&["-f", "bogus", "a.raw", "a.raw"], 2, "", "unknown driver 'bogus'"),
        (&["-f", "qcow2", "a.raw", "a.raw"], 2, "", "error: could not open 'a.raw': "),
        (&["over.qcow2", "a.raw"], 2, "", "\nhint: allow it with --allow-backing"),
        (&["a.raw", "nbd+unix:///?socket=nobody.sock"], 2, "", "nobody.sock"),
        (&["a.raw", "l1.qcow2"], 3, "", "error: l1.qcow2: asking for the block status of 0x0..0x"),
        (&["a.raw", "l2.qcow2"], 4, "", "error: l2.qcow2: reading 0x100000..0x110000: "),
        (
            &["l2.qcow2", "d.qcow2"],
            1,
            "Content mismatch at offset 5242880!\n",
            "error: l2.qcow2: reading 0x100000..0x110000: ",
        ),
    ];
    for &(args, code, stdout, stderr) in rows {
        for threads in ["1", "4"] {
            let outcome = blkproof(dir, &[&["compare", "--threads", threads][..], args].concat());
            assert_eq!(outcome.code, code, "{args:?}: {outcome:?}");
            assert!(outcome.stdout.contains(stdout), "{args:?}: {}", outcome.stdout);
            assert!(code != 0 || !outcome.stdout.contains("ismatch at"), "{args:?}: {}", outcome.stdout);
            assert!(outcome.stderr.contains(stderr), "{args:?}: {}", outcome.stderr);
            assert_eq!(outcome.stderr.contains("error: "), !stderr.is_empty(), "{args:?}: {}", outcome.stderr);

            let quiet = blkproof(dir, &[&["compare", "-q", "--threads", threads][..], args].concat()).exited(code);
            assert_eq!(quiet.stdout, "", "{args:?}");
        }
        // Status 3 and 4 are for damage that QEMU reads as if it were not there.
        if code <= 2 && !stderr.contains("hint") && !stderr.contains("l2.qcow2") {
            let theirs = run(dir, "qemu-img", &[&["compare"][..], args].concat());
            let known = args.contains(&"--allow-backing");
            assert!(known || theirs.code == code, "{args:?}: {theirs:?}");
        }
    }
}

#[test]
fn every_differing_range_is_listed() {
    let dir = images();
    let dir = dir.path();
    let human = blkproof(dir, &["verify", "a.raw", "d.qcow2"]).exited(1);
    let want = "\
Content mismatch at offset 1049088!
  0x100200..0x100400  512 bytes, sectors 2049..2050
  0x500000..0x600000  1048576 bytes, sectors 10240..12288
2 ranges differ, 1 MiB in all.
";
    assert_eq!(human.stdout, want);
    assert!(human.stderr.starts_with("compared "), "{}", human.stderr);
    let json: Value =
        serde_json::from_str(&blkproof(dir, &["verify", "--format", "json", "a.raw", "d.qcow2"]).exited(1).stdout)
            .unwrap();
    assert_eq!(json["schema"], "blkproof.compare/1");
    assert_eq!(json["identical"], false);
    assert_eq!(
        json["differing"],
        serde_json::json!([{ "offset": 1_049_088, "length": 512 }, { "offset": 5_242_880, "length": 1_048_576 }])
    );
    assert_eq!(json["bytes-differing"], 1_049_088);
    assert_eq!(json["bytes-left"], 0);
    assert_eq!(json["bytes-compared"].as_u64().unwrap() + json["bytes-zero"].as_u64().unwrap(), 8 << 20);
    let same: Value =
        serde_json::from_str(&blkproof(dir, &["verify", "--format", "json", "a.raw", "a.vdi"]).exited(0).stdout)
            .unwrap();
    assert_eq!((&same["identical"], &same["differing"]), (&Value::Bool(true), &serde_json::json!([])));
    // The reference is raw bytes, whatever it looks like.
    blkproof(dir, &["verify", "a.qcow2", "a.qcow2"]).exited(1);
    blkproof(dir, &["verify", "-f", "raw", "a.qcow2", "a.qcow2"]).exited(0);
}

#[test]
fn errors_are_in_the_json_and_told_once() {
    let dir = images();
    let dir = dir.path();
    damage(dir, "l1.qcow2", true);
    let outcome = blkproof(dir, &["compare", "--format", "json", "a.raw", "l1.qcow2"]).exited(3);
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let first = &json["errors"][0];
    assert_eq!(
        (&first["image"], &first["step"], &first["errno"]),
        (&"l1.qcow2".into(), &"block-status".into(), &5.into())
    );
    assert_eq!(json["identical"], false);
    // The whole disk hangs on one L1 entry: one cause, one line.
    assert_eq!(outcome.stderr.matches("error: ").count(), 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("L2 table at 0x7f0000000"), "{}", outcome.stderr);
}

/// A server that takes one client at a time, as qemu-nbd does, lets a second thread wait for ever.
#[test]
fn one_connection_to_a_server_is_enough() {
    let dir = images();
    let dir = dir.path();
    let serve = |format: &str, file: &str| {
        let line =
            format!("exec qemu-nbd -t --fork --pid-file=pid --socket=$PWD/q.sock -f {format} {file} >/dev/null 2>&1");
        shell(dir, &line).exited(0);
    };
    let stop = || {
        shell(dir, "pid=$(cat pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.01; done; rm -f q.sock")
            .exited(0)
    };
    serve("qcow2", "d.qcow2");
    let outcome = blkproof(dir, &["verify", "--threads", "4", "a.raw", "nbd+unix:///?socket=q.sock"]).exited(1);
    assert!(outcome.stdout.contains("  0x100200..0x100400  512 bytes, sectors 2049..2050\n"), "{}", outcome.stdout);
    stop();
    serve("vdi", "a.vdi");
    blkproof(dir, &["compare", "--threads", "4", "nbd+unix:///?socket=q.sock", "a.raw"]).exited(0);
    stop();
}

#[test]
fn an_interrupted_comparison_still_reports() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    shell(dir, "head -c 16M /dev/zero | tr '\\0' x > a.raw; cp a.raw b.raw; printf y | dd of=b.raw bs=1 seek=5 conv=notrunc status=none").exited(0);
    // Reads of the second half are held, and say so with a file, until they are released.
    let pread = "if [ $4 -ge 8388608 ]; then touch held; until [ -e release ]; do sleep 0.02; done; fi; \
                 dd if=b.raw bs=4096 iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none";
    for (signal, format) in [("INT", "human"), ("TERM", "json")] {
        let line = format!(
            "rm -f held release; here=$PWD; export here; \
             nbdkit -f -U k.sock eval get_size='echo 16777216' pread='cd \"$here\"; {pread}' >nbdkit.log 2>&1 & nbdkit=$!; \
             until nbdinfo --size 'nbd+unix:///?socket=k.sock' >/dev/null 2>&1; do kill -0 $nbdkit; sleep 0.01; done; \
             blkproof compare --threads 1 --format {format} -f raw -F raw a.raw 'nbd+unix:///?socket=k.sock' & pid=$!; \
             until [ -e held ]; do kill -0 $pid; sleep 0.01; done; \
             while kill -{signal} $pid 2>/dev/null; do sleep 0.02; done; \
             code=0; wait $pid || code=$?; touch release; kill $nbdkit; wait $nbdkit || true; rm -f k.sock; exit $code"
        );
        // The difference found before the interruption is told, and decides the status.
        let Outcome { stdout, .. } = shell(dir, &line).exited(1);
        if format == "human" {
            let want = "Content mismatch at offset 0!\n  0x0..0x200  512 bytes, sectors 0..1\n1 range differs, 512 bytes in all.\nInterrupted: 8 MiB were not compared.\n";
            assert_eq!(stdout, want);
        } else {
            let json: Value = serde_json::from_str(&stdout).unwrap();
            assert_eq!(
                (&json["bytes-left"], &json["identical"]),
                (&Value::from(8 << 20), &Value::Bool(false)),
                "{stdout}"
            );
            assert_eq!(json["differing"][0]["offset"], 0);
        }
    }
}
