//! Whether compressed clusters inflate (`Options::data`): each stream to exactly one cluster (image-check.md Q-L5).

use std::ops::Range;

use crate::budget::Full;
use crate::finding::Finding;
use crate::map::GuestState;

use super::codes::mapping as codes;
use super::compressed;
use super::inflate;
use super::l1::{self, TableRef};
use super::l2;
use super::scan::{self, Visit};
use super::scope::{Outcome, Scope};

/// Streams of one table told one by one; more are summed up.
const TOLD_MAX: u64 = 16;

/// Inflates every compressed cluster of the active disk and of the snapshots once.
pub(crate) fn check(scope: &Scope<'_>, total: &mut Outcome) -> Result<(), Full> {
    // The longest region a descriptor can mean is two clusters: as many threads as there is room for one each.
    let region = scope.geometry.cluster_size().saturating_mul(2);
    let room = (scope.budget.left() / 2).checked_div(region).unwrap_or(0);
    let threads = scope.threads.min(usize::try_from(room).unwrap_or(usize::MAX));
    if threads == 0 {
        total
            .not_checked
            .push("whether compressed clusters inflate: there is no memory for one of them (--memory)".to_owned());
        return Ok(());
    }
    let bytes = region.saturating_mul(threads as u64);
    scope.budget.take(bytes)?;
    let done = l1::each_list(scope, |tables| {
        let make = || Streams { scope, out: scope.outcome(), told: 0, untold: 0, buf: Vec::new() };
        for visitor in scan::scan(scope, "compressed data", threads, tables, make)? {
            total.merge(visitor.out);
        }
        Ok(())
    });
    scope.budget.give(bytes);
    // What was lost before (an overlap, a flawed entry, an overwritten table) is damaged already.
    total.lost.tidy();
    let broken = std::mem::take(&mut total.damaged);
    for range in &broken.ranges {
        for fresh in total.lost.without(range) {
            total.guest.damage(fresh, GuestState::Compressed);
        }
    }
    total.lost.merge(broken);
    done
}

struct Streams<'s> {
    scope: &'s Scope<'s>,
    out: Outcome,
    told: u64,
    untold: u64,
    buf: Vec<u8>,
}

impl Streams<'_> {
    fn stream(&mut self, table: &TableRef, index: u64, raw: u64) {
        let geometry = &self.scope.geometry;
        let region = compressed::region(raw, geometry);
        let there = region.end.min(self.scope.file_len);
        if region.start >= there {
            return;
        }
        self.buf.resize(usize::try_from(there.saturating_sub(region.start)).unwrap_or(0), 0);
        let verdict = match self.scope.image.read_at(region.start, &mut self.buf) {
            Ok(read) => {
                let bytes = self.buf.get(..read).unwrap_or_default();
                inflate::inflates(bytes, geometry.cluster_size(), geometry.zstd).map_err(|flaw| flaw.to_string())
            }
            Err(error) => Err(format!("reading it failed: {error}")),
        };
        let Err(why) = verdict else { return };
        let base = u64::from(table.l1_index).saturating_mul(geometry.l2_window());
        let start = base.saturating_add(index.saturating_mul(geometry.cluster_size())).min(geometry.size);
        let guest = start..start.saturating_add(geometry.cluster_size()).min(geometry.size);
        let active = table.active > 0 && !table.vm;
        if active {
            self.out.damaged.add(guest.clone());
        }
        if self.told >= TOLD_MAX {
            self.untold = self.untold.saturating_add(1);
            return;
        }
        self.told = self.told.saturating_add(1);
        let at = table.cluster.saturating_mul(geometry.cluster_size());
        let words = format!(
            "the compressed cluster at {:#x}..{:#x} (L2 entry {index} of the table at {at:#x}): {why}",
            region.start, region.end
        );
        let mut finding = Finding::new(codes::STREAM_BROKEN, words).host(region.start..there);
        if active && !guest.is_empty() {
            finding = finding.guest(guest);
        }
        self.out.find(finding);
    }
}

impl Visit for Streams<'_> {
    fn begin(&mut self, _table: &TableRef) {
        (self.told, self.untold) = (0, 0);
    }

    fn piece(&mut self, table: &TableRef, first: u64, bytes: &[u8]) -> Result<(), Full> {
        let geometry = self.scope.geometry;
        l2::each_run(bytes, first, &geometry, |run| {
            if run.is_compressed() && !geometry.external_data && !self.scope.is_stopped() {
                for index in run.index..run.index.saturating_add(run.len) {
                    self.stream(table, index, run.raw);
                }
            }
            Ok(())
        })
    }

    fn missing(&mut self, _table: &TableRef, _entries: Range<u64>, _host: Range<u64>, _unreadable: bool) {}

    fn end(&mut self, table: &TableRef) {
        if self.untold > 0 {
            let at = table.cluster.saturating_mul(self.scope.geometry.cluster_size());
            let words = format!("{} more compressed clusters of the L2 table at {at:#x} do not inflate", self.untold);
            let end = at.saturating_add(self.scope.geometry.cluster_size());
            self.out.find(Finding::new(codes::STREAM_BROKEN, words).host(at..end).count(self.untold));
        }
    }
}
