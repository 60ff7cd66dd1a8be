//! Writing metadata back, in the order that makes every moment a safe one to lose power. The argument stands at the
//! head of the [module](super); the numbers here are its rules.

use std::rc::Rc;

use blkproof_block::{BlockDevice, Event, Result};

use super::Qcow2;
use super::alloc::Freed;
use super::cache::{Table, Writeback};
use super::header::DIRTY;

/// Freed clusters on their way out; what is left of them goes back to the list if this is dropped.
struct Releasing<'a, D: BlockDevice> {
    qcow2: &'a Qcow2<D>,
    left: Vec<Freed>,
}

impl<D: BlockDevice> Drop for Releasing<'_, D> {
    fn drop(&mut self) {
        for freed in self.left.drain(..) {
            self.qcow2.push_freed(freed);
        }
    }
}

impl<D: BlockDevice> Qcow2<D> {
    /// Makes everything that completed before this call durable, and frees what became free by it.
    pub(crate) async fn commit(&self) -> Result<()> {
        let arrived = self.commits_started.get();
        let released = {
            let _turn = self.commit_lock.lock().await;
            if self.commit_done.get() > arrived {
                return Ok(()); // one that began after we came has done our work
            }
            self.commit_locked().await?
        };
        self.release(released).await
    }

    /// A flush as the guest asks for it, announced as one.
    pub(crate) async fn make_durable(&self) -> Result<()> {
        self.file.event(Event::FlushToOs).await;
        self.commit().await
    }

    /// The end of a request that changes content. It is counted after the flush that it may contain, as in QEMU.
    pub(crate) async fn after_change(&self, done: Result<()>, fua: bool) -> Result<()> {
        let done = match done {
            Ok(()) if fua => self.make_durable().await,
            done => done,
        };
        self.unflushed.changed();
        done
    }

    async fn commit_locked(&self) -> Result<Releasing<'_, D>> {
        self.check_usable()?;
        let number = self.commits_started.get() + 1;
        self.commits_started.set(number);
        self.settle().await?;
        if self.header_uncertain.get() {
            self.change_header(|_| {}).await?;
        }

        // The moment. Everything below writes what was true here; later changes are dirty again and wait their turn.
        let blocks = if self.lazy { Vec::new() } else { self.block_cache.take_dirty() };
        let reftable = if self.lazy { None } else { self.reftable.borrow().take_dirty() };
        let tables = self.l2_cache.take_dirty();
        let l1 = self.l1.borrow().take_dirty();
        let released = Releasing { qcow2: self, left: self.freed.take() };

        if self.lazy && (!tables.is_empty() || l1.is_some()) {
            self.set_dirty_bit().await?;
        }
        self.write_blocks(&blocks, reftable.as_ref()).await?; // rule 1
        if !tables.is_empty() || l1.is_some() {
            self.barrier().await?; // rules 1 and 2
            for table in &tables {
                self.write_table(table, Event::L2Update, "an L2 table").await?;
            }
            if let Some(l1) = &l1 {
                self.file.flush().await?; // rule 3
                self.write_table(l1, Event::L1Update, "the L1 table").await?;
            }
        }
        let mark = self.unflushed.mark();
        if mark.is_some() {
            self.file.event(Event::FlushToDisk).await;
        }
        self.barrier().await?; // the guest's flush, and rule 4
        self.unflushed.flushed(mark);
        blocks.into_iter().chain(reftable).chain(tables).chain(l1).for_each(Writeback::done);
        self.commit_done.set(number);
        Ok(released)
    }

    /// Lowers counts. After the commit lock was released: loading blocks may need it.
    async fn release(&self, mut released: Releasing<'_, D>) -> Result<()> {
        if released.left.is_empty() {
            return Ok(());
        }
        // A dropped write may still land in one of these clusters.
        self.settle().await?;
        while let Some(last) = released.left.last_mut() {
            self.lower(last).await?;
            released.left.pop();
        }
        Ok(())
    }

    /// Guest data, wherever it lies, and everything else written so far.
    async fn barrier(&self) -> Result<()> {
        if let Some(data) = &self.data_file {
            data.flush().await?;
        }
        self.file.flush().await
    }

    /// Blocks, and behind a flush the refcount table that names new ones.
    async fn write_blocks(&self, blocks: &[Writeback], reftable: Option<&Writeback>) -> Result<()> {
        for block in blocks {
            self.write_table(block, Event::RefblockUpdatePart, "a refcount block").await?;
        }
        if let Some(reftable) = reftable {
            self.file.event(Event::RefblockAllocWrite).await;
            self.file.flush().await?;
            self.write_table(reftable, Event::RefblockAllocHookup, "the refcount table").await?;
        }
        Ok(())
    }

    async fn write_table(&self, table: &Writeback, event: Event, what: &str) -> Result<()> {
        for (at, bytes) in table.runs() {
            self.file.event(event).await;
            let written = self.file_write(at, bytes).await;
            written.map_err(|e| e.context(format_args!("writing {what} at {at:#x}")))?;
        }
        Ok(())
    }

    /// Writes dirty refcount blocks, to make room in the cache. Raised counts may reach the disk at any time (a leak
    /// at worst), and lowered ones were allowed to when they were lowered. So no other rule applies.
    pub(crate) async fn write_back_blocks(&self) -> Result<()> {
        let _turn = self.commit_lock.lock().await;
        self.settle().await?;
        self.write_blocks_locked().await
    }

    /// The same, for who holds the commit lock.
    pub(crate) async fn write_blocks_locked(&self) -> Result<()> {
        let blocks = self.block_cache.take_dirty();
        let reftable = self.reftable.borrow().take_dirty();
        self.write_blocks(&blocks, reftable.as_ref()).await?;
        blocks.into_iter().chain(reftable).for_each(Writeback::done);
        Ok(())
    }

    /// Lazy refcounts: says that counts may be stale, before a reference is written whose count is not.
    async fn set_dirty_bit(&self) -> Result<()> {
        let dirty = self.header.borrow().is_dirty();
        if dirty { Ok(()) } else { self.change_header(|header| header.incompatible |= DIRTY).await }
    }

    /// Leaves an image that needs no repair and has no leak of ours.
    pub(crate) async fn commit_for_close(&self) -> Result<()> {
        // Each round lowers the counts freed by the one before; two are enough unless something fails.
        loop {
            self.commit().await?;
            if self.lazy {
                self.write_back_blocks().await?;
            }
            let reftable_dirty = self.reftable.borrow().is_dirty();
            let dirty = self.block_cache.any_dirty() || reftable_dirty || self.l2_cache.any_dirty();
            if !dirty && !self.l1.borrow().is_dirty() && self.freed.borrow().is_empty() {
                break;
            }
        }
        let dirty = self.header.borrow().is_dirty();
        if dirty {
            // The counts are written; durable first, then the word that they can be trusted.
            self.file.flush().await?;
            self.change_header(|header| header.incompatible &= !DIRTY).await?;
        }
        Ok(())
    }

    /// Adds a table that does not exist on disk yet.
    pub(crate) fn add_l2_table(&self, table: Table) -> Rc<Table> {
        let cluster = table.offset >> self.geometry.cluster_bits;
        self.metadata.borrow_mut().insert(cluster, "active L2 table");
        self.l2_cache.insert(table)
    }
}
