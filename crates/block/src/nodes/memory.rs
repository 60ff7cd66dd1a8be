//! `memory`: a sparse disk in memory.
//!
//! Pages that were never written, or were zeroed, take no space. Every operation completes at the first poll, which
//! makes it the neutral end for tests; [`testing`](crate::testing) has the end that misbehaves.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags, check_bounds};
use crate::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use crate::node::{LocalBoxFuture, Node};
use crate::units::ByteRange;
use crate::{BlockStatus, Capabilities, DeviceInfo, IoError, Result};

const PAGE: usize = 1 << 16;

/// A disk in memory.
#[derive(Debug)]
pub struct Memory {
    content: RefCell<SparseBytes>,
    read_only: bool,
}

impl Memory {
    /// `size` zero bytes.
    pub fn new(size: u64) -> Self {
        Self { content: RefCell::new(SparseBytes::new(size)), read_only: false }
    }

    /// A disk that holds `bytes`.
    pub fn with_content(bytes: &[u8]) -> Self {
        let mut content = SparseBytes::new(bytes.len() as u64);
        content.write(0, bytes);
        Self { content: RefCell::new(content), read_only: false }
    }

    /// Refuses every change from now on.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    fn check_write(&self, at: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(IoError::read_only());
        }
        check_bounds(at, len, self.content.borrow().size())
    }
}

impl BlockDevice for Memory {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            read_only: self.read_only,
            capabilities: Capabilities::all().difference(Capabilities::ROTATIONAL.union(Capabilities::GROWS)),
            ..DeviceInfo::new("memory", self.content.borrow().size())
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let content = self.content.borrow();
        check_bounds(at, buf.len() as u64, content.size())?;
        content.read(at, buf);
        Ok(())
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        let content = self.content.borrow();
        let inside = check_bounds(at, buf.len() as u64, content.size()).is_ok();
        if inside {
            content.read(at, buf);
        }
        inside
    }

    async fn write(&self, at: u64, data: &[u8], _flags: WriteFlags) -> Result<()> {
        self.check_write(at, data.len() as u64)?;
        self.content.borrow_mut().write(at, data);
        Ok(())
    }

    async fn write_zeroes(&self, at: u64, len: u64, _flags: ZeroFlags) -> Result<()> {
        self.check_write(at, len)?;
        self.content.borrow_mut().zero(at, len);
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_write(at, len)?;
        self.content.borrow_mut().zero(at, len);
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let content = self.content.borrow();
        check_bounds(at, len, content.size())?;
        let (data, len) = content.extent(at, len);
        Ok(if data {
            BlockStatus::data(len, Some(at))
        } else {
            BlockStatus { host_offset: Some(at), ..BlockStatus::zero(len) }
        })
    }

    async fn resize(&self, size: u64, _preallocation: Preallocation) -> Result<()> {
        if self.read_only {
            return Err(IoError::read_only());
        }
        self.content.borrow_mut().set_size(size);
        Ok(())
    }

    async fn drain(&self) -> Result<()> {
        Ok(())
    }
}

/// The driver `memory`: a disk of `size` zero bytes that lives as long as its graph.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryDriver;

impl Driver for MemoryDriver {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    fn open<'a>(
        &'a self,
        mut options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move {
            let size = options.take_size("size")?.ok_or_else(|| OptionError::Missing {
                option: options.full_name("size"),
                driver: "memory".to_owned(),
            })?;
            options.finish("memory")?;
            let memory = Memory::new(size);
            Ok(Node::new(if context.flags.read_only { memory.read_only() } else { memory }))
        })
    }
}

/// Bytes of which most are zero: pages by number, absent ones read as zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseBytes {
    size: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl SparseBytes {
    /// `size` zero bytes.
    pub fn new(size: u64) -> Self {
        Self { size, pages: BTreeMap::new() }
    }

    /// Number of bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Copies bytes out; what lies past the end reads as zeroes.
    pub fn read(&self, at: u64, buf: &mut [u8]) {
        for (page, offset, range) in pieces(at, buf.len()) {
            let Some(out) = buf.get_mut(range) else { continue };
            match self.pages.get(&page).and_then(|bytes| bytes.get(offset..offset + out.len())) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.fill(0),
            }
        }
    }

    /// Copies bytes in, growing if they reach past the end.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        self.size = self.size.max(at.saturating_add(data.len() as u64));
        for (page, offset, range) in pieces(at, data.len()) {
            let Some(data) = data.get(range) else { continue };
            let bytes = self.pages.entry(page).or_insert_with(|| vec![0; PAGE].into_boxed_slice());
            if let Some(bytes) = bytes.get_mut(offset..offset + data.len()) {
                bytes.copy_from_slice(data);
            }
        }
    }

    /// Zeroes bytes inside the current size.
    pub fn zero(&mut self, at: u64, len: u64) {
        let range = ByteRange { start: at, end: at.saturating_add(len).min(self.size) };
        if range.is_empty() {
            return;
        }
        let page = PAGE as u64;
        let whole = ByteRange { start: range.start.div_ceil(page) * page, end: range.end / page * page };
        if whole.is_empty() {
            self.zero_partial(range);
            return;
        }
        self.zero_partial(ByteRange { start: range.start, end: whole.start });
        self.zero_partial(ByteRange { start: whole.end, end: range.end });
        let mut tail = self.pages.split_off(&(whole.start / page));
        self.pages.append(&mut tail.split_off(&(whole.end / page)));
    }

    /// Cuts off or adds zero bytes at the end.
    pub fn set_size(&mut self, size: u64) {
        if size < self.size {
            let old = self.size;
            self.zero(size, old - size);
            self.pages.split_off(&size.div_ceil(PAGE as u64));
        }
        self.size = size;
    }

    /// Whether the byte at `at` lies in a page that holds data, and for how many bytes (at most `len`) that stays so.
    pub fn extent(&self, at: u64, len: u64) -> (bool, u64) {
        let page = PAGE as u64;
        let end = at.saturating_add(len);
        let data = self.pages.contains_key(&(at / page));
        let mut until = (at / page + 1) * page;
        while until < end && self.pages.contains_key(&(until / page)) == data {
            until = match data {
                true => until + page,
                // The next page that exists ends the hole.
                false => self.pages.range(until / page..).next().map_or(end, |(next, _)| next * page),
            };
        }
        (data, until.min(end) - at)
    }

    fn zero_partial(&mut self, range: ByteRange) {
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        for (page, offset, piece) in pieces(range.start, len) {
            if let Some(bytes) = self.pages.get_mut(&page).and_then(|bytes| bytes.get_mut(offset..offset + piece.len()))
            {
                bytes.fill(0);
            }
        }
    }
}

/// Splits `len` bytes from `at` by pages: page number, offset inside the page, range inside the buffer.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let here = at.checked_add(done as u64)?;
        let offset = usize::try_from(here % PAGE as u64).ok()?;
        let piece = (PAGE - offset).min(len - done);
        let range = done..done + piece;
        done += piece;
        (piece > 0).then_some((here / PAGE as u64, offset, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_bytes_agree_with_plain_bytes() {
        let size = 5 * PAGE + 100;
        let mut plain = vec![0u8; size];
        let mut sparse = SparseBytes::new(size as u64);
        let mut state = 0x1234_5678_9abc_def0_u64;
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % bound
        };
        for step in 0..400 {
            let at = next(size);
            let len = next(size - at + 1);
            match next(3) {
                0 => {
                    let fill = u8::try_from(1 + step % 255).unwrap();
                    plain[at..at + len].fill(fill);
                    sparse.write(at as u64, &vec![fill; len]);
                }
                1 => {
                    plain[at..at + len].fill(0);
                    sparse.zero(at as u64, len as u64);
                }
                _ => {
                    let mut got = vec![0xaa; len];
                    sparse.read(at as u64, &mut got);
                    assert_eq!(got, plain[at..at + len], "step {step}: {len} bytes at {at}");
                }
            }
            let (data, extent) = sparse.extent(at as u64, (size - at) as u64);
            assert!(extent > 0);
            if !data {
                assert!(plain[at..at + usize::try_from(extent).unwrap()].iter().all(|&b| b == 0), "step {step}");
            }
        }
        assert_eq!(sparse.size(), size as u64);
    }

    #[test]
    fn bytes_cut_off_do_not_come_back() {
        let mut bytes = SparseBytes::new(0);
        bytes.write(PAGE as u64 - 2, &[1, 2, 3, 4]);
        bytes.set_size(PAGE as u64 - 1);
        bytes.set_size(PAGE as u64 + 2);
        let mut got = [9; 4];
        bytes.read(PAGE as u64 - 2, &mut got);
        assert_eq!(got, [1, 0, 0, 0]);
    }
}
