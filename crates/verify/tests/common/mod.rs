//! A mirror over two scripted disks, with a sink that remembers.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_block::testing::{OpKind, TestDisk};
use blkproof_block::{BlockDevice, Preallocation, Result, WriteFlags, ZeroFlags};
use blkproof_verify::{Mismatch, OnMismatch, Verify, VerifyOptions};

pub const K: u64 = 1024;

#[derive(Clone, Default)]
pub struct Seen(Rc<RefCell<Vec<Mismatch>>>);

impl Seen {
    pub fn sink(&self) -> impl Fn(&Mismatch) + 'static {
        let seen = self.0.clone();
        move |mismatch| seen.borrow_mut().push(mismatch.clone())
    }

    pub fn take(&self) -> Vec<Mismatch> {
        self.0.take()
    }
}

pub struct Bench {
    pub raw: TestDisk,
    pub test: TestDisk,
    pub verify: Rc<Verify<TestDisk, TestDisk>>,
    seen: Seen,
}

impl Bench {
    pub fn new(size: u64, on_mismatch: OnMismatch) -> Self {
        Self::with(size, VerifyOptions::new(on_mismatch))
    }

    pub fn with(size: u64, options: VerifyOptions) -> Self {
        let (raw, test) = (TestDisk::new(size), TestDisk::new(size));
        let seen = Seen::default();
        let options = options.history(1 << 20).sink(seen.sink());
        let verify = Rc::new(Verify::new(raw.clone(), test.clone(), options).unwrap());
        Self { raw, test, verify, seen }
    }

    /// The mismatches told since the last time.
    pub fn seen(&self) -> Vec<Mismatch> {
        self.seen.take()
    }

    /// One request of the kind, 1024 bytes at 512.
    pub async fn request(&self, kind: OpKind) -> Result<()> {
        match kind {
            OpKind::Read => self.verify.read(512, &mut [0; 1024]).await,
            OpKind::Write => self.verify.write(512, &[8; 1024], WriteFlags::empty()).await,
            OpKind::WriteZeroes => self.verify.write_zeroes(512, 1024, ZeroFlags::empty()).await,
            OpKind::Discard => self.verify.discard(512, 1024).await,
            OpKind::Flush => self.verify.flush().await,
            OpKind::Resize => self.verify.resize(8192, Preallocation::Off).await,
            other => panic!("{other:?} is not sent"),
        }
    }
}

/// Both disks hold the same bytes, not merely as far as somebody looked.
pub fn assert_same(bench: &Bench) {
    let (raw, test) = (bench.raw.image(), bench.test.image());
    assert_eq!(raw.size(), test.size());
    let len = usize::try_from(raw.size()).unwrap();
    let (mut a, mut b) = (vec![0; len], vec![0; len]);
    raw.read(0, &mut a);
    test.read(0, &mut b);
    let first = a.iter().zip(&b).position(|(a, b)| a != b);
    assert_eq!(first, None, "the sides differ at this byte");
}

/// The kinds of all requests a disk got, in order.
pub fn kinds(disk: &TestDisk) -> Vec<OpKind> {
    disk.log().ops().iter().map(|op| op.kind).collect()
}
