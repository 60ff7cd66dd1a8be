//! L1 tables, the active one and those of the snapshots, and the list of L2 tables they name.
//!
//! An L2 table that many entries name (snapshots share them; damage does worse) is in the list once, with the number of
//! its references: each table is read once per pass, whatever the L1 tables say. The list is sorted by place in the
//! file, so that neighbours are read together.

use std::ops::Range;

use crate::budget::{Budget, Full};
use crate::code::general;
use crate::finding::Finding;
use crate::map::Class;

use super::codes::mapping as codes;
use super::header::Geometry;
use super::l2::{COPIED, OFFSET};
use super::reader::Reader;
use super::scope::{Outcome, Scope};
use super::side::{Side, Table};

/// Which disk: 0 is the active one, n is snapshot n - 1 of the list.
pub(crate) type Tree = u32;

/// An L1 table.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) tree: Tree,
    pub(crate) table: Table,
    /// How many snapshots name this very table.
    pub(crate) weight: u32,
    pub(crate) disk_size: u64,
    /// Entries that describe the disk; those beyond are for VM state.
    pub(crate) needed: u64,
    /// Whether there may be VM state.
    pub(crate) vm_state: bool,
}

/// All L1 tables that can be read, each once, and how many were left out because they overlap so much that together
/// they are longer than the file.
pub(crate) fn roots(side: &Side, geometry: &Geometry, file_len: u64) -> (Vec<Root>, u64) {
    let needed = |size: u64| size.div_ceil(geometry.l2_window().max(1));
    let any_state = side.snapshots.iter().any(|snapshot| snapshot.vm_state_size > 0);
    let mut all: Vec<Root> = Vec::new();
    if let Some(table) = side.l1 {
        let size = geometry.size;
        all.push(Root { tree: 0, table, weight: 1, disk_size: size, needed: needed(size), vm_state: any_state });
    }
    let mut rest: Vec<Root> = Vec::new();
    for (tree, snapshot) in (1u32..).zip(&side.snapshots) {
        let Some(table) = snapshot.l1 else { continue };
        let size = snapshot.disk_size;
        rest.push(Root {
            tree,
            table,
            weight: 1,
            disk_size: size,
            needed: needed(size),
            vm_state: snapshot.vm_state_size > 0,
        });
    }
    rest.sort_by_key(|root| (root.table.offset, root.table.entries, root.tree));
    let (mut left_out, mut room) = (0u64, file_len / 8);
    for root in rest {
        match all.last_mut() {
            Some(last) if last.tree > 0 && last.table == root.table => {
                last.weight = last.weight.saturating_add(1);
                if root.disk_size > last.disk_size {
                    (last.disk_size, last.needed) = (root.disk_size, root.needed);
                }
                last.vm_state |= root.vm_state;
            }
            _ if root.table.entries <= room => {
                room = room.saturating_sub(root.table.entries);
                all.push(root);
            }
            _ => left_out = left_out.saturating_add(1),
        }
    }
    (all, left_out)
}

/// Goes over the entries of an L1 table that are not 0.
pub(crate) fn each_entry<E>(
    reader: &mut Reader<'_>,
    root: &Root,
    mut each: impl FnMut(u64, u64) -> Result<(), E>,
) -> Result<(), E> {
    reader.entries(root.table.offset, 0..root.table.entries, &mut each)
}

/// What is wrong with one L1 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Reserved,
    Misaligned,
    PastEnd,
    NoTable,
    Stray,
}

/// Where an L1 entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A table in this cluster.
    Table(u64),
    /// No place a table can be at. If it is in the file all the same, its cluster is referred to.
    Broken(Option<u64>),
}

pub(crate) fn target(raw: u64, geometry: &Geometry, file_len: u64) -> Target {
    let offset = raw & OFFSET;
    let cluster = offset >> geometry.cluster_bits;
    if offset == 0 || offset >= file_len {
        Target::Broken(None)
    } else if offset & geometry.cluster_size().wrapping_sub(1) != 0 {
        Target::Broken(Some(cluster))
    } else {
        Target::Table(cluster)
    }
}

/// Every L1 entry is looked at by itself; what leads nowhere loses its window.
pub(crate) fn judge(scope: &Scope<'_>, out: &mut Outcome) {
    for root in scope.roots {
        let mut reader = scope.small_reader();
        // An open run of equal flaws: kind, indices, first value.
        let mut open: Option<(Flaw, Range<u64>, u64)> = None;
        let _ = each_entry(&mut reader, root, |index, raw| {
            if let Some(flaw) = flaw_of(scope, root, index, raw) {
                match &mut open {
                    Some((kind, run, _)) if *kind == flaw && run.end == index => run.end = index.saturating_add(1),
                    _ => {
                        if let Some(done) = open.replace((flaw, index..index.saturating_add(1), raw)) {
                            tell(scope, root, &done, out);
                        }
                    }
                }
            }
            if matches!(target(raw, &scope.geometry, scope.file_len), Target::Broken(_)) {
                out.tables_lost = true;
                if root.tree == 0 {
                    let window = window_of(scope, index..index.saturating_add(1));
                    out.guest.add(window.clone(), crate::map::GuestState::Damaged);
                    out.lost.add(window);
                }
            }
            Ok::<(), ()>(())
        });
        if let Some(done) = open {
            tell(scope, root, &done, out);
        }
        for bad in &reader.bad {
            let name = root_name(scope, root.tree);
            let first = bad.start.saturating_sub(root.table.offset) / 8;
            let end = bad.end.saturating_sub(root.table.offset).div_ceil(8).min(root.table.entries);
            let window = window_of(scope, first..end);
            let words = format!("entries {first}..{end} of the {name} could not be read");
            let mut finding = Finding::new(general::UNREADABLE, words).host(bad.clone());
            out.tables_lost = true;
            out.check_errors = out.check_errors.saturating_add(1);
            if root.tree == 0 {
                finding = finding.guest(window.clone());
                out.lost.add(window);
            }
            out.find(finding);
        }
    }
}

/// The guest's bytes a run of L1 entries maps, as far as the disk goes.
pub(crate) fn window_of(scope: &Scope<'_>, entries: Range<u64>) -> Range<u64> {
    let window = scope.geometry.l2_window();
    let size = scope.geometry.size;
    entries.start.saturating_mul(window).min(size)..entries.end.saturating_mul(window).min(size)
}

pub(crate) fn root_name(scope: &Scope<'_>, tree: Tree) -> String {
    match usize::try_from(tree).ok().and_then(|tree| tree.checked_sub(1)).and_then(|at| scope.side.snapshots.get(at)) {
        None => "active L1 table".to_owned(),
        Some(snapshot) => format!("L1 table of snapshot '{}'", snapshot.name),
    }
}

fn flaw_of(scope: &Scope<'_>, root: &Root, index: u64, raw: u64) -> Option<Flaw> {
    let offset = raw & OFFSET;
    // The worst one is told; the others are seen in the value.
    if offset == 0 {
        Some(Flaw::NoTable)
    } else if offset & scope.geometry.cluster_size().wrapping_sub(1) != 0 {
        Some(Flaw::Misaligned)
    } else if offset >= scope.file_len {
        Some(Flaw::PastEnd)
    } else if raw & !(OFFSET | COPIED) != 0 {
        Some(Flaw::Reserved)
    } else if index >= root.needed && !root.vm_state {
        Some(Flaw::Stray)
    } else {
        None
    }
}

fn tell(scope: &Scope<'_>, root: &Root, (flaw, run, raw): &(Flaw, Range<u64>, u64), out: &mut Outcome) {
    let name = root_name(scope, root.tree);
    let count = run.end.saturating_sub(run.start);
    let which = match count {
        1 => format!("entry {} of the {name} ({raw:#018x})", run.start),
        _ => format!("entries {}..{} of the {name} (the first is {raw:#018x})", run.start, run.end),
    };
    let offset = raw & OFFSET;
    let verb = |one: &'static str, many: &'static str| if count == 1 { one } else { many };
    let (point, have, map) = (verb("points", "point"), verb("has", "have"), verb("maps", "map"));
    let (code, words) = match flaw {
        Flaw::Reserved => (codes::L1_RESERVED, format!("{have} bits set that are reserved")),
        Flaw::Misaligned => (codes::L1_MISALIGNED, format!("{point} at {offset:#x}, where no cluster begins")),
        Flaw::PastEnd => {
            (codes::L1_PAST_END, format!("{point} at {offset:#x}, past the end of the file ({:#x})", scope.file_len))
        }
        Flaw::NoTable => (codes::L1_NO_TABLE, format!("{have} flags but no offset")),
        Flaw::Stray => (codes::L1_STRAY, format!("{map} what lies beyond the end of the disk")),
    };
    let at = |index: u64| root.table.offset.saturating_add(index.saturating_mul(8));
    let mut finding = Finding::new(code, format!("{which} {words}")).count(count).host(at(run.start)..at(run.end));
    let window = window_of(scope, run.clone());
    if root.tree == 0 && !window.is_empty() {
        finding = finding.guest(window);
    }
    out.find(finding);
}

/// An L2 table somebody names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableRef {
    /// Its cluster.
    pub(crate) cluster: u64,
    /// The L1 index it is named at: the active one if there is one.
    pub(crate) l1_index: u32,
    /// References to it, over all L1 tables.
    pub(crate) weight: u32,
    /// Of these, from the active L1 table.
    pub(crate) active: u32,
    /// Entries that map something of a disk; the others are stray. All of them for VM state.
    pub(crate) limit: u32,
    /// Who names it.
    pub(crate) tree: Tree,
    /// Whether it is named at different L1 indices.
    pub(crate) several: bool,
    /// Whether it maps VM state.
    pub(crate) vm: bool,
}

impl TableRef {
    /// The class of the table itself.
    pub(crate) fn class(&self) -> Class {
        if self.active > 0 { Class::L2 } else { Class::SnapshotL2 }
    }

    fn join(&mut self, other: &Self) {
        self.several |= other.several || self.l1_index != other.l1_index;
        // The active disk first, then the first one that names it.
        if (other.active == 0, other.tree, other.l1_index) < (self.active == 0, self.tree, self.l1_index) {
            (self.l1_index, self.tree) = (other.l1_index, other.tree);
        }
        self.weight = self.weight.saturating_add(other.weight);
        self.active = self.active.saturating_add(other.active);
        self.limit = self.limit.max(other.limit);
        self.vm &= other.vm;
    }
}

/// L2 tables by place in the file, each once. Memory is paid for.
pub(crate) struct TableList<'b> {
    tables: Vec<TableRef>,
    budget: &'b Budget,
    taken: u64,
    cap: u64,
}

impl<'b> TableList<'b> {
    /// The L2 tables whose clusters lie in a range; [`Full`] if that takes more than half of what memory is left.
    pub(crate) fn collect(scope: &Scope<'b>, range: &Range<u64>) -> Result<Self, Full> {
        let mut list = Self { tables: Vec::new(), budget: scope.budget, taken: 0, cap: scope.budget.left() / 2 };
        let entries = scope.geometry.l2_entries();
        let window = scope.geometry.l2_window();
        let mut reader = scope.small_reader();
        for root in scope.roots {
            each_entry(&mut reader, root, |index, raw| {
                let Target::Table(cluster) = target(raw, &scope.geometry, scope.file_len) else { return Ok(()) };
                if !range.contains(&cluster) {
                    return Ok(());
                }
                let vm = index >= root.needed && root.vm_state;
                let left = root.disk_size.saturating_sub(index.saturating_mul(window));
                let limit = left.div_ceil(scope.geometry.cluster_size()).min(entries);
                list.push(TableRef {
                    cluster,
                    l1_index: u32::try_from(index).unwrap_or(u32::MAX),
                    weight: root.weight,
                    active: u32::from(root.tree == 0),
                    limit: u32::try_from(if vm { entries } else { limit }).unwrap_or(u32::MAX),
                    tree: root.tree,
                    several: false,
                    vm,
                })
            })?;
        }
        list.settle();
        Ok(list)
    }

    pub(crate) fn tables(&self) -> &[TableRef] {
        &self.tables
    }

    fn push(&mut self, table: TableRef) -> Result<(), Full> {
        if let Some(last) = self.tables.last_mut()
            && last.cluster == table.cluster
        {
            last.join(&table);
            return Ok(());
        }
        if self.tables.len() == self.tables.capacity() {
            // Tables that are named often may make room before more memory is asked for.
            let before = self.tables.len();
            self.settle();
            if self.tables.len() > before / 2 || before == 0 {
                self.grow()?;
            }
        }
        self.tables.push(table);
        Ok(())
    }

    fn grow(&mut self) -> Result<(), Full> {
        let more = self.tables.len().max(512);
        let bytes = (more as u64).saturating_mul(size_of::<TableRef>() as u64);
        if self.taken.saturating_add(bytes) > self.cap {
            return Err(Full);
        }
        self.budget.take(bytes)?;
        self.taken = self.taken.saturating_add(bytes);
        self.tables.reserve_exact(more);
        Ok(())
    }

    fn settle(&mut self) {
        self.tables.sort_unstable_by_key(|table| (table.cluster, table.tree, table.l1_index));
        self.tables.dedup_by(|next, kept| {
            let same = next.cluster == kept.cluster;
            if same {
                kept.join(next);
            }
            same
        });
    }
}

impl Drop for TableList<'_> {
    fn drop(&mut self) {
        self.budget.give(self.taken);
    }
}

/// Goes over all L2 tables in as few lists as memory allows. An error of `each` ends it.
pub(crate) fn each_list(scope: &Scope<'_>, mut each: impl FnMut(&[TableRef]) -> Result<(), Full>) -> Result<(), Full> {
    let units = scope.clusters();
    let (mut start, mut size) = (0u64, units.max(1));
    while start < units {
        let end = start.saturating_add(size).min(units);
        match TableList::collect(scope, &(start..end)) {
            Ok(list) => {
                each(list.tables())?;
                start = end;
            }
            Err(Full) if size > 1024 => size = size.div_ceil(2),
            Err(Full) => return Err(Full),
        }
    }
    Ok(())
}
