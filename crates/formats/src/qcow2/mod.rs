//! qcow2, versions 2 and 3.
//!
//! # Model
//! Guest clusters are mapped to host clusters by a two-level table (L1, L2); every host cluster has a reference count,
//! kept in refcount blocks that the refcount table lists. All of it is changed in memory first (`cache`) and written
//! back by `commit`, which a guest flush, a FUA write, a full cache and `close` call.
//!
//! # The ordering argument
//! The claim: cut the power at any point, keep any subset of the sectors written since the last flush of the file, and
//! the image opens, has at worst leaked clusters, and holds every write that the guest flushed. Four rules carry it.
//!
//! 1. **Counts before references.** A cluster's count is raised in memory when it is allocated, before anything may
//!    refer to it. A commit copies the dirty refcount blocks, L2 tables and L1 sectors *at one moment*, so every
//!    reference it is going to write has its count in the blocks it writes. The blocks are written first; then comes
//!    a flush; only then are L2 tables written. New refcount blocks are made durable before the sector of the
//!    refcount table that names them. A crash in between leaves counts without references: leaks.
//! 2. **Data before the pointer.** An L2 entry changes in memory only after the data write, with everything copied
//!    around it, completed. The copy of the L2 tables is taken before the flush of rule 1, so that this flush makes the
//!    data of every entry in the copy durable before the entry is written.
//! 3. **Tables before their pointers.** A new L2 table is written and flushed before the L1 sector that names it. L1
//!    and refcount table are replaced, when they grow, by writing the new one, flushing, and then switching the header,
//!    which is one sector.
//! 4. **Pointers gone before reuse.** What a map change no longer refers to goes to the list of freed
//!    clusters with its count still raised. A commit takes the list at the same moment as the tables, and lowers the
//!    counts, in memory, after its last flush: from then on no durable entry refers to these clusters. Lowered counts
//!    reach the disk in any later commit; until then they are leaks on disk.
//!
//! Everything else is a consequence. A write in place, to a cluster of which the L2 entry is durable or not, changes
//! only guest bytes, or bytes that no durable entry exposes. A failed or dropped commit leaves its sectors dirty and
//! its list of freed clusters as it was. With lazy refcounts rule 1 is replaced: before the first reference is
//! written, the dirty bit is durable in the header, and whoever opens the image rebuilds the counts (`dirty`).
//!
//! The VM state lies behind the disk in the same map (`vm_state`), and is written by the same steps: count, data,
//! entry. All four rules hold for it word by word. A write that needs a longer L1 table grows it first, under rules 1
//! and 3, with every other request locked out; a cut in between leaves a table with entries that map nothing. Bytes
//! around a write are copied from the VM state itself, which a snapshot may share, where those of the disk's last
//! cluster become zeroes.
//!
//! # Cancelling
//! Every write sent to a child is accompanied by a guard that counts it as *dropped* if its future does not complete.
//! A dropped write may still land; `Qcow2::settle` drains the children if there is one. It is called before a
//! commit (tables are written to the places where a dropped commit may still be writing), before a freed cluster
//! becomes reusable, and before bytes beyond the guest's own range (copy on write) are written to a cluster that is not
//! freshly allocated. A cluster reserved by a write that fails or is dropped goes to the list of freed clusters.
//!
//! # Concurrency
//! Requests lock their guest range in whole clusters: shared for reads and writes in place, exclusive for whatever
//! changes the map. So no cluster is given away under a read, two writers never copy the same cluster, and everything
//! else runs in parallel. Locks are taken in this order: guest range, L1 index, allocator, commit, header, length
//! of a child; table loads are locked by table and never while making room in a cache.

mod alloc;
mod cache;
mod commit;
mod compressed;
mod cow;
mod create;
mod dirty;
mod driver;
mod entry;
mod header;
mod l1;
mod l2;
mod read;
mod refcount;
mod resize;
mod snapshot;
mod status;
mod units;
mod vm_state;
mod write;
mod zero;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blkproof_block::device::check_bounds;
use blkproof_block::graph::OpenError;
use blkproof_block::range_lock::RangeLock;
use blkproof_block::unflushed::Unflushed;
use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, ByteRange, Capabilities, DeviceInfo, Errno, Event, IoError, Node,
    Preallocation, Result, WriteFlags, ZeroFlags,
};
use tokio::sync::Mutex;

pub use create::{CreateOptions, create};
pub use driver::Qcow2Driver;

use alloc::Freed;
use cache::{Table, TableCache};
use header::Header;
use units::Geometry;

/// How an image is opened.
#[derive(Debug)]
pub struct OpenOptions<D> {
    /// Nothing is written, not even what an open would repair.
    pub read_only: bool,
    /// What unallocated clusters read from; `None` reads zeroes, whatever the image names.
    pub backing: Option<Node>,
    /// The external data file, for an image that needs one.
    pub data_file: Option<D>,
    /// Bytes of L2 tables kept in memory.
    pub l2_cache_size: u64,
    /// Bytes of refcount blocks kept in memory.
    pub refcount_cache_size: u64,
    /// Overrides the image's own setting.
    pub lazy_refcounts: Option<bool>,
    /// Guest discards take effect; otherwise they complete and do nothing.
    pub unmap: bool,
    /// Clusters freed by a guest's discard are discarded below too.
    pub pass_discard_request: bool,
    /// So are clusters freed for another reason.
    pub pass_discard_other: bool,
}

impl<D> Default for OpenOptions<D> {
    /// Writable, no backing file, QEMU's cache sizes, discards passed on.
    fn default() -> Self {
        Self {
            read_only: false,
            backing: None,
            data_file: None,
            l2_cache_size: 32 << 20,
            refcount_cache_size: 1 << 20,
            lazy_refcounts: None,
            unmap: true,
            pass_discard_request: true,
            pass_discard_other: false,
        }
    }
}

/// An open qcow2 image over the device `D`. See the [module](self) for what is kept and how.
pub struct Qcow2<D> {
    file: D,
    data_file: Option<D>,
    backing: Option<Node>,
    geometry: Geometry,
    read_only: bool,
    lazy: bool,
    unmap: bool,
    unflushed: Unflushed,
    pass_discard_request: bool,
    pass_discard_other: bool,

    header: RefCell<Header>,
    size: Cell<u64>,
    l1: RefCell<Rc<Table>>,
    reftable: RefCell<Rc<Table>>,
    l2_cache: TableCache,
    block_cache: TableCache,

    /// Guest ranges in whole clusters.
    requests: RangeLock,
    /// L1 indices whose L2 table is being allocated or copied.
    l1_slots: RangeLock,
    alloc_lock: Mutex<()>,
    commit_lock: Mutex<()>,
    header_lock: Mutex<()>,
    extend_lock: Mutex<()>,

    /// Clusters that are no longer referred to, and whose count is still raised.
    freed: RefCell<Vec<Freed>>,
    /// Clusters known to be free, below `scan_from`.
    free_clusters: RefCell<BTreeSet<u64>>,
    /// Every free cluster is at or above this one, or in `free_clusters`.
    scan_from: Cell<u64>,
    /// Clusters that hold metadata: never given out, never written as data.
    metadata: RefCell<BTreeMap<u64, &'static str>>,
    /// Where the next compressed cluster may begin, in a host cluster of which the rest is unused.
    compressed_tail: Cell<Option<u64>>,

    /// Writes to children that were dropped before they completed, and how many of those are known to be over.
    dropped: Cell<u64>,
    settled: Cell<u64>,
    /// The end of the highest write that failed or was dropped. Below it, what lies past the end of the file may still
    /// come to hold something else than zeroes.
    unsure_below: Cell<u64>,
    commits_started: Cell<u64>,
    /// The number of the youngest commit that succeeded.
    commit_done: Cell<u64>,
    /// A header write failed or was dropped: the disk may hold another header than memory. It is written again before
    /// anything else is.
    header_uncertain: Cell<bool>,
    /// Set when the image was found damaged while writable: nothing is served any more.
    disabled: Cell<bool>,
}

impl<D> std::fmt::Debug for Qcow2<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Qcow2({:#x} bytes, {} byte clusters)", self.size.get(), self.geometry.cluster_size())
    }
}

/// Counts a request to a child as dropped unless it completes.
struct InFlight<'a> {
    dropped: &'a Cell<u64>,
    unsure_below: &'a Cell<u64>,
    /// One past the last byte it may write.
    end: u64,
    over: bool,
}

impl InFlight<'_> {
    fn over(mut self, result: Result<()>) -> Result<()> {
        self.over = true;
        if result.is_err() {
            self.unsure();
        }
        result
    }

    fn unsure(&self) {
        self.unsure_below.set(self.unsure_below.get().max(self.end));
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.dropped.set(self.dropped.get() + 1);
            self.unsure();
        }
    }
}

impl<D: BlockDevice> Qcow2<D> {
    /// Opens the image that `file` holds.
    ///
    /// A writable open clears autoclear bits that this driver does not keep, and rebuilds the refcounts of an image
    /// whose dirty bit is set. A read-only open writes nothing.
    ///
    /// # Errors
    /// [`OpenError::Image`] says what is wrong with the image, [`OpenError::Usage`] what is missing.
    pub async fn open(file: D, options: OpenOptions<D>) -> Result<Self, OpenError> {
        let header = Header::load(&file).await?;
        Self::open_with(file, header, options).await
    }

    /// The file, after [`close`](BlockDevice::close). Without it this is what a crash of the program leaves.
    pub fn into_file(self) -> D {
        self.file
    }

    async fn open_with(file: D, header: Header, options: OpenOptions<D>) -> Result<Self, OpenError> {
        let geometry = header.geometry;
        let read_only = options.read_only;
        if !read_only && file.info().read_only {
            return Err(OpenError::Usage("the file is read-only; open the image read-only too".into()));
        }
        if header.is_corrupt() && !read_only {
            return Err(OpenError::Image("image is corrupt; cannot be opened read/write".into()));
        }
        if geometry.external_data && options.data_file.is_none() {
            return Err(OpenError::Usage("'data-file' is required for this image".into()));
        }
        if !geometry.external_data && options.data_file.is_some() {
            return Err(OpenError::Usage("'data-file' can only be set for images with an external data file".into()));
        }
        let l1 = Self::load_table(&file, "L1 table", header.l1_offset, u64::from(header.l1_entries) * 8).await?;
        file.event(Event::ReftableLoad).await;
        let bytes = u64::from(header.reftable_clusters) * geometry.cluster_size();
        let reftable = Self::load_table(&file, "refcount table", header.reftable_offset, bytes).await?;

        let tables = |bytes: u64| units::index((bytes / geometry.cluster_size()).min(16_384));
        let lazy =
            geometry.version >= 3 && options.lazy_refcounts.unwrap_or(header.compatible & header::LAZY_REFCOUNTS != 0);
        let qcow2 = Self {
            file,
            data_file: options.data_file,
            backing: options.backing,
            geometry,
            read_only,
            lazy,
            unmap: options.unmap,
            unflushed: Unflushed::default(),
            pass_discard_request: options.pass_discard_request,
            pass_discard_other: options.pass_discard_other,
            size: Cell::new(header.size),
            header: RefCell::new(header),
            l1: RefCell::new(Rc::new(l1)),
            reftable: RefCell::new(Rc::new(reftable)),
            l2_cache: TableCache::new(tables(options.l2_cache_size)),
            block_cache: TableCache::new(tables(options.refcount_cache_size).max(4)),
            requests: RangeLock::new(),
            l1_slots: RangeLock::new(),
            alloc_lock: Mutex::new(()),
            commit_lock: Mutex::new(()),
            header_lock: Mutex::new(()),
            extend_lock: Mutex::new(()),
            freed: RefCell::default(),
            header_uncertain: Cell::new(false),
            free_clusters: RefCell::default(),
            scan_from: Cell::new(0),
            metadata: RefCell::default(),
            compressed_tail: Cell::new(None),
            dropped: Cell::new(0),
            settled: Cell::new(0),
            unsure_below: Cell::new(0),
            commits_started: Cell::new(0),
            commit_done: Cell::new(0),
            disabled: Cell::new(false),
        };
        qcow2.note_metadata().await?;
        if !read_only {
            qcow2.prepare_for_writing().await?;
        }
        Ok(qcow2)
    }

    async fn load_table(file: &D, what: &str, offset: u64, bytes: u64) -> Result<Table, OpenError> {
        let size = file.info().size;
        if offset.saturating_add(bytes) > size {
            let end = offset.saturating_add(bytes);
            return Err(OpenError::Image(format!(
                "{what} at {offset:#x}..{end:#x} reaches past end of file ({size:#x})"
            )));
        }
        // Bounded by whoever read the length, and by the file.
        let mut buf = vec![0; units::index(bytes).next_multiple_of(512)];
        let read = header::read_padded(file, offset, &mut buf).await;
        read.map_err(|e| OpenError::io(format!("could not read the {what} at {offset:#x}"), e))?;
        Ok(Table::clean(offset, buf))
    }

    /// Lists the clusters that hold metadata, and refuses an image in which two tables share one.
    ///
    /// The list keeps writes away from metadata. A read-only image needs none, and is spared its refusals.
    async fn note_metadata(&self) -> Result<(), OpenError> {
        if self.read_only {
            return Ok(());
        }
        let header = self.header.borrow().clone();
        self.add_metadata(0, 1, "qcow2_header")?;
        self.add_metadata(header.l1_offset, u64::from(header.l1_entries) * 8, "active L1 table")?;
        let bytes = u64::from(header.reftable_clusters) * self.geometry.cluster_size();
        self.add_metadata(header.reftable_offset, bytes, "refcount table")?;
        let reftable = Rc::clone(&self.reftable.borrow());
        for slot in 0..reftable.len() as u64 / 8 {
            let offset = reftable.word(slot) & units::OFFSET_MASK;
            if offset != 0 && self.geometry.in_cluster(offset) == 0 {
                self.add_metadata(offset, 1, "refcount block")?;
            }
        }
        let l1 = Rc::clone(&self.l1.borrow());
        for slot in 0..u64::from(header.l1_entries) {
            let offset = l1.word(slot) & units::OFFSET_MASK;
            if offset != 0 && self.geometry.in_cluster(offset) == 0 {
                self.add_metadata(offset, 1, "active L2 table")?;
            }
        }
        if header.snapshots > 0 {
            let snapshots = snapshot::load(&self.file, &header).await?;
            self.add_metadata(header.snapshots_offset, snapshots.bytes, "snapshot table")?;
            let size = self.file.info().size;
            for (number, snapshot) in snapshots.entries.iter().enumerate() {
                let bytes = u64::from(snapshot.l1_entries) * 8;
                // Clusters are listed one by one: those of a table outside of the file would be any number.
                if snapshot.l1_offset.saturating_add(bytes) > size {
                    let at = snapshot.l1_offset;
                    return Err(OpenError::Image(format!(
                        "L1 table of snapshot {number} at {at:#x} reaches past end of file ({size:#x})"
                    )));
                }
                self.add_metadata(snapshot.l1_offset, bytes, "inactive L1 table")?;
            }
        }
        Ok(())
    }

    fn add_metadata(&self, offset: u64, bytes: u64, what: &'static str) -> Result<(), OpenError> {
        let mut metadata = self.metadata.borrow_mut();
        let first = offset >> self.geometry.cluster_bits;
        for cluster in first..first + self.geometry.clusters(bytes) {
            if let Some(other) = metadata.insert(cluster, what) {
                let at = cluster << self.geometry.cluster_bits;
                return Err(OpenError::Image(format!("image is damaged: {what} at {at:#x} overlaps with {other}")));
            }
        }
        Ok(())
    }

    async fn prepare_for_writing(&self) -> Result<(), OpenError> {
        let dirty = self.header.borrow().is_dirty();
        if dirty {
            self.rebuild_refcounts().await?;
        }
        // Bitmaps are kept but not maintained: without the bit they count as inconsistent (specification, "Autoclear").
        let kept = if self.geometry.external_data { header::RAW_EXTERNAL } else { 0 };
        let found = self.header.borrow().autoclear;
        if found & !kept != 0 {
            let cleared = self.change_header(|header| header.autoclear &= kept).await;
            cleared.map_err(|e| OpenError::io("could not update the qcow2 header", e))?;
        }
        Ok(())
    }

    /// Changes the header: writes its sector and makes it durable, then memory changes with it.
    ///
    /// What is changed is the header as it is when our turn comes, not as it was when we asked for it: somebody may be
    /// switching a table at this moment.
    async fn change_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let _turn = self.header_lock.lock().await;
        self.settle().await?;
        let mut header = self.header.borrow().clone();
        change(&mut header);
        self.header_uncertain.set(true);
        self.file_write(0, &header.to_sector()).await.map_err(|e| e.context("writing the qcow2 header"))?;
        self.file.flush().await?;
        self.header_uncertain.set(false);
        header.sector = header.to_sector();
        *self.header.borrow_mut() = header;
        Ok(())
    }

    /// The node that holds guest data.
    fn data(&self) -> &D {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    fn in_flight(&self, end: u64) -> InFlight<'_> {
        InFlight { dropped: &self.dropped, unsure_below: &self.unsure_below, end, over: false }
    }

    /// Whether everything from `offset` on lies past the end of the file, was never written, and reads as zeroes.
    fn is_untouched(&self, offset: u64) -> bool {
        offset >= self.file.info().size.max(self.unsure_below.get())
    }

    /// Writes to the image file.
    async fn file_write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let end = at.saturating_add(bytes.len() as u64);
        self.make_file_reach(&self.file, end).await?;
        let flight = self.in_flight(end);
        flight.over(self.file.write(at, bytes, WriteFlags::empty()).await)
    }

    /// Writes guest data.
    async fn data_write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let end = at.saturating_add(bytes.len() as u64);
        self.make_file_reach(self.data(), end).await?;
        let flight = self.in_flight(end);
        flight.over(self.data().write(at, bytes, WriteFlags::empty()).await)
    }

    /// Zeroes guest data.
    async fn data_zero(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let end = at.saturating_add(len);
        self.make_file_reach(self.data(), end).await?;
        let flight = self.in_flight(end);
        flight.over(self.data().write_zeroes(at, len, flags).await)
    }

    /// Extends a child that does not grow by itself.
    async fn make_file_reach(&self, child: &D, end: u64) -> Result<()> {
        let info = child.info();
        if end <= info.size || info.capabilities.contains(Capabilities::GROWS) {
            return Ok(());
        }
        if !info.capabilities.contains(Capabilities::RESIZE) {
            return Err(IoError::new(Errno::NOSPC)
                .detail(format!("the image needs {end:#x} bytes, the device below has {:#x}", info.size)));
        }
        self.extend_child(child, end).await
    }

    /// Makes a child at least `end` bytes long.
    ///
    /// A resize says how long the child is to be, not how much longer: one that lands behind a larger one cuts off what
    /// was written in between. So there is one at a time, and none while a dropped one may still land.
    async fn extend_child(&self, child: &D, end: u64) -> Result<()> {
        let _turn = self.extend_lock.lock().await;
        self.settle().await?;
        if end <= child.info().size {
            return Ok(()); // somebody else did it while we waited
        }
        let flight = self.in_flight(0);
        flight.over(child.resize(end, Preallocation::Off).await)
    }

    /// Returns when no dropped write can land any more.
    async fn settle(&self) -> Result<()> {
        let seen = self.dropped.get();
        if self.settled.get() < seen {
            self.file.drain().await?;
            if let Some(data) = &self.data_file {
                data.drain().await?;
            }
            self.settled.set(self.settled.get().max(seen));
        }
        Ok(())
    }

    /// An error for a damaged structure. On a writable image the corrupt bit is set and nothing more is served, as
    /// whatever we do next could make it worse.
    async fn corrupt(&self, words: String) -> IoError {
        if !self.read_only && !self.disabled.get() {
            self.disabled.set(true);
            if self.geometry.version >= 3 {
                // If this fails the image is no worse than before; the request fails either way.
                let _ = self.change_header(|header| header.incompatible |= header::CORRUPT).await;
            }
            return IoError::new(Errno::IO).detail(format!("marking image as corrupt: {words}"));
        }
        IoError::new(Errno::IO).detail(format!("image is corrupt: {words}"))
    }

    fn check_usable(&self) -> Result<()> {
        if self.disabled.get() {
            return Err(IoError::new(Errno::NOMEDIUM).detail("the image was found damaged and is disabled"));
        }
        Ok(())
    }

    fn check_writable(&self, at: u64, len: u64) -> Result<()> {
        self.check_usable()?;
        if self.read_only {
            return Err(IoError::read_only());
        }
        check_bounds(at, len, self.size.get())
    }

    /// Asked again by whoever has its range: the disk may have become smaller while it waited, or the image disabled.
    fn check_still_inside(&self, at: u64, len: u64) -> Result<()> {
        self.check_usable()?;
        check_bounds(at, len, self.size.get())
    }

    /// The clusters of a guest range, as the range lock knows them.
    fn clusters_of(&self, at: u64, len: u64) -> ByteRange {
        ByteRange::at(at, len).aligned_out(self.geometry.cluster_size())
    }
}

impl<D: BlockDevice> BlockDevice for Qcow2<D> {
    fn info(&self) -> DeviceInfo {
        let mut capabilities = Capabilities::ZEROES
            | Capabilities::DISCARD
            | Capabilities::FUA
            | Capabilities::MULTI_CONN
            | Capabilities::RESIZE
            | Capabilities::ZERO_ON_GROWTH;
        if self.geometry.version >= 3 {
            capabilities |= Capabilities::FAST_ZERO;
        }
        DeviceInfo {
            read_only: self.read_only,
            capabilities,
            cluster_size: u32::try_from(self.geometry.cluster_size()).unwrap_or(0),
            ..DeviceInfo::new("qcow2", self.size.get())
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.check_usable()?;
        check_bounds(at, buf.len() as u64, self.size.get())?;
        self.guest_read(at, buf).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        self.check_usable().is_ok()
            && check_bounds(at, buf.len() as u64, self.size.get()).is_ok()
            && self.guest_read_now(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.check_writable(at, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        let done = if flags.contains(WriteFlags::COMPRESSED) {
            self.guest_write_compressed(at, data).await
        } else {
            self.guest_write(at, data).await
        };
        self.after_change(done, flags.contains(WriteFlags::FUA)).await
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.check_usable()?;
        self.vm_state_range(at, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        self.file.event(Event::VmstateLoad).await;
        self.vm_state_read(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.check_writable(0, 0)?;
        self.vm_state_range(at, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.file.event(Event::VmstateSave).await;
        let done = self.vm_state_write(at, data).await;
        self.unflushed.changed();
        done
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.check_writable(at, len)?;
        if len == 0 {
            return Ok(());
        }
        let done = self.guest_zero(at, len, flags).await;
        self.after_change(done, flags.contains(ZeroFlags::FUA)).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_writable(at, len)?;
        if len == 0 || !self.unmap {
            return Ok(());
        }
        let done = self.guest_discard(at, len).await;
        self.unflushed.changed();
        done
    }

    async fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.check_usable()?;
        self.make_durable().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.check_usable()?;
        check_bounds(at, len, self.size.get())?;
        self.guest_status(at, len).await
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.check_writable(0, 0)?;
        let done = self.guest_resize(size, preallocation).await;
        self.unflushed.changed();
        done
    }

    async fn drain(&self) -> Result<()> {
        let seen = self.dropped.get();
        self.file.drain().await?;
        if let Some(data) = &self.data_file {
            data.drain().await?;
        }
        if let Some(backing) = &self.backing {
            backing.drain().await?;
        }
        self.settled.set(self.settled.get().max(seen));
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        // Whoever is still in flight ends first.
        let _all = self.requests.exclusive(ByteRange { start: 0, end: u64::MAX }).await;
        if !self.read_only && !self.disabled.get() {
            self.commit_for_close().await?;
        }
        if let Some(data) = &self.data_file {
            data.close().await?;
        }
        if let Some(backing) = &self.backing {
            backing.close().await?;
        }
        self.file.close().await
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.file.breakpoints()
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        let header = self.header.borrow();
        let compat = if self.geometry.version < 3 { "0.10" } else { "1.1" };
        let compression = match header.compression {
            header::Compression::Zlib => "zlib",
            header::Compression::Zstd => "zstd",
        };
        let mut details = vec![("compat", compat.to_owned()), ("compression type", compression.to_owned())];
        if self.geometry.version >= 3 {
            let lazy = header.compatible & header::LAZY_REFCOUNTS != 0;
            details.push(("lazy refcounts", lazy.to_string()));
        }
        details.push(("refcount bits", (1u32 << self.geometry.refcount_order).to_string()));
        if self.geometry.external_data {
            details.extend(header.data_file_name.clone().map(|name| ("data file", name)));
            details.push(("data file raw", self.geometry.raw_external.to_string()));
        }
        if self.geometry.version >= 3 {
            details.push(("corrupt", header.is_corrupt().to_string()));
        }
        if self.geometry.version >= 3 {
            details.push(("extended l2", self.geometry.extended.to_string()));
        }
        details
    }
}
