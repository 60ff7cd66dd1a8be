//! Going over many L2 tables: sorted by place, in large reads, by as many threads as were asked for.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::budget::Full;

use super::l1::TableRef;
use super::scope::Scope;

/// Looks at tables; each thread has its own.
pub(crate) trait Visit: Send {
    /// A table begins.
    fn begin(&mut self, table: &TableRef);
    /// A piece of it: the bytes of the entries from `first` on.
    fn piece(&mut self, table: &TableRef, first: u64, bytes: &[u8]) -> Result<(), Full>;
    /// These entries could not be read, or lie past the end of the file; where they are read, they come as zeroes.
    fn missing(&mut self, table: &TableRef, entries: Range<u64>, host: Range<u64>, unreadable: bool);
    /// A table ends.
    fn end(&mut self, table: &TableRef);
}

/// Shows each table to one of the visitors and gives these back. A wish to stop ends it early: `Scope::is_stopped` says
/// so.
pub(crate) fn scan<V: Visit>(
    scope: &Scope<'_>,
    phase: &'static str,
    threads: usize,
    tables: &[TableRef],
    make: impl Fn() -> V + Sync,
) -> Result<Vec<V>, Full> {
    let cluster = scope.geometry.cluster_size();
    let per_job = usize::try_from((scope.buffer as u64).div_ceil(cluster)).unwrap_or(1).max(1);
    let next = AtomicUsize::new(0);
    let work = || -> Result<V, Full> {
        let mut visitor = make();
        let mut reader = scope.reader();
        loop {
            let first = next.fetch_add(per_job, Ordering::Relaxed);
            let job = tables.get(first..first.saturating_add(per_job).min(tables.len())).unwrap_or_default();
            if job.is_empty() || scope.is_stopped() {
                return Ok(visitor);
            }
            let outcome = job_of(scope, &mut reader, &mut visitor, job);
            if outcome.is_err() {
                // The other threads need not finish what will be begun again.
                next.store(usize::MAX / 2, Ordering::Relaxed);
            }
            outcome?;
            scope.tick(phase, (job.len() as u64).saturating_mul(cluster));
        }
    };
    let threads = threads.min(tables.len().div_ceil(per_job)).max(1);
    if threads == 1 {
        return work().map(|visitor| vec![visitor]);
    }
    std::thread::scope(|all| {
        let handles: Vec<_> = (1..threads).map(|_| all.spawn(work)).collect();
        let mut visitors = vec![work()];
        for handle in handles {
            // A panic in a thread is a bug of ours and goes on as one.
            visitors.push(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        visitors.into_iter().collect()
    })
}

fn job_of<V: Visit>(
    scope: &Scope<'_>,
    reader: &mut super::reader::Reader<'_>,
    visitor: &mut V,
    job: &[TableRef],
) -> Result<(), Full> {
    let cluster = scope.geometry.cluster_size();
    // Entries are 8 or 16 bytes long.
    let shift = scope.geometry.l2_entry_len().trailing_zeros();
    let mut rest = job;
    // Where the tables that follow each other without a gap end.
    let mut until = 0u64;
    while let Some((table, tail)) = rest.split_first() {
        rest = tail;
        let start = table.cluster.saturating_mul(cluster);
        let end = start.saturating_add(cluster);
        if until <= start {
            until = end;
            for next in tail {
                if next.cluster.saturating_mul(cluster) != until {
                    break;
                }
                until = until.saturating_add(cluster);
            }
        }
        visitor.begin(table);
        let there = end.min(scope.file_len);
        let mut at = start;
        while at < there {
            let piece = reader.get(at, there.saturating_sub(at), until);
            let len = piece.len() as u64 >> shift << shift;
            let Some(bytes) = piece.get(..usize::try_from(len).unwrap_or(0)).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            visitor.piece(table, at.saturating_sub(start) >> shift, bytes)?;
            at = at.saturating_add(len);
        }
        if at < end {
            visitor.missing(table, at.saturating_sub(start) >> shift..cluster >> shift, at..end, false);
        }
        if !reader.bad.is_empty() {
            for bad in reader.bad.iter().filter(|bad| bad.start < end && start < bad.end) {
                let host = bad.start.max(start)..bad.end.min(end);
                let first = host.start.saturating_sub(start) >> shift;
                let last = host.end.saturating_sub(start).div_ceil(1 << shift);
                visitor.missing(table, first..last, host, true);
            }
        }
        visitor.end(table);
    }
    Ok(())
}
