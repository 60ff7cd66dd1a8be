//! Seen: a server could make its client keep an entry for every chunk it sent, for ever: block status chunks without
//! end, and a read answered one byte here and one byte there. And an export could be told to have 2^64 - 1 bytes, more
//! than offsets in the layers above are made for.
//!
//! Why: chunks were counted by nobody. What must hold: one chunk for the one context that was asked for; a read in a
//! bounded number of separate pieces; sizes that fit a signed 64-bit offset. Anything else ends the connection.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use blkproof_block::{BlockDevice as _, Errno};
use blkproof_nbd::client::Client;
use blkproof_nbd::handshake::client::Wanted;
use common::run;
use common::wire::{chunk, extended_server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;

const LEN: u64 = 256 << 10;

/// A client of a server that answers its first request by `reply`, made of the request's cookie.
async fn client_of(size: u64, reply: impl Fn(u64) -> Vec<u8> + 'static) -> Option<Client> {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    spawn_local(async move {
        extended_server(&mut far, size).await;
        let mut request = [0; 32];
        if far.read_exact(&mut request).await.is_ok() {
            let _ = far.write_all(&reply(u64::from_be_bytes(request[8..16].try_into().unwrap()))).await;
        }
        // Stays until the client leaves.
        let _ = far.read_to_end(&mut Vec::new()).await;
    });
    let (client, connection) = Client::connect(near, Wanted::new("")).await.ok()?;
    spawn_local(connection);
    Some(client)
}

fn status(cookie: u64, done: bool, context: u32) -> Vec<u8> {
    let mut body = context.to_be_bytes().to_vec();
    body.extend(1_u32.to_be_bytes());
    body.extend(512_u64.to_be_bytes());
    body.extend(0_u64.to_be_bytes());
    chunk(6, done, cookie, &body)
}

#[test]
fn one_status_chunk_of_the_context_asked_for() {
    type Reply = fn(u64) -> Vec<u8>;
    let table: [(&str, Reply, bool); 3] = [
        ("one", |cookie| status(cookie, true, 0), true),
        ("twice", |cookie| [status(cookie, false, 0), status(cookie, true, 0)].concat(), false),
        ("another context", |cookie| [status(cookie, false, 7), status(cookie, true, 0)].concat(), false),
    ];
    for (name, reply, fine) in table {
        run(async {
            let client = client_of(1 << 30, reply).await.unwrap();
            let answer = client.block_status(0, 4096).await;
            match answer {
                Ok(status) => assert!(fine && status.len == 512, "{name}"),
                Err(error) => assert!(!fine && error.errno == Errno::SHUTDOWN, "{name}: {error}"),
            }
        });
    }
}

#[test]
fn a_read_in_countless_pieces_ends_the_connection() {
    let hole =
        |cookie, at: u64, len: u32, done| chunk(2, done, cookie, &[&at.to_be_bytes()[..], &len.to_be_bytes()].concat());
    for (step, fine) in [(512, true), (2, false)] {
        run(async {
            let client = client_of(1 << 30, move |cookie| {
                // Every other piece first, then those between them.
                let halves = [0, step / 2].map(|first| (first..LEN).step_by(usize::try_from(step).unwrap()));
                let last = LEN - step / 2;
                halves
                    .into_iter()
                    .flatten()
                    .flat_map(|at| hole(cookie, at, u32::try_from(step / 2).unwrap(), at == last))
                    .collect()
            })
            .await
            .unwrap();
            let read = client.read(0, &mut vec![1; 256 << 10]).await;
            assert_eq!(read.is_ok(), fine, "pieces of {} bytes: {read:?}", step / 2);
        });
    }
}

#[test]
fn sizes_beyond_signed_offsets_are_refused() {
    for (size, fine) in [(0, true), (i64::MAX as u64, true), (1 << 63, false), (u64::MAX, false)] {
        run(async { assert_eq!(client_of(size, |_| Vec::new()).await.is_some(), fine, "{size:#x}") });
    }
}
