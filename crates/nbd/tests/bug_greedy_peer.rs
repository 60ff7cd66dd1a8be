//! Seen: a client that pipelined reads of holes, 9000 in one receive buffer, had the thread of the server for seconds:
//! no other connection was looked at before some gigabytes were read.
//!
//! Why: a hole takes 32 bytes in the send buffer, so the peer never seemed to be behind, and nothing else bounded what
//! one poll does. What must hold: one poll of a connection reads and writes a few MiB at most, then others have their
//! turn.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::future::pending;
use std::pin::pin;

use blkproof_block::Node;
use blkproof_block::nodes::memory::Memory;
use common::wire::{GO_STRUCTURED, compact};
use common::{MIB, run, single};
use futures_lite::future::poll_once;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[test]
fn one_poll_does_a_bounded_amount_of_work() {
    run(async {
        let server = single(Node::new(Memory::new(MIB)));
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut serve = pin!(server.serve(far, "greedy", pending()));
        near.write_all(&3_u32.to_be_bytes()).await.unwrap();
        near.write_all(GO_STRUCTURED).await.unwrap();
        assert!(poll_once(&mut serve).await.is_none());
        let mut buf = vec![0; 1 << 20];
        let greeting = poll_once(near.read(&mut buf)).await.unwrap().unwrap();
        assert!(greeting > 18);

        let requests: Vec<u8> = (0..400).flat_map(|cookie| compact(0, 0, cookie, 0, 256 << 10)).collect();
        near.write_all(&requests).await.unwrap();
        let mut answered = 0;
        let mut polls = 0;
        while answered < 400 {
            assert!(poll_once(&mut serve).await.is_none());
            polls += 1;
            let came = match poll_once(near.read(&mut buf)).await {
                Some(came) => came.unwrap(),
                None => 0,
            };
            let here = came / 32;
            assert!(here <= 64, "{here} reads of 256 KiB in one poll");
            answered += here;
            tokio::task::yield_now().await;
        }
        assert!(polls >= 20);
    });
}

/// The bound may fall between the head of a write and its data, however much of that has come already.
#[test]
fn a_write_in_the_middle_of_which_a_poll_ends_is_done() {
    run(async {
        let server = single(Node::new(Memory::new(MIB)));
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut serve = pin!(server.serve(far, "greedy", pending()));
        near.write_all(&3_u32.to_be_bytes()).await.unwrap();
        near.write_all(GO_STRUCTURED).await.unwrap();
        assert!(poll_once(&mut serve).await.is_none());
        let mut buf = vec![0; 1 << 20];
        poll_once(near.read(&mut buf)).await.unwrap().unwrap();
        let requests: Vec<u8> =
            (0..12_000).flat_map(|cookie| [compact(1, 0, cookie, 0, 16), vec![1; 16]].concat()).collect();
        near.write_all(&requests).await.unwrap();
        let mut answered = 0;
        while answered < 12_000 {
            assert!(poll_once(&mut serve).await.is_none(), "after {answered} writes");
            if let Some(came) = poll_once(near.read(&mut buf)).await {
                answered += came.unwrap() / 16;
            }
            tokio::task::yield_now().await;
        }
    });
}
