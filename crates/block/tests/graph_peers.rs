//! Graphs over real files: names as `qemu-img` takes them, and padded direct I/O as the kernel and QEMU see it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::path::Path;
use std::process::{Command, Output};

use blkproof_block::graph::{CacheMode, OpenContext, OpenFlags, Options, Registry};
use blkproof_block::{BlockDevice, WriteFlags, ZeroFlags};
use futures_lite::future::block_on;

fn registry() -> Registry {
    let mut registry = Registry::new();
    blkproof_block::nodes::register(&mut registry);
    registry
}

fn qemu_img(directory: &Path, arguments: &[&str]) -> Output {
    Command::new("qemu-img").args(arguments).current_dir(directory).output().expect("qemu-img is installed")
}

/// A scratch folder on the file system the build uses, which takes `O_DIRECT` more often than one for temporary files.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn qemu_refuses_the_same_prefixes() {
    let directory = scratch();
    std::fs::write(directory.path().join("plain"), [0; 512]).unwrap();
    let registry = registry();
    for name in [
        "plain",
        "./plain",
        "file:plain",
        "x:y",
        ":b",
        "1a:b",
        "a b:c",
        "a-b:c",
        "./x:y",
        "a/b:c",
        "raw:plain",
        "qcow2:plain",
    ] {
        let output = qemu_img(directory.path(), &["info", "-f", "raw", name]);
        let refused = String::from_utf8_lossy(&output.stderr).contains("Unknown protocol");
        let ours = Options::from_filename(name, &registry);
        assert_eq!(ours.is_err(), refused, "{name}: {ours:?}");
    }
}

#[test]
fn json_that_qemu_opens_opens_here() {
    let directory = scratch();
    let path = directory.path().join("plain");
    std::fs::write(&path, [7; 1024]).unwrap();
    let path = path.to_str().unwrap();
    let registry = registry();
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    for template in [
        r#"json:{"driver":"raw","file":{"driver":"file","filename":"PATH"}}"#,
        r#"json:{"driver":"raw","file.driver":"file","file.filename":"PATH"}"#,
        "json:{'driver':'raw','file.filename':'PATH'}",
        "json:{'driver':'raw','size':512,'file':{'driver':'file','filename':'PATH'}}",
        "json:{'driver':'raw','read-only':true,'file':{'driver':'file','filename':'PATH'}}",
        "json:{'driver':'raw','cache':{'no-flush':true},'cache.direct':false,'file.filename':'PATH','node-name':'top'}",
    ] {
        let name = template.replace("PATH", path);
        let theirs = qemu_img(directory.path(), &["info", &name]);
        assert!(theirs.status.success(), "{name}: {}", String::from_utf8_lossy(&theirs.stderr));
        let node = block_on(context.open_image(&name, None, false)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut byte = [0];
        block_on(node.read(511, &mut byte)).unwrap();
        assert_eq!(byte, [7], "{name}");
    }
}

/// Random unaligned requests under every cache mode leave what a plain array holds, to the byte and in size.
#[test]
fn unaligned_requests_on_a_real_file() {
    let directory = scratch();
    for (mode, size) in
        [("writeback", 100_003usize), ("none", 100_003), ("directsync", 65_536), ("writethrough", 9_999)]
    {
        let path = directory.path().join(format!("{mode}.img"));
        let copy = directory.path().join(format!("{mode}.copy"));
        let mut want = vec![0x11u8; size];
        std::fs::write(&path, &want).unwrap();
        let flags = OpenFlags { cache: CacheMode::from_name(mode).unwrap(), ..OpenFlags::default() };
        let registry = registry();
        let context = OpenContext { registry: &registry, flags };
        // The set-up bites: direct I/O has an alignment, which the graph has taken care of.
        let file = block_on(context.open_image(path.to_str().unwrap(), Some("file"), false)).unwrap();
        assert_eq!(file.info().limits.preferred_transfer > 1, flags.cache.direct, "{mode}: {:?}", file.info());
        drop(file);
        let node = block_on(context.open_image(path.to_str().unwrap(), Some("raw"), false)).unwrap();
        assert!(!node.info().limits.needs_help(), "{mode}: the graph pads");
        let mut state = 1u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        for step in 0..150u8 {
            let at = below(size);
            let len = below((size - at).min(20_000)) + 1;
            match below(4) {
                0 => {
                    block_on(node.write_zeroes(at as u64, len as u64, ZeroFlags::MAY_UNMAP)).unwrap();
                    want[at..at + len].fill(0);
                }
                1 => {
                    let mut got = vec![0xee; len];
                    block_on(node.read(at as u64, &mut got)).unwrap();
                    assert!(got == want[at..at + len], "{mode}, step {step}: {at}+{len}");
                }
                _ => {
                    block_on(node.write(at as u64, &vec![step; len], WriteFlags::empty())).unwrap();
                    want[at..at + len].fill(step);
                }
            }
        }
        block_on(node.close()).unwrap();
        drop(node);
        assert!(std::fs::read(&path).unwrap() == want, "{mode}: the file differs from the model");
        std::fs::write(&copy, &want).unwrap();
        let arguments = ["compare", "-f", "raw", "-F", "raw", path.to_str().unwrap(), copy.to_str().unwrap()];
        let compare = qemu_img(directory.path(), &arguments);
        assert!(compare.status.success(), "{mode}: {}", String::from_utf8_lossy(&compare.stdout));
    }
}
