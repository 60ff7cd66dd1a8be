//! Seen: a client that took no replies made a connection hold gigabytes of address space where 2 MiB are promised.
//!
//! Why: the reply to a read that had to wait is sent from the buffer it was read into, and whatever is said after it
//! began a new buffer of 256 KiB: one byte read and one flush, again and again, took one such buffer per pair, while
//! only the bytes in it counted. What must hold: what waits for a peer is bounded in memory, not in bytes said.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::future::pending;

use blkproof_block::{
    BlockDevice, BlockStatus, DeviceInfo, IoError, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};
use common::wire::{GO_SIMPLE, compact};
use common::{run, single};
use tokio::io::AsyncWriteExt as _;
use tokio::task::{spawn_local, yield_now};

/// Ones, that are never there at once.
struct Ones;

impl BlockDevice for Ones {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("ones", 1 << 20)
    }

    async fn read(&self, _: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(1);
        Ok(())
    }

    async fn write(&self, _: u64, _: &[u8], _: WriteFlags) -> Result<()> {
        Ok(())
    }

    async fn write_zeroes(&self, _: u64, _: u64, _: ZeroFlags) -> Result<()> {
        Ok(())
    }

    async fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::data(len, Some(at)))
    }

    async fn resize(&self, _: u64, _: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        Ok(())
    }
}

/// Address space of this process in bytes.
fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn what_waits_for_a_deaf_peer_is_bounded_in_memory() {
    for len in [1, 5000] {
        run(async {
            let server = single(Node::new(Ones));
            let (mut near, far) = tokio::io::duplex(64 << 10);
            let serving = {
                let server = server.clone();
                spawn_local(async move { server.serve(far, "deaf", pending()).await })
            };
            let before = address_space();
            near.write_all(&3_u32.to_be_bytes()).await.unwrap();
            near.write_all(GO_SIMPLE).await.unwrap();
            let mut cookie = 0;
            // Until back-pressure reaches us.
            for _ in 0..40_000 {
                let mut pair = compact(0, 0, cookie, 0, len);
                pair.extend(compact(3, 0, cookie + 1, 0, 0));
                cookie += 2;
                let mut waits = 0;
                let mut pair = &pair[..];
                while !pair.is_empty() && waits < 100 {
                    match futures_lite::future::poll_once(near.write(pair)).await {
                        Some(sent) => pair = &pair[sent.unwrap()..],
                        None => waits += 1,
                    }
                    if waits > 0 {
                        yield_now().await;
                    }
                }
                if waits == 100 {
                    break;
                }
            }
            let held = address_space().saturating_sub(before);
            assert!(held < 32 << 20, "{} MiB for replies nobody takes, reads of {len} bytes", held >> 20);
            serving.abort();
        });
    }
}
