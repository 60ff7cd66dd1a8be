//! One pass: everything about a window of host clusters. Their counts as stored, the references to them, and the
//! judgement.
//!
//! Order: counts, metadata, mapping; then the two are compared. From there on nothing can fail any more for lack of
//! memory, so what was found is told, owners of what is wrong are named, and the map of the file is drawn.

use std::ops::Range;

use crate::budget::Full;
use crate::context::Context;
use crate::finding::Finding;
use crate::map::{Claim, Class};

use super::codes::mapping as codes;
use super::found::Found;
use super::l1::{self, Target, Tree};
use super::l2::COPIED;
use super::mapping::Mapping;
use super::owners::{self, Issue, Suspect, Suspects};
use super::refcount::{self, Block};
use super::scan;
use super::scope::{Outcome, Scope};
use super::stored::Stored;

/// Everything but L2 tables that takes clusters of the file: class, whose, which one of its class, bytes.
pub(crate) fn each_claim<E>(
    scope: &Scope<'_>,
    mut each: impl FnMut(Class, Tree, u64, Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let side = scope.side;
    for claim in &side.claims {
        each(claim.class, 0, claim.index, claim.range())?;
    }
    let bytes = |offset: u64, entries: u64| offset..offset.saturating_add(entries.saturating_mul(8));
    if let Some(l1) = side.l1 {
        each(Class::L1, 0, 0, bytes(l1.offset, l1.entries))?;
    }
    for (tree, snapshot) in (1u32..).zip(&side.snapshots) {
        if let Some(l1) = snapshot.l1 {
            each(Class::SnapshotL1, tree, snapshot.index, bytes(l1.offset, l1.entries))?;
        }
    }
    let Some(table) = side.refcount_table else { return Ok(()) };
    each(Class::RefcountTable, 0, 0, bytes(table.offset, table.entries))?;
    let mut reader = scope.small_reader();
    refcount::each_entry(&mut reader, &table, 0..table.entries, |index, raw| match refcount::block(scope, raw) {
        Block::At(cluster) | Block::Broken(Some(cluster)) => {
            each(Class::RefcountBlock, 0, index, scope.bytes_of(&(cluster..cluster.saturating_add(1))))
        }
        Block::Broken(None) => Ok(()),
    })
}

/// Looks at a window. On [`Full`], nobody was told anything yet.
pub(crate) fn look(
    cx: &mut Context<'_>,
    scope: &Scope<'_>,
    window: &Range<u64>,
    total: &mut Outcome,
) -> Result<(), Full> {
    let first = window.start == 0;
    let mut out = scope.outcome();
    if first {
        l1::judge(scope, &mut out);
        refcount::judge(scope, &mut out)?;
    }
    let stored = refcount::load(scope, window, first, &mut out)?;
    let mut found = Found::new(window.clone(), scope.shares(), scope.budget)?;
    let mut claims = Claims::new(scope);
    metadata(scope, &mut found, &mut claims)?;
    l1_copied(scope, window, &stored, &mut out);
    mapping(scope, &found, &stored, first, &mut claims, &mut out)?;
    claims.all.sort_unstable();
    total.merge(out);
    if scope.is_stopped() {
        return Ok(());
    }

    let tables_lost = total.tables_lost;
    let mut suspects = suspects(scope, &found, &stored, &claims.all, total);
    if !suspects.all.is_empty() && owners::name(scope, &found, &mut suspects, total).is_err() {
        total.could_not.push("who owns the clusters that something is wrong about: memory ended".to_owned());
    }
    for suspect in suspects.all {
        total.find(suspect.finding(scope, tables_lost));
    }
    let cluster = scope.geometry.cluster_size();
    let mut end = cx.numbers.image_end_offset.unwrap_or(0);
    each_piece(scope, &found, &stored, &claims.all, tables_lost, |piece| {
        cx.add_host(scope.bytes_of(&piece.clusters), piece.class);
        if piece.stored > 0 || piece.found > 0 {
            end = piece.clusters.end.saturating_mul(cluster);
        }
    });
    cx.numbers.image_end_offset = Some(end);
    if let Some(map) = &mut cx.host {
        let bytes =
            (map.claims.len().saturating_add(claims.all.len()) as u64).saturating_mul(size_of::<Claim>() as u64);
        // Kept as long as they take a small part of the memory, which is then not given back.
        if bytes <= scope.options.memory / 4 {
            claims.taken = 0;
            if map.claims.is_empty() {
                map.claims = std::mem::take(&mut claims.all);
            } else {
                map.claims.append(&mut claims.all);
            }
        }
    }
    Ok(())
}

/// Metadata within the window, for the map.
struct Claims<'s> {
    scope: &'s Scope<'s>,
    all: Vec<Claim>,
    taken: u64,
}

impl<'s> Claims<'s> {
    fn new(scope: &'s Scope<'s>) -> Self {
        Self { scope, all: Vec::new(), taken: 0 }
    }

    fn add(&mut self, window: &Range<u64>, clusters: &Range<u64>, claim: Claim) -> Result<(), Full> {
        if clusters.start >= window.end || clusters.end <= window.start {
            return Ok(());
        }
        if self.all.len() == self.all.capacity() {
            let more = self.all.len().max(128);
            let bytes = (more as u64).saturating_mul(size_of::<Claim>() as u64);
            self.scope.budget.take(bytes)?;
            self.taken = self.taken.saturating_add(bytes);
            self.all.reserve_exact(more);
        }
        self.all.push(claim);
        Ok(())
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        self.scope.budget.give(self.taken);
    }
}

fn metadata(scope: &Scope<'_>, found: &mut Found<'_>, claims: &mut Claims<'_>) -> Result<(), Full> {
    let cluster = scope.geometry.cluster_size();
    let window = found.window.clone();
    each_claim(scope, |class, _, index, bytes| {
        if bytes.is_empty() {
            return Ok(());
        }
        let clusters = scope.cluster_of(bytes.start)..bytes.end.div_ceil(cluster);
        let claim = Claim { start: bytes.start, len: bytes.end.saturating_sub(bytes.start), class, index };
        claims.add(&window, &clusters, claim)?;
        found.metadata(clusters, 1)
    })?;
    for root in scope.roots {
        let mut reader = scope.small_reader();
        l1::each_entry(&mut reader, root, |_, raw| match l1::target(raw, &scope.geometry, scope.file_len) {
            // What it should be is not known, but something refers to it.
            Target::Broken(Some(cluster)) => found.metadata(cluster..cluster.saturating_add(1), u64::from(root.weight)),
            _ => Ok(()),
        })?;
    }
    Ok(())
}

/// COPIED of active L1 entries (Q-L2).
fn l1_copied(scope: &Scope<'_>, window: &Range<u64>, stored: &Stored<'_>, out: &mut Outcome) {
    let Some(root) = scope.roots.first().filter(|root| root.tree == 0) else { return };
    let mut open: Option<(Range<u64>, u64, u64)> = None;
    let mut tell = |(run, raw, count): (Range<u64>, u64, u64)| {
        let flag = if raw & COPIED != 0 { "has COPIED" } else { "lacks COPIED" };
        let which = match run.end.saturating_sub(run.start) {
            1 => format!("entry {} of the active L1 table ({raw:#018x}) {flag}, and its table", run.start),
            _ => format!(
                "each of the entries {}..{} of the active L1 table {flag}, and the first one's table",
                run.start, run.end
            ),
        };
        let at = |index: u64| root.table.offset.saturating_add(index.saturating_mul(8));
        let mut finding = Finding::new(codes::L1_COPIED, format!("{which} is counted {count} times"))
            .count(run.end.saturating_sub(run.start))
            .host(at(run.start)..at(run.end));
        let guest = l1::window_of(scope, run);
        if !guest.is_empty() {
            finding = finding.guest(guest);
        }
        if scope.side.dirty {
            finding = finding.severity(crate::code::Severity::Warning);
        }
        out.findings.add(finding);
    };
    let mut reader = scope.small_reader();
    let _ = l1::each_entry(&mut reader, root, |index, raw| {
        let Target::Table(cluster) = l1::target(raw, &scope.geometry, scope.file_len) else { return Ok::<(), ()>(()) };
        let count = stored.count(cluster);
        let wrong = window.contains(&cluster)
            && count != 0
            && (count == 1) != (raw & COPIED != 0)
            && !stored.unknown_at(cluster).0;
        if wrong {
            match &mut open {
                Some((run, first, _)) if run.end == index && (*first ^ raw) & COPIED == 0 => {
                    run.end = index.saturating_add(1);
                }
                _ => {
                    if let Some(done) = open.replace((index..index.saturating_add(1), raw, count)) {
                        tell(done);
                    }
                }
            }
        }
        Ok(())
    });
    if let Some(done) = open {
        tell(done);
    }
}

fn mapping(
    scope: &Scope<'_>,
    found: &Found<'_>,
    stored: &Stored<'_>,
    first: bool,
    claims: &mut Claims<'_>,
    out: &mut Outcome,
) -> Result<(), Full> {
    let cluster = scope.geometry.cluster_size();
    l1::each_list(scope, |tables| {
        for table in tables {
            found.table(table)?;
            let clusters = table.cluster..table.cluster.saturating_add(1);
            let bytes = scope.bytes_of(&clusters);
            let len = bytes.end.saturating_sub(bytes.start);
            let claim = Claim { start: bytes.start, len, class: table.class(), index: u64::from(table.l1_index) };
            claims.add(&found.window, &clusters, claim)?;
        }
        if first {
            scope.total.fetch_add((tables.len() as u64).saturating_mul(cluster), std::sync::atomic::Ordering::Relaxed);
        }
        for visitor in
            scan::scan(scope, "mapping", scope.threads, tables, || Mapping::new(scope, found, stored, first))?
        {
            out.merge(visitor.out);
        }
        Ok(())
    })
}

/// A stretch of clusters about which the same is known.
struct Piece {
    clusters: Range<u64>,
    class: Class,
    issue: Option<Issue>,
    stored: u64,
    found: u64,
}

fn each_piece(
    scope: &Scope<'_>,
    found: &Found<'_>,
    stored: &Stored<'_>,
    claims: &[Claim],
    tables_lost: bool,
    mut each: impl FnMut(Piece),
) {
    let window = found.window.clone();
    let size = scope.geometry.cluster_size();
    let mut cluster = window.start;
    let mut rest = claims;
    while cluster < window.end {
        let known = found.run_at(cluster);
        let (count, to) = stored.run_at(cluster);
        let (unknown, known_to) = stored.unknown_at(cluster);
        let mut end = known.end.min(to).min(known_to).min(window.end).max(cluster.saturating_add(1));
        // The first claim that ends behind this cluster; claims that overlap are a conflict anyway.
        while let Some((claim, tail)) = rest.split_first()
            && claim.range().end.div_ceil(size) <= cluster
        {
            rest = tail;
        }
        let claim = rest.first().map(|claim| (claim, scope.cluster_of(claim.start)..claim.range().end.div_ceil(size)));
        let metadata = match claim {
            Some((claim, clusters)) if clusters.contains(&cluster) => {
                end = end.min(clusters.end);
                Some(claim.class)
            }
            Some((_, clusters)) => {
                end = end.min(clusters.start.max(cluster.saturating_add(1)));
                None
            }
            None => None,
        };
        let used = known.plain.saturating_add(known.compressed);
        let issue = match () {
            () if known.conflict => Some(Issue::Overlap),
            () if unknown || count == used => None,
            () if used == 0 => Some(Issue::Leaked),
            () if count == 0 => Some(Issue::Free),
            () if count < used => Some(Issue::Undercounted),
            () => Some(Issue::Overcounted),
        };
        let class = match () {
            () if known.conflict => Class::Conflict,
            () if used > 0 => metadata.unwrap_or(known.data),
            () if unknown || count > 0 && tables_lost => Class::Unknown,
            () if count > 0 => Class::Leaked,
            () => Class::Free,
        };
        each(Piece { clusters: cluster..end, class, issue, stored: count, found: used });
        cluster = end;
    }
}

/// Gathers what is wrong into stretches. There is room for so many; the others are told at once, without their owners.
fn suspects(
    scope: &Scope<'_>,
    found: &Found<'_>,
    stored: &Stored<'_>,
    claims: &[Claim],
    out: &mut Outcome,
) -> Suspects {
    let room = scope.suspects;
    let mut suspects = Suspects { all: Vec::new() };
    let mut late: Option<Suspect> = None;
    let tables_lost = out.tables_lost;
    each_piece(scope, found, stored, claims, tables_lost, |piece| {
        let Some(issue) = piece.issue else { return };
        if issue == Issue::Leaked {
            out.leaks.add(piece.clusters, piece.stored, room);
            return;
        }
        let open = late.as_mut().or(suspects.all.last_mut());
        if open.is_some_and(|open| open.extend(&piece.clusters, issue, piece.stored, piece.found)) {
            return;
        }
        let next = Suspect::new(piece.clusters, issue, piece.stored, piece.found);
        if suspects.all.len() < room {
            suspects.all.push(next);
        } else if let Some(done) = late.replace(next) {
            out.find(done.finding(scope, tables_lost));
        }
    });
    if let Some(done) = late {
        out.find(done.finding(scope, tables_lost));
    }
    suspects
}
