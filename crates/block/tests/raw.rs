//! `raw`, its windows and the making of raw images; `null-co` and `memory` as drivers.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use blkproof_block::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
use blkproof_block::graph::{OpenContext, OpenError, OpenFlags, Options, Registry};
use blkproof_block::nodes::raw::{Raw, RawError};
use blkproof_block::nodes::{self, File, FileOptions, Memory};
use blkproof_block::testing::{Action, OpKind, Rule, TestDisk};
use blkproof_block::{BlockStatus, Capabilities, Errno, Event, Node};
use futures_lite::future::block_on;

fn open(options: &str) -> Result<Node, OpenError> {
    let mut registry = Registry::new();
    nodes::register(&mut registry);
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    block_on(context.open(Options::from_image_opts(options).unwrap()))
}

fn create(name: &str, size: Option<u64>, options: &str) -> Result<String, OpenError> {
    let mut registry = Registry::new();
    nodes::register(&mut registry);
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let options = match options {
        "" => Options::new(),
        options => Options::from_image_opts(options).unwrap(),
    };
    block_on(registry.driver("raw").unwrap().create(name, size, options, &context))
}

#[test]
fn a_window_shows_its_bytes_and_no_others() {
    let below = std::rc::Rc::new(Memory::with_content(&[9; 4096]));
    let raw = Raw::window(below.clone(), 1000, Some(500)).unwrap();
    assert_eq!(raw.info().size, 500);
    block_on(async {
        raw.write(0, &[1; 10], WriteFlags::empty()).await.unwrap();
        raw.write_zeroes(490, 10, ZeroFlags::empty()).await.unwrap();
        for (at, len) in [(0_u64, 501_usize), (500, 1), (499, 2), (u64::MAX, 1), (u64::MAX - 999, 5)] {
            let mut buf = vec![0; len];
            assert_eq!(raw.read(at, &mut buf).await.unwrap_err().errno, Errno::IO, "{len} bytes at {at}");
            assert!(!raw.read_now(at, &mut buf), "{len} bytes at {at}");
            assert!(raw.write(at, &buf, WriteFlags::empty()).await.is_err(), "{len} bytes at {at}");
            assert!(raw.write_zeroes(at, len as u64, ZeroFlags::empty()).await.is_err(), "{len} bytes at {at}");
            assert!(raw.discard(at, len as u64).await.is_err(), "{len} bytes at {at}");
            assert!(raw.block_status(at, len as u64).await.is_err(), "{len} bytes at {at}");
        }
        let mut all = [0; 4096];
        below.read(0, &mut all).await.unwrap();
        let mut want = [9; 4096];
        want[1000..1010].fill(1);
        want[1490..1500].fill(0);
        assert_eq!(all, want);
        assert_eq!(raw.block_status(5, 100).await.unwrap(), BlockStatus::data(100, Some(1005)));
        assert_eq!(raw.resize(400, Preallocation::Off).await.unwrap_err().errno, Errno::NOTSUP);
    });
}

#[test]
fn a_window_that_does_not_fit_is_refused_by_name() {
    let window = |offset, size| Raw::window(Memory::new(4096), offset, size).map(|raw| raw.info().size);
    assert_eq!(window(0, None), Ok(4096));
    assert_eq!(window(4096, None), Ok(0));
    assert_eq!(window(4096, Some(0)), Ok(0));
    assert_eq!(window(4097, None), Err(RawError::OffsetPastEnd { offset: 4097, below: 4096 }));
    assert_eq!(window(4000, Some(97)), Err(RawError::SizePastEnd { offset: 4000, size: 97, below: 4096 }));
    assert_eq!(window(1, Some(u64::MAX)), Err(RawError::SizePastEnd { offset: 1, size: u64::MAX, below: 4096 }));
}

#[test]
fn a_whole_disk_follows_resizes_but_never_grows_by_writing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [3; 1000]).unwrap();
    for offset in [0, 100] {
        let raw = open(&format!("driver=raw,offset={offset},file.driver=file,file.filename={}", file.path().display()));
        let raw = raw.unwrap();
        let size = raw.info().size;
        assert!(!raw.info().capabilities.contains(Capabilities::GROWS));
        block_on(async {
            assert!(raw.write(size, &[1], WriteFlags::empty()).await.is_err());
            assert!(raw.write_zeroes(size - 1, 2, ZeroFlags::empty()).await.is_err());
            raw.resize(size + 24, Preallocation::Off).await.unwrap();
            raw.write(size, &[1; 24], WriteFlags::empty()).await.unwrap();
        });
        assert_eq!(raw.info().size, size + 24);
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), offset + size + 24);
    }
}

#[test]
fn errors_are_placed_in_the_window() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [3; 10000]).unwrap();
    let below = File::open(file.path(), FileOptions::default()).unwrap();
    let raw = Raw::window(below, 1000, None).unwrap();
    std::fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(5000).unwrap();
    let error = block_on(raw.read(3000, &mut [0; 4000])).unwrap_err();
    assert_eq!((error.first_bad.unwrap().0, error.transferred), (4000, 1000), "{error}");
}

#[test]
fn creating_prints_what_qemu_img_prints() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (directory.path().join("ours"), directory.path().join("theirs"));
    for options in ["", "preallocation=off", "preallocation=falloc", "preallocation=full", "nocow=on", "nocow=off"] {
        let text = create(ours.to_str().unwrap(), Some(1 << 20), options).unwrap();
        let mut qemu_img = Command::new("qemu-img");
        qemu_img.args(["create", "-f", "raw"]);
        if !options.is_empty() {
            qemu_img.args(["-o", options]);
        }
        let output = qemu_img.arg(&theirs).arg("1M").output().expect("qemu-img is needed by this test");
        let want = String::from_utf8_lossy(&output.stdout).into_owned();
        // A driver describes its options; whoever prints them says which file and format it was.
        assert_eq!(format!("Formatting '{}', fmt=raw {text}\n", theirs.display()), want);
        assert_eq!(std::fs::read(&ours).unwrap(), vec![0; 1 << 20], "{options}");
        use std::os::unix::fs::MetadataExt as _;
        let blocks = |file| std::fs::metadata(file).unwrap().blocks();
        let (ours, theirs) = (blocks(&ours), blocks(&theirs));
        let allocated = options.ends_with("falloc") || options.ends_with("full");
        assert_eq!((ours >= 2048, theirs >= 2048), (allocated, allocated), "{options}: {ours}, {theirs} blocks");
    }
    // In bytes, not in sectors.
    create(ours.to_str().unwrap(), Some(1001), "").unwrap();
    assert_eq!(std::fs::metadata(&ours).unwrap().len(), 1001);
    create(&format!("file:{}", ours.display()), None, "size=2k").unwrap();
    assert_eq!(std::fs::metadata(&ours).unwrap().len(), 2048);
}

#[test]
fn creating_refuses_what_it_can_not_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let table = [
        (path("a"), None, "", "Image creation needs a size parameter"),
        (path("a"), Some(1), "preallocation=metadata", "expects one of 'off', 'falloc', 'full'"),
        (path("a"), Some(1), "cluster_size=1", "unknown option 'cluster_size' for driver 'raw'"),
        (path("a"), Some(u64::MAX), "", "too large"),
        (path("no/a"), Some(1), "", "No such file or directory"),
        (path("."), Some(1), "", "is a directory"),
    ];
    for (name, size, options, want) in table {
        let text = create(&name, size, options).unwrap_err().to_string();
        assert!(text.contains(want), "{name} {options}: {text}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "a refusal leaves nothing behind");
}

#[test]
fn drivers_without_a_file() {
    assert_eq!(open("driver=memory,size=3k").unwrap().info().size, 3072);
    assert_eq!(open("driver=null-co").unwrap().info().size, 1 << 30);
    let null = open("driver=null-co,size=1000,read-zeroes=on").unwrap();
    block_on(async {
        let mut buf = [1; 10];
        null.read(990, &mut buf).await.unwrap();
        assert_eq!(buf, [0; 10]);
        assert!(null.read(991, &mut buf).await.is_err());
        assert!(null.write(1000, &[1], WriteFlags::empty()).await.is_err());
        assert!(null.block_status(0, 1000).await.unwrap().zero);
    });
    let quiet = open("driver=null-co").unwrap();
    assert!(!block_on(quiet.block_status(0, 1000)).unwrap().zero, "its reads do not say zero, so neither does it");
    let table = [
        ("driver=memory", "driver 'memory' needs the option 'size'"),
        ("driver=raw", "driver 'raw' needs the option 'file'"),
        ("driver=file", "driver 'file' needs the option 'filename'"),
        ("driver=raw,file.driver=memory", "needs the option 'file.size'"),
        ("driver=null-co,latency-ns=5", "null-co can not wait"),
        ("driver=null-co,sizes=5", "did you mean 'size'?"),
        ("driver=raw,size=2k,file.driver=memory,file.size=1k", "raw: offset 0x0 plus size 0x800 reaches past the end"),
        ("driver=raw,offset=2k,file.driver=memory,file.size=1k", "raw: offset 0x800 lies past the end"),
    ];
    for (options, want) in table {
        let text = open(options).unwrap_err().to_string();
        assert!(text.contains(want), "{options}: {text}");
    }
}

/// A write that nobody waits for any more may land yet: the next flush reaches the disk.
#[test]
fn a_dropped_write_is_flushed() {
    let below = TestDisk::new(4096);
    let raw = Raw::new(below.clone());
    below.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write));
    block_on(async {
        let data = [1; 512];
        let mut write = Box::pin(raw.write(0, &data, WriteFlags::empty()));
        assert!(futures_lite::future::poll_once(&mut write).await.is_none());
        drop(write);
        raw.flush().await.unwrap();
        raw.flush().await.unwrap();
    });
    let flushed = below.log().of_kind(OpKind::Event).filter(|op| op.event == Some(Event::FlushToDisk)).count();
    assert_eq!(flushed, 1, "{}", below.log());
}
