//! `blkproof create` beside `qemu-img create`: the same words, and images that QEMU accepts.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{blkproof, run, shell};
use tempfile::tempdir;

/// Format, options and size of images that both programs create.
const CREATED: &[(&str, &str, &str)] = &[
    ("raw", "", "10M"),
    ("raw", "", "0"),
    ("raw", "", "511"),
    ("raw", "preallocation=full", "64k"),
    ("raw", "preallocation=falloc", "64k"),
    ("raw", "preallocation=off", "64k"),
    ("qcow2", "", "10M"),
    ("qcow2", "", "0"),
    ("qcow2", "", "1.5G"),
    ("qcow2", "compat=0.10", "10M"),
    ("qcow2", "compat=1.1", "10M"),
    ("qcow2", "compat=v3", "10M"),
    ("qcow2", "cluster_size=512", "10M"),
    ("qcow2", "cluster_size=512", "128G"),
    ("qcow2", "cluster_size=2M", "10M"),
    ("qcow2", "cluster_size=4k,refcount_bits=1", "10M"),
    ("qcow2", "refcount_bits=64", "10M"),
    ("qcow2", "lazy_refcounts=on", "10M"),
    ("qcow2", "extended_l2=on", "10M"),
    ("qcow2", "preallocation=metadata", "10M"),
    ("qcow2", "preallocation=falloc", "10M"),
    ("qcow2", "preallocation=full", "10M"),
    ("qcow2", "compression_type=zstd", "10M"),
    ("qcow2", "data_file=d.raw", "10M"),
    ("qcow2", "data_file=d.raw,data_file_raw=on", "10M"),
    ("qcow2", "backing_file=base.raw,backing_fmt=raw", "10M"),
    ("qcow2", "backing_file=base.raw,backing_fmt=raw", ""),
    ("qcow2", "backing_file=base.qcow2,backing_fmt=qcow2", ""),
    ("qcow2", "backing_file=base.qcow2,backing_fmt=qcow2", "1M"),
    ("vdi", "", "10M"),
    ("vdi", "", "0"),
    ("vdi", "", "513"),
    ("vdi", "static=on", "3M"),
    ("vdi", "static=off", "3M"),
];

#[test]
fn the_words_and_the_images_are_those_of_qemu_img() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    run(dir, "qemu-img", &["create", "-q", "-f", "raw", "base.raw", "3M"]).exited(0);
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "base.qcow2", "5M"]).exited(0);
    for &(format, options, size) in CREATED {
        let row = format!("{format} '{options}' {size}");
        let mut args = vec!["create", "-f", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.push("x.img");
        args.extend((!size.is_empty()).then_some(size));
        let information = |outcome: common::Outcome| {
            let info = run(dir, "qemu-img", &["info", "--output=json", "-f", format, "x.img"]).exited(0).stdout;
            let mut info: serde_json::Value = serde_json::from_str(&info).unwrap();
            // How much of the host's disk is used is not the image's business.
            info.as_object_mut().unwrap().retain(|key, _| {
                ["format", "virtual-size", "cluster-size", "format-specific", "full-backing-filename"]
                    .contains(&key.as_str())
            });
            let check = (format != "raw").then(|| run(dir, "qemu-img", &["check", "-f", format, "x.img"]).code);
            for file in ["x.img", "d.raw"] {
                let _ = std::fs::remove_file(dir.join(file));
            }
            (outcome.stdout, info, check)
        };
        let theirs = information(run(dir, "qemu-img", &args).exited(0));
        let ours = information(blkproof(dir, &args).exited(0));
        assert_eq!((&ours.0, &ours.1), (&theirs.0, &theirs.1), "{row}");
        assert_eq!(ours.2.unwrap_or(0), 0, "{row}");
    }
}

#[test]
fn what_can_not_be_is_refused_and_leaves_nothing_behind() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("base.raw"), vec![0; 1 << 20]).unwrap();
    // The options, the size, and what the message must say.
    let rows: &[(&str, &str, &str, &[&str])] = &[
        ("qcow2", "clustersize=4k", "1M", &["unknown option 'clustersize'", "did you mean 'cluster_size'?"]),
        ("vdi", "statik=on", "1M", &["unknown option 'statik'", "did you mean 'static'?"]),
        ("raw", "preallocaton=full", "1M", &["did you mean 'preallocation'?"]),
        ("raw", "", "", &["needs a size parameter"]),
        ("qcow2", "", "", &["needs a size parameter"]),
        ("vdi", "", "", &["needs a size parameter"]),
        ("raw", "", "8E", &["9223372036854775808", "too large"]),
        ("qcow2", "", "100P", &["too large", "try using a larger cluster size"]),
        ("qcow2", "cluster_size=512", "1T", &["try using a larger cluster size"]),
        ("vdi", "", "1P", &["max supported is 0x1fffff8000000"]),
        ("qcow2", "cluster_size=1000", "1M", &["power of two between 512 and 2048k"]),
        ("qcow2", "refcount_bits=3", "1M", &["power of two and may not exceed 64 bits"]),
        ("qcow2", "lazy_refcounts=on,compat=0.10", "1M", &["compatibility level 1.1"]),
        ("qcow2", "extended_l2=on,cluster_size=8k", "1M", &["at least 16384 bytes"]),
        ("qcow2", "preallocation=bogus", "1M", &["'bogus'", "'metadata'"]),
        ("qcow2", "compression_type=lz4", "1M", &["'lz4'", "'zstd'"]),
        ("qcow2", "data_file_raw=on", "1M", &["requires data-file"]),
        ("qcow2", "backing_file=base.raw", "1M", &["without backing format"]),
        ("qcow2", "backing_file=nix.raw,backing_fmt=raw", "1M", &["'nix.raw'", "No such file or directory"]),
        ("qcow2", "backing_file=nix.raw,backing_fmt=raw", "", &["'nix.raw'", "No such file or directory"]),
        ("qcow2", "backing_file=base.raw,backing_fmt=qcow2", "1M", &["base.raw"]),
        ("qcow2", "backing_file=base.raw,backing_fmt=bogus", "1M", &["unknown driver 'bogus'"]),
        ("bogus", "", "1M", &["unknown driver 'bogus'"]),
        ("nbd", "", "1M", &["can not create images"]),
    ];
    for &(format, options, size, says) in rows {
        let mut args = vec!["create", "-f", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.push("x.img");
        args.extend((!size.is_empty()).then_some(size));
        let outcome = blkproof(dir, &args).exited(1);
        assert_eq!(outcome.stdout, "", "{args:?}");
        assert!(outcome.stderr.starts_with("error: could not create 'x.img': "), "{args:?}: {}", outcome.stderr);
        for words in says {
            assert!(outcome.stderr.contains(words), "{args:?} says '{words}': {}", outcome.stderr);
        }
        assert!(!dir.join("x.img").exists(), "{args:?} leaves nothing behind");
    }
    for size in ["abc", "1Z", ""] {
        let outcome = blkproof(dir, &["create", "x.img", size]).exited(2);
        assert!(outcome.stderr.contains("is no size"), "{size}: {}", outcome.stderr);
    }
}

#[test]
fn an_image_that_is_there_is_kept() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("a.img"), "precious").unwrap();
    let outcome = blkproof(dir, &["create", "-f", "qcow2", "a.img", "1M"]).exited(1);
    assert_eq!(
        outcome.stderr,
        "error: 'a.img' exists and is not empty; nothing was changed\nhint: give --force to overwrite it\n"
    );
    assert_eq!(std::fs::read(dir.join("a.img")).unwrap(), b"precious");
    blkproof(dir, &["create", "-f", "qcow2", "--force", "a.img", "1M"]).exited(0);
    run(dir, "qemu-img", &["check", "a.img"]).exited(0);
    // An empty file, as mktemp leaves one, is nobody's image.
    std::fs::write(dir.join("b.img"), "").unwrap();
    let quiet = blkproof(dir, &["create", "-q", "b.img", "1M"]).exited(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
}

#[test]
fn a_full_disk_is_named() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    // A file system of 1 MiB in a mount namespace of its own; neither outlives the shell. Root needs no user namespace
    // for it.
    let alone = "unshare $([ $(id -u) = 0 ] || echo -r) -m";
    let small = "mount -t tmpfs -o size=1m none . && cd .";
    for how in ["-f raw -o preallocation=full", "-f qcow2 -o preallocation=full", "-f raw -o preallocation=falloc"] {
        let outcome =
            shell(dir, &format!("{alone} bash -c '{small} && cd \"$PWD\" && blkproof create {how} f.img 8M'"))
                .exited(1);
        assert!(outcome.stderr.starts_with("error: could not create 'f.img': "), "{how}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.matches("No space left on device").count(), 1, "{how}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "{how}");
    }
}
