//! The open image as qemu-io sees it: counted in sectors, with the bounds and the cache mode of a guest's disk.

use std::cell::Cell;
use std::rc::Rc;

use blkproof_block::device::check_bounds;
use blkproof_block::graph::{DriverKind, Registry};
use blkproof_block::{
    BlockDevice as _, Breakpoints, Capabilities, DeviceInfo, Errno, IoError, Node, Preallocation, Result, WriteFlags,
    ZeroFlags,
};

use super::numbers::SECTOR;
use super::open::OpenSpec;

/// Zeroes written at once where a driver has no way of its own to make them.
const ZERO_PIECE: usize = 1 << 20;

/// A guest could plant the header of a format here, if the image is raw only by a guess.
const PROBED_HEAD: usize = 512;

/// An open image. Requests in flight share it.
pub(super) struct Disk {
    node: Node,
    /// How it was opened, for `reopen`.
    pub(super) spec: OpenSpec,
    registry: Registry,
    /// Raw because nothing else fitted: writes that would make it look like a format are refused, as in QEMU.
    guessed_raw: bool,
    read_only: Cell<bool>,
    writeback: Cell<bool>,
}

/// How a write is to be done.
#[derive(Clone, Copy, Default)]
pub(super) struct WriteManner {
    /// `-f`.
    pub(super) fua: bool,
    /// `-c`.
    pub(super) compressed: bool,
}

/// How a write of zeroes is to be done.
#[derive(Clone, Copy, Default)]
pub(super) struct ZeroManner {
    /// `-f`.
    pub(super) fua: bool,
    /// `-u`.
    pub(super) may_unmap: bool,
    /// `-n`.
    pub(super) no_fallback: bool,
}

impl Disk {
    /// Takes over a node that was opened as `spec` says.
    pub(super) fn new(node: Node, spec: OpenSpec, registry: Registry, guessed_raw: bool) -> Self {
        let read_only = Cell::new(spec.flags.read_only || node.info().read_only);
        let writeback = Cell::new(spec.flags.cache.writeback);
        Self { node, spec, registry, guessed_raw, read_only, writeback }
    }

    /// The node itself, for requests of its own making.
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// The drivers it was opened with.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Properties of the node.
    pub(super) fn info(&self) -> DeviceInfo {
        self.node.info()
    }

    /// Where breakpoints can be set.
    pub(super) fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.node.breakpoints()
    }

    /// What the format alone has to say.
    pub(super) fn format_details(&self) -> Vec<(&'static str, String)> {
        self.node.format_details()
    }

    /// Size in bytes, rounded up to whole sectors, in which QEMU counts every image.
    pub(super) fn size(&self) -> u64 {
        round_up(self.node.info().size)
    }

    /// Whether writes are refused.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only.get()
    }

    /// Refuses writes from now on, or no longer; `false` if the node itself takes none.
    pub(super) fn set_read_only(&self, read_only: bool) -> bool {
        if !read_only && self.node.info().read_only {
            return false;
        }
        self.read_only.set(read_only);
        true
    }

    /// Whether a write may complete before it is durable.
    pub(super) fn is_writeback(&self) -> bool {
        self.writeback.get()
    }

    /// Lets writes complete before they are durable, or no longer.
    pub(super) fn set_writeback(&self, writeback: bool) {
        self.writeback.set(writeback);
    }

    /// Whether the driver is one that stands on no other (`file`, `nbd`).
    pub(super) fn is_protocol(&self) -> bool {
        self.registry.driver(self.info().driver).is_ok_and(|driver| driver.kind() != DriverKind::Format)
    }

    /// Fails a request that is not inside the disk; asked before memory is taken for one.
    pub(super) fn check_bounds(&self, at: u64, len: u64) -> Result<()> {
        check_bounds(at, len, self.size())
    }

    /// Reads; what lies between the end of the image and the end of its last sector reads as zeroes.
    pub(super) async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        self.check_bounds(at, len)?;
        let inside = inside(at, len, self.info().size);
        let (stored, past) = buf.split_at_mut(inside);
        if !stored.is_empty() {
            self.node.read(at, stored).await?;
        }
        past.fill(0);
        Ok(())
    }

    /// Writes.
    pub(super) async fn write(&self, at: u64, data: &[u8], manner: WriteManner) -> Result<()> {
        let len = data.len() as u64;
        self.check_bounds(at, len)?;
        self.check_writable()?;
        if manner.compressed {
            self.check_compressed(at, len)?;
        }
        if data.is_empty() {
            return Ok(());
        }
        self.check_head(at, data).await?;
        self.cover(at, len).await?;
        let fua = self.fua(manner.fua);
        let mut flags = WriteFlags::empty();
        flags.set(WriteFlags::FUA, fua.native);
        flags.set(WriteFlags::COMPRESSED, manner.compressed);
        self.node.write(at, data, flags).await?;
        self.settle(&fua).await
    }

    /// Reads the VM state; an empty read tells whether there is one.
    pub(super) async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.node.read_vm_state(at, buf).await
    }

    /// Writes the VM state; an empty write tells whether there is one.
    pub(super) async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.node.write_vm_state(at, data).await?;
        if self.writeback.get() || data.is_empty() { Ok(()) } else { self.node.flush().await }
    }

    /// Makes a range read as zeroes.
    pub(super) async fn write_zeroes(&self, at: u64, len: u64, manner: ZeroManner) -> Result<()> {
        self.check_bounds(at, len)?;
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        self.cover(at, len).await?;
        let fua = self.fua(manner.fua);
        let mut flags = ZeroFlags::empty();
        flags.set(ZeroFlags::FUA, fua.native);
        flags.set(ZeroFlags::MAY_UNMAP, manner.may_unmap);
        flags.set(ZeroFlags::NO_FALLBACK, manner.no_fallback);
        match self.node.write_zeroes(at, len, flags).await {
            Err(error) if error.errno == Errno::NOTSUP && !manner.no_fallback => self.write_zero_bytes(at, len).await?,
            done => done?,
        }
        self.settle(&fua).await
    }

    /// Gives up the content of a range.
    pub(super) async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_bounds(at, len)?;
        self.check_writable()?;
        match inside(at, len, self.info().size) as u64 {
            0 => Ok(()),
            inside => self.node.discard(at, inside).await,
        }
    }

    /// Makes durable what was completed.
    pub(super) async fn flush(&self) -> Result<()> {
        self.node.flush().await
    }

    /// Changes the size.
    pub(super) async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.check_writable()?;
        self.node.resize(size, preallocation).await
    }

    /// Whether the bytes from `at` belong to this image and not to a backing one, and for how many bytes that is so.
    ///
    /// A format that can not have a backing image owns all it has, written or not.
    pub(super) async fn is_allocated(&self, at: u64, len: u64) -> Result<(bool, u64)> {
        let inside = inside(at, len, self.info().size) as u64;
        if inside == 0 {
            return Ok((true, len));
        }
        let status = self.node.block_status(at, inside).await?;
        let always = matches!(self.info().driver, "raw" | "file" | "vdi" | "memory" | "nbd");
        Ok((always || status.allocated, status.len.clamp(1, inside)))
    }

    /// Waits for what is under way, writes back what is held in memory and gives the image up.
    pub(super) async fn close(&self) -> Result<()> {
        self.node.drain().await?;
        // A read-only image has nothing to write back, but its files are still to be let go.
        self.node.close().await
    }

    fn check_writable(&self) -> Result<()> {
        if self.is_read_only() { Err(IoError::read_only()) } else { Ok(()) }
    }

    /// Only qcow2 compresses, and only whole clusters, of which the last may be cut off by the end of the image.
    fn check_compressed(&self, at: u64, len: u64) -> Result<()> {
        let info = self.info();
        if info.driver != "qcow2" {
            return Err(IoError::unsupported());
        }
        let cluster = u64::from(info.cluster_size.max(1));
        let ends = at.saturating_add(len);
        if !at.is_multiple_of(cluster) || (!len.is_multiple_of(cluster) && ends != self.size()) {
            return Err(IoError::new(Errno::INVAL).detail("only whole clusters can be compressed"));
        }
        Ok(())
    }

    /// Refuses to make a raw image, guessed to be one, look like something else at the next guess.
    async fn check_head(&self, at: u64, data: &[u8]) -> Result<()> {
        let Some(at) = usize::try_from(at).ok().filter(|at| self.guessed_raw && *at < PROBED_HEAD) else {
            return Ok(());
        };
        let mut head = [0; PROBED_HEAD];
        self.read(0, &mut head).await?;
        for (byte, new) in head.iter_mut().skip(at).zip(data) {
            *byte = *new;
        }
        let mut formats = self.registry.drivers().filter(|driver| driver.kind() == DriverKind::Format);
        if formats.any(|driver| driver.name() != "raw" && driver.probe(&head)) {
            return Err(IoError::new(Errno::PERM).detail("this would make a raw image look like another format"));
        }
        Ok(())
    }

    /// Lets the image reach to the end of its last sector, if the request does.
    async fn cover(&self, at: u64, len: u64) -> Result<()> {
        let info = self.info();
        if at.saturating_add(len) > info.size && !info.capabilities.contains(Capabilities::GROWS) {
            self.node.resize(round_up(info.size), Preallocation::Off).await?;
        }
        Ok(())
    }

    async fn write_zero_bytes(&self, at: u64, len: u64) -> Result<()> {
        let zeroes = vec![0; ZERO_PIECE];
        let mut done = 0u64;
        while done < len {
            let piece = usize::try_from(len.saturating_sub(done)).map_or(ZERO_PIECE, |left| left.min(ZERO_PIECE));
            let piece = zeroes.get(..piece).unwrap_or_default();
            self.node.write(at.saturating_add(done), piece, WriteFlags::empty()).await?;
            done = done.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// In writethrough mode every write is durable when it completes. A node without FUA of its own gets a flush.
    fn fua(&self, asked: bool) -> Fua {
        let wanted = asked || !self.writeback.get();
        let native = wanted && self.info().capabilities.contains(Capabilities::FUA);
        Fua { native, by_flush: wanted && !native }
    }

    async fn settle(&self, fua: &Fua) -> Result<()> {
        if fua.by_flush { self.node.flush().await } else { Ok(()) }
    }
}

struct Fua {
    native: bool,
    by_flush: bool,
}

fn round_up(size: u64) -> u64 {
    size.checked_next_multiple_of(SECTOR).unwrap_or(size)
}

/// How many of the `len` bytes from `at` lie below `size`.
fn inside(at: u64, len: u64, size: u64) -> usize {
    usize::try_from(len.min(size.saturating_sub(at))).unwrap_or(usize::MAX)
}

/// The disk that commands share.
pub(super) type SharedDisk = Rc<Disk>;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use blkproof_block::graph::{CacheMode, OpenFlags};
    use blkproof_block::nodes::memory::Memory;
    use blkproof_block::{BlockDevice, BlockStatus};

    use super::*;

    /// Memory that writes down what it is asked, perhaps without FUA of its own or without zeroes.
    struct Log {
        memory: Memory,
        capabilities: Capabilities,
        lines: Rc<RefCell<Vec<String>>>,
    }

    impl Log {
        fn line(&self, line: String) {
            self.lines.borrow_mut().push(line);
        }
    }

    impl BlockDevice for Log {
        fn info(&self) -> DeviceInfo {
            DeviceInfo { capabilities: self.capabilities, ..self.memory.info() }
        }
        async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
            self.memory.read(at, buf).await
        }
        async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
            let fua = if flags.contains(WriteFlags::FUA) { " fua" } else { "" };
            self.line(format!("write {at}+{}{fua}", data.len()));
            self.memory.write(at, data, flags).await
        }
        async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
            if !self.capabilities.contains(Capabilities::ZEROES) {
                return Err(IoError::unsupported());
            }
            let fua = if flags.contains(ZeroFlags::FUA) { " fua" } else { "" };
            self.line(format!("zero {at}+{len}{fua}"));
            self.memory.write_zeroes(at, len, flags).await
        }
        async fn discard(&self, at: u64, len: u64) -> Result<()> {
            self.line(format!("discard {at}+{len}"));
            self.memory.discard(at, len).await
        }
        async fn flush(&self) -> Result<()> {
            self.line("flush".into());
            Ok(())
        }
        async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
            self.memory.block_status(at, len).await
        }
        async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
            self.line(format!("resize {size}"));
            self.memory.resize(size, preallocation).await
        }
        async fn drain(&self) -> Result<()> {
            Ok(())
        }
    }

    /// A disk of `size` bytes in the given mode, and what it is asked.
    fn disk(size: u64, writeback: bool, capabilities: Capabilities) -> (Disk, Rc<RefCell<Vec<String>>>) {
        let lines = Rc::new(RefCell::new(Vec::new()));
        let node = Node::new(Log { memory: Memory::new(size), capabilities, lines: Rc::clone(&lines) });
        let cache = CacheMode { direct: false, no_flush: false, writeback };
        let spec = OpenSpec { flags: OpenFlags { cache, ..OpenFlags::default() }, ..OpenSpec::default() };
        (Disk::new(node, spec, Registry::new(), false), lines)
    }

    #[test]
    fn every_write_is_durable_in_writethrough_mode() {
        let native = Capabilities::FUA | Capabilities::ZEROES;
        let plain = Capabilities::ZEROES;
        for (writeback, asked, capabilities, want) in [
            (true, false, native, "write 0+4, zero 4+4, discard 8+4"),
            (true, true, native, "write 0+4 fua, zero 4+4 fua, discard 8+4"),
            (false, false, native, "write 0+4 fua, zero 4+4 fua, discard 8+4"),
            (true, false, plain, "write 0+4, zero 4+4, discard 8+4"),
            (true, true, plain, "write 0+4, flush, zero 4+4, flush, discard 8+4"),
            (false, false, plain, "write 0+4, flush, zero 4+4, flush, discard 8+4"),
            (false, false, Capabilities::empty(), "write 0+4, flush, write 4+4, flush, discard 8+4"),
        ] {
            let (disk, lines) = disk(512, writeback, capabilities);
            futures_lite::future::block_on(async {
                disk.write(0, &[1; 4], WriteManner { fua: asked, compressed: false }).await.unwrap();
                disk.write_zeroes(4, 4, ZeroManner { fua: asked, ..ZeroManner::default() }).await.unwrap();
                disk.discard(8, 4).await.unwrap();
            });
            assert_eq!(lines.borrow().join(", "), want, "writeback {writeback}, asked {asked}, {capabilities:?}");
        }
    }

    #[test]
    fn the_last_sector_is_whole() {
        let (disk, lines) = disk(1000, true, Capabilities::ZEROES);
        futures_lite::future::block_on(async {
            assert_eq!(disk.size(), 1024);
            let mut tail = [9; 24];
            disk.read(1000, &mut tail).await.unwrap();
            assert_eq!(tail, [0; 24], "what lies behind the end reads as zeroes");
            assert_eq!(disk.read(1000, &mut [0; 25]).await.unwrap_err().errno, Errno::IO);
            disk.write(999, &[7; 3], WriteManner::default()).await.unwrap();
            disk.read(996, &mut tail[..6]).await.unwrap();
            assert_eq!(tail[..6], [0, 0, 0, 7, 7, 7]);
        });
        assert_eq!(lines.borrow().join(", "), "resize 1024, write 999+3");
    }

    #[test]
    fn zeroes_are_not_written_where_that_was_forbidden() {
        let (disk, lines) = disk(512, true, Capabilities::empty());
        let manner = ZeroManner { no_fallback: true, ..ZeroManner::default() };
        let done = futures_lite::future::block_on(disk.write_zeroes(0, 512, manner));
        assert_eq!(done.unwrap_err().errno, Errno::NOTSUP);
        assert!(lines.borrow().is_empty());
    }

    #[test]
    fn a_read_only_disk_takes_no_write_of_any_kind() {
        let (disk, lines) = disk(512, true, Capabilities::ZEROES);
        assert!(disk.set_read_only(true));
        futures_lite::future::block_on(async {
            let refused = [
                disk.write(0, &[1], WriteManner::default()).await,
                disk.write_zeroes(0, 1, ZeroManner::default()).await,
                disk.discard(0, 1).await,
                disk.resize(1024, Preallocation::Off).await,
            ];
            for done in refused {
                assert_eq!(done.unwrap_err().errno, Errno::PERM);
            }
        });
        assert!(lines.borrow().is_empty());
    }

    #[test]
    fn requests_are_cut_at_the_end() {
        for (at, len, size, want) in
            [(0, 4, 10, 4), (8, 4, 10, 2), (10, 4, 10, 0), (11, 4, 10, 0), (u64::MAX, u64::MAX, 10, 0)]
        {
            assert_eq!(inside(at, len, size), want, "{len} bytes at {at} of {size}");
        }
    }
}
