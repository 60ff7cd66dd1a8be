//! What the qcow2 tests share: running QEMU's tools, images in memory and on disk, a small random stream.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, clippy::expect_used)]

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::{BlockDevice, Node};

/// Runs a tool that has to be there; returns exit status and everything it said.
pub(crate) fn run(program: &str, args: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("these tests need {program}: {e}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), text)
}

/// Runs a tool that has to succeed.
pub(crate) fn ok(program: &str, args: &[&str]) -> String {
    let (status, text) = run(program, args);
    assert_eq!(status, 0, "{program} {args:?}: {text}");
    text
}

/// `qemu-img check` finds nothing, not even a leak.
pub(crate) fn assert_clean(path: &Path, what: &str) {
    let (status, text) = run("qemu-img", &["check", "-f", "qcow2", path.to_str().unwrap()]);
    assert_eq!(status, 0, "{what}: {text}");
}

/// A file as a disk in memory.
pub(crate) fn load(path: &Path) -> Rc<Memory> {
    Rc::new(Memory::with_content(&std::fs::read(path).unwrap()))
}

/// A disk in memory as a file.
pub(crate) async fn store(disk: &impl BlockDevice, path: &Path) {
    let mut bytes = vec![0; disk.info().size as usize];
    disk.read(0, &mut bytes).await.unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The whole content of a disk.
pub(crate) async fn content(disk: &impl BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.info().size as usize];
    // In odd pieces, so that requests begin and end everywhere.
    let mut at = 0;
    let mut step = 4093;
    while at < bytes.len() {
        let end = (at + step).min(bytes.len());
        disk.read(at as u64, &mut bytes[at..end]).await.unwrap();
        let mut now = vec![0xee; end - at];
        if disk.read_now(at as u64, &mut now) {
            assert_eq!(now, bytes[at..end], "read_now differs from read at {at:#x}");
        }
        at = end;
        step = step * 3 % 300_007 + 1;
    }
    bytes
}

/// What QEMU reads from an image.
pub(crate) fn qemu_content(path: &Path, dir: &Path) -> Vec<u8> {
    let raw = dir.join("converted.raw");
    ok("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    std::fs::read(raw).unwrap()
}

/// Says where two disks differ first.
pub(crate) fn assert_same(got: &[u8], want: &[u8], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: size");
    if got == want {
        return; // at once, where the search below takes its time in a debug build
    }
    if let Some(at) = (0..got.len()).find(|&i| got[i] != want[i]) {
        let end = (at + 16).min(got.len());
        panic!("{what}: first difference at {at:#x}: got {:02x?}, want {:02x?}", &got[at..end], &want[at..end]);
    }
}

pub(crate) fn memory_node(bytes: &[u8]) -> Node {
    Node::new(Memory::with_content(bytes).read_only())
}

/// A small random stream (an LCG's upper bits); the same seed means the same for ever.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 24
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
