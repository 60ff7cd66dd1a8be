//! The line in a driver's tests: a driver with a mistake in it fails, with its plan; without, it passes.
//!
//! This is also what a driver author writes (docs/torture.md): the driver, ten lines of [`Target`], a line in a test.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use blkproof_block::{
    BlockDevice, BlockStatus, DeviceInfo, IoError, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};
use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{Files, Opening, Target};

/// A driver that does nothing but hand requests on. Or hardly so.
struct Passes {
    below: Node,
    /// A mistake: FUA is forgotten.
    forgets_fua: bool,
}

impl BlockDevice for Passes {
    fn info(&self) -> DeviceInfo {
        self.below.info()
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(at, buf).await
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let flags = if self.forgets_fua { flags - WriteFlags::FUA } else { flags };
        self.below.write(at, data, flags).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.below.write_zeroes(at, len, flags).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.below.discard(at, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.below.block_status(at, len).await
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        self.below.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.below.close().await
    }
}

struct Mine {
    forgets_fua: bool,
}

impl Target for Mine {
    fn name(&self) -> &str {
        "mine"
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
        let forgets_fua = self.forgets_fua;
        Box::pin(async move { Ok(Node::new(Passes { below: files.image, forgets_fua })) })
    }
}

/// What a test says that fails.
fn said(test: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(test)).expect_err("the test passes");
    payload.downcast_ref::<String>().unwrap().clone()
}

#[test]
fn a_driver_that_keeps_its_word_passes() {
    blkproof_torture::check(Mine { forgets_fua: false }).quick();
}

#[test]
fn a_driver_that_forgets_fua_fails_with_a_plan_that_shows_it() {
    let words = said(|| blkproof_torture::check(Mine { forgets_fua: true }).quick());
    assert!(words.starts_with("torture broke mine: "), "{words}");
    assert!(words.contains("found by seed 0x"), "{words}");
    let (start, end) = (words.find("schema = ").unwrap(), words.find("\n`check(…)").unwrap());
    let plan = &words[start..end];
    let ops = plan.lines().filter(|line| line.starts_with("    \"")).count();
    assert!(ops <= 2, "one durable write is enough:\n{plan}");

    let again = said(|| blkproof_torture::check(Mine { forgets_fua: true }).plan(plan));
    assert_eq!(again.split('\n').next(), words.split('\n').next(), "the same is said of the plan");
    blkproof_torture::check(Mine { forgets_fua: false }).plan(plan);
}

/// Pieces of a vectored read are requests of their own: a write may come between two of them, in the middle of a sector.
/// The first runs of this file called that torn.
#[test]
fn a_write_between_two_pieces_of_a_read_is_no_finding() {
    let plan = "schema = \"blkproof.plan/1\"\nops = [\"14 write 0+512\", \"15 q1 read 0+512 as 1+511\"]\n[target]\n\
                name = \"mine\"\nsize = \"512\"\n[schedule]\nholds = [\"14#1.effect until 15#1.effect\"]\n";
    blkproof_torture::check(Mine { forgets_fua: false }).plan(plan);
}

#[test]
fn a_plan_that_is_none_fails() {
    let words = said(|| blkproof_torture::check(Mine { forgets_fua: false }).plan("schema = 1"));
    assert!(words.starts_with("the plan can not be read: "), "{words}");
}
