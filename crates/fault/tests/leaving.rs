//! What becomes of requests and clients when a node goes, or the power does.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use std::time::Duration;

use blkproof_block::testing::{TestDisk, block_on};
use blkproof_block::{BlockDevice as _, Errno, Node, Preallocation, WriteFlags, ZeroFlags};
use blkproof_fault::disk::{DiskNode, DiskOptions};
use blkproof_fault::request::Operations;
use blkproof_fault::rule::{Action, AskDefault, Delay};
use common::{Narrow as _, SECTOR, bench, rule};
use futures_lite::future::poll_once;

#[test]
fn nothing_waits_at_a_node_that_is_about_to_go() {
    let hold = Action::Hold { tag: Some("t".into()) };
    let delay = Action::Delay(Delay::Fixed(Duration::from_secs(3600)));
    let ask = Action::Ask { timeout: Duration::from_secs(3600), default: AskDefault::Proceed, data: false };
    let rules = vec![
        rule("hang", Action::Hang).on(Operations::READ).sectors(1, 2),
        rule("hold", hold).on(Operations::READ).sectors(2, 3),
        rule("slow", delay).on(Operations::READ).sectors(3, 4),
        rule("ask", ask).on(Operations::READ).sectors(4, 5),
    ];
    block_on(async {
        let b = bench(rules);
        b.faults.stop();
        let mut bufs = [[0; SECTOR as usize]; 5];
        let mut reads: Vec<_> =
            bufs.iter_mut().zip(0..).map(|(buf, at)| Box::pin(b.node.read(at * SECTOR, buf))).collect();
        for read in &mut reads {
            assert!(poll_once(read).await.is_none(), "stopped");
        }
        b.faults.cont();
        let mut outcomes = Vec::new();
        for (sector, read) in reads.iter_mut().enumerate() {
            let done = poll_once(read).await;
            // Nobody is registered for the question.
            assert_eq!(done.is_some(), matches!(sector, 0 | 4), "{sector}");
            outcomes.push(done);
        }
        b.faults.let_go();
        for (read, outcome) in reads.iter_mut().zip(&mut outcomes) {
            if outcome.is_none() {
                *outcome = poll_once(read).await;
            }
        }
        let ends: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().map_err(|error| error.errno)).collect();
        assert_eq!(ends, [Ok(()), Err(Errno::IO), Ok(()), Ok(()), Ok(())]);
        drop(reads);
        // Later ones do not wait either.
        for sector in 1..5_u64 {
            let mut buf = [0; SECTOR as usize];
            let end = poll_once(b.node.read(sector * SECTOR, &mut buf)).await.expect("it does not wait");
            assert_eq!(end.is_ok(), sector != 1);
        }
    });
}

/// A client that was there when the power went is gone with it, also if it had nothing in flight: its next flush must not
/// succeed as if what it wrote were there. Whoever comes later is served.
#[test]
fn an_idle_client_does_not_outlive_the_power() {
    block_on(async {
        let disk = DiskNode::new(Node::new(TestDisk::new(4096)), DiskOptions::default());
        let power = disk.handle();
        let disk = Node::new(disk);
        let old = disk.for_client("old").unwrap();
        old.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        assert!(old.read_now(0, &mut [0; 512]));
        power.power_cut(Some("all-old")).await.unwrap();
        assert_eq!(power.cuts(), 1);
        assert!(!old.read_now(0, &mut [0; 512]));
        let gone = [
            old.flush().await,
            old.read(0, &mut [0; 512]).await,
            old.write(0, &[1; 512], WriteFlags::empty()).await,
            old.write(0, &[], WriteFlags::empty()).await,
            old.write_zeroes(0, 512, ZeroFlags::empty()).await,
            old.discard(0, 512).await,
            old.block_status(0, 512).await.map(drop),
            old.resize(4096, Preallocation::Off).await,
            old.read_vm_state(0, &mut [0; 1]).await,
        ];
        for (number, end) in gone.into_iter().enumerate() {
            assert_eq!(end.unwrap_err().errno, Errno::NOTCONN, "request {number}");
        }
        let new = disk.for_client("new").unwrap();
        for node in [&new, &disk] {
            let mut buf = [7; 512];
            node.read(0, &mut buf).await.unwrap();
            assert_eq!(buf, [0; 512]);
            node.flush().await.unwrap();
        }
        // What came before may still be waited for and closed.
        old.drain().await.unwrap();
    });
}
