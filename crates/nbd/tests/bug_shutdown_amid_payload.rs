//! Seen: a client that was sending the data of a write when the server was told to shut down lost its connection
//! without an answer, although what is in flight was to be finished.
//!
//! Why: a request counted as in flight from the moment its data was complete. What must hold: once its head is
//! accepted, it is carried out and answered.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::future::pending;

use blkproof_block::BlockDevice as _;
use common::wire::{GO_SIMPLE, compact};
use common::{memory, run, single};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::{spawn_local, yield_now};

#[test]
fn a_write_whose_data_is_on_its_way_is_answered() {
    run(async {
        let node = memory(&[0; 65536]);
        let server = single(node.clone());
        let (mut near, far) = tokio::io::duplex(1 << 10);
        let serving = {
            let server = server.clone();
            spawn_local(async move { server.serve(far, "test", pending()).await })
        };
        near.write_all(&3_u32.to_be_bytes()).await.unwrap();
        near.write_all(GO_SIMPLE).await.unwrap();
        near.read_exact(&mut [0; 18 + (20 + 12) + 20]).await.unwrap();
        near.write_all(&compact(1, 0, 5, 0, 60_000)).await.unwrap();
        near.write_all(&[7; 30_000]).await.unwrap();
        server.shut_down();
        for _ in 0..20 {
            yield_now().await;
        }
        near.write_all(&[7; 30_000]).await.unwrap();
        let mut reply = [0; 16];
        near.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        serving.await.unwrap().unwrap();
        let mut content = [0; 60_000];
        node.read(0, &mut content).await.unwrap();
        assert!(content == [7; 60_000]);
    });
}
