//! Every option, every command and every error reply, asked for by libnbd and by hand.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::future::pending;
use std::rc::Rc;

use blkproof_block::testing::{Action, OpKind, Rule, TestDisk};
use blkproof_block::{Capabilities, DeviceError, Errno, IoError, Node};
use blkproof_nbd::handshake::Mode;
use blkproof_nbd::server::{Ended, Export, Exports, Limits, Server, Summary};
use blkproof_nbd::wire::{option, reply};
use common::{MIB, Served, exports, memory, nbdsh, patterned, run, single};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinHandle, spawn_local};

#[test]
fn libnbd_negotiates_piece_by_piece() {
    run(async {
        let list = exports([
            Export::new("a", memory(&[1; 4096])).description("first"),
            Export::new("b", memory(&[2; 8192])).read_only(),
        ]);
        let served = Served::start(Server::new(list, Limits::default()));
        nbdsh(
            &served.uri(),
            r#"
h.set_opt_mode(True)
h.connect_uri(uri)
assert h.get_protocol() == "newstyle-fixed", h.get_protocol()
assert h.get_structured_replies_negotiated()
names = []
h.opt_list(lambda name, description: names.append((name, description)) or 0)
assert names == [("a", "first"), ("b", "")], names
# The default export is not there; the connection survives the refusal.
try:
    h.set_export_name("")
    h.opt_info()
    assert False
except nbd.Error as e:
    assert e.errno == "ENOENT", e
h.set_export_name("a")
h.set_full_info(True)
h.opt_info()
assert h.get_size() == 4096 and h.get_export_description() == "first"
assert h.get_canonical_export_name() == "a"
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
seen = []
h.clear_meta_contexts()
h.opt_list_meta_context(lambda name: seen.append(name) or 0)
assert seen == ["base:allocation"], seen
for query, want in [("base:", 1), ("base:allocation", 1), ("base:nothing", 0), ("x-test:", 0)]:
    h.clear_meta_contexts()
    h.add_meta_context(query)
    assert h.opt_list_meta_context(lambda name: 0) == want, query
h.set_export_name("b")
h.clear_meta_contexts()
h.add_meta_context("base:allocation")
h.opt_go()
assert h.is_read_only() and h.get_size() == 8192
assert h.can_meta_context("base:allocation")
assert h.can_df() and h.can_cache() and not h.can_zero() and not h.can_trim()
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()
# A client without any of it.
h = nbd.NBD()
h.set_request_structured_replies(False)
h.set_handshake_flags(0)
h.set_export_name("b")
h.connect_unix(uri.split("=")[1])
assert h.get_protocol() == "newstyle" and h.pread(512, 0) == b"\x02" * 512
h.shutdown()
"#,
        )
        .await;
        served.settle().await;
        assert!(served.ends.borrow().iter().all(Result::is_ok), "{:?}", served.ends);
    });
}

#[test]
fn libnbd_sends_legal_and_illegal_requests() {
    for structured in [true, false] {
        run(async {
            let data = patterned(MIB);
            let list = exports([
                Export::new("", memory(&data)),
                Export::new("ro", memory(&data)).read_only(),
                Export::new("big", memory(&data)).minimum_block(4096).unwrap(),
            ]);
            let served = Served::start(Server::new(list, Limits::default()));
            let script = r#"
def fails(want, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as e:
        assert e.errno == want, (call, args, e.errno, want)
        return e.string
    assert False, (call, args, "did not fail")

def connect(export):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(STRUCTURED)
    if STRUCTURED: h.add_meta_context("base:allocation")
    h.set_export_name(export)
    h.connect_unix(uri.split("=")[1])
    return h

size = 1 << 20
FLAG = 1 << 9
h = connect("")
assert h.get_structured_replies_negotiated() == STRUCTURED
assert h.pread(0, 0) == b"" and h.pread(0, size) == b""
assert len(h.pread(size, 0)) == size
fails("EINVAL", h.pread, 1, size)
fails("EINVAL", h.pread, 2, size - 1)
fails("EINVAL", h.pread, 1, 0xffffffffffffffff)
fails("EINVAL", h.pread, 512, 0, FLAG)
fails("ENOSPC", h.pwrite, b"x", size)
fails("ENOSPC", h.pwrite, b"xy", size - 1)
fails("EINVAL", h.pwrite, b"x", 0, FLAG)
fails("EINVAL", h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)
fails("ENOSPC", h.zero, 1, size)
fails("ENOSPC", h.zero, 1 << 31, 0)
fails("EINVAL", h.zero, 1, 0, nbd.CMD_FLAG_REQ_ONE)
fails("EINVAL", h.trim, 1, size)
fails("EINVAL", h.trim, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails("EINVAL", h.cache, 1, size)
fails("EINVAL", h.cache, 512, 0, FLAG)
fails("EINVAL", h.flush, FLAG)
assert h.pread(8, 8) == h.pread(16, 0)[8:]
h.pwrite(b"hello", 3, nbd.CMD_FLAG_FUA)
assert h.pread(5, 3) == b"hello"
h.pwrite(b"", 0)
h.zero(2, 4, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
h.zero(0, 0); h.trim(0, 0); h.cache(0, 0)
assert h.pread(5, 3) == b"h\0\0lo"
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
h.cache(size, 0)
h.flush(); h.flush(nbd.CMD_FLAG_FUA)
if STRUCTURED:
    h.pread(65536, 0, nbd.CMD_FLAG_DF)
    extents = []
    def add(context, offset, e, err): extents.append((context, offset, e))
    h.block_status(size, 0, add)
    assert len(extents) == 1 and extents[0][0] == "base:allocation" and sum(extents[0][2][0::2]) == size, extents
    extents = []
    h.block_status(size - 512, 512, add, nbd.CMD_FLAG_REQ_ONE)
    assert len(extents[0][2]) == 2 and extents[0][2][0] <= size - 512, extents
    fails("EINVAL", h.block_status, size, 512, add)
    fails("EINVAL", h.block_status, 512, 0, add, FLAG)
    # Data, a hole and data again arrive as chunks; with DF as one.
    h.pwrite(b"\1" * (256 << 10), 0); h.zero(64 << 10, 128 << 10)
    for flags in [0, nbd.CMD_FLAG_DF]:
        chunks = []
        buf = h.pread_structured(256 << 10, 0, lambda b, o, s, e: chunks.append((o, len(b), s)) or 0, flags)
        assert bytes(buf[128 << 10:192 << 10]) == b"\0" * (64 << 10), "the hole"
        assert bytes(buf[:128 << 10]) == b"\1" * (128 << 10) and bytes(buf[192 << 10:]) == b"\1" * (64 << 10)
        if flags: assert len([c for c in chunks if c[2] != nbd.READ_ERROR]) == 1, chunks
else:
    fails("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_DF)
# Everything in flight together.
bufs = [nbd.Buffer(4096) for n in range(100)]
cookies = [h.aio_pread(buf, n * 4096) for n, buf in enumerate(bufs)]
while h.aio_in_flight() > 0: h.poll(-1)
for n, cookie in enumerate(cookies): assert h.aio_command_completed(cookie)
h.shutdown()

h = connect("ro")
assert h.is_read_only()
for call, args in [(h.pwrite, (b"x", 0)), (h.zero, (1, 0)), (h.trim, (1, 0)), (h.pwrite, (b"x", size))]:
    fails("EPERM", call, *args)
assert len(h.pread(512, 0)) == 512
h.flush()
h.shutdown()

h = connect("big")
if h.get_block_size(nbd.SIZE_MINIMUM) == 4096:
    fails("EINVAL", h.pread, 512, 0)
    fails("EINVAL", h.pwrite, b"x" * 4096, 512)
h.pwrite(b"y" * 4096, 4096)
assert h.pread(4096, 4096) == b"y" * 4096
h.shutdown()
"#;
            let structured = if structured { "True" } else { "False" };
            nbdsh(&served.uri(), &script.replace("STRUCTURED", structured)).await;
            served.settle().await;
            assert!(served.ends.borrow().iter().all(Result::is_ok), "{:?}", served.ends);
        });
    }
}

#[test]
fn libnbd_hears_where_a_read_failed_and_why() {
    run(async {
        let disk = TestDisk::new(MIB);
        disk.tamper(|bytes| bytes.write(0, &patterned(MIB)));
        let error = IoError {
            device: Some(DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 }),
            ..IoError::new(Errno::IO).at(0x1200)
        };
        disk.add_rule(Rule::new(Action::PartThenFail { bytes: 0x200, error }).kind(OpKind::Read));
        let served = Served::node(Node::new(disk));
        let out = nbdsh(
            &served.uri(),
            r#"
h.set_export_name("")
h.connect_unix(uri.split("=")[1])
h.set_debug_callback(lambda context, message: print(message) or 0)
h.set_debug(True)
chunks = []
try:
    h.pread_structured(0x1000, 0x1000, lambda b, o, s, e: chunks.append((o, len(b), s)) or 0)
    assert False
except nbd.Error as e:
    assert e.errno == "EIO", e
assert chunks == [(0x1000, 0x200, nbd.READ_DATA), (0x1200, 0, nbd.READ_ERROR)], chunks
h.shutdown()
"#,
        )
        .await;
        assert!(out.contains("SK=3 ASC=11 ASCQ=01"), "{out}");
    });
}

#[test]
fn what_the_device_can_not_do_is_not_offered() {
    run(async {
        let disk = TestDisk::new(MIB).with_capabilities(Capabilities::ROTATIONAL);
        let served = Served::node(Node::new(disk));
        nbdsh(
            &served.uri(),
            r#"
h.set_strict_mode(0)
h.connect_uri(uri)
assert h.is_rotational() and not h.can_trim() and not h.can_fast_zero() and not h.can_multi_conn()
assert h.can_zero() and h.can_fua() and h.can_flush()
for call, args in [(h.trim, (512, 0)), (h.zero, (512, 0, nbd.CMD_FLAG_FAST_ZERO))]:
    try:
        call(*args)
        assert False
    except nbd.Error as e:
        assert e.errno == "EINVAL", e
h.zero(512, 0)
h.shutdown()
"#,
        )
        .await;
    });
}

/// A client by hand.
struct Raw {
    stream: DuplexStream,
    served: JoinHandle<Result<Summary, blkproof_nbd::server::ServeError>>,
}

impl Raw {
    async fn connect(server: &Rc<Server>) -> Self {
        let (mut stream, far) = tokio::io::duplex(1 << 20);
        let server = Rc::clone(server);
        let served = spawn_local(async move { server.serve(far, "raw", pending()).await });
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        stream.write_all(&3_u32.to_be_bytes()).await.unwrap();
        Self { stream, served }
    }

    async fn send(&mut self, option: u32, data: &[u8]) {
        let mut message = b"IHAVEOPT".to_vec();
        message.extend(option.to_be_bytes());
        message.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message).await.unwrap();
    }

    /// The next reply: type and data.
    async fn reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let mut head = [0; 20];
        self.stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        assert_eq!(head[8..12], option.to_be_bytes());
        let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
        let mut data = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut data).await.unwrap();
        (kind, data)
    }

    async fn ask(&mut self, option: u32, data: &[u8]) -> u32 {
        self.send(option, data).await;
        loop {
            let (kind, _) = self.reply(option).await;
            if ![reply::SERVER, reply::INFO, reply::META_CONTEXT].contains(&kind) {
                return kind;
            }
        }
    }
}

fn go(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name);
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

fn meta(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(*query);
    }
    data
}

#[test]
fn every_option_has_its_answer_and_the_connection_lives_on() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let mut raw = Raw::connect(&server).await;
        let long = vec![b'x'; 5000];
        let cases: Vec<(u32, Vec<u8>, u32)> = vec![
            (0, vec![], reply::ERR_UNSUP),
            (4, vec![], reply::ERR_UNSUP),
            (77, vec![1; 100], reply::ERR_UNSUP),
            (u32::MAX, vec![1; 60_000], reply::ERR_UNSUP),
            (77, vec![1; 200_000], reply::ERR_TOO_BIG),
            (option::LIST, vec![], reply::ACK),
            (option::LIST, vec![0], reply::ERR_INVALID),
            (option::STARTTLS, vec![], reply::ERR_POLICY),
            (option::STARTTLS, vec![0], reply::ERR_INVALID),
            (option::SET_META_CONTEXT, meta(b"", &[b"base:allocation"]), reply::ERR_INVALID),
            (option::STRUCTURED_REPLY, vec![0], reply::ERR_INVALID),
            (option::STRUCTURED_REPLY, vec![], reply::ACK),
            (option::STRUCTURED_REPLY, vec![], reply::ACK),
            (option::SET_META_CONTEXT, meta(b"", &[b"base:allocation", b"x:y"]), reply::ACK),
            (option::SET_META_CONTEXT, meta(b"", &[]), reply::ACK),
            (option::SET_META_CONTEXT, meta(b"nothing", &[b"base:allocation"]), reply::ERR_UNKNOWN),
            (option::SET_META_CONTEXT, meta(&long, &[b"base:allocation"]), reply::ERR_TOO_BIG),
            (option::SET_META_CONTEXT, meta(b"", &[&long]), reply::ERR_TOO_BIG),
            (option::SET_META_CONTEXT, vec![0; 7], reply::ERR_INVALID),
            (option::SET_META_CONTEXT, [meta(b"", &[b"base:"]), vec![0]].concat(), reply::ERR_INVALID),
            (option::SET_META_CONTEXT, [&[0; 4][..], &[0xff; 4]].concat(), reply::ERR_TOO_BIG),
            (option::SET_META_CONTEXT, [&[0; 4][..], &[0, 0, 0, 1, 0, 0, 0, 9]].concat(), reply::ERR_INVALID),
            (option::LIST_META_CONTEXT, meta(b"", &[]), reply::ACK),
            (option::LIST_META_CONTEXT, meta(b"", &[b"base:"]), reply::ACK),
            (option::INFO, go(b"", &[0, 1, 2, 3, 77]), reply::ACK),
            (option::INFO, go(b"nothing", &[]), reply::ERR_UNKNOWN),
            (option::INFO, go(b"\xff\xfe", &[]), reply::ERR_UNKNOWN),
            (option::INFO, go(&long, &[]), reply::ERR_TOO_BIG),
            (option::INFO, vec![], reply::ERR_INVALID),
            (option::INFO, vec![0xff; 6], reply::ERR_INVALID),
            (option::INFO, [go(b"", &[3]), vec![0]].concat(), reply::ERR_INVALID),
            (option::INFO, vec![0, 0, 0, 0, 0xff, 0xff, 0, 3], reply::ERR_INVALID),
            (option::GO, go(b"nothing", &[3]), reply::ERR_UNKNOWN),
            (option::EXTENDED_HEADERS, vec![0], reply::ERR_INVALID),
            (option::EXTENDED_HEADERS, vec![], reply::ACK),
            (option::STRUCTURED_REPLY, vec![], reply::ERR_EXT_HEADER_REQD),
        ];
        for (option, data, want) in cases {
            let head = data[..data.len().min(12)].to_vec();
            assert_eq!(raw.ask(option, &data).await, want, "option {option}, {} bytes {head:x?}", data.len());
        }
        assert_eq!(raw.ask(option::ABORT, b"ignored").await, reply::ACK);
        assert_eq!(raw.served.await.unwrap().unwrap().ended, Ended::BeforeTransmission);
    });
}

#[test]
fn shutting_down_answers_options_so() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let mut raw = Raw::connect(&server).await;
        assert_eq!(raw.ask(option::LIST, &[]).await, reply::ACK);
        raw.send(option::LIST, &[]).await;
        server.shut_down();
        assert_eq!(raw.reply(option::LIST).await.0, reply::ERR_SHUTDOWN);
        assert_eq!(raw.served.await.unwrap().unwrap().ended, Ended::BeforeTransmission);
    });
}

#[test]
fn a_context_counts_only_for_its_own_export() {
    use blkproof_nbd::wire::TransmissionFlags;
    run(async {
        for (selected, extended) in [("a", true), ("b", true), ("a", false)] {
            let list = exports([Export::new("a", memory(&[1; 4096])), Export::new("b", memory(&[1; 4096]))]);
            let server = Rc::new(Server::new(list, Limits::default()));
            let mut raw = Raw::connect(&server).await;
            let mode = if extended { option::EXTENDED_HEADERS } else { option::STRUCTURED_REPLY };
            assert_eq!(raw.ask(mode, &[]).await, reply::ACK);
            let query = meta(selected.as_bytes(), &[b"base:allocation"]);
            assert_eq!(raw.ask(option::SET_META_CONTEXT, &query).await, reply::ACK);
            raw.send(option::GO, &go(b"a", &[])).await;
            let (kind, data) = raw.reply(option::GO).await;
            assert_eq!((kind, data.len()), (reply::INFO, 12));
            let flags = TransmissionFlags::from_bits_retain(u16::from_be_bytes([data[10], data[11]]));
            let offered = flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
            assert_eq!(offered, extended && selected == "a", "{selected} {extended}");
            assert_eq!(raw.reply(option::GO).await.0, reply::ACK);
        }
    });
}

/// A request with extended headers.
fn extended(flags: u16, kind: u16, cookie: u64, offset: u64, length: u64, payload: &[u8]) -> Vec<u8> {
    let mut message = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    message.extend(flags.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend([cookie, offset, length].iter().flat_map(|number| number.to_be_bytes()));
    message.extend(payload);
    message
}

/// A chunk with extended headers: done, type, cookie, payload.
async fn chunk(stream: &mut DuplexStream) -> (bool, u16, u64, Vec<u8>) {
    let mut head = [0; 32];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[..4], 0x6e8a_278c_u32.to_be_bytes());
    let mut payload = vec![0; usize::try_from(u64::from_be_bytes(head[24..].try_into().unwrap())).unwrap()];
    stream.read_exact(&mut payload).await.unwrap();
    let kind = u16::from_be_bytes([head[6], head[7]]);
    (head[5] & 1 == 1, kind, u64::from_be_bytes(head[8..16].try_into().unwrap()), payload)
}

#[test]
fn extended_requests_by_hand() {
    const PAYLOAD: u16 = 1 << 5;
    run(async {
        let size = 6_u64 << 30;
        let server = single(Node::new(blkproof_block::nodes::memory::Memory::new(size)));
        let mut raw = Raw::connect(&server).await;
        assert_eq!(raw.ask(option::EXTENDED_HEADERS, &[]).await, reply::ACK);
        assert_eq!(raw.ask(option::SET_META_CONTEXT, &meta(b"", &[b"base:allocation"])).await, reply::ACK);
        assert_eq!(raw.ask(option::GO, &go(b"", &[3])).await, reply::ACK);
        let filter = |len: u64, ids: &[u32]| {
            let mut payload = len.to_be_bytes().to_vec();
            payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
            payload
        };
        let status = |len: u64, flags: u64| {
            let mut payload = vec![0, 0, 0, 0, 0, 0, 0, 1];
            payload.extend([len, flags].iter().flat_map(|number| number.to_be_bytes()));
            Ok((6, payload))
        };
        // (flags, command, offset, length, payload), and the type and payload, or the error number, of the reply.
        type Case = ((u16, u16, u64, u64, Vec<u8>), Result<(u16, Vec<u8>), u32>);
        let none = || Ok((0, vec![]));
        let cases: Vec<Case> = vec![
            ((0, 7, 0, size, vec![]), status(size, 3)),
            ((8, 7, 4096, 5 << 30, vec![]), status(5 << 30, 3)),
            ((PAYLOAD, 7, 0, 12, filter(size, &[0])), status(size, 3)),
            ((PAYLOAD, 7, 0, 8, filter(size, &[])), none()),
            ((PAYLOAD, 7, 0, 12, filter(size, &[1])), Err(22)),
            ((PAYLOAD, 7, 0, 16, filter(size, &[0, 0])), Err(22)),
            ((PAYLOAD, 7, 0, 12, filter(size + 1, &[0])), Err(22)),
            ((PAYLOAD, 7, 0, 7, vec![0; 7]), Err(22)),
            ((PAYLOAD, 7, 0, 10, vec![0; 10]), Err(22)),
            ((PAYLOAD, 7, 0, 0, vec![]), Err(22)),
            ((0, 6, 0, size, vec![]), none()),
            ((0, 6, 1, size, vec![]), Err(28)),
            ((0, 4, 0, size, vec![]), none()),
            ((0, 5, 0, size, vec![]), none()),
            ((0, 3, 0, 0, vec![]), none()),
            ((0, 3, 0, 1, vec![]), Err(22)),
            ((PAYLOAD, 3, 0, 5, vec![9; 5]), Err(22)),
            ((PAYLOAD, 0, 0, 512, vec![9; 512]), Err(22)),
            ((PAYLOAD, 1, 0, 512, vec![9; 512]), none()),
            // What QEMU sends: a write without the flag.
            ((0, 1, 512, 512, vec![8; 512]), none()),
            ((PAYLOAD, 1, size, 512, vec![9; 512]), Err(28)),
            ((0, 0, 0, 33 << 20, vec![]), Err(22)),
            ((0, 0, 0, u64::MAX, vec![]), Err(22)),
            ((0, 9, 0, 0, vec![]), Err(22)),
            ((PAYLOAD, 999, 0, 3, vec![1; 3]), Err(22)),
            ((0, 0, 4096, 512, vec![]), Ok((2, [&4096_u64.to_be_bytes()[..], &512_u32.to_be_bytes()].concat()))),
            ((0, 0, 508, 8, vec![]), Ok((1, [&508_u64.to_be_bytes()[..], &[9, 9, 9, 9, 8, 8, 8, 8]].concat()))),
        ];
        for (cookie, ((flags, kind, offset, length, payload), want)) in (1000..).zip(cases) {
            let row = format!("flags {flags:#x}, command {kind}, {offset:#x}+{length:#x}");
            raw.stream.write_all(&extended(flags, kind, cookie, offset, length, &payload)).await.unwrap();
            let (done, got, got_cookie, payload) = chunk(&mut raw.stream).await;
            assert!(done && got_cookie == cookie, "{row}");
            match want {
                Ok(want) => assert_eq!((got, payload), want, "{row}"),
                Err(errno) => {
                    assert_eq!((got, &payload[..4]), (0x8001, &errno.to_be_bytes()[..]), "{row}");
                }
            }
        }
        raw.stream.write_all(&extended(0, 2, 1, 0, 0, &[])).await.unwrap();
        let summary = raw.served.await.unwrap().unwrap();
        assert_eq!((summary.mode, summary.ended), (Mode::Extended, Ended::Disconnect));
        assert_eq!(raw.stream.read(&mut [0; 1]).await.unwrap(), 0);
    });
}

#[test]
fn export_name_needs_an_export() {
    run(async {
        for (name, extended, lives) in [("a", false, true), ("b", false, false), ("a", true, false)] {
            let list: Exports = exports([Export::new("a", memory(&[1; 4096]))]);
            let server = Rc::new(Server::new(list, Limits::default()));
            let mut raw = Raw::connect(&server).await;
            if extended {
                assert_eq!(raw.ask(option::EXTENDED_HEADERS, &[]).await, reply::ACK);
            }
            raw.send(option::EXPORT_NAME, name.as_bytes()).await;
            let mut answer = [0; 10];
            assert_eq!(raw.stream.read_exact(&mut answer).await.is_ok(), lives, "{name} {extended}");
        }
    });
}
