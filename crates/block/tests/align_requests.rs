//! What `Aligned` asks of the device below, request by request, and what it makes of the answers.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::align::Aligned;
use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::{
    BlockDevice, BlockStatus, ByteOffset, Capabilities, DeviceInfo, Errno, Event, IoError, Limits, Node, Preallocation,
    Result, WriteFlags, ZeroFlags,
};
use futures_lite::future::block_on;

/// A disk that writes down what it is asked, refuses what its limits forbid, and fails at one byte if told.
struct Recorder {
    content: RefCell<SparseBytes>,
    limits: Limits,
    capabilities: Capabilities,
    read_only: bool,
    log: RefCell<Vec<String>>,
    /// Requests that cover this byte fail there.
    bad: Cell<Option<u64>>,
    /// The answer to write zeroes, from the n-th on.
    zero_error: Cell<Option<(usize, Errno)>>,
    discard_error: Cell<Option<Errno>>,
    events: Cell<bool>,
}

impl Recorder {
    fn new(size: u64, limits: Limits) -> Rc<Self> {
        Self::with(size, limits, Capabilities::FUA | Capabilities::ZEROES)
    }

    fn with(size: u64, limits: Limits, capabilities: Capabilities) -> Rc<Self> {
        let mut content = SparseBytes::new(size);
        if size <= 1 << 20 {
            content.write(0, &vec![0xaa; size as usize]);
        }
        Rc::new(Self {
            content: RefCell::new(content),
            limits,
            capabilities,
            read_only: false,
            log: RefCell::default(),
            bad: Cell::new(None),
            zero_error: Cell::new(None),
            discard_error: Cell::new(None),
            events: Cell::new(false),
        })
    }

    fn note(&self, words: String) {
        self.log.borrow_mut().push(words);
    }

    fn take_log(&self) -> String {
        self.log.borrow_mut().drain(..).collect::<Vec<_>>().join(" ")
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.content.borrow().read(at, &mut bytes);
        bytes
    }

    fn check(&self, at: u64, len: u64, alignment: u32, max: u64) {
        let alignment = u64::from(alignment);
        let to_the_end = at + len >= self.content.borrow().size();
        assert!(at.is_multiple_of(alignment), "offset {at} at alignment {alignment}");
        assert!(len.is_multiple_of(alignment) || to_the_end, "{at}+{len} at alignment {alignment}");
        assert!(max == 0 || len <= max, "{len} is more than {max}");
        assert!(len > 0);
    }

    fn check_memory(&self, bytes: &[u8]) {
        assert!(bytes.as_ptr().addr().is_multiple_of(self.limits.memory_alignment as usize), "memory alignment");
    }

    fn fails(&self, at: u64, len: u64) -> Result<()> {
        match self.bad.get() {
            Some(bad) if (at..at + len).contains(&bad) => {
                Err(IoError { transferred: bad - at, ..IoError::new(Errno::IO).at(bad) })
            }
            _ => Ok(()),
        }
    }
}

impl BlockDevice for Recorder {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            limits: self.limits,
            capabilities: self.capabilities,
            read_only: self.read_only,
            ..DeviceInfo::new("recorder", self.content.borrow().size())
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.note(format!("r{at}+{}", buf.len()));
        self.check(at, buf.len() as u64, self.limits.alignment, u64::from(self.limits.max_transfer));
        self.check_memory(buf);
        assert!(at + buf.len() as u64 <= self.content.borrow().size(), "a read past the end");
        self.content.borrow().read(at, buf);
        self.fails(at, buf.len() as u64)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.note(format!("w{at}+{}{}", data.len(), if flags.contains(WriteFlags::FUA) { "!" } else { "" }));
        self.check(at, data.len() as u64, self.limits.alignment, u64::from(self.limits.max_transfer));
        self.check_memory(data);
        assert!(self.capabilities.contains(Capabilities::FUA) || !flags.contains(WriteFlags::FUA), "FUA it has not");
        self.fails(at, data.len() as u64)?;
        self.content.borrow_mut().write(at, data);
        Ok(())
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.note(format!("z{at}+{len}{}", if flags.contains(ZeroFlags::FUA) { "!" } else { "" }));
        self.check(at, len, self.limits.zero_alignment, self.limits.max_zero);
        self.fails(at, len)?;
        if let Some((left, errno)) = self.zero_error.get() {
            if left == 0 {
                return Err(IoError::new(errno));
            }
            self.zero_error.set(Some((left - 1, errno)));
        }
        if at + len > self.content.borrow().size() {
            self.content.borrow_mut().set_size(at + len);
        }
        self.content.borrow_mut().zero(at, len);
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.note(format!("d{at}+{len}"));
        self.check(at, len, self.limits.discard_alignment, self.limits.max_discard);
        self.discard_error.get().map_or(Ok(()), |errno| Err(IoError::new(errno)))
    }

    async fn flush(&self) -> Result<()> {
        self.note("f".into());
        Ok(())
    }

    async fn block_status(&self, _at: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::data(len, None))
    }

    async fn resize(&self, size: u64, _: Preallocation) -> Result<()> {
        self.note(format!("s{size}"));
        self.content.borrow_mut().set_size(size);
        Ok(())
    }

    async fn drain(&self) -> Result<()> {
        self.note("drain".into());
        Ok(())
    }

    fn listens(&self, _: Event) -> bool {
        self.events.get()
    }

    async fn event(&self, event: Event) {
        self.note(event.name().to_owned());
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        self.note(format!("client {client}"));
        None
    }
}

fn blocks(alignment: u32) -> Limits {
    Limits { alignment, ..Limits::NONE }
}

/// Reads and writes every range of a small device; the device asserts its limits.
#[test]
fn every_range_of_a_small_disk() {
    let alignments = [1, 2, 8];
    let sizes = [0, 1, 7, 8, 9, 16, 23, 24];
    for (alignment, size, max_transfer, memory) in alignments
        .iter()
        .flat_map(|&a| sizes.iter().map(move |&s| (a, s)))
        .flat_map(|(a, s)| [(a, s, 0, 1), (a, s, a, 1), (a, s, 2 * a, 16), (a, s, 0, 4)])
    {
        let limits = Limits { max_transfer, memory_alignment: memory, zero_alignment: 4, ..blocks(alignment) };
        for at in 0..=size {
            for len in 0..=size - at {
                let row =
                    format!("{at}+{len} of {size}, alignment {alignment}, at most {max_transfer}, memory {memory}");
                let disk = Recorder::new(size, limits);
                let device = Aligned::new(disk.clone());
                let mut want = vec![0xaa; size as usize];
                let range = at as usize..(at + len) as usize;
                // One byte into a buffer, so that memory alignment is not given.
                let data = vec![0x55; len as usize + 1];
                block_on(device.write(at, &data[1..], WriteFlags::empty())).unwrap();
                want[range.clone()].fill(0x55);
                assert_eq!(disk.bytes(0, size as usize), want, "write {row}");
                assert_eq!(device.info().size, size, "size after {row}");
                let mut got = vec![0; len as usize + 1];
                block_on(device.read(at, &mut got[1..])).unwrap();
                assert_eq!(got[1..], want[range.clone()], "read {row}");
                block_on(device.write_zeroes(at, len, ZeroFlags::empty())).unwrap();
                want[range].fill(0);
                assert_eq!(disk.bytes(0, size as usize), want, "zeroes {row}");
                assert_eq!(device.info().size, size, "size after zeroes {row}");
                block_on(device.discard(at, len)).unwrap();
            }
        }
        let disk = Recorder::new(size, limits);
        let device = Aligned::new(disk.clone());
        for (at, len) in [(size, 1), (size + 1, 0), (0, size + 1), (u64::MAX, 1), (u64::MAX, 2)] {
            let mut buf = vec![0; len as usize];
            let empty = len == 0;
            assert_eq!(block_on(device.read(at, &mut buf)).is_ok(), empty, "read {at}+{len} of {size}");
            assert_eq!(block_on(device.write(at, &buf, WriteFlags::empty())).is_ok(), empty, "write {at}+{len}");
            assert_eq!(block_on(device.write_zeroes(at, len, ZeroFlags::empty())).is_ok(), empty);
            assert_eq!(block_on(device.discard(at, len)).is_ok(), empty);
        }
        assert_eq!(disk.take_log(), "", "a request past the end does nothing");
    }
}

#[test]
fn a_growing_device_grows_to_the_byte() {
    for (at, len) in
        [(1000, 1), (1000, 24), (1000, 100), (1024, 5), (1100, 50), (5000, 3), (512, 600), (0, 2000), (990, 20)]
    {
        for zeroes in [false, true] {
            let disk = Recorder::with(1000, blocks(512), Capabilities::GROWS | Capabilities::FUA);
            let device = Aligned::new(disk.clone());
            let mut want = vec![0xaa; 1000];
            want.resize(want.len().max((at + len) as usize), 0);
            want[at as usize..(at + len) as usize].fill(if zeroes { 0 } else { 0x55 });
            match zeroes {
                true => block_on(device.write_zeroes(at, len, ZeroFlags::empty())).unwrap(),
                false => block_on(device.write(at, &vec![0x55; len as usize], WriteFlags::empty())).unwrap(),
            }
            assert_eq!(device.info().size, want.len() as u64, "{at}+{len}");
            assert_eq!(disk.bytes(0, want.len()), want, "{at}+{len}");
        }
    }
}

/// What is sent for one request.
#[test]
fn requests_are_cut_like_this() {
    type Ask = fn(&Aligned<Rc<Recorder>>) -> Result<()>;
    let fua = Limits { max_transfer: 1024, ..blocks(512) };
    let zeroes = Limits { zero_alignment: 4096, max_zero: 8192, ..blocks(512) };
    let discards = Limits { discard_alignment: 4096, max_discard: 8192, ..blocks(512) };
    let table: &[(&str, Limits, Ask, &str)] = &[
        ("aligned", blocks(512), |d| block_on(d.write(512, &[1; 1024], WriteFlags::empty())), "w512+1024"),
        ("head", blocks(512), |d| block_on(d.write(1, &[1; 511], WriteFlags::empty())), "r0+512 w0+512"),
        ("tail", blocks(512), |d| block_on(d.write(0, &[1; 513], WriteFlags::empty())), "r512+512 w0+1024"),
        ("one block", blocks(512), |d| block_on(d.write(1, &[1; 2], WriteFlags::empty())), "r0+512 w0+512"),
        ("neighbours", blocks(512), |d| block_on(d.write(511, &[1; 2], WriteFlags::empty())), "r0+1024 w0+1024"),
        (
            "far ends",
            blocks(512),
            |d| block_on(d.write(511, &[1; 514], WriteFlags::empty())),
            "r0+512 r1024+512 w0+1536",
        ),
        (
            "fua on each piece",
            fua,
            |d| block_on(d.write(0, &[1; 2560], WriteFlags::FUA)),
            "w0+1024! w1024+1024! w2048+512!",
        ),
        (
            "fua, padded",
            fua,
            |d| block_on(d.write(1, &[1; 1536], WriteFlags::FUA)),
            "r0+512 r1536+512 w0+512! w512+1024! w1536+512!",
        ),
        ("read", blocks(512), |d| block_on(d.read(1, &mut [0; 1024])), "r0+1536"),
        ("read in pieces", fua, |d| block_on(d.read(0, &mut [0; 2048])), "r0+1024 r1024+1024"),
        (
            "zeroes",
            zeroes,
            |d| block_on(d.write_zeroes(4096, 20480, ZeroFlags::FUA)),
            "z4096+8192! z12288+8192! z20480+4096!",
        ),
        (
            "zeroes with edges",
            zeroes,
            |d| block_on(d.write_zeroes(4095, 4098, ZeroFlags::FUA)),
            "r3584+512 w3584+512! z4096+4096! r8192+512 w8192+512!",
        ),
        ("zeroes too small", zeroes, |d| block_on(d.write_zeroes(512, 4096, ZeroFlags::empty())), "w512+4096"),
        ("zeroes to an odd end", zeroes, |d| block_on(d.write_zeroes(98304, 1696, ZeroFlags::empty())), "z98304+1696"),
        ("discard", discards, |d| block_on(d.discard(1, 20479)), "d4096+8192 d12288+8192"),
        ("discard too small", discards, |d| block_on(d.discard(1, 8190)), ""),
        ("discard to an odd end", discards, |d| block_on(d.discard(90000, 10000)), "d90112+8192 d98304+1696"),
        ("resize", blocks(512), |d| block_on(d.resize(77, Preallocation::Off)), "s77"),
        ("flush", blocks(512), |d| block_on(d.flush()), "f"),
        ("drain", blocks(512), |d| block_on(d.drain()), "drain"),
        (
            "client",
            blocks(512),
            |d| {
                assert!(d.for_client("nbd-1").is_none());
                Ok(())
            },
            "client nbd-1",
        ),
    ];
    for (row, limits, ask, want) in table {
        let disk = Recorder::new(100_000, *limits);
        ask(&Aligned::new(disk.clone())).unwrap();
        assert_eq!(disk.take_log(), *want, "{row}");
    }
}

#[test]
fn fua_without_fua_is_a_flush_at_the_end() {
    let limits = Limits { max_transfer: 512, ..blocks(512) };
    let disk = Recorder::with(4096, limits, Capabilities::empty());
    let device = Aligned::new(disk.clone());
    assert!(device.info().capabilities.contains(Capabilities::FUA), "what it does, it may say");
    block_on(device.write(0, &[1; 1024], WriteFlags::FUA)).unwrap();
    assert_eq!(disk.take_log(), "w0+512 w512+512 f");
    block_on(device.write_zeroes(0, 512, ZeroFlags::FUA)).unwrap();
    assert_eq!(disk.take_log(), "z0+512 f");
    block_on(device.write(0, &[1; 512], WriteFlags::empty())).unwrap();
    assert_eq!(disk.take_log(), "w0+512");
    disk.bad.set(Some(0));
    assert!(block_on(device.write(0, &[1; 512], WriteFlags::FUA)).is_err());
    assert_eq!(disk.take_log(), "w0+512", "a failed write is not flushed");
}

#[test]
fn zeroes_fall_back_to_data_unless_forbidden() {
    let limits = Limits { zero_alignment: 512, max_zero: 4 << 20, ..blocks(512) };
    let disk = Recorder::new(1 << 33, limits);
    disk.zero_error.set(Some((0, Errno::NOTSUP)));
    let device = Aligned::new(disk.clone());
    block_on(device.write_zeroes(0, (2 << 20) + 512, ZeroFlags::FUA)).unwrap();
    assert_eq!(disk.take_log(), "z0+2097664! w0+1048576! w1048576+1048576! w2097152+512!");

    let error = block_on(device.write_zeroes(0, 1024, ZeroFlags::NO_FALLBACK)).unwrap_err();
    assert_eq!((error.errno, disk.take_log().as_str()), (Errno::NOTSUP, "z0+1024"));
    for (at, len) in [(1, 1023), (0, 1023), (1, 2)] {
        let error = block_on(device.write_zeroes(at, len, ZeroFlags::NO_FALLBACK)).unwrap_err();
        assert_eq!((error.errno, disk.take_log().as_str()), (Errno::NOTSUP, ""), "{at}+{len} would need bytes written");
    }

    // The second piece is refused: the first is zero already, so the rest follows as data.
    disk.zero_error.set(Some((1, Errno::NOTSUP)));
    block_on(device.write_zeroes(0, (4 << 20) + 512, ZeroFlags::NO_FALLBACK)).unwrap();
    assert_eq!(disk.take_log(), "z0+4194304 z4194304+512 w4194304+512");

    // Any other error is an error.
    disk.zero_error.set(Some((1, Errno::NOSPC)));
    let error = block_on(device.write_zeroes(0, (4 << 20) + 512, ZeroFlags::empty())).unwrap_err();
    assert_eq!((error.errno, error.transferred), (Errno::NOSPC, 4 << 20));
}

#[test]
fn lengths_beyond_32_bits() {
    let limits = Limits {
        zero_alignment: 4096,
        max_zero: 1 << 31,
        discard_alignment: 4096,
        max_discard: 3 << 30,
        ..blocks(4096)
    };
    let disk = Recorder::new(1 << 40, limits);
    let device = Aligned::new(disk.clone());
    let start = (1 << 32) - 1;
    block_on(device.write_zeroes(start, (1 << 32) + 2, ZeroFlags::empty())).unwrap();
    assert_eq!(
        disk.take_log(),
        "r4294963200+4096 w4294963200+4096 z4294967296+2147483648 z6442450944+2147483648 r8589934592+4096 w8589934592+4096"
    );
    block_on(device.discard(start, (1 << 32) + 2)).unwrap();
    assert_eq!(disk.take_log(), "d4294967296+3221225472 d7516192768+1073741824");
    block_on(device.write(start, &[7; 2], WriteFlags::empty())).unwrap();
    assert_eq!(disk.take_log(), "r4294963200+8192 w4294963200+8192");
    assert_eq!(disk.bytes(start - 1, 4), [0, 7, 7, 0]);
}

#[test]
fn a_discard_that_is_not_supported_is_done() {
    let disk = Recorder::new(4096, Limits { max_discard: 512, discard_alignment: 512, ..Limits::NONE });
    let device = Aligned::new(disk.clone());
    disk.discard_error.set(Some(Errno::NOTSUP));
    assert_eq!(block_on(device.discard(0, 2048)), Ok(()));
    disk.discard_error.set(Some(Errno::IO));
    assert_eq!(block_on(device.discard(0, 2048)).unwrap_err().errno, Errno::IO);
}

#[test]
fn errors_keep_their_place() {
    let table = [
        // bad byte, request, first_bad, transferred
        (100, 100, 50, 100, 0),
        (120, 100, 50, 120, 20),
        (99, 100, 50, 100, 0),  // in the padding before
        (150, 100, 50, 100, 0), // in the padding behind
        (1500, 100, 2000, 1500, 1400),
        (2047, 0, 2048, 2047, 2047),
    ];
    for max_transfer in [0, 512, 1024] {
        for (bad, at, len, first_bad, transferred) in table {
            let disk = Recorder::new(4096, Limits { max_transfer, zero_alignment: 512, ..blocks(512) });
            let device = Aligned::new(disk.clone());
            disk.bad.set(Some(bad));
            let row = format!("byte {bad} bad, {at}+{len}, at most {max_transfer}");
            let mut buf = vec![0; len];
            let error = block_on(device.read(at, &mut buf)).unwrap_err();
            assert_eq!(error.first_bad, Some(ByteOffset(first_bad)), "read: {row}");
            let inside = (at..at + len as u64).contains(&bad);
            assert_eq!(error.transferred, if inside || bad < at { transferred } else { len as u64 }, "read: {row}");
            let valid = (first_bad - at) as usize;
            assert!(buf[..valid].iter().all(|&b| b == 0xaa), "what lies before the bad byte is valid: {row}");
            let error = block_on(device.write(at, &buf, WriteFlags::empty())).unwrap_err();
            assert_eq!(error.first_bad, Some(ByteOffset(first_bad)), "write: {row}");
            assert!(error.transferred <= first_bad - at || !inside, "write: {row}, {}", error.transferred);
            let error = block_on(device.write_zeroes(at, len as u64, ZeroFlags::empty())).unwrap_err();
            assert_eq!(error.errno, Errno::IO, "zeroes: {row}");
            assert!(error.transferred <= len as u64, "zeroes: {row}");
        }
    }
}

#[test]
fn a_read_only_device_is_not_even_read_for_padding() {
    let mut disk = Recorder::new(4096, blocks(512));
    Rc::get_mut(&mut disk).unwrap().read_only = true;
    let device = Aligned::new(disk.clone());
    assert_eq!(block_on(device.write(1, &[1], WriteFlags::empty())), Err(IoError::read_only()));
    assert_eq!(block_on(device.write_zeroes(1, 1, ZeroFlags::empty())), Err(IoError::read_only()));
    assert_eq!(block_on(device.discard(0, 512)), Err(IoError::read_only()));
    assert_eq!(disk.take_log(), "");
}

/// The order of block-layer.md 1.5.
#[test]
fn events_as_qemu_raises_them() {
    type Ask = fn(&Aligned<Rc<Recorder>>) -> Result<()>;
    let table: &[(&str, Ask, &str)] = &[
        ("aligned", |d| block_on(d.write(0, &[1; 512], WriteFlags::empty())), "pwritev w0+512 pwritev_done"),
        (
            "head",
            |d| block_on(d.write(1, &[1; 511], WriteFlags::empty())),
            "pwritev_rmw_head r0+512 pwritev_rmw_after_head pwritev w0+512 pwritev_done",
        ),
        (
            "tail",
            |d| block_on(d.write(0, &[1; 511], WriteFlags::empty())),
            "pwritev_rmw_tail r0+512 pwritev_rmw_after_tail pwritev w0+512 pwritev_done",
        ),
        (
            "both in one read",
            |d| block_on(d.write(1, &[1; 2], WriteFlags::empty())),
            "pwritev_rmw_head pwritev_rmw_tail r0+512 pwritev_rmw_after_head pwritev_rmw_after_tail pwritev w0+512 pwritev_done",
        ),
        (
            "both apart",
            |d| block_on(d.write(1, &[1; 1500], WriteFlags::empty())),
            "pwritev_rmw_head r0+512 pwritev_rmw_after_head pwritev_rmw_tail r1024+512 pwritev_rmw_after_tail \
             pwritev w0+1536 pwritev_done",
        ),
        ("zeroes", |d| block_on(d.write_zeroes(0, 512, ZeroFlags::empty())), "pwritev_zero z0+512 pwritev_done"),
        (
            "failed",
            |d| block_on(d.write(2048, &[1; 512], WriteFlags::empty())).or(Ok(())),
            "pwritev w2048+512 pwritev_done",
        ),
        ("read", |d| block_on(d.read(1, &mut [0; 9])), "r0+512"),
        (
            "an event from above",
            |d| {
                assert!(d.listens(Event::L2Load));
                block_on(d.event(Event::L2Load));
                Ok(())
            },
            "l2_load",
        ),
    ];
    for (row, ask, want) in table {
        let disk = Recorder::new(4096, blocks(512));
        disk.events.set(true);
        disk.bad.set(Some(2048));
        ask(&Aligned::new(disk.clone())).unwrap();
        assert_eq!(disk.take_log(), *want, "{row}");
    }
}

#[test]
fn compressed_writes_are_not_padded() {
    let disk = Recorder::new(4096, blocks(512));
    let device = Aligned::new(disk.clone());
    let error = block_on(device.write(1, &[1; 511], WriteFlags::COMPRESSED)).unwrap_err();
    assert_eq!((error.errno, disk.take_log().as_str()), (Errno::INVAL, ""));
    block_on(device.write(0, &[1; 512], WriteFlags::COMPRESSED)).unwrap();
}

#[test]
fn only_devices_with_limits_are_wrapped() {
    let plain = Node::new(Recorder::new(4096, Limits { preferred_transfer: 4096, ..Limits::NONE }));
    assert_eq!(block_on(Aligned::wrap(plain).read(1, &mut [0; 3])), Ok(()));
    let wrapped = Aligned::wrap(Node::new(Recorder::new(4096, blocks(512))));
    assert!(!wrapped.info().limits.needs_help());
    assert_eq!(wrapped.info().limits.preferred_transfer, 512);
    assert_eq!(block_on(wrapped.read(1, &mut [0; 3])), Ok(()));
}
