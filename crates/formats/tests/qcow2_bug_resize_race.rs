//! Seen: review of the requests' beginnings. Why: a request was checked against the size of the disk, then waited for
//! its range behind a resize, and then ran as if the disk were still as large: a write behind the new end succeeded,
//! and a discard took for the last cluster of the disk what was not the last any more.
//! Must hold: a request is checked by the size it meets when it has its range.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::future::Future;
use std::rc::Rc;

use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, Preallocation, Result, WriteFlags, ZeroFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

type Image = Rc<Qcow2<TestDisk>>;

/// Sends a request while a shrink to half a megabyte waits for the disk; it meets the smaller disk.
fn refused<F: Future<Output = Result<()>> + 'static>(what: &str, send: impl FnOnce(Image) -> F) {
    let options = CreateOptions { size: 1 << 20, ..CreateOptions::default() };
    let fresh = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&fresh), None, &options)).unwrap();
    let disk = TestDisk::growing_from_bytes(fresh.image());
    let image = Rc::new(block_on(Qcow2::open(disk.clone(), OpenOptions::default())).unwrap());
    let mut executor = Executor::new();
    disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
    let shrunk = Rc::clone(&image);
    executor.spawn(async move { shrunk.resize(1 << 19, Preallocation::Off).await.unwrap() });
    executor.run_until_stalled();
    let request = executor.spawn(send(Rc::clone(&image)));
    executor.run_until_stalled();
    assert!(!request.is_done(), "{what}: waits for the resize");
    disk.release_all();
    executor.run_until_stalled();
    let error = request.take().unwrap().expect_err(what);
    assert!(error.to_string().contains("end"), "{what}: {error}");
    assert_eq!(image.info().size, 1 << 19);
}

#[test]
fn a_request_that_waited_for_a_shrink_meets_the_smaller_disk() {
    const AT: u64 = (1 << 20) - 65_536;
    refused("read", |image| async move { image.read(AT, &mut [0; 512]).await });
    refused("write", |image| async move { image.write(AT, &[1; 512], WriteFlags::empty()).await });
    refused("compressed write", |image| async move { image.write(AT, &[1; 65_536], WriteFlags::COMPRESSED).await });
    refused("zeroes", |image| async move { image.write_zeroes(AT, 65_536, ZeroFlags::empty()).await });
    refused("discard", |image| async move { image.discard(AT, 65_536).await });
    refused("status", |image| async move { image.block_status(AT, 65_536).await.map(|_| ()) });
}
