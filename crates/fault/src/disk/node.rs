//! The node: requests through the cache.

use std::rc::Rc;

use blkproof_block::align::Aligned;
use blkproof_block::device::check_bounds;
use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, ByteRange, Capabilities, DeviceInfo, Errno, Event, IoError, Limits, Node,
    Preallocation, Result, WriteFlags, ZeroFlags,
};

use super::Disk;
use super::config::{DiskOptions, Kind};
use super::jobs::no_power;
use super::medium::{Shared, Why};
use super::model::{ChangeId, Covered, Model, Request, Sabotage};
use super::piece::{Content, gaps};
use crate::lab::{Lab, NameTaken, Part};
use crate::power::Switch;

/// Largest offset a device can have.
const END_MAX: u64 = i64::MAX as u64;

/// A disk with a volatile write cache over another node. See the [module](super).
pub struct DiskNode {
    shared: Rc<Shared>,
    /// Where reads go: the medium as this client sees it.
    child: Node,
    /// The last of these to go ends the disk.
    listed: Rc<Listed>,
    /// One client's handle: the life it came in. It is gone with that life, as a host is whose disk lost its power,
    /// even if it had nothing in flight: it must not go on as if what it wrote were there.
    client: Option<u64>,
}

/// The disk's place among the nodes that can be controlled.
struct Listed(Rc<Shared>);

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.jobs.cut();
        if let Some(lab) = &self.0.lab {
            lab.remove(&self.0.name);
        }
    }
}

impl std::fmt::Debug for DiskNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskNode")
            .field("name", &self.shared.name)
            .field("on", &self.shared.on.get())
            .finish_non_exhaustive()
    }
}

impl DiskNode {
    /// A disk whose medium is `child`; nobody else may write to it. Not listed anywhere.
    pub fn new(child: Node, options: DiskOptions) -> Self {
        Self::with(Rc::new(Shared::new(Aligned::wrap(child), options, Rc::from("disk"), None)))
    }

    /// [`new`](Self::new), listed in `lab` under `name` as long as it lives.
    ///
    /// # Errors
    /// If another node has that name.
    pub fn listed(child: Node, options: DiskOptions, lab: &Rc<Lab>, name: &Rc<str>) -> Result<Self, NameTaken> {
        let shared = Shared::new(Aligned::wrap(child), options, Rc::clone(name), Some(Rc::clone(lab)));
        let shared = Rc::new(shared);
        let disk = Disk(Rc::clone(&shared));
        lab.add(name, Part::Disk(disk.clone()))?;
        lab.add_switch(Switch { name: Rc::clone(name), power: Rc::new(disk) });
        Ok(Self::with(shared))
    }

    fn with(shared: Rc<Shared>) -> Self {
        Self { child: shared.child.clone(), listed: Rc::new(Listed(Rc::clone(&shared))), client: None, shared }
    }

    /// The life a request begins in. Fails without power, and for a client that was there when the power went.
    fn begin(&self) -> Result<u64> {
        let life = self.shared.life.get();
        self.shared.alive(self.client.unwrap_or(life))?;
        Ok(life)
    }

    /// What controls it.
    pub fn handle(&self) -> Disk {
        Disk(Rc::clone(&self.shared))
    }

    /// Builds a mistake in.
    #[doc(hidden)]
    pub fn sabotage(&self, sabotage: Sabotage) {
        self.shared.model.borrow_mut().sabotage(sabotage);
    }

    /// Every change of data or size: `make` looks at the size as it is when the request arrives.
    async fn change(&self, len: u64, fua: bool, make: impl FnOnce(&Model) -> Result<Vec<Request>>) -> Result<()> {
        let shared = &self.shared;
        let life = self.begin()?;
        if shared.child.info().read_only {
            return Err(IoError::read_only());
        }
        shared.make_room(len).await?;
        shared.alive(life)?;
        // From here to the end of the request's arrival nothing waits.
        let requests = make(&shared.model.borrow())?;
        let (ids, covered) = {
            let mut model = shared.model.borrow_mut();
            let ids: Vec<ChangeId> = requests.into_iter().map(|request| model.submit(request)).collect();
            let covered = Covered::These(ids.iter().copied().collect());
            let liar = shared.options.kind == Kind::Liar;
            if !fua || liar || model.is_sabotaged(Sabotage::FuaIsNotWritten) {
                ids.into_iter().for_each(|id| model.complete(id));
                if fua && liar {
                    model.promise(&covered);
                }
                return Ok(());
            }
            (ids, covered)
        };
        let mut open = Open { shared, ids };
        let done = shared.write_back(Why::Durable(covered)).await;
        // A failed write is as it is from now on (CM 4.3): this one is in the cache, and a later flush covers it.
        let mut model = shared.model.borrow_mut();
        std::mem::take(&mut open.ids).into_iter().for_each(|id| model.complete(id));
        done
    }

    /// Whether a request may lie there.
    fn check_change(&self, model: &Model, at: u64, len: u64) -> Result<()> {
        if !self.shared.child.info().capabilities.contains(Capabilities::GROWS) {
            return check_bounds(at, len, model.size());
        }
        match at.checked_add(len) {
            Some(end) if end <= END_MAX => Ok(()),
            _ => Err(IoError::new(Errno::FBIG).detail(format!("{at:#x}+{len:#x} is beyond what a disk can hold"))),
        }
    }
}

/// Requests whose caller waits for them to be durable.
struct Open<'a> {
    shared: &'a Shared,
    ids: Vec<ChangeId>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut model = self.shared.model.borrow_mut();
        self.ids.iter().for_each(|&id| model.drop_request(id));
    }
}

impl BlockDevice for DiskNode {
    fn info(&self) -> DeviceInfo {
        let child = self.shared.child.info();
        let kept = Capabilities::DISCARD | Capabilities::RESIZE | Capabilities::ROTATIONAL | Capabilities::GROWS;
        // The cache takes zeroes at once, and one flush covers whatever any handle wrote.
        let own = Capabilities::ZEROES
            | Capabilities::FAST_ZERO
            | Capabilities::FUA
            | Capabilities::MULTI_CONN
            | Capabilities::ZERO_ON_GROWTH;
        DeviceInfo {
            driver: "disk",
            size: self.shared.model.borrow().size(),
            limits: Limits { preferred_transfer: child.limits.preferred_transfer, ..Limits::NONE },
            capabilities: child.capabilities.intersection(kept).union(own),
            ..child
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let shared = &self.shared;
        let life = self.begin()?;
        let range = ByteRange::at(at, buf.len() as u64);
        loop {
            shared.alive(life)?;
            check_bounds(at, range.len(), shared.model.borrow().size())?;
            // What is cached now is looked at *before* the medium is read: what is written back meanwhile leaves the
            // cache, and a read of the medium that was sent before would not see it.
            let mut cached = shared.model.borrow().look(range);
            let medium = self.child.info().size;
            let mut failed = None;
            let missing = gaps(range, &cached);
            if let Some(bad) = missing.iter().find_map(|gap| shared.unreadable.borrow().first(*gap)) {
                let words =
                    format!("disk '{}' lost its power while it wrote this block, and can not read it", shared.name);
                return Err(IoError::new(Errno::IO).at(bad).detail(words));
            }
            for gap in missing {
                let (from, to) = (offset(gap.start, at), offset(gap.end, at));
                let Some(out) = buf.get_mut(from..to) else { continue };
                // Beyond the medium's end everything is zero: the disk has grown in the cache alone.
                let stored = usize::try_from(medium.saturating_sub(gap.start)).unwrap_or(usize::MAX).min(out.len());
                let (stored, grown) = out.split_at_mut(stored);
                grown.fill(0);
                if !stored.is_empty()
                    && let Err(error) = self.child.read(gap.start, stored).await
                {
                    failed = Some(error);
                    break;
                }
            }
            match failed {
                // The medium shrank under the read, because a shrink was written back.
                Some(_) if self.child.info().size < medium => {}
                Some(error) => {
                    shared.alive(life)?;
                    return Err(error);
                }
                None => {
                    shared.alive(life)?;
                    if shared.model.borrow().is_sabotaged(Sabotage::MediumIsReadFirst) {
                        cached = shared.model.borrow().look(range);
                    }
                    cached.iter().for_each(|piece| piece.copy_to(at, buf));
                    return Ok(());
                }
            }
        }
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        let range = ByteRange::at(at, buf.len() as u64);
        if self.begin().is_err() {
            return false;
        }
        let model = self.shared.model.borrow();
        if check_bounds(at, range.len(), model.size()).is_err() {
            return false;
        }
        if model.is_clean(range) && self.shared.unreadable.borrow().first(range).is_none() {
            return range.end <= self.child.info().size && self.child.read_now(at, buf);
        }
        let cached = model.look(range);
        let whole = gaps(range, &cached).is_empty();
        if whole {
            cached.iter().for_each(|piece| piece.copy_to(at, buf));
        }
        whole
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let len = data.len() as u64;
        if len == 0 {
            return self.begin().map(drop);
        }
        self.change(len, flags.contains(WriteFlags::FUA), |model| {
            self.check_change(model, at, len)?;
            Ok(vec![Request::Write { at, data: data.into() }])
        })
        .await
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let life = self.begin()?;
        self.child.read_vm_state(at, buf).await?;
        self.shared.alive(life)
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        let life = self.begin()?;
        self.child.write_vm_state(at, data).await?;
        self.shared.alive(life)
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if len == 0 {
            return self.begin().map(drop);
        }
        let unmap = flags.contains(ZeroFlags::MAY_UNMAP);
        self.change(0, flags.contains(ZeroFlags::FUA), |model| {
            self.check_change(model, at, len)?;
            Ok(vec![Request::Zeroes { range: ByteRange::at(at, len), unmap }])
        })
        .await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        let useful = self.shared.child.info().capabilities.contains(Capabilities::DISCARD);
        self.change(0, false, |model| {
            check_bounds(at, len, model.size())?;
            let range = ByteRange::at(at, len);
            let discards = useful && len > 0;
            Ok(discards.then_some(Request::Zeroes { range, unmap: true }).into_iter().collect())
        })
        .await
    }

    async fn flush(&self) -> Result<()> {
        let shared = &self.shared;
        self.begin()?;
        let covered = Covered::CompletedBefore(shared.model.borrow_mut().begin_flush());
        if let Some(left) = shared.fail_flushes.get().checked_sub(1) {
            shared.fail_flushes.set(left);
            return shared.fail_flush(covered).await;
        }
        match shared.options.kind {
            Kind::Honest => shared.write_back(Why::Durable(covered)).await,
            Kind::Liar => {
                shared.model.borrow_mut().promise(&covered);
                Ok(())
            }
        }
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let shared = &self.shared;
        let life = self.begin()?;
        let range = ByteRange::at(at, len);
        let medium = self.child.info().size;
        let gap = {
            let model = shared.model.borrow();
            check_bounds(at, len, model.size())?;
            let cached = model.look(range);
            match cached.first() {
                Some(first) if first.range.start == at => {
                    let len = first.range.len();
                    return Ok(match first.content {
                        Content::Zeroes { .. } => BlockStatus::zero(len),
                        _ => BlockStatus::data(len, None),
                    });
                }
                Some(first) => first.range.start.saturating_sub(at),
                None => len,
            }
        };
        if at >= medium {
            return Ok(BlockStatus::zero(gap));
        }
        let status = self.child.block_status(at, gap.min(medium.saturating_sub(at))).await;
        shared.alive(life)?;
        // A shrink that was written back meanwhile: what is beyond the medium's end is zero.
        if status.is_err() && at >= self.child.info().size {
            check_bounds(at, len, shared.model.borrow().size())?;
            return Ok(BlockStatus::zero(1));
        }
        status
    }

    async fn resize(&self, size: u64, _preallocation: Preallocation) -> Result<()> {
        let capabilities = self.shared.child.info().capabilities;
        if !capabilities.contains(Capabilities::RESIZE) {
            return Err(IoError::unsupported());
        }
        if size > END_MAX {
            return Err(IoError::new(Errno::FBIG).detail(format!("{size:#x} bytes are more than a disk can hold")));
        }
        self.change(0, false, |model| {
            let added = ByteRange { start: model.size(), end: size };
            let mut requests = vec![Request::Resize { size }];
            if !added.is_empty() && !capabilities.contains(Capabilities::ZERO_ON_GROWTH) {
                requests.push(Request::Zeroes { range: added, unmap: true });
            }
            Ok(requests)
        })
        .await
    }

    async fn drain(&self) -> Result<()> {
        self.child.drain().await?;
        self.shared.model.borrow_mut().drain();
        Ok(())
    }

    /// The disk writes back everything, liar or not: this is a shutdown, not a power cut.
    async fn close(&self) -> Result<()> {
        match self.shared.write_back(Why::Durable(Covered::Everything)).await {
            Err(error) if self.shared.on.get() || error != no_power() => return Err(error),
            _ => {}
        }
        self.child.close().await
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.child.breakpoints()
    }

    fn listens(&self, event: Event) -> bool {
        self.child.listens(event)
    }

    async fn event(&self, event: Event) {
        self.child.event(event).await;
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        self.child.format_details()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        let child = self.child.for_client(client).unwrap_or_else(|| self.child.clone());
        let (shared, listed) = (Rc::clone(&self.shared), Rc::clone(&self.listed));
        let client = Some(shared.life.get());
        Some(Node::new(Self { shared, child, listed, client }))
    }
}

fn offset(place: u64, at: u64) -> usize {
    usize::try_from(place.saturating_sub(at)).unwrap_or(usize::MAX)
}
