//! The driver in a graph: options, files named inside an image, creation as `qemu-img create` does it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod qcow2_support;

use blkproof_block::graph::{OpenContext, OpenFlags, Options, Registry};
use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_formats::qcow2::Qcow2Driver;
use futures_lite::future::block_on;
use qcow2_support::*;

fn registry() -> Registry {
    let mut registry = Registry::new();
    blkproof_block::nodes::register(&mut registry);
    registry.add(Qcow2Driver);
    registry
}

fn options(text: &str) -> Options {
    if text.is_empty() { Options::new() } else { Options::from_image_opts(text).unwrap() }
}

#[test]
fn creation_says_what_qemu_img_says_and_makes_what_qemu_img_accepts() {
    let registry = registry();
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    let data = dir.path().join("image.data");
    for text in [
        String::new(),
        "cluster_size=2M,refcount_bits=1".into(),
        "compat=0.10,cluster_size=512".into(),
        "compat=v3,lazy_refcounts=on,compression_type=zstd".into(),
        "extended_l2=on,preallocation=metadata".into(),
        "preallocation=falloc".into(),
        "preallocation=full,cluster_size=4k".into(),
        "backing_file=base.raw,backing_fmt=raw".into(),
        format!("data_file={},data_file_raw=on", data.display()),
    ] {
        let (ours, theirs) = (dir.path().join("ours.qcow2"), dir.path().join("theirs.qcow2"));
        let (ours_name, theirs_name) = (ours.to_str().unwrap(), theirs.to_str().unwrap());
        let driver = registry.driver("qcow2").unwrap();
        let said = block_on(driver.create(ours_name, Some(3_000_320), options(&text), &context)).unwrap();
        let mut args = vec!["create", "-f", "qcow2"];
        if !text.is_empty() {
            args.extend(["-o", &text]);
        }
        args.extend([theirs_name, "3000320"]);
        let qemu = ok("qemu-img", &args);
        assert_eq!(format!("Formatting '{theirs_name}', fmt=qcow2 {said}"), qemu.trim_end(), "{text}");
        assert_clean(&ours, &text);
        let (status, out) = run("qemu-img", &["compare", ours_name, theirs_name]);
        assert_eq!(status, 0, "{text}: {out}");
        let details = ok("qemu-img", &["info", ours_name]);
        let backing = if text.contains("backing") { ",backing=none" } else { "" };
        let mut graph =
            options(&format!("driver=qcow2,file.driver=file,file.filename={ours_name},read-only=on{backing}"));
        if text.contains("data_file") {
            let data = Options::new().with("driver", "file").with("filename", data.to_str().unwrap());
            graph = graph.with_child("data-file", data);
        }
        let node = block_on(context.open(graph));
        let node = node.unwrap_or_else(|e| panic!("{text}: {e}"));
        for (name, value) in node.format_details() {
            assert!(details.contains(&format!("    {name}: {value}\n")), "{text}: {name}: {value} is not in {details}");
        }
        block_on(node.close()).unwrap();
    }
}

#[test]
fn a_file_named_inside_an_image_is_opened_only_when_that_is_allowed() {
    let registry = registry();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("overlay.qcow2");
    let name = image.to_str().unwrap();
    std::fs::write(dir.path().join("base.raw"), vec![7; 1 << 20]).unwrap();
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", name]);
    let open = |extra: &str, allow_backing: bool| {
        let flags = OpenFlags { allow_backing, ..OpenFlags::default() };
        let context = OpenContext { registry: &registry, flags };
        let text = format!("driver=qcow2,file.driver=file,file.filename={name}{extra}");
        block_on(context.open(options(&text)))
    };
    let read = |node: blkproof_block::Node| {
        let mut byte = [0];
        block_on(node.read(5000, &mut byte)).unwrap();
        block_on(node.close()).unwrap();
        byte[0]
    };
    let refused = open("", false).unwrap_err().to_string();
    assert!(refused.contains("'base.raw'") && refused.contains("--allow-backing"), "{refused}");
    assert_eq!(read(open("", true).unwrap()), 7);
    assert_eq!(read(open(",backing=none", false).unwrap()), 0);
    let base = dir.path().join("base.raw");
    let named = format!(",backing.driver=raw,backing.file.driver=file,backing.file.filename={}", base.display());
    assert_eq!(read(open(&named, false).unwrap()), 7);
    let unknown = open(",backing=none,l2-cache-sise=1M", false).unwrap_err().to_string();
    assert!(unknown.contains("did you mean 'l2-cache-size'"), "{unknown}");
    let both = open(",backing=none,cache-size=1M,l2-cache-size=2M", false).unwrap_err().to_string();
    assert!(both.contains("may not exceed cache-size"), "{both}");
}

#[test]
fn a_real_file_grows_and_is_left_clean() {
    let registry = registry();
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    block_on(async {
        registry.driver("qcow2").unwrap().create(name, Some(64 << 20), Options::new(), &context).await.unwrap();
        let text = format!("driver=qcow2,file.driver=file,file.filename={name},l2-cache-size=64k");
        let node = context.open(options(&text)).await.unwrap();
        let mut model = vec![0u8; 64 << 20];
        let mut random = Random(8);
        for _ in 0..200 {
            let at = random.below(64 << 20);
            let len = (1 + random.below(100_000)).min((64 << 20) - at);
            let byte = random.next() as u8;
            node.write(at, &vec![byte; len as usize], WriteFlags::empty()).await.unwrap();
            model[at as usize..(at + len) as usize].fill(byte);
        }
        node.discard(0, 1 << 20).await.unwrap();
        model[..1 << 20].fill(0);
        node.close().await.unwrap();
        drop(node);
        assert_clean(&path, "after work");
        assert_same(&qemu_content(&path, dir.path()), &model, "read by qemu");
    });
}
