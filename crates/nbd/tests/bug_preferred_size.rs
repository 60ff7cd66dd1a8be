//! Seen: `serve` of a graph over an NBD server that prefers blocks of 4 GiB ended in a panic before it served anybody.
//!
//! Why: the next power of two above a preference of more than 2 GiB has 33 bits; the preference came from the other
//! server as it was. What must hold: any preference of a device is brought into what the protocol allows.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use blkproof_block::testing::TestDisk;
use blkproof_block::{Limits, Node};
use blkproof_nbd::handshake::client::Wanted;
use blkproof_nbd::server::{Export, Server};
use common::{connect, exports, run};

#[test]
fn any_preference_is_brought_into_bounds() {
    for (preferred_transfer, want) in [(0, 4096), (4097, 8192), (1 << 31, 32 << 20), (u32::MAX, 32 << 20)] {
        run(async {
            let disk = TestDisk::new(1 << 20).with_limits(Limits { preferred_transfer, ..Limits::NONE });
            let export = Export::new("", Node::new(disk));
            let server = std::rc::Rc::new(Server::new(exports([export]), Default::default()));
            let client = connect(&server, Wanted::new(""), 1 << 16).await;
            assert_eq!(client.agreed().block_size.unwrap().preferred, want, "{preferred_transfer}");
        });
    }
}
