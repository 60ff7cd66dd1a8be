//! Seen: a block status of 0 bytes, asked for with a list of contexts, was answered by a chunk without a single extent,
//! which the protocol does not know and clients take for an attack.
//!
//! Why: the length comes in the payload there, and was checked against the end of the export only. What must hold: it
//! is refused with EINVAL, and the connection goes on.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::future::pending;

use common::wire::{SET_EXTENDED, extended};
use common::{memory, run, single};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;

#[test]
fn a_status_of_no_bytes_is_refused() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let (mut near, far) = tokio::io::duplex(1 << 16);
        spawn_local(async move { server.serve(far, "test", pending()).await });
        near.write_all(&3_u32.to_be_bytes()).await.unwrap();
        near.write_all(&SET_EXTENDED.concat()).await.unwrap();
        // Greeting; acknowledged; context, acknowledged; size and flags, acknowledged.
        near.read_exact(&mut [0; 18 + 20 + (20 + 19) + 20 + (20 + 12) + 20]).await.unwrap();
        for (length, error) in [(0_u64, true), (4096, false), (0, true)] {
            let payload = [&length.to_be_bytes()[..], &[0; 4]].concat();
            near.write_all(&extended(7, 1 << 5, 9, 0, payload.len() as u64)).await.unwrap();
            near.write_all(&payload).await.unwrap();
            let mut head = [0; 32];
            near.read_exact(&mut head).await.unwrap();
            let mut body = vec![0; usize::try_from(u64::from_be_bytes(head[24..].try_into().unwrap())).unwrap()];
            near.read_exact(&mut body).await.unwrap();
            assert_eq!(head[6] & 0x80 != 0, error, "{length} bytes: {head:?} {body:?}");
            if error {
                assert_eq!(body[..4], 22_u32.to_be_bytes());
            }
        }
    });
}
