//! Copy on write: the bytes around a guest write that have to come along.
//!
//! A write that gives a (sub)cluster its first bytes, or a new home, writes the whole of it: the guest's bytes in the
//! middle, and before and behind them what the guest would have read there. Only when that is on its way to be
//! durable does the map change.

use blkproof_block::{BlockDevice, Event, Result};

use super::Qcow2;
use super::cache::Table;
use super::units::index;

/// Up to this size the copied bytes and the guest's are put together and written at once.
const MERGE_MAX: u64 = 256 << 10;

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// Guest bytes around the guest's own: `start..at` and `end..stop`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) at: u64,
    pub(crate) end: u64,
    pub(crate) stop: u64,
}

impl<D: BlockDevice> Qcow2<D> {
    /// Writes `data` to `host`, which corresponds to guest offset `span.at`, with the rest of the span around it.
    ///
    /// `fresh`: the place reads as zeroes, so zeroes need not be written.
    pub(crate) async fn write_span(
        &self,
        table: Option<&Table>,
        span: Span,
        data: &[u8],
        host: u64,
        fresh: bool,
    ) -> Result<()> {
        let mut span = span;
        // Nothing behind the end of the disk is ever read again before it is zeroed by a resize.
        if fresh && self.is_zero_by_map(table, span.start, span.at) {
            span.start = span.at;
        }
        // But for the rest of the sector: a file that ends within one lets a power cut that loses a later length of the
        // file cut a sector in two.
        let mut blank = false;
        if fresh && self.is_zero_by_map(table, span.end, span.stop) {
            span.stop = span.end.checked_next_multiple_of(SECTOR).map_or(span.stop, |end| end.min(span.stop));
            blank = true;
        }
        if span.start == span.at && span.end == span.stop {
            self.file.event(Event::WriteAio).await;
            return self.data_write(host, data).await.map_err(|e| e.rebase(host, span.at));
        }
        if !(blank && span.start == span.at) {
            self.file.event(Event::CowRead).await;
        }
        let mut head = vec![0; index(span.at - span.start)];
        self.read_inside(span.start, &mut head).await?;
        let mut tail = vec![0; index(span.stop - span.end)];
        if !blank {
            self.read_inside(span.end, &mut tail).await?;
        }
        let head_host = host - (span.at - span.start);
        if span.stop - span.start <= MERGE_MAX {
            let mut all = head;
            all.reserve_exact(data.len() + tail.len());
            all.extend_from_slice(data);
            all.extend_from_slice(&tail);
            self.file.event(Event::WriteAio).await;
            self.file.event(Event::CowWrite).await;
            return self.data_write(head_host, &all).await.map_err(|e| e.rebase(head_host, span.start));
        }
        if !head.is_empty() {
            self.file.event(Event::CowWrite).await;
            self.data_write(head_host, &head).await.map_err(|e| e.rebase(head_host, span.start))?;
        }
        self.file.event(Event::WriteAio).await;
        self.data_write(host, data).await.map_err(|e| e.rebase(host, span.at))?;
        if !tail.is_empty() {
            self.file.event(Event::CowWrite).await;
            let tail_host = host + (span.end - span.at);
            self.data_write(tail_host, &tail).await.map_err(|e| e.rebase(tail_host, span.end))?;
        }
        Ok(())
    }

    /// Reads guest bytes of one cluster; those past the end of the disk are zeroes, whatever lies there. In the VM
    /// state that end has no meaning, and no cluster holds bytes of both.
    async fn read_inside(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = if at < self.vm_state_start() { self.size.get() } else { u64::MAX };
        let inside = index(end.saturating_sub(at)).min(buf.len());
        let (head, tail) = buf.split_at_mut(inside);
        tail.fill(0);
        self.read_locked(at, head).await
    }
}
