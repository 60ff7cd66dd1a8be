//! `blkverify` in a graph: its filename, its options, and what it refuses.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::type_complexity)]

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OpenFlags, Options, Registry};
use blkproof_block::nodes::memory::Memory;
use blkproof_block::testing::block_on;
use blkproof_block::{BlockDevice, LocalBoxFuture, Node, WriteFlags};
use blkproof_verify::VerifyDriver;

/// An end that is named `mem:NAME`, of `size` bytes; every node it opened can be looked at.
#[derive(Clone, Default)]
struct Memories(Rc<RefCell<Vec<(String, Rc<Memory>)>>>);

impl Driver for Memories {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    fn open<'a>(&'a self, mut options: Options, _: &'a OpenContext<'a>) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move {
            let name = options.need_text("name", "memory")?;
            let size = options.take_size("size")?.unwrap_or(65536);
            options.finish("memory")?;
            let memory = Rc::new(Memory::new(size));
            self.0.borrow_mut().push((name, memory.clone()));
            Ok(Node::from_rc(memory))
        })
    }
}

fn open(graph: &str, seen: &common::Seen) -> (Result<Node, OpenError>, Memories) {
    let memories = Memories::default();
    let mut registry = Registry::new();
    registry.add(memories.clone());
    registry.add(VerifyDriver::new(seen.sink()));
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let opened = block_on(async { context.open(Options::from_image_opts(graph)?).await });
    (opened, memories)
}

const BOTH: &str = "driver=blkverify,raw.driver=memory,raw.name=r,test.driver=memory,test.name=t";

#[test]
fn the_options_make_a_mirror() {
    let seen = common::Seen::default();
    let (node, memories) = open(&format!("{BOTH},history=1M,on-mismatch=repair-view"), &seen);
    let node = node.unwrap();
    assert_eq!((node.info().driver, node.info().size), ("blkverify", 65536));
    block_on(async {
        node.write(0, &[5; 512], WriteFlags::empty()).await.unwrap();
        let opened = memories.0.borrow().clone();
        assert_eq!(opened.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["r", "t"]);
        let mut buf = [0; 512];
        for (name, memory) in &opened {
            memory.read(0, &mut buf).await.unwrap();
            assert_eq!(buf, [5; 512], "{name}");
        }
        opened[1].1.write(0, &[6], WriteFlags::empty()).await.unwrap();
        node.read(0, &mut buf).await.unwrap();
        assert_eq!(buf, [5; 512], "repaired");
    });
    assert_eq!(seen.take().len(), 1);
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let table = [
        (BOTH.replace("raw.driver=memory,raw.name=r,", ""), "driver 'blkverify' needs the option 'raw'"),
        (BOTH.replace(",test.driver=memory,test.name=t", ""), "driver 'blkverify' needs the option 'test'"),
        (
            format!("{BOTH},on-mismatch=panic"),
            "option 'on-mismatch' expects one of 'report', 'fail', 'exit', 'repair-view', got 'panic'",
        ),
        (format!("{BOTH},histroy=1M"), "unknown option 'histroy' for driver 'blkverify'; did you mean 'history'?"),
        (format!("{BOTH},test.nam=x"), "unknown option 'test.nam' for driver 'memory'; did you mean 'name'?"),
        (format!("{BOTH},filename=x"), "options 'filename' and 'test' name the same image; give one of them"),
        (format!("{BOTH},test.size=1k,on-mismatch=fail"), "blkverify: open size mismatch 1024 != 65536"),
    ];
    for (graph, want) in table {
        let (opened, _) = open(&graph, &common::Seen::default());
        assert_eq!(opened.unwrap_err().to_string(), want, "{graph}");
    }
}

#[test]
fn filenames_are_split_at_the_first_colon() {
    let driver = VerifyDriver::new(|_| {});
    // Filename; RAW and TEST, or `None` for a refusal.
    let table = [
        ("blkverify:a:b", Some(("a", "b"))),
        ("blkverify:/x/a.img:nbd://h:10809/e", Some(("/x/a.img", "nbd://h:10809/e"))),
        ("blkverify:a", None),
        ("blkverify::b", None),
        ("blkverify:a:", None),
    ];
    for (filename, want) in table {
        let parsed = driver.parse_filename(filename).unwrap();
        match want {
            Some((raw, test)) => {
                let mut options = parsed.unwrap();
                let name = |options: &mut Options, child| {
                    options.take_child(child).unwrap().text("filename").map(str::to_owned)
                };
                assert_eq!(name(&mut options, "raw").as_deref(), Some(raw), "{filename}");
                assert_eq!(name(&mut options, "test").as_deref(), Some(test), "{filename}");
            }
            None => assert_eq!(
                parsed.unwrap_err().to_string(),
                "blkverify requires raw copy and original image path",
                "{filename}"
            ),
        }
    }
    assert!(driver.parse_filename("blkverifyx:a:b").is_none());
    assert!(driver.parse_filename("disk.img").is_none());
}

/// Two files, one byte changed behind the mirror's back: our first line is the one QEMU's blkverify prints.
#[test]
fn the_first_line_is_qemus() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (raw, test) = (path("raw.img"), path("test.img"));
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    std::fs::write(&test, vec![7; 1 << 20]).unwrap();

    let seen = common::Seen::default();
    let mut registry = Registry::new();
    blkproof_block::nodes::register(&mut registry);
    registry.add(VerifyDriver::new(seen.sink()));
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let graph = format!("driver=blkverify,raw.filename={raw},test.driver=raw,test.file.filename={test}");
    // File I/O happens on threads, which the simple executor of the tests knows nothing of.
    futures_lite::future::block_on(async {
        let node = context.open_image(&graph, None, true).await.unwrap();
        node.write(8192, &[9; 4096], WriteFlags::FUA).await.unwrap();
        node.read(0, &mut vec![0; 65536]).await.unwrap();
        assert_eq!(seen.take(), []);
        let mut bytes = std::fs::read(&test).unwrap();
        assert_eq!(bytes[8192], 9);
        bytes[8192 + 15] ^= 1;
        std::fs::write(&test, bytes).unwrap();
        node.read(4096, &mut vec![0; 65536]).await.unwrap();
        node.close().await.unwrap();
    });
    let ours = seen.take()[0].headline();

    let blkverify = format!("driver=blkverify,raw.filename={raw},test.driver=raw,test.file.filename={test}");
    let qemu = std::process::Command::new("qemu-io")
        .args(["--image-opts", &blkverify, "-c", "read 4096 65536"])
        .output()
        .expect("qemu-io is installed");
    let theirs = String::from_utf8_lossy(&qemu.stderr).trim().to_owned();
    assert_eq!(ours, theirs);
    assert_eq!(qemu.status.code(), Some(1));
}
