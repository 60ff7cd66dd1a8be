//! Clusters with something wrong about them, and who claims them: both owners of every overlap, with their guest
//! ranges.
//!
//! Counting says only that a cluster is claimed twice. Who claims it is found by going over the tables once more, which
//! is done only when there is something to name; so a sound image pays nothing for it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::budget::Full;
use crate::code::{Code, Severity};
use crate::finding::Finding;
use crate::map::{Class, GuestState, Owner};

use super::codes::mapping as codes;
use super::compressed;
use super::found::Found;
use super::l1::{self, TableRef, Target, Tree};
use super::l2::{self, Run, Shape};
use super::scan::{self, Visit};
use super::scope::{Guest, Losses, Outcome, Scope};

/// Owners named for one stretch; more are summed up.
const OWNERS_MAX: usize = 12;
/// Bytes one suspect may take, owners and all.
pub(crate) const SUSPECT_BYTES: u64 = 4096;

/// What is wrong with a stretch of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Issue {
    Overlap,
    Free,
    Undercounted,
    Overcounted,
    Leaked,
}

impl Issue {
    fn code(self, tables_lost: bool) -> &'static Code {
        match self {
            Self::Overlap => codes::CLUSTER_OVERLAP,
            Self::Free => codes::CLUSTER_FREE,
            Self::Undercounted => codes::CLUSTER_UNDERCOUNTED,
            Self::Overcounted => codes::CLUSTER_OVERCOUNTED,
            Self::Leaked if tables_lost => codes::CLUSTER_UNCLAIMED,
            Self::Leaked => codes::CLUSTER_LEAKED,
        }
    }
}

/// A stretch of clusters with the same thing wrong.
pub(crate) struct Suspect {
    pub(crate) clusters: Range<u64>,
    pub(crate) issue: Issue,
    /// Least and greatest.
    pub(crate) stored: (u64, u64),
    pub(crate) found: (u64, u64),
    claimants: Vec<Claimant>,
    more: u64,
}

struct Claimant {
    class: Class,
    tree: Tree,
    host: Range<u64>,
    guest: Option<Range<u64>>,
    /// Which one of its class.
    index: u64,
}

impl Suspect {
    pub(crate) fn new(clusters: Range<u64>, issue: Issue, stored: u64, found: u64) -> Self {
        Self { clusters, issue, stored: (stored, stored), found: (found, found), claimants: Vec::new(), more: 0 }
    }

    /// Whether it goes on with these clusters; then it has.
    pub(crate) fn extend(&mut self, clusters: &Range<u64>, issue: Issue, stored: u64, found: u64) -> bool {
        if self.issue != issue || self.clusters.end != clusters.start {
            return false;
        }
        self.clusters.end = clusters.end;
        self.stored = (self.stored.0.min(stored), self.stored.1.max(stored));
        self.found = (self.found.0.min(found), self.found.1.max(found));
        true
    }

    fn claim(&mut self, claimant: Claimant) {
        for known in &mut self.claimants {
            let same = known.class == claimant.class && known.tree == claimant.tree;
            let follows = known.host.end == claimant.host.start
                && match (&known.guest, &claimant.guest) {
                    (Some(known), Some(guest)) => known.end == guest.start,
                    _ => false,
                };
            if same && follows && claimant.class.is_data() {
                known.host.end = claimant.host.end;
                if let (Some(known), Some(guest)) = (&mut known.guest, claimant.guest) {
                    known.end = guest.end;
                }
                return;
            }
            if (known.class, known.tree, known.index) == (claimant.class, claimant.tree, claimant.index)
                && known.host == claimant.host
                && known.guest == claimant.guest
            {
                return;
            }
        }
        if self.claimants.len() < OWNERS_MAX {
            self.claimants.push(claimant);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// The finding it makes.
    pub(crate) fn finding(mut self, scope: &Scope<'_>, tables_lost: bool) -> Finding {
        let bytes = scope.bytes_of(&self.clusters);
        let count = self.clusters.end.saturating_sub(self.clusters.start);
        let code = self.issue.code(tables_lost);
        let range =
            |(least, most): (u64, u64)| if least == most { least.to_string() } else { format!("{least}..={most}") };
        let clusters = if count == 1 { "cluster" } else { "clusters" };
        let mut words = format!("{count} {clusters} at {:#x}..{:#x} ", bytes.start, bytes.end);
        words += &match self.issue {
            Issue::Overlap => "claimed by more than one that can not share".to_owned(),
            Issue::Free if self.found == (1, 1) => "in use but counted as free".to_owned(),
            Issue::Free => format!("in use ({} times) but counted as free", range(self.found)),
            Issue::Undercounted => format!("used {} times but counted {}", range(self.found), range(self.stored)),
            Issue::Overcounted => format!("used {} times but counted {}", range(self.found), range(self.stored)),
            Issue::Leaked if tables_lost => {
                format!("counted as in use ({}), but no entry that makes sense says by whom", range(self.stored))
            }
            Issue::Leaked => format!("counted as in use ({}), but nothing uses them", range(self.stored)),
        };
        if self.issue == Issue::Overlap && self.stored.0 < self.found.1 {
            words += &format!("; counted {}, used {}", range(self.stored), range(self.found));
        }
        self.claimants
            .sort_by_key(|one| (one.host.start, one.class, one.tree, one.guest.as_ref().map(|guest| guest.start)));
        let owners: Vec<Owner> = self.claimants.into_iter().map(|one| one.owner(scope)).collect();
        for (place, owner) in owners.iter().take(3).enumerate() {
            words += if place == 0 { ": " } else { "; " };
            words += &owner.label;
        }
        let unnamed = (owners.len().saturating_sub(3) as u64).saturating_add(self.more);
        if unnamed > 0 {
            words += &format!("; and {unnamed} more");
        }
        let mut finding = Finding::new(code, words).count(count).host(bytes);
        for owner in owners {
            // The window of a table is not data that lies here.
            if let Some(guest) = owner.guest.clone().filter(|_| owner.class.is_data()) {
                finding = finding.guest(guest);
            }
            finding = finding.owner(owner);
        }
        // Stale counts of a dirty image are rebuilt before anything is written: those that are too low endanger
        // nothing. What is counted and not used stays a leak: rebuilding frees it unasked, and if a mapping was lost it
        // is the only copy.
        finding.what += match self.issue {
            _ if !scope.side.dirty => "",
            Issue::Overlap => "",
            Issue::Free | Issue::Undercounted => {
                finding.severity = Severity::Warning;
                "; expected while the image is marked dirty: the counts are rebuilt when it is next opened"
            }
            Issue::Overcounted | Issue::Leaked => {
                "; the image is marked dirty: freed when it is next opened for writing"
            }
        };
        finding
    }
}

impl Claimant {
    fn owner(self, scope: &Scope<'_>) -> Owner {
        let of = match usize::try_from(self.tree).ok().and_then(|tree| tree.checked_sub(1)) {
            None => String::new(),
            Some(at) => scope
                .side
                .snapshots
                .get(at)
                .map_or_else(String::new, |snapshot| format!(" of snapshot '{}'", snapshot.name)),
        };
        let index = self.index;
        let label = match (self.class, &self.guest) {
            (Class::L2 | Class::SnapshotL2, _) => format!("L2 table of l1[{index}]{of}"),
            (Class::L1 | Class::SnapshotL1, _) => format!("L1 table{of}"),
            (Class::RefcountBlock, _) => format!("refcount block {index}"),
            (class, Some(guest)) if class.is_data() => {
                format!("{class} of guest {:#x}..{:#x}{of}", guest.start, guest.end)
            }
            (class @ (Class::BitmapTable | Class::BitmapData), _) => format!("{class} {index}"),
            (class, _) => format!("{class}{of}"),
        };
        Owner { class: self.class, host: self.host, guest: self.guest, label }
    }
}

/// Clusters counted for nothing. Whether that is a leak or all that is left of lost mappings is known when every window
/// has been seen: they are told at the end.
#[derive(Default)]
pub(crate) struct Leaks {
    all: Vec<Suspect>,
    /// Those there was no room for.
    more: Option<Suspect>,
    more_clusters: u64,
}

impl Leaks {
    pub(crate) fn add(&mut self, clusters: Range<u64>, stored: u64, room: usize) {
        if let Some(more) = &mut self.more {
            self.more_clusters = self.more_clusters.saturating_add(clusters.end.saturating_sub(clusters.start));
            more.clusters.end = more.clusters.end.max(clusters.end);
            more.stored = (more.stored.0.min(stored), more.stored.1.max(stored));
            return;
        }
        if self.all.last_mut().is_some_and(|last| last.extend(&clusters, Issue::Leaked, stored, 0)) {
            return;
        }
        let next = Suspect::new(clusters, Issue::Leaked, stored, 0);
        if self.all.len() < room {
            self.all.push(next);
        } else {
            self.more_clusters = next.clusters.end.saturating_sub(next.clusters.start);
            self.more = Some(next);
        }
    }

    pub(crate) fn tell(self, scope: &Scope<'_>, tables_lost: bool, mut find: impl FnMut(Finding)) {
        for leak in self.all {
            find(leak.finding(scope, tables_lost));
        }
        if let Some(more) = self.more {
            let mut finding = more.finding(scope, tables_lost);
            finding.count = self.more_clusters;
            finding.what = format!("{} more such clusters, {}", self.more_clusters, finding.what);
            find(finding);
        }
    }
}

/// Suspects of a window, in order, apart.
pub(crate) struct Suspects {
    pub(crate) all: Vec<Suspect>,
}

impl Suspects {
    fn each(&mut self, clusters: &Range<u64>, mut each: impl FnMut(&mut Suspect)) {
        let first = self.all.partition_point(|suspect| suspect.clusters.end <= clusters.start);
        for suspect in self.all.iter_mut().skip(first) {
            if suspect.clusters.start >= clusters.end {
                break;
            }
            each(suspect);
        }
    }
}

/// Goes over everything that refers to clusters once more: names the owners of the suspects, and says what of the
/// guest's disk lies in clusters that are claimed twice.
pub(crate) fn name(
    scope: &Scope<'_>,
    found: &Found<'_>,
    suspects: &mut Suspects,
    out: &mut Outcome,
) -> Result<(), Full> {
    let cluster = scope.geometry.cluster_size();
    let metadata = |class, tree, index, bytes: Range<u64>, suspects: &mut Suspects| {
        let clusters = scope.cluster_of(bytes.start)..bytes.end.div_ceil(cluster);
        suspects.each(&clusters, |suspect| {
            suspect.claim(Claimant { class, tree, host: bytes.clone(), guest: None, index });
        });
    };
    super::window::each_claim(scope, |class, tree, index, bytes| {
        metadata(class, tree, index, bytes, suspects);
        Ok(())
    })?;
    for root in scope.roots {
        let mut reader = scope.small_reader();
        l1::each_entry(&mut reader, root, |index, raw| {
            let at = match l1::target(raw, &scope.geometry, scope.file_len) {
                Target::Table(at) | Target::Broken(Some(at)) => at,
                Target::Broken(None) => return Ok::<(), Full>(()),
            };
            let clusters = at..at.saturating_add(1);
            let class = if root.tree == 0 { Class::L2 } else { Class::SnapshotL2 };
            let window = l1::window_of(scope, index..index.saturating_add(1));
            suspects.each(&clusters, |suspect| {
                let host = scope.bytes_of(&clusters);
                let guest = Some(window.clone()).filter(|guest| !guest.is_empty());
                suspect.claim(Claimant { class, tree: root.tree, host, guest, index });
            });
            Ok(())
        })?;
    }
    let shared = Mutex::new(Shared { suspects, guest: &mut out.guest, lost: &mut out.lost });
    l1::each_list(scope, |tables| {
        // Of a table that several L1 entries name, none has its window for itself.
        for table in tables.iter().filter(|table| table.several && table.active > 0) {
            if found.window.contains(&table.cluster) {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                lose_windows(scope, table.cluster, &mut shared);
            }
        }
        let make = || Namer { scope, found, shared: &shared, overwritten: false };
        scan::scan(scope, "owners", scope.threads, tables, make).map(|_| ())
    })
}

/// What the threads write to.
struct Shared<'l> {
    suspects: &'l mut Suspects,
    guest: &'l mut Guest,
    lost: &'l mut Losses,
}

fn lose_windows(scope: &Scope<'_>, cluster: u64, out: &mut Shared<'_>) {
    for root in scope.roots.iter().filter(|root| root.tree == 0) {
        let mut reader = scope.small_reader();
        let _ = l1::each_entry(&mut reader, root, |index, raw| {
            if l1::target(raw, &scope.geometry, scope.file_len) == Target::Table(cluster) {
                let window = l1::window_of(scope, index..index.saturating_add(1));
                out.guest.add(window.clone(), GuestState::Damaged);
                out.lost.add(window);
            }
            Ok::<(), ()>(())
        });
    }
}

struct Namer<'s, 'l> {
    scope: &'s Scope<'s>,
    found: &'s Found<'s>,
    shared: &'l Mutex<Shared<'l>>,
    overwritten: bool,
}

impl Namer<'_, '_> {
    fn claim(&self, table: &TableRef, clusters: Range<u64>, class: Class, guest: impl Fn(Range<u64>) -> Range<u64>) {
        if clusters.start.max(self.found.window.start) >= clusters.end.min(self.found.window.end) {
            return;
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.suspects.each(&clusters, |suspect| {
            let part = clusters.start.max(suspect.clusters.start)..clusters.end.min(suspect.clusters.end);
            suspect.claim(Claimant {
                class,
                tree: table.tree,
                host: self.scope.bytes_of(&part),
                guest: Some(guest(part.clone())),
                index: u64::from(table.l1_index),
            });
        });
    }
}

impl Visit for Namer<'_, '_> {
    fn begin(&mut self, _table: &TableRef) {}

    fn piece(&mut self, table: &TableRef, first: u64, bytes: &[u8]) -> Result<(), Full> {
        let geometry = self.scope.geometry;
        if geometry.external_data {
            return Ok(());
        }
        if first == 0 {
            self.overwritten = l2::judge(bytes, &geometry, self.scope.file_len) != Shape::Table;
        }
        let size = geometry.cluster_size();
        let base = u64::from(table.l1_index).saturating_mul(geometry.l2_window());
        l2::each_run(bytes, first, &geometry, |run: Run| {
            if run.raw == 0 {
                return Ok(());
            }
            let start = base.saturating_add(run.index.saturating_mul(size));
            if run.is_compressed() {
                let region = compressed::region(run.raw, &geometry);
                if region.start >= self.scope.file_len {
                    return Ok(());
                }
                let clusters =
                    self.scope.cluster_of(region.start)..region.end.div_ceil(size).min(self.scope.clusters());
                let class = class_of(table, Class::Compressed);
                let guest = start..start.saturating_add(run.len.saturating_mul(size));
                self.claim(table, clusters.clone(), class, |_| guest.clone());
                if clusters.into_iter().any(|cluster| self.found.conflict(cluster)) {
                    self.lose(table, guest, 0, GuestState::Compressed);
                }
                return Ok(());
            }
            if run.offset() == 0 || run.offset() >= self.scope.file_len {
                return Ok(());
            }
            let at = self.scope.cluster_of(run.offset());
            let clusters = at..at.saturating_add(run.len).min(self.scope.clusters());
            let guest_of = |part: Range<u64>| {
                let guest = |cluster: u64| start.saturating_add(cluster.saturating_sub(at).saturating_mul(size));
                guest(part.start)..guest(part.end)
            };
            self.claim(table, clusters.clone(), class_of(table, Class::Data), guest_of);
            let zeroes = run.zero() && !geometry.extended_l2 || geometry.extended_l2 && run.bitmap & 0xffff_ffff == 0;
            let contradicts = run.bitmap & run.bitmap >> 32 & 0xffff_ffff != 0;
            if !zeroes && !contradicts && run.offset() & size.wrapping_sub(1) == 0 {
                let window = &self.found.window;
                let mut cluster = clusters.start.max(window.start);
                let end = clusters.end.min(window.end);
                while cluster < end {
                    let known = self.found.run_at(cluster);
                    let to = known.end.min(end);
                    if known.conflict {
                        self.lose(table, guest_of(cluster..to), run.bitmap, GuestState::Data);
                    }
                    cluster = to;
                }
            }
            Ok(())
        })
    }

    fn missing(&mut self, _table: &TableRef, _entries: Range<u64>, _host: Range<u64>, _unreadable: bool) {}

    fn end(&mut self, _table: &TableRef) {}
}

impl Namer<'_, '_> {
    /// Guest data in a cluster that is not its own: lost, and no more of the state it was taken for.
    fn lose(&mut self, table: &TableRef, guest: Range<u64>, bitmap: u64, was: GuestState) {
        // What an overwritten table maps is lost already, and a table named twice loses its windows as a whole.
        if table.active == 0 || table.vm || table.several || self.overwritten {
            return;
        }
        let end = self.scope.geometry.size;
        let guest = guest.start.min(end)..guest.end.min(end);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.scope.geometry.extended_l2 || was == GuestState::Compressed {
            shared.guest.damage(guest.clone(), was);
            shared.lost.add(guest);
            return;
        }
        // Only subclusters that are in the cluster are lost with it.
        let sub = (self.scope.geometry.cluster_size() / 32).max(1);
        let mut start = guest.start;
        while start < guest.end {
            let place = start.checked_div(sub).unwrap_or(0) % 32;
            let next = start.saturating_add(sub).min(guest.end);
            if bitmap >> place & 1 == 1 {
                shared.guest.damage(start..next, was);
                shared.lost.add(start..next);
            }
            start = next;
        }
    }
}

fn class_of(table: &TableRef, class: Class) -> Class {
    match () {
        () if table.vm => Class::VmState,
        () if table.active == 0 => Class::SnapshotData,
        () => class,
    }
}
