//! Seen: a write with FUA to an export whose device has no FUA of its own was answered before it was durable.
//!
//! Why: the server offers FUA on every export and handed the flag down, but on a device without the capability the
//! caller has to flush. What must hold: one flush follows there, none where FUA is native.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use blkproof_block::testing::{OpKind, TestDisk};
use blkproof_block::{BlockDevice, Capabilities, Node, WriteFlags, ZeroFlags};
use blkproof_nbd::handshake::client::Wanted;
use common::{connect, run, single};

#[test]
fn a_durable_write_is_followed_by_a_flush_where_it_has_to_be() {
    for (capabilities, flushes) in [(Capabilities::empty(), 2), (Capabilities::FUA, 0)] {
        run(async {
            let disk = TestDisk::new(1 << 20).with_capabilities(capabilities);
            let server = single(Node::new(disk.clone()));
            let client = connect(&server, Wanted::new(""), 1 << 16).await;
            client.write(0, &[1; 512], WriteFlags::FUA).await.unwrap();
            client.write_zeroes(0, 512, ZeroFlags::FUA).await.unwrap();
            client.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
            let flushed = disk.log().ops().iter().filter(|op| op.kind == OpKind::Flush).count();
            assert_eq!(flushed, flushes, "{capabilities:?}");
        });
    }
}
