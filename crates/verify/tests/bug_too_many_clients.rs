//! Seen: in a server that had met more than 65 535 clients, writes of later ones were put down to the last that had got
//! a number.
//!
//! Why: numbers of clients have 16 bits in the history, and were cut off at the largest. What must hold: a write is
//! never said to be another client's.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_verify::OnMismatch;
use common::Bench;

#[test]
fn a_client_without_a_number_is_nobody() {
    let bench = Bench::new(4096, OnMismatch::Report);
    blkproof_block::testing::block_on(async {
        for number in 0..70_000 {
            let _ = bench.verify.client(&format!("client {number}"));
        }
        for (name, want) in
            [("client 7", Some("client 7")), ("client 65534", Some("client 65534")), ("client 69999", None)]
        {
            bench.verify.client(name).write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
            let versions = bench.verify.with_history(|history| history.versions(0));
            assert_eq!(versions.last().unwrap().client.as_deref(), want, "{name}");
        }
    });
}
