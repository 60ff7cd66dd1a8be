//! Seen: a client that asked for a few zero bytes took the whole server down, at operation 27 of a random workload.
//!
//! Why: zero bytes are sent as a hole, whose head is longer than that of data, and the fast path had reserved space in
//! the send buffer for data only. What must hold: reads of every length around the size of a head are answered, in
//! every layout, zero or not.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use blkproof_block::BlockDevice as _;
use blkproof_nbd::handshake::Mode;
use blkproof_nbd::handshake::client::Wanted;
use common::{connect, memory, run, single};

#[test]
fn a_few_zero_bytes_are_read_in_every_layout() {
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        run(async {
            let server = single(memory(&[0; 4096]));
            let client = connect(&server, Wanted { mode, ..Wanted::new("") }, 1 << 16).await;
            for len in 1..=80 {
                let mut buf = vec![0xaa; len];
                client.read(17, &mut buf).await.unwrap();
                assert!(buf.iter().all(|&byte| byte == 0), "{mode:?}, {len} bytes");
            }
        });
    }
}
