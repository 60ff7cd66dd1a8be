//! qcow2 images in memory.

use std::rc::Rc;

use blkproof_block::testing::{TestDisk, block_on};
use blkproof_block::{BlockDevice, Node};
use blkproof_gallery::formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

/// Bytes of a cluster, unless a test says otherwise.
pub const CLUSTER: u64 = 4096;

/// Options of an image of 1 MiB.
pub fn options() -> CreateOptions {
    CreateOptions { size: 1 << 20, cluster_size: CLUSTER, ..CreateOptions::default() }
}

/// An empty image.
pub fn image() -> (TestDisk, Rc<Qcow2<TestDisk>>) {
    with(&options(), None)
}

/// An empty image over `base`.
pub fn over(base: &TestDisk, options: &CreateOptions) -> (TestDisk, Rc<Qcow2<TestDisk>>) {
    let options = CreateOptions { backing_file: Some("base".into()), ..options.clone() };
    with(&options, Some(Node::new(base.clone())))
}

/// A base of `len` times 0xbb.
pub fn base(len: u64) -> TestDisk {
    let disk = TestDisk::new(len);
    disk.tamper(|bytes| bytes.write(0, &vec![0xbb; usize::try_from(len).unwrap()]));
    disk
}

pub fn with(options: &CreateOptions, base: Option<Node>) -> (TestDisk, Rc<Qcow2<TestDisk>>) {
    let made = TestDisk::growing(0);
    block_on(create(Rc::new(made.clone()), None, options)).unwrap();
    let disk = TestDisk::growing_from_bytes(made.image());
    let qcow2 = open(&disk, base).unwrap();
    (disk, qcow2)
}

/// Opens what `disk` holds.
pub fn open(disk: &TestDisk, backing: Option<Node>) -> Result<Rc<Qcow2<TestDisk>>, String> {
    open_with(disk, OpenOptions { backing, ..OpenOptions::default() })
}

pub fn open_with(disk: &TestDisk, options: OpenOptions<TestDisk>) -> Result<Rc<Qcow2<TestDisk>>, String> {
    block_on(Qcow2::open(disk.clone(), options)).map(Rc::new).map_err(|error| format!("open: {error}"))
}

/// Closes and opens again.
pub fn reopen(disk: &TestDisk, qcow2: Rc<Qcow2<TestDisk>>) -> Result<Rc<Qcow2<TestDisk>>, String> {
    block_on(qcow2.close()).map_err(|error| format!("close: {error}"))?;
    drop(qcow2);
    open(disk, None)
}
