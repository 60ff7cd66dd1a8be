//! qcow2, versions 2 and 3.
//!
//! The header names an L1 table, whose entries name L2 tables, whose entries name the clusters of the file that hold
//! the guest's; snapshots have L1 tables of their own and share what they name. A refcount table names refcount blocks,
//! which say of every cluster of the file how often it is used. Both tell the same story twice, which is what makes it
//! checkable.
//!
//! Order of analysis:
//! 1. [`side`]: header, extensions, snapshot table, bitmaps, encryption header, names of other files.
//! 2. [`window`], once or more as memory allows, for a stretch of the file each: the counts as [`stored`], all that
//!    refers to clusters ([`found`]): metadata, then every L2 table once ([`l1`] lists them, [`scan`] reads them,
//!    [`mapping`] judges their entries); then both are compared, and of what differs the [`owners`] are named.
//! 3. [`streams`]: compressed clusters are inflated, if that was asked for.
//! 4. [`causes`], of damaged images: what lies in the tables now ([`survey`], [`shape`]), which lost tables are still
//!    in the file ([`orphans`]), what a dead header said ([`assume`]); findings are folded into what happened.

mod assume;
mod bitmaps;
mod causes;
pub(crate) mod codes;
mod compressed;
mod dump;
mod encryption;
mod extensions;
mod features;
mod found;
mod guess;
pub(crate) mod header;
mod inflate;
mod l1;
mod l2;
mod mapping;
mod marks;
mod orphans;
mod owners;
mod reader;
mod refcount;
mod references;
mod scan;
mod scope;
mod shape;
pub(crate) mod side;
mod snapshots;
mod stored;
mod streams;
mod survey;
mod window;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::context::Context;
use crate::map::{Class, GuestState};
use crate::tally;

use header::Geometry;
use scope::{Outcome, Scope};
use side::Side;

/// The least memory that makes sense, whatever was asked for.
const MEMORY_MIN: u64 = 1 << 20;

pub(crate) fn analyse(cx: &mut Context<'_>) {
    let side = side::look(cx);
    match side.geometry {
        Some(geometry) => clusters(cx, &side, geometry),
        None => {
            let len = cx.file_len();
            cx.map_host(1 << 16, Vec::new());
            cx.add_host(0..len, Class::Unknown);
        }
    }
    causes::explain(cx, &side);
    dump::dump(cx, &side);
}

/// Everything the tables say about the clusters of the file and of the disk.
fn clusters(cx: &mut Context<'_>, side: &Side, geometry: Geometry) {
    let (roots, left_out) = l1::roots(side, &geometry, cx.file_len());
    if left_out > 0 {
        cx.could_not(format!(
            "{left_out} L1 tables of snapshots: they overlap so much that together they exceed the file"
        ));
    }
    let threads = cx.options.threads.clamp(1, 64);
    let memory = cx.options.memory.max(MEMORY_MIN);
    let buffers = (threads as u64).saturating_add(1);
    let buffer = (memory / 8).checked_div(buffers).unwrap_or(0).clamp(16 << 10, 128 << 10) & !4095;
    let suspects = (memory / 16 / owners::SUSPECT_BYTES).clamp(8, cx.options.max_findings.max(8) as u64);
    let scope = Scope {
        image: cx.image,
        file_len: cx.file_len(),
        options: cx.options,
        watch: cx.watch,
        budget: cx.budget,
        side,
        geometry,
        roots: &roots,
        threads,
        buffer: usize::try_from(buffer).unwrap_or(1 << 16),
        suspects: usize::try_from(suspects).unwrap_or(8),
        done: AtomicU64::new(0),
        total: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    };
    cx.map_host(geometry.cluster_size(), Vec::new());
    cx.map_guest(geometry.size, geometry.cluster_size());
    let blocks = scope.clusters().div_ceil(geometry.refcounts_per_block().max(1));
    scope.total.store(blocks.saturating_mul(geometry.cluster_size()), Ordering::Relaxed);

    let mut total = scope.outcome();
    total.tables_lost = left_out > 0 || !side.claims_complete;
    unreachable_disk(side, &geometry, &mut total);
    let fixed = buffers
        .saturating_mul(buffer)
        .saturating_add(suspects.saturating_mul(owners::SUSPECT_BYTES))
        .saturating_add(scope.outcome_bytes().saturating_mul(buffers));
    let done = cx.budget.take(fixed).and_then(|()| {
        let done = tally::in_windows(scope.clusters(), |window| {
            if scope.is_stopped() { Ok(()) } else { window::look(cx, &scope, &window, &mut total) }
        });
        let done = done.and_then(|()| match scope.options.data && total.counts.compressed > 0 && !scope.is_stopped() {
            true => streams::check(&scope, &mut total),
            false => Ok(()),
        });
        cx.budget.give(fixed);
        done
    });
    if done.is_err() {
        cx.could_not(format!("the clusters of the file: {} bytes of memory are not enough", cx.options.memory));
    }
    if scope.is_stopped() {
        cx.could_not("reference counts and owners of clusters: the check was stopped");
    } else if side.refcount_table.is_none() {
        cx.could_not(
            "whether clusters are counted as often as they are used: there is no refcount table that can be read",
        );
    }
    tell(cx, &scope, total);
}

/// What of the disk has no L1 entry; that it is lost has been said. A raw data file needs no entries.
fn unreachable_disk(side: &Side, geometry: &Geometry, total: &mut Outcome) {
    if geometry.external_data && side.header.autoclear & header::RAW_DATA != 0 {
        return;
    }
    let reached = side.l1.map_or(0, |l1| l1.entries).saturating_mul(geometry.l2_window());
    if reached < geometry.size {
        total.tables_lost = true;
        total.guest.add(reached..geometry.size, GuestState::Damaged);
    }
}

fn tell(cx: &mut Context<'_>, scope: &Scope<'_>, mut total: Outcome) {
    // What lost mappings referred to is counted, and nothing refers to it: no leak, but the missing data.
    let lost = total.tables_lost || !total.lost.ranges.is_empty();
    std::mem::take(&mut total.leaks).tell(scope, lost, |finding| cx.findings.add(finding));
    cx.findings.merge(total.findings);
    for range in total.lost.ranges {
        cx.lose(range);
    }
    cx.lose_more(total.lost.more.0, total.lost.more.1);
    for sentence in total.could_not {
        cx.could_not(sentence);
    }
    for sentence in total.not_checked {
        cx.not_checked(sentence);
    }
    cx.numbers.check_errors = cx.numbers.check_errors.saturating_add(total.check_errors);
    cx.numbers.total_clusters = Some(scope.geometry.size.div_ceil(scope.geometry.cluster_size()));
    cx.numbers.allocated_clusters = Some(total.counts.allocated);
    cx.numbers.fragmented_clusters = Some(total.counts.fragmented);
    cx.numbers.compressed_clusters = Some(total.counts.compressed);
    if !scope.options.data && total.counts.compressed > 0 {
        cx.not_checked("whether compressed clusters inflate (--data does that)");
    }
    cx.not_checked("the guest's data itself: qcow2 keeps no checksums of it");
    total.guest.complete();
    if let Some(map) = &mut cx.guest {
        map.totals = total.guest.totals;
        map.grid = total.guest.grid;
    }
    // Whatever no pass came to (it was stopped, or memory ended) is not known.
    let mapped =
        cx.host.as_ref().map_or(0, |map| map.totals.iter().fold(0u64, |all, bytes| all.saturating_add(*bytes)));
    cx.add_host(mapped..scope.file_len, Class::Unknown);
}
