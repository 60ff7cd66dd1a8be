//! Random bytes into every decoder: an error or a value, never a panic, and the same however the bytes are cut.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use blkproof_block::Node;
use blkproof_block::nodes::memory::Memory;
use blkproof_nbd::handshake::Mode;
use blkproof_nbd::handshake::client::{Handshake as ClientHandshake, Progress, Wanted};
use blkproof_nbd::handshake::server::{Handshake as ServerHandshake, Step, TlsPolicy};
use blkproof_nbd::server::Exports;
use blkproof_nbd::transmission::reply::{ReplyDecoder, ReplyEvent};
use blkproof_nbd::transmission::request::Request;
use proptest::prelude::*;

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Simple), Just(Mode::Structured), Just(Mode::Extended)]
}

/// Bytes that get past the first check now and then.
fn nearly(heads: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        3 => proptest::sample::select(heads).prop_map(<[u8]>::to_vec),
        2 => proptest::collection::vec(any::<u8>(), 0..24),
        2 => proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(8), Just(0x80), Just(0xff)], 0..24),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

const OPTIONS: &[&[u8]] = &[
    b"\0\0\0\x03",
    b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0",
    b"IHAVEOPT\0\0\0\x07\0\0\0\x08\0\0\0\0\0\x01\0\x03",
    b"IHAVEOPT\0\0\0\x08\0\0\0\0",
    b"IHAVEOPT\0\0\0\x0b\0\0\0\0",
    b"IHAVEOPT\0\0\0\x0a",
    b"IHAVEOPT",
    b"base:allocation",
];
const GREETINGS: &[&[u8]] = &[
    b"NBDMAGICIHAVEOPT\0\x03",
    b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0b\0\0\0\x01\0\0\0\0",
    b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x01\0\0\0\0",
    b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\0\x10\0\0\x01",
    b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07",
];
const REPLIES: &[&[u8]] = &[
    b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01",
    b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x10",
    b"\x66\x8e\x33\xef\0\0\0\x05\0\0\0\0\0\0\0\x01\0\0\0\x0c",
    b"\x66\x8e\x33\xef\0\x01\x80\x02\0\0\0\0\0\0\0\x01\0\0\0\x10",
    b"\x6e\x8a\x27\x8c\0\x01\0\x06\0\0\0\0\0\0\0\x01",
    b"\x6e\x8a\x27\x8c",
];

/// Feeds `bytes` in pieces that end at the multiples of `cut`; what came out, joined where data only was cut.
fn decode(mode: Mode, bytes: &[u8], cut: usize) -> (Vec<String>, Vec<u8>, bool) {
    let mut decoder = ReplyDecoder::new(mode);
    let (mut events, mut data) = (Vec::new(), Vec::new());
    let (mut at, mut end) = (0, 0);
    loop {
        let fed = decoder.feed(&bytes[at..end], |cookie| (cookie == 1).then_some((0, 20)));
        match fed {
            Err(_) => return (events, data, false),
            Ok((0, None)) if end == bytes.len() => return (events, data, true),
            Ok((0, None)) => end = bytes.len().min(end + cut),
            Ok((consumed, event)) => {
                assert!(consumed <= end - at);
                at += consumed;
                match event {
                    Some(ReplyEvent::Data { bytes, .. }) => data.extend_from_slice(bytes),
                    Some(event) => events.push(format!("{event:?}")),
                    None => {}
                }
            }
        }
    }
}

const REQUESTS: &[&[u8]] = &[
    b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\x02\0",
    b"\x25\x60\x95\x13\0\x01\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x08\0\0\0\x04abcd",
    b"\x25\x60\x95\x13\0\x08\0\x07\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\x10\0",
    b"\x25\x60\x95\x13\0\0\0",
    b"\x21\xe4\x1c\x71\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0",
    b"\x21\xe4\x1c\x71\0\x20\0\x07\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\0\0",
    b"\x21\xe4\x1c\x71\0\0\0",
];

/// Sends `bytes` in the transmission phase of a whole server, and leaves; the bytes of the replies.
fn serve(mode: Mode, bytes: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let exports = Exports::single(Node::new(Memory::with_content(&[5; 4096])));
        let server = blkproof_nbd::server::Server::new(exports, blkproof_nbd::server::Limits::default());
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut from, mut to) = tokio::io::split(near);
        let mut hello = vec![0, 0, 0, 3];
        match mode {
            Mode::Simple => {}
            Mode::Structured => hello.extend(b"IHAVEOPT\0\0\0\x08\0\0\0\0"),
            Mode::Extended => hello.extend(b"IHAVEOPT\0\0\0\x0b\0\0\0\0"),
        }
        if mode != Mode::Simple {
            hello.extend(b"IHAVEOPT\0\0\0\x0a\0\0\0\x1b\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation");
        }
        hello.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0");
        let client = async {
            let _ = to.write_all(&hello).await;
            let _ = to.write_all(bytes).await;
            let _ = to.shutdown().await;
        };
        let mut heard = Vec::new();
        let served = async {
            let end = server.serve(far, "fuzz", std::future::pending()).await;
            if let Ok(summary) = end {
                assert_eq!(summary.mode, mode, "negotiation came to its end");
            }
        };
        let ((), (), read) = futures_util::join!(client, served, from.read_to_end(&mut heard));
        read.unwrap();
        assert_eq!(server.connections(), 0);
        heard
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn server_handshake(bytes in nearly(OPTIONS), lead in any::<bool>(), tls in 0..3_u8) {
        let exports = Exports::single(Node::new(Memory::new(4096)));
        let bytes = if lead { [&[0, 0, 0, 3][..], &bytes].concat() } else { bytes };
        let tls = [TlsPolicy::Off, TlsPolicy::On, TlsPolicy::Require][usize::from(tls)];
        let mut handshake = ServerHandshake::new(tls);
        let (mut at, mut out) = (0, Vec::new());
        // Each step consumes something, or is the last.
        while let Ok((consumed, step)) = handshake.feed(&bytes[at..], &exports, &mut out) {
            at += consumed;
            prop_assert!(at <= bytes.len());
            if step != Step::Continue || consumed == 0 {
                break;
            }
        }
        prop_assert!(out.len() <= 1 << 16);
    }

    #[test]
    fn client_handshake(bytes in nearly(GREETINGS), lead in any::<bool>()) {
        let bytes = if lead { [GREETINGS[0], GREETINGS[1], &bytes].concat() } else { bytes };
        let mut handshake = ClientHandshake::new(Wanted::new("x"));
        let (mut at, mut out) = (0, Vec::new());
        while let Ok((consumed, progress)) = handshake.feed(&bytes[at..], &mut out) {
            at += consumed;
            prop_assert!(at <= bytes.len());
            if progress != Progress::Continue || consumed == 0 {
                break;
            }
        }
    }

    #[test]
    fn requests(mode in modes(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let magic = if mode == Mode::Extended { 0x21e4_1c71_u32 } else { 0x2560_9513 };
        let whole = [&magic.to_be_bytes()[..], &bytes].concat();
        if let Some((request, len)) = Request::decode(mode, &whole).unwrap() {
            let mut again = Vec::new();
            request.encode(mode, &mut again);
            prop_assert_eq!(again.len(), len);
            // What is encoded is decoded to the same, but for the flag of a payload, which follows from there being
            // one.
            let (back, _) = Request::decode(mode, &again).unwrap().unwrap();
            prop_assert_eq!((back.kind, back.cookie, back.offset), (request.kind, request.cookie, request.offset));
            prop_assert_eq!((back.length, back.payload), (request.length, request.payload));
        }
        let _ = Request::decode(mode, &bytes);
    }

    #[test]
    fn sessions(mode in modes(), bytes in nearly(REQUESTS)) {
        prop_assert!(serve(mode, &bytes).len() >= 18);
    }

    #[test]
    fn replies(mode in modes(), bytes in nearly(REPLIES), cut in 1..9_usize) {
        let whole = decode(mode, &bytes, usize::MAX / 2);
        let pieces = decode(mode, &bytes, cut);
        prop_assert_eq!(whole, pieces);
    }
}
