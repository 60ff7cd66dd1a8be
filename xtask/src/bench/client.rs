//! A light NBD client: the oldest handshake, simple replies, and nothing between it and the socket.
//!
//! It is written against the protocol document and shares no code with the crates it measures. Requests are pipelined:
//! every reply that arrives is answered by a new request, all those of one receive in one send.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::Load;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: [u8; 4] = 0x6744_6698_u32.to_be_bytes();
const REPLY_HEADER: usize = 16;

pub(super) fn run(socket: &Path, load: Load, time: Duration) -> anyhow::Result<f64> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    let size = handshake(&mut stream)?;
    let block = u64::from(load.block);
    let first = load.from / block;
    let blocks = (size / block).saturating_sub(first);
    ensure!(blocks > 0, "the export is smaller than one request");

    let mut place = 0u64;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        if load.random {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((random >> 24) % blocks + first) * block
        } else {
            place += 1;
            (place % blocks + first) * block
        }
    };

    let mut out = Vec::with_capacity(load.depth * 28);
    (0..load.depth).for_each(|_| request(&mut out, next(), load.block));
    let reply = REPLY_HEADER + load.block as usize;
    let mut input = vec![0u8; (reply * load.depth).max(1 << 20)];
    let (mut filled, mut done, mut in_flight) = (0usize, 0u64, load.depth);
    let start = Instant::now();
    let mut took = None;
    while in_flight > 0 {
        stream.write_all(&out)?;
        out.clear();
        while out.is_empty() && in_flight > 0 {
            let received = stream.read(&mut input[filled..])?;
            ensure!(received > 0, "the server closed the connection");
            filled += received;
            let mut used = 0;
            while filled - used >= reply {
                ensure!(input[used..used + 4] == REPLY_MAGIC, "not a simple reply");
                ensure!(input[used + 4..used + 8] == [0; 4], "the server reported an error");
                used += reply;
                if took.is_none() {
                    done += 1;
                    request(&mut out, next(), load.block);
                } else {
                    in_flight -= 1;
                }
            }
            input.copy_within(used..filled, 0);
            filled -= used;
            if took.is_none() && start.elapsed() >= time {
                // What is still in flight is awaited, uncounted: some servers do not survive a client that just leaves.
                took = Some(start.elapsed());
            }
        }
    }
    let mut goodbye = Vec::new();
    goodbye.extend(REQUEST_MAGIC.to_be_bytes());
    goodbye.extend(2u32.to_be_bytes()); // no flags, NBD_CMD_DISC
    goodbye.extend([0; 20]);
    stream.write_all(&goodbye)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    Ok(done as f64 / took.unwrap_or(time).as_secs_f64())
}

/// Fixed newstyle up to `NBD_OPT_EXPORT_NAME` of the default export; returns its size.
pub(super) fn handshake(stream: &mut UnixStream) -> anyhow::Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).context("reading the greeting")?;
    ensure!(&greeting[..16] == b"NBDMAGICIHAVEOPT", "not a newstyle NBD server");
    let mut hello = Vec::new();
    hello.extend(3u32.to_be_bytes()); // fixed newstyle, no zeroes
    hello.extend(b"IHAVEOPT");
    hello.extend(1u32.to_be_bytes()); // NBD_OPT_EXPORT_NAME
    hello.extend(0u32.to_be_bytes());
    stream.write_all(&hello)?;
    let mut export = [0; 10];
    stream.read_exact(&mut export).context("reading the export's size")?;
    let size: [u8; 8] = export[..8].try_into().context("eight bytes of ten")?;
    Ok(u64::from_be_bytes(size))
}

fn request(out: &mut Vec<u8>, at: u64, len: u32) {
    header(out, 0, at, len); // NBD_CMD_READ
}

/// The head of a request of one kind, without flags.
pub(super) fn header(out: &mut Vec<u8>, kind: u32, at: u64, len: u32) {
    out.extend(REQUEST_MAGIC.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(at.to_be_bytes()); // the cookie is echoed, never looked at
    out.extend(at.to_be_bytes());
    out.extend(len.to_be_bytes());
}
