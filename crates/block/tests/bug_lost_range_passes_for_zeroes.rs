//! Seen: an image served over NBD was cut short by another program; the map called the lost bytes a hole that reads as
//! zeroes, and `qemu-img convert` copied zeroes and ended well.
//!
//! Why: behind the end of a file there is "no data" for `SEEK_DATA`, as in a hole. What must hold: bytes that were
//! there when the file was opened and are gone are never zero; a reader is told to read them, and that fails with their
//! place.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use blkproof_block::nodes::{File, FileOptions};
use blkproof_block::{BlockDevice as _, ByteOffset};
use futures_lite::future::block_on;

#[test]
fn what_was_cut_off_is_no_hole() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let node = File::open(file.path(), FileOptions::default()).unwrap();
    let hole = block_on(node.block_status(0, 1 << 20)).unwrap();
    assert!(hole.zero, "an honest hole: {hole:?}");

    file.as_file().set_len(1 << 18).unwrap();
    let lost = block_on(node.block_status(1 << 19, 4096)).unwrap();
    assert!(lost.data && !lost.zero, "{lost:?}");
    let error = block_on(node.read(1 << 19, &mut [0; 4096])).unwrap_err();
    assert_eq!(error.first_bad, Some(ByteOffset(1 << 19)));
}
