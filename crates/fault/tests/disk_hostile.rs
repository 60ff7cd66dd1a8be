//! The hostile profiles through the node: sheared blocks, noise, and blocks that can not be read.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::rc::Rc;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, Errno, IoError, Node, Preallocation, WriteFlags, ZeroFlags};
use blkproof_fault::disk::{Disk, DiskNode, DiskOptions, Profile};

const BLOCK: usize = 4096;
const BLOCKS: usize = 16;

fn nines() -> TestDisk {
    let mut content = SparseBytes::new((BLOCK * BLOCKS) as u64);
    content.write(0, &[9; BLOCK * BLOCKS]);
    TestDisk::from_bytes(content)
}

fn over(child: &TestDisk, profile: Profile) -> (Rc<DiskNode>, Disk) {
    let options = DiskOptions { profile, block_size: BLOCK as u32, ..DiskOptions::default() };
    let node = Rc::new(DiskNode::new(Node::new(child.clone()), options));
    let disk = node.handle();
    (node, disk)
}

async fn read(node: &DiskNode, at: usize, len: usize) -> Result<Vec<u8>, IoError> {
    let mut bytes = vec![0xdd; len];
    node.read(at as u64, &mut bytes).await.map(|()| bytes)
}

#[test]
fn a_sheared_block() {
    let child = nines();
    let (node, disk) = over(&child, Profile::Shorn);
    block_on(async {
        node.write(BLOCK as u64, &[1; 2 * BLOCK], WriteFlags::empty()).await.unwrap();
        let report = disk.power_cut(Some("shear:0:1:3")).await.unwrap();
        assert_eq!(&*report.state, "shear:0:1:3");
        let bytes = read(&node, 0, 4 * BLOCK).await.unwrap();
        let want = [vec![9; BLOCK], vec![1; BLOCK + 3 * 512], vec![9; BLOCK - 3 * 512 + BLOCK]].concat();
        assert!(bytes == want && child.bytes(0, 4 * BLOCK) == want);
        node.write(0, &[2; BLOCK], WriteFlags::empty()).await.unwrap();
        let seeds: Vec<_> = (0..40).map(|seed| disk.preview(&format!("seed:{seed}")).unwrap().pieces).collect();
        let cut = |pieces: &Vec<_>| {
            pieces
                .iter()
                .any(|piece: &blkproof_fault::disk::piece::Piece| !piece.range.end.is_multiple_of(BLOCK as u64))
        };
        assert!(seeds.iter().any(cut), "no seed shears");
    });
}

/// A disk that lost its power while a flush wrote its first ten blocks.
fn cut_in_flight(seed: u64) -> (TestDisk, Rc<DiskNode>, Disk) {
    let child = nines();
    let (node, disk) = over(&child, Profile::Garbage);
    block_on(node.write(0, &[1; 10 * BLOCK], WriteFlags::empty())).unwrap();
    child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Flush).times(1));
    let mut executor = Executor::new();
    let flushing = Rc::clone(&node);
    let flush = executor.spawn(async move { flushing.flush().await });
    executor.run_until_stalled();
    // Not on its way.
    block_on(node.write((12 * BLOCK) as u64, &[2; BLOCK], WriteFlags::empty())).unwrap();
    child.clear_rules();
    block_on(disk.power_cut(Some(&format!("seed:{seed}")))).unwrap();
    executor.run_until_stalled();
    assert!(flush.take().unwrap().unwrap_err().gone);
    (child, node, disk)
}

#[test]
fn garbage_in_flight() {
    let (mut noise, mut bad) = (0, 0);
    for seed in 0..20 {
        let (child, node, _) = cut_in_flight(seed);
        for block in 0..BLOCKS {
            let stored = child.bytes((block * BLOCK) as u64, BLOCK);
            // A block may be sheared too; its sectors are whole.
            let whole = stored.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0]));
            match block_on(read(&node, block * BLOCK, BLOCK)) {
                Ok(seen) => {
                    assert!(seen == stored);
                    assert!(whole || block < 10, "seed {seed}: noise in block {block}");
                    noise += usize::from(!whole);
                }
                Err(error) => {
                    assert!(block < 10, "seed {seed}: block {block} can not be read");
                    assert_eq!((error.errno, error.gone), (Errno::IO, false));
                    assert_eq!(error.first_bad.map(|at| at.0), Some((block * BLOCK) as u64));
                    assert!(
                        error.to_string().contains("disk 'disk' lost its power while it wrote this block"),
                        "{error}"
                    );
                    assert!(!node.read_now((block * BLOCK) as u64, &mut [0; 512]));
                    bad += 1;
                }
            }
        }
    }
    assert!(noise > 20 && bad > 20, "{noise} blocks of noise, {bad} unreadable");
}

/// A block that can not be read stays so, across flushes and cuts, until it is written.
#[test]
fn unreadable_until_rewritten() {
    let (child, node, disk) = (0..20)
        .map(cut_in_flight)
        .find(|(_, node, _)| (0..10).filter(|block| block_on(read(node, block * BLOCK, BLOCK)).is_err()).count() > 3)
        .unwrap();
    let is_bad = |block: usize| block_on(read(&node, block * BLOCK, BLOCK)).is_err();
    let bad: Vec<usize> = (0..10).filter(|block| is_bad(*block)).collect();
    block_on(async {
        // A read that touches it anywhere says where.
        let error = read(&node, 0, BLOCK * BLOCKS).await.unwrap_err();
        assert_eq!(error.first_bad.map(|at| at.0), Some((bad[0] * BLOCK) as u64));
        let at = |index: usize| (bad[index] * BLOCK) as u64;
        // In the cache it can be read, and what the cut loses is bad again.
        node.write(at(0), &[3; BLOCK], WriteFlags::empty()).await.unwrap();
        assert_eq!(read(&node, bad[0] * BLOCK, BLOCK).await.unwrap(), [3; BLOCK]);
        disk.power_cut(Some("all-old")).await.unwrap();
        assert!(read(&node, bad[0] * BLOCK, BLOCK).await.is_err());
        // What it keeps is good, as is what was flushed; zeroes do as well.
        node.write(at(0), &[3; BLOCK], WriteFlags::empty()).await.unwrap();
        disk.power_cut(Some("all-new")).await.unwrap();
        assert_eq!(read(&node, bad[0] * BLOCK, BLOCK).await.unwrap(), [3; BLOCK]);
        node.write_zeroes(at(1), BLOCK as u64, ZeroFlags::empty()).await.unwrap();
        node.write(at(2) + 512, &[4; 1024], WriteFlags::empty()).await.unwrap();
        node.flush().await.unwrap();
        disk.power_cut(Some("all-old")).await.unwrap();
        assert_eq!(read(&node, bad[1] * BLOCK, BLOCK).await.unwrap(), [0; BLOCK]);
        // Of a block that was written in part, that part.
        assert_eq!(read(&node, bad[2] * BLOCK + 512, 1024).await.unwrap(), [4; 1024]);
        let error = read(&node, bad[2] * BLOCK + 512, 2048).await.unwrap_err();
        assert_eq!(error.first_bad.map(|at| at.0), Some(at(2) + 1536));
        // A cut in the middle of the write that would make it good.
        child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Flush).times(1));
        node.write(at(3), &[5; BLOCK], WriteFlags::empty()).await.unwrap();
        let mut flush = Box::pin(node.flush());
        assert!(futures_lite::future::poll_once(&mut flush).await.is_none());
        disk.power_cut(Some("all-old")).await.unwrap();
        assert!(read(&node, bad[3] * BLOCK, BLOCK).await.is_err());
        // What is cut off is gone; what grows in its place is zero.
        node.resize(0, Preallocation::Off).await.unwrap();
        node.resize((BLOCK * BLOCKS) as u64, Preallocation::Off).await.unwrap();
        node.flush().await.unwrap();
        disk.power_cut(Some("all-old")).await.unwrap();
        assert!(read(&node, 0, BLOCK * BLOCKS).await.unwrap().iter().all(|byte| *byte == 0));
    });
}
