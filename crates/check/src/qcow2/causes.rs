//! From many findings to the few things that happened, and to what is safe to do next.
//!
//! A damaged image is looked at twice ([`super::survey`]): what lies in its tables now, and what lies in the clusters
//! without an owner ([`super::orphans`]). Then each finding is given to the first cause that explains it:
//! 1. tables were overwritten, cause by cause of what lies there now, with all that follows from their senseless
//!    entries;
//! 2. the file was cut off: everything past its end, and what the tables beyond mapped;
//! 3. entries were zeroed: tables and data that lost their owner;
//! 4. counts were lost while the mapping agrees with itself: harmless, and told apart from lost metadata;
//! 5. clusters used twice; 6. leaks.
//!
//! What is left goes to the catalogue of codes (`verdict`). No cause is certain but what the bytes say: who wrote them
//! they do not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::code::{Code, Severity, general};
use crate::context::Context;
use crate::finding::{Confidence, Finding};
use crate::map::{Class, GuestState};
use crate::report::Cause;
use crate::shape::Shape;

use super::codes::{mapping as codes, recover, structure};
use super::header::Geometry;
use super::orphans::{self, Orphans};
use super::shape::Look;
use super::side::Side;
use super::survey::{self, Overwritten, Part, Survey, ZeroCounts};

/// Ranges a cause names.
const RANGES_MAX: usize = 64;
/// Damaged places told one by one.
const TOLD_MAX: usize = 64;

/// Looks at a damaged image once more, and says what happened to it.
pub(crate) fn explain(cx: &mut Context<'_>, side: &Side) {
    let Some(geometry) = side.geometry else {
        super::assume::suggest(cx, side);
        return;
    };
    let wrong = cx.findings.sums().any(|(_, severity, _)| severity >= Severity::Leak);
    if !wrong && cx.complete || cx.stopped() {
        return;
    }
    if side.l1.is_none() && side.header.l1_size > 0 || !side.claims_complete {
        super::assume::suggest(cx, side);
    }
    let Some(mut survey) = survey::look(cx, side, &geometry) else {
        cx.not_checked("what lies in damaged tables now: there is not enough memory to look");
        return;
    };
    let orphans = if cx.options.orphans && has_lost_tables(cx, &geometry, &survey) {
        orphans::search(cx, &geometry, &survey)
    } else {
        Orphans::default()
    };
    if side.dirty {
        // Counts of zero are how lazy counts look after a crash, and no sign of sectors that were lost.
        survey.zero_counts.clear();
    }
    // Clusters of a table that lost its owner are not those of zeroed entries beside it.
    survey.zeroed.retain(|zeroed| {
        let lost = orphans.l2.iter().filter(|orphan| orphan.is_lost());
        let own = |range: &Range<u64>| range.start < zeroed.data.end && zeroed.data.start < range.end;
        lost.into_iter().all(|orphan| !own(&orphan.data) && !zeroed.data.contains(&orphan.host))
    });
    tell_survey(cx, &geometry, &survey);
    let mappings_gone = !survey.zeroed.is_empty()
        || survey.overwritten.iter().any(|one| matches!(one.part, Part::L1 | Part::L2 { .. }));
    if mappings_gone {
        // Entries that make sense by themselves did not show it; what nothing refers to is what they mapped before.
        cx.findings.recode(codes::CLUSTER_LEAKED, codes::CLUSTER_UNCLAIMED);
    }
    let mut case = Case::new(cx, side, geometry, &survey, &orphans);
    case.overwritten();
    case.cut_off();
    case.zeroed();
    case.counts();
    case.used_twice();
    case.leaks();
    let (causes, steps) = (std::mem::take(&mut case.causes), std::mem::take(&mut case.steps));
    finish(cx, causes, steps);
}

/// Whether L1 entries may be missing: then the clusters without an owner are searched for tables.
fn has_lost_tables(cx: &Context<'_>, geometry: &Geometry, survey: &Survey) -> bool {
    let vacant = cx.vacant.runs();
    let sound = survey.l1.iter().filter(|(index, _)| *index < geometry.l1_needed()).count() as u64;
    let damaged = [codes::L1_PAST_END, codes::L1_MISALIGNED, codes::L1_RESERVED, codes::L1_NO_TABLE];
    let damaged = damaged.iter().any(|code| cx.findings.errors_of(code) > 0);
    !vacant.is_empty()
        && (cx.vacant.counted() > geometry.cluster_size() || damaged || sound == 0)
        && (sound < geometry.l1_needed() || damaged)
}

/// What the survey found that the entries alone do not show.
fn tell_survey(cx: &mut Context<'_>, geometry: &Geometry, survey: &Survey) {
    for zeroed in survey.zeroed.iter().take(TOLD_MAX) {
        let count = zeroed.count;
        let all = zeroed.entries.end.saturating_sub(zeroed.entries.start);
        let which = if count < all {
            format!(
                "all entries of the L2 table at {:#x} (l1[{}]) are zero, and {count} clusters",
                zeroed.table, zeroed.l1_index
            )
        } else {
            format!(
                "L2 entries {}..{} of the table at {:#x} (l1[{}]) are zero, and the clusters",
                zeroed.entries.start, zeroed.entries.end, zeroed.table, zeroed.l1_index
            )
        };
        let (start, end) = (zeroed.data.start, zeroed.data.end);
        let scattered = zeroed.data.is_empty();
        let words = if scattered {
            format!("{which} that belong there are among those counted as in use by nobody, which are as many")
        } else {
            format!("{which} that belong there, {start:#x}..{end:#x}, are counted as in use by nobody")
        };
        let mut finding = Finding::new(recover::L2_ZEROED, words)
            .host(zeroed.host.clone())
            .guest(zeroed.guest.clone())
            .count(count)
            .confidence(Confidence::Likely);
        if !scattered {
            finding = finding.host(zeroed.data.clone());
        }
        cx.find(finding);
    }
    if let Some(more) = survey.zeroed.get(TOLD_MAX..).filter(|more| !more.is_empty()) {
        let count = more.iter().fold(0u64, |all, one| all.saturating_add(one.count));
        let words =
            format!("{count} more L2 entries in {} places are zero, with clusters that belong there", more.len());
        cx.find(Finding::new(recover::L2_ZEROED, words).count(count).confidence(Confidence::Likely));
    }
    for zeroed in &survey.zeroed {
        if let Some(map) = &mut cx.guest {
            map.turn(zeroed.guest.clone(), GuestState::Unallocated, GuestState::Damaged);
        }
        cx.lose(zeroed.guest.clone());
    }
    for one in &survey.overwritten {
        if let Some(map) = &mut cx.guest {
            for state in [GuestState::Unallocated, GuestState::Zero] {
                map.turn(one.guest.clone(), state, GuestState::Damaged);
            }
        }
        cx.lose(one.guest.clone());
    }
    let blocks = survey.overwritten.iter().filter_map(|one| match one.part {
        Part::Block { index, block } => Some((one, index, block)),
        _ => None,
    });
    for (one, index, block) in blocks.take(TOLD_MAX) {
        let words = format!(
            "{} of refcount block {index} (at {block:#x}) hold {} instead of counts",
            bytes_of(&one.host, geometry),
            one.look.words()
        );
        cx.find(Finding::new(recover::BLOCK_OVERWRITTEN, words).host(one.host.clone()).confidence(one.sure));
    }
    let free: Vec<Range<u64>> = ghosts(cx);
    for zero in survey.zero_counts.iter().filter(|zero| is_lost(zero, &free, geometry)).take(TOLD_MAX) {
        let words = format!(
            "{} of refcount block {} are zero, and clusters among {:#x}..{:#x}, which they count, are in use",
            bytes_of(&zero.host, geometry),
            zero.index,
            zero.covers.start,
            zero.covers.end
        );
        cx.find(Finding::new(recover::BLOCK_ZEROED, words).host(zero.host.clone()).confidence(Confidence::Likely));
    }
}

fn bytes_of(range: &Range<u64>, geometry: &Geometry) -> String {
    if range.end.saturating_sub(range.start) == geometry.cluster_size() {
        "all bytes".to_owned()
    } else {
        format!("bytes {:#x}..{:#x}", range.start, range.end)
    }
}

/// Clusters in use that are counted as free.
fn ghosts(cx: &Context<'_>) -> Vec<Range<u64>> {
    cx.findings
        .iter()
        .filter(|finding| finding.code == codes::CLUSTER_FREE)
        .filter_map(|finding| finding.host.first().cloned())
        .collect()
}

/// Whether zero counts were lost: so many clusters in use among them can be no lost update of a few.
fn is_lost(zero: &ZeroCounts, ghosts: &[Range<u64>], geometry: &Geometry) -> bool {
    let within = |ghost: &Range<u64>| {
        let (start, end) = (ghost.start.max(zero.covers.start), ghost.end.min(zero.covers.end));
        end.saturating_sub(start)
    };
    let bytes = ghosts.iter().fold(0u64, |all, ghost| all.saturating_add(within(ghost)));
    bytes >= geometry.cluster_size().saturating_mul(8)
        && ghosts.iter().any(|ghost| ghost.start <= zero.covers.start && ghost.end > zero.covers.start)
}

/// What of a finding tells its cause.
struct Brief {
    code: &'static Code,
    severity: Severity,
    count: u64,
    host: Option<Range<u64>>,
    guest: Vec<Range<u64>>,
    owners: Vec<(Class, Option<Range<u64>>)>,
    /// Of clusters claimed twice: whether they are counted less often.
    counted_low: bool,
    taken: bool,
}

/// Steps, in the order they are said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    KeepIt,
    NoRepairOfLeaks,
    NoRepairOfOverlaps,
    FetchTheRest,
    ReadWithoutCounts,
    WriteEntries,
    RestoreRanges,
    Salvage,
    Rebuild,
    FreeLeaks,
}

struct Case<'c> {
    side: &'c Side,
    geometry: Geometry,
    survey: &'c Survey,
    orphans: &'c Orphans,
    file_len: u64,
    briefs: Vec<Brief>,
    /// By code: single errors in all, and those of findings that are kept.
    sums: BTreeMap<&'static str, (u64, u64)>,
    counted_vacant: u64,
    ghosts: Vec<Range<u64>>,
    used: u64,
    /// Whether clusters past the end of the file are counted as in use.
    counts_go_on: bool,
    causes: Vec<Cause>,
    steps: BTreeSet<Step>,
}

/// What a cause explains.
#[derive(Default)]
struct Explained {
    codes: BTreeSet<&'static str>,
    errors: u64,
    host: Vec<Range<u64>>,
    guest: Vec<Range<u64>>,
}

impl<'c> Case<'c> {
    fn new(cx: &Context<'_>, side: &'c Side, geometry: Geometry, survey: &'c Survey, orphans: &'c Orphans) -> Self {
        let mut sums: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
        for (name, severity, sum) in cx.findings.sums() {
            if severity >= Severity::Leak {
                let all = &mut sums.entry(name).or_default().0;
                *all = all.saturating_add(sum.errors);
            }
        }
        let mut briefs = Vec::new();
        for finding in cx.findings.iter().filter(|finding| finding.severity >= Severity::Leak) {
            let kept = &mut sums.entry(finding.code.name).or_default().1;
            *kept = kept.saturating_add(finding.count);
            briefs.push(Brief {
                code: finding.code,
                severity: finding.severity,
                count: finding.count,
                host: finding.host.first().cloned(),
                guest: finding.guest.clone(),
                owners: finding.owners.iter().map(|owner| (owner.class, owner.guest.clone())).collect(),
                counted_low: finding.code == codes::CLUSTER_OVERLAP && finding.what.contains("; counted "),
                taken: false,
            });
        }
        let used = cx.host.as_ref().map_or(0, |map| {
            map.len
                .saturating_sub(map.bytes(Class::Free))
                .saturating_sub(map.bytes(Class::Leaked))
                .saturating_sub(map.bytes(Class::Unknown))
        });
        Self {
            side,
            geometry,
            survey,
            orphans,
            file_len: cx.file_len(),
            briefs,
            sums,
            counted_vacant: cx.vacant.counted(),
            ghosts: ghosts(cx),
            used,
            counts_go_on: cx.findings.errors_of(codes::REFCOUNT_PAST_END) > 0,
            causes: Vec::new(),
            steps: BTreeSet::new(),
        }
    }

    fn errors(&self, code: &Code) -> u64 {
        self.sums.get(code.name).map_or(0, |(all, _)| *all)
    }

    /// Gives the findings that fit to a cause. Of codes with more findings than are kept, the same share is taken of
    /// the rest.
    fn take(&mut self, fits: impl Fn(&Brief) -> bool) -> Explained {
        let mut explained = Explained::default();
        let mut of_code: BTreeMap<&'static str, u64> = BTreeMap::new();
        for brief in self.briefs.iter_mut().filter(|brief| !brief.taken) {
            if !fits(brief) {
                continue;
            }
            brief.taken = true;
            let taken = of_code.entry(brief.code.name).or_default();
            *taken = taken.saturating_add(brief.count);
            explained.guest.extend(brief.guest.iter().cloned());
            explained.host.extend(brief.host.clone());
        }
        for (name, taken) in of_code {
            let (all, kept) = self.sums.get(name).copied().unwrap_or((0, 0));
            let share =
                u128::from(all).saturating_mul(u128::from(taken)).checked_div(u128::from(kept.max(1))).unwrap_or(0);
            explained.errors = explained.errors.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
            explained.codes.insert(name);
        }
        explained
    }

    fn cause(&mut self, what: String, confidence: Confidence, explained: Explained) {
        self.causes.push(Cause {
            what,
            confidence,
            codes: explained.codes.into_iter().collect(),
            errors: explained.errors,
            host: join(explained.host),
            guest: join(explained.guest),
        });
    }

    /// The file ends before what its tables name does.
    fn cut_off(&mut self) {
        let beyond = [
            codes::L1_PAST_END,
            codes::L2_PAST_END,
            codes::L2_CUT,
            codes::L2_COMPRESSED_PAST_END,
            codes::REFTABLE_PAST_END,
            structure::HEADER_L1_END,
            structure::HEADER_REFTABLE_END,
        ];
        if !self.briefs.iter().any(|brief| !brief.taken && beyond.contains(&brief.code)) {
            return;
        }
        let cluster = self.geometry.cluster_size();
        let end = self.survey.past_end.max(self.file_len);
        // The file ends within a cluster, or counts go on behind its end.
        let ragged = !self.file_len.is_multiple_of(cluster) && !self.file_len.is_multiple_of(512);
        let counts_on = self.counts_go_on;
        // Entries that go on where the file ends, without a gap, were not made by chance.
        let near = self.survey.past.saturating_mul(cluster).saturating_mul(4) >= end.saturating_sub(self.file_len);
        let sure = match (counts_on || ragged, near) {
            (true, true) => Confidence::Certain,
            (true, false) | (false, true) => Confidence::Likely,
            (false, false) => return,
        };
        let lost_tables = self.errors(codes::L1_PAST_END) > 0 || self.errors(codes::L2_CUT) > 0;
        let explained = self.take(|brief| {
            beyond.contains(&brief.code)
                || brief.code == codes::REFCOUNT_PAST_END
                || lost_tables && (brief.code == codes::CLUSTER_UNCLAIMED || brief.code == codes::CLUSTER_LEAKED)
        });
        let missing = end.saturating_sub(self.file_len);
        let mut what = format!("the file was cut off at {:#x}", self.file_len);
        if missing > 0 {
            what += &format!(": at least {missing} bytes are missing, its tables name data up to {end:#x}");
        }
        if lost_tables {
            what += "; the clusters without an owner hold what tables beyond the cut mapped";
            self.steps.insert(Step::NoRepairOfLeaks);
        }
        self.steps.extend([Step::KeepIt, Step::FetchTheRest, Step::Salvage]);
        self.cause(what, sure, explained);
    }

    /// Tables that hold something else, by what that is.
    fn overwritten(&mut self) {
        let mut kinds: BTreeMap<Look, Vec<&Overwritten>> = BTreeMap::new();
        for one in &self.survey.overwritten {
            kinds.entry(self.kind(one.look)).or_default().push(one);
        }
        let mut kinds: Vec<(Look, Vec<&Overwritten>)> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, places)| std::cmp::Reverse(places.len()));
        for (look, places) in kinds {
            let tables: BTreeSet<u64> = places.iter().filter_map(|one| table_of(one)).collect();
            let blocks: BTreeSet<u64> = places.iter().filter_map(|one| block_of(one)).collect();
            let l1 = places.iter().any(|one| one.part == Part::L1);
            let mut parts = Vec::new();
            if l1 {
                parts.push("the L1 table".to_owned());
            }
            if !tables.is_empty() {
                parts.push(of_all(tables.len() as u64, self.survey.tables, "L2 table"));
            }
            if !blocks.is_empty() {
                parts.push(of_all(blocks.len() as u64, self.survey.blocks, "refcount block"));
            }
            let bytes =
                places.iter().fold(0u64, |all, one| all.saturating_add(one.host.end.saturating_sub(one.host.start)));
            let cluster = self.geometry.cluster_size();
            let clusters = (tables.len() as u64).saturating_add(blocks.len() as u64);
            let of_l1 = self.side.l1.filter(|_| l1).map_or(0, |table| table.entries.saturating_mul(8));
            let whole = bytes >= clusters.saturating_mul(cluster).saturating_add(of_l1);
            // Ranges sorted, so that a finding is matched in a few steps.
            let hosts = join_all(places.iter().map(|one| match one.part {
                Part::L1 => one.host.clone(),
                Part::L2 { table: at, .. } | Part::Block { block: at, .. } => at..at.saturating_add(cluster),
            }));
            let guests = join_all(places.iter().map(|one| one.guest.clone()));
            let of_tables = l1 || !tables.is_empty();
            let of_blocks = !blocks.is_empty();
            let mut explained = self.take(|brief| {
                let here = brief.host.as_ref().is_some_and(|host| touches(&hosts, host));
                let mapped = of_tables && brief.guest.iter().any(|guest| touches(&guests, guest));
                let claimed = brief.owners.iter().any(|(class, guest)| {
                    class.is_data() && of_tables && guest.as_ref().is_some_and(|guest| touches(&guests, guest))
                });
                let unclaimed =
                    of_tables && (brief.code == codes::CLUSTER_UNCLAIMED || brief.code == codes::CLUSTER_LEAKED);
                let miscounted = of_blocks && is_about_counts(brief.code);
                here || mapped || claimed || unclaimed || miscounted
            });
            explained.host = places.iter().map(|one| one.host.clone()).collect();
            explained.guest = guests;
            let sure = places.iter().map(|one| one.sure).min().unwrap_or(Confidence::Possible).min(Confidence::Likely);
            let places_words = if whole { String::new() } else { " in part".to_owned() };
            let own = explained.host.len() as u64;
            let mut what = format!("{} overwritten{places_words} by {}", were(&parts), look.words());
            if places.len() <= 2 {
                let at: Vec<String> =
                    places.iter().map(|one| format!("{:#x}..{:#x}", one.host.start, one.host.end)).collect();
                what += &format!(" (bytes {})", at.join(", "));
            }
            if explained.errors > own {
                what += &format!("; {} errors follow from that", explained.errors);
            }
            self.steps.insert(Step::KeepIt);
            if of_tables {
                self.steps.extend([Step::NoRepairOfLeaks, Step::RestoreRanges, Step::Salvage]);
            } else {
                self.steps.extend([Step::ReadWithoutCounts, Step::Rebuild]);
            }
            self.cause(what, sure, explained);
        }
    }

    /// What two stretches have to have in common to be of one making. Different data is data all the same.
    fn kind(&self, look: Look) -> Look {
        match look {
            Look::Else(Shape::Magic(_) | Shape::Other | Shape::Bits) => Look::Else(Shape::Other),
            other => other,
        }
    }

    /// Entries that are zero, and were not.
    fn zeroed(&mut self) {
        if !self.survey.zeroed.is_empty() {
            let data = join_all(self.survey.zeroed.iter().map(|one| one.data.clone()));
            let scattered = self.survey.zeroed.iter().any(|one| one.data.is_empty());
            let mut explained = self.take(|brief| {
                brief.code == recover::L2_ZEROED
                    || (brief.code == codes::CLUSTER_LEAKED || brief.code == codes::CLUSTER_UNCLAIMED)
                        && (scattered || brief.host.as_ref().is_some_and(|host| touches(&data, host)))
            });
            let hosts = join_all(self.survey.zeroed.iter().map(|one| one.host.clone()));
            let tables: BTreeSet<u64> = self.survey.zeroed.iter().map(|one| one.table).collect();
            let entries = self.survey.zeroed.iter().fold(0u64, |all, one| all.saturating_add(one.count));
            let bytes = hosts.iter().fold(0u64, |all, host| all.saturating_add(host.end.saturating_sub(host.start)));
            explained.guest = join_all(self.survey.zeroed.iter().map(|one| one.guest.clone()));
            let what = format!(
                "{bytes} bytes of {} L2 table{} are zeroes where {entries} entries were: the clusters they mapped are in the file, \
                 without an owner",
                tables.len(),
                plural(tables.len() as u64)
            );
            explained.host = hosts;
            self.steps.extend([Step::KeepIt, Step::NoRepairOfLeaks, Step::RestoreRanges]);
            self.cause(what, Confidence::Likely, explained);
        }
        let lost: Vec<_> = self.orphans.l2.iter().filter(|orphan| orphan.is_lost()).collect();
        if self.orphans.missing > 0 && !lost.is_empty() {
            let damaged = [codes::L1_PAST_END, codes::L1_MISALIGNED, codes::L1_RESERVED, codes::L1_NO_TABLE];
            let l1 =
                self.side.l1.map(|table| table.offset..table.offset.saturating_add(table.entries.saturating_mul(8)));
            let in_l1 = |brief: &Brief| {
                brief
                    .host
                    .as_ref()
                    .zip(l1.as_ref())
                    .is_some_and(|(host, l1)| host.start < l1.end && l1.start < host.end)
            };
            let mut explained = self.take(|brief| {
                brief.code == recover::L1_LOST
                    || damaged.contains(&brief.code)
                    || brief.code == general::UNREADABLE && in_l1(brief)
                    || brief.code == codes::CLUSTER_LEAKED
                    || brief.code == codes::CLUSTER_UNCLAIMED
                    || brief.code == structure::HEADER_L1
            });
            explained.guest = self.orphans.lost.clone();
            let tables = lost.len() as u64;
            let empty = self.survey.l1.iter().all(|(index, _)| *index >= self.geometry.l1_needed());
            let mut what = if empty {
                "the L1 table has no entries left".to_owned()
            } else {
                format!(
                    "{} of the {} L1 entries of the disk are missing",
                    self.orphans.missing,
                    self.geometry.l1_needed()
                )
            };
            what += &format!(
                ": {tables} L2 table{} that lost their owner {} still in the file, with {} clusters",
                plural(tables),
                if tables == 1 { "is" } else { "are" },
                self.orphans.clusters
            );
            explained.host = lost
                .iter()
                .map(|orphan| orphan.host..orphan.host.saturating_add(self.geometry.cluster_size()))
                .collect();
            self.steps.extend([Step::KeepIt, Step::NoRepairOfLeaks, Step::WriteEntries]);
            self.cause(what, Confidence::Likely, explained);
        }
    }

    /// Counts that do not agree with a mapping that agrees with itself.
    fn counts(&mut self) {
        let mapping_sound = self.mapping_is_sound();
        let lost: Vec<&ZeroCounts> =
            self.survey.zero_counts.iter().filter(|zero| is_lost(zero, &self.ghosts, &self.geometry)).collect();
        let free = self.errors(codes::CLUSTER_FREE);
        let used = self.used >> self.geometry.cluster_bits;
        let every = !self.side.dirty && free > 0 && free.saturating_mul(100) >= used.saturating_mul(95);
        let blocks_gone = self.errors(codes::REFTABLE_PAST_END) > 0
            || self.errors(codes::REFTABLE_MISALIGNED) > 0
            || self.errors(codes::REFTABLE_RESERVED) > 0
            || self.errors(structure::HEADER_REFTABLE) > 0;
        let safe = if mapping_sound {
            "; the mapping agrees with itself: no data is lost, and the counts can be made anew from it"
        } else {
            ""
        };
        let places: Vec<Range<u64>> = lost.iter().map(|zero| zero.host.clone()).collect();
        if every {
            let mut explained = self.take(|brief| is_about_counts(brief.code));
            let what = format!("all reference counts are zero or gone, though {used} clusters are in use{safe}");
            if !places.is_empty() {
                explained.host = places;
            }
            self.count_steps(mapping_sound);
            self.cause(what, if mapping_sound { Confidence::Certain } else { Confidence::Likely }, explained);
        } else if !lost.is_empty() {
            let covers = join_all(lost.iter().map(|zero| zero.covers.clone()));
            let mut explained = self.take(|brief| {
                brief.code == recover::BLOCK_ZEROED
                    || is_about_counts(brief.code) && brief.host.as_ref().is_some_and(|host| touches(&covers, host))
            });
            let bytes = places.iter().fold(0u64, |all, host| all.saturating_add(host.end.saturating_sub(host.start)));
            explained.host = places;
            let what =
                format!("{bytes} bytes of reference counts are zeroes: {free} clusters in use count as free{safe}");
            self.count_steps(mapping_sound);
            self.cause(what, Confidence::Likely, explained);
        } else if blocks_gone {
            let of_table = [
                codes::REFTABLE_PAST_END,
                codes::REFTABLE_MISALIGNED,
                codes::REFTABLE_RESERVED,
                structure::HEADER_REFTABLE,
                structure::HEADER_REFTABLE_END,
            ];
            let explained = self.take(|brief| of_table.contains(&brief.code) || is_about_counts(brief.code));
            if explained.errors > 0 {
                self.count_steps(mapping_sound);
                self.cause(
                    format!("refcount blocks can not be found: the refcount table is damaged{safe}"),
                    Confidence::Likely,
                    explained,
                );
            }
        }
        if self.errors(codes::CLUSTER_OVERLAP) == 0 {
            self.lost_updates(mapping_sound, safe);
        }
    }

    fn lost_updates(&mut self, mapping_sound: bool, safe: &str) {
        let low = [codes::CLUSTER_FREE, codes::CLUSTER_UNDERCOUNTED, codes::L2_COPIED, codes::L1_COPIED];
        let copied_only = self.errors(codes::CLUSTER_FREE) == 0 && self.errors(codes::CLUSTER_UNDERCOUNTED) == 0;
        let leaks = self.errors(codes::CLUSTER_LEAKED).saturating_add(self.errors(codes::CLUSTER_OVERCOUNTED));
        let explained = self.take(|brief| low.contains(&brief.code) && brief.severity >= Severity::Leak);
        if explained.errors == 0 {
            return;
        }
        let what = if copied_only && leaks == 0 {
            format!(
                "the COPIED flags do not agree with the counts, which are right: written by a program that forgets them{safe}"
            )
        } else if copied_only {
            format!(
                "counts are higher than they should be, and COPIED flags do not agree: a deletion or a snapshot that was interrupted{safe}"
            )
        } else {
            format!(
                "reference counts were not written though the tables that use the clusters were: an update was lost (a crash or \
                 power cut with writes reordered){safe}"
            )
        };
        self.count_steps(mapping_sound);
        self.cause(what, Confidence::Likely, explained);
    }

    fn count_steps(&mut self, mapping_sound: bool) {
        self.steps.insert(Step::KeepIt);
        if mapping_sound {
            self.steps.extend([Step::ReadWithoutCounts, Step::Rebuild]);
        }
    }

    /// Whether nothing but counts is wrong, leaks apart.
    fn mapping_is_sound(&self) -> bool {
        self.survey.zeroed.is_empty()
            && self.briefs.iter().all(|brief| {
                brief.severity < Severity::Corruption
                    || is_about_counts(brief.code)
                    || [codes::REFTABLE_PAST_END, codes::REFTABLE_MISALIGNED, codes::REFTABLE_RESERVED]
                        .contains(&brief.code)
                    || brief.code == structure::HEADER_REFTABLE
                    || brief.code == structure::HEADER_REFTABLE_END
            })
            && self.errors(general::UNREADABLE) == 0
    }

    /// Clusters two use that can not share.
    fn used_twice(&mut self) {
        let metadata = |brief: &Brief| brief.owners.iter().any(|(class, _)| class.is_metadata());
        let overlaps = |brief: &Brief| brief.code == codes::CLUSTER_OVERLAP;
        let on_metadata = self.briefs.iter().filter(|brief| !brief.taken && overlaps(brief) && metadata(brief)).count();
        let on_data = self.briefs.iter().filter(|brief| !brief.taken && overlaps(brief) && !metadata(brief)).count();
        if on_metadata.saturating_add(on_data) == 0 {
            return;
        }
        let counts_low = self.errors(codes::CLUSTER_FREE).saturating_add(self.errors(codes::CLUSTER_UNDERCOUNTED)) > 0
            || self.briefs.iter().any(|brief| !brief.taken && brief.counted_low);
        let data = self.briefs.iter().filter(|brief| !brief.taken && overlaps(brief));
        let clusters = data.fold(0u64, |all, brief| all.saturating_add(brief.count));
        let leaks = self.errors(codes::CLUSTER_LEAKED) > 0;
        let follow = [
            codes::CLUSTER_FREE,
            codes::CLUSTER_UNDERCOUNTED,
            codes::CLUSTER_OVERCOUNTED,
            codes::L2_COPIED,
            codes::L1_COPIED,
        ];
        let single = on_metadata.saturating_add(on_data) == 1 && clusters <= 2;
        // What the tables among them map is concerned as well.
        let windows: Vec<Range<u64>> = self
            .briefs
            .iter()
            .filter(|brief| !brief.taken && overlaps(brief))
            .flat_map(|brief| {
                brief.owners.iter().filter(|(class, _)| *class == Class::L2).filter_map(|(_, guest)| guest.clone())
            })
            .collect();
        let mut explained = self.take(|brief| {
            overlaps(brief) || follow.contains(&brief.code) || brief.code == codes::CLUSTER_LEAKED && !single
        });
        explained.guest.extend(windows);
        let on = if on_metadata == 0 { "by two parts of the disk" } else { "twice, metadata among them" };
        let clusters_words = if clusters == 1 { "cluster is used".to_owned() } else { "clusters are used".to_owned() };
        let mut what = format!("{clusters} {clusters_words} {on}: ");
        let sure = if single {
            what += "an entry was changed to name a cluster of another, or one update of a count was lost";
            Confidence::Possible
        } else if !counts_low && self.side.snapshots.is_empty() && self.errors(codes::L2_COPIED) == 0 {
            what += "the counts agree with that, so a repair ('qemu-img check -r all') has made it legal; who wrote there last has \
                     destroyed what the other had";
            Confidence::Likely
        } else {
            // Both leave two parts of the disk that took the same clusters in the same order, and a count of one.
            what += "either two programs wrote to the image at the same time, each taking clusters the other had taken, or \
                     counts were lost in a crash and the clusters were given out again. The image does not say which: look \
                     in the logs of the hosts for a second program (a machine, a backup job, qemu-img) that had it open, and \
                     for a power cut, a kill or write errors before the clusters were given out";
            if leaks {
                what += "; clusters that nothing refers to any more, as here, are left where one program writes its table \
                         over the other's, which speaks for the former";
            }
            if leaks || clusters >= 16 { Confidence::Likely } else { Confidence::Possible }
        };
        self.steps.extend([Step::KeepIt, Step::NoRepairOfOverlaps, Step::RestoreRanges, Step::Salvage]);
        self.cause(what, sure, explained);
    }

    /// Clusters nobody uses, and no table that was lost.
    fn leaks(&mut self) {
        let given_up = self.orphans.l1.iter().any(|old| old.counted) && self.orphans.lost.is_empty();
        let explained =
            self.take(|brief| brief.code == codes::CLUSTER_LEAKED || brief.code == codes::CLUSTER_OVERCOUNTED);
        if explained.errors == 0 {
            return;
        }
        let alone = self.briefs.iter().all(|brief| brief.severity < Severity::Corruption);
        let clusters = self.counted_vacant >> self.geometry.cluster_bits;
        let mut what = if given_up {
            format!(
                "the deletion of a snapshot was not finished: {clusters} clusters, with the snapshot's tables, were not given back; \
                 no data of the disk is affected"
            )
        } else {
            "clusters were counted and then not used: a write or a deletion was interrupted (a crash, a kill); no data that was \
             flushed is affected"
                .to_owned()
        };
        if self.side.dirty {
            what += "; the image is marked dirty: whatever opens it for writing next gives them back unasked";
        }
        self.steps.insert(if alone { Step::FreeLeaks } else { Step::KeepIt });
        self.cause(what, Confidence::Likely, explained);
    }
}

/// Codes that say that counts and references differ.
fn is_about_counts(code: &Code) -> bool {
    [
        codes::CLUSTER_FREE,
        codes::CLUSTER_UNDERCOUNTED,
        codes::CLUSTER_OVERCOUNTED,
        codes::CLUSTER_LEAKED,
        codes::L1_COPIED,
        codes::L2_COPIED,
        recover::BLOCK_OVERWRITTEN,
        recover::BLOCK_ZEROED,
    ]
    .contains(&code)
}

fn table_of(one: &Overwritten) -> Option<u64> {
    match one.part {
        Part::L2 { table, .. } => Some(table),
        _ => None,
    }
}

fn block_of(one: &Overwritten) -> Option<u64> {
    match one.part {
        Part::Block { block, .. } => Some(block),
        _ => None,
    }
}

fn of_all(some: u64, all: u64, what: &str) -> String {
    match (some, all) {
        (1, 1) => format!("the only {what}"),
        _ => format!("{some} of {all} {what}s"),
    }
}

fn were(parts: &[String]) -> String {
    let all = match parts {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        _ => parts.join(""),
    };
    let one = matches!(parts, [one] if one.starts_with("the ") || one.starts_with("1 of"));
    format!("{all} {}", if one { "was" } else { "were" })
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Ranges sorted and joined, all of them.
fn join_all(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = ranges.filter(|range| !range.is_empty()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// As many as a cause names.
fn join(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined = join_all(ranges.into_iter());
    joined.truncate(RANGES_MAX);
    joined
}

/// Whether a range shares bytes with any of sorted ones that lie apart.
fn touches(sorted: &[Range<u64>], range: &Range<u64>) -> bool {
    let first = sorted.partition_point(|one| one.end <= range.start);
    sorted.get(first).is_some_and(|one| one.start < range.end)
}

/// Causes by weight; steps in order, in words.
fn finish(cx: &mut Context<'_>, mut causes: Vec<Cause>, steps: BTreeSet<Step>) {
    causes.retain(|cause| cause.errors > 0);
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.errors));
    cx.causes.extend(causes);
    let corrupt = cx.findings.errors(Severity::Corruption) > 0;
    let name = "IMAGE";
    for step in steps {
        let words = match step {
            Step::KeepIt if !corrupt => continue,
            Step::KeepIt => "keep this file as it is: work on a copy (cp --reflink=auto --sparse=always), and do not start the \
                             virtual machine on it"
                .to_owned(),
            Step::NoRepairOfLeaks => "do not run 'qemu-img check -r leaks' or '-r all' on it: both free the clusters without an owner, \
                                      which hold the only copy of the missing data"
                .to_owned(),
            Step::NoRepairOfOverlaps => "do not run 'qemu-img check -r all': it makes the double use legal by raising counts, and \
                                         calls the image consistent"
                .to_owned(),
            Step::FetchTheRest => "find where the file was copied from and fetch the rest of it: what lies beyond the cut is nowhere \
                                   in this file"
                .to_owned(),
            Step::ReadWithoutCounts => {
                format!("the disk can be read as it is, reading needs no counts: 'qemu-img convert -O qcow2 {name} NEW' makes a sound copy")
            }
            Step::WriteEntries => "on a copy, write the candidates listed (QCOW2-ORPHAN-L2) into their L1 entries, offset with bit 63 set, \
                                   and check that copy"
                .to_owned(),
            Step::RestoreRanges => "restore the ranges of the disk listed as lost from a backup (--ddrescue-map writes them as a map), or \
                                    run a file system check inside them on a copy"
                .to_owned(),
            Step::Salvage => format!("'qemu-img convert --salvage -O raw COPY-OF-{name} OUT' saves what can be read, with zeroes elsewhere"),
            Step::Rebuild if corrupt => {
                "or, on a copy, 'qemu-img check -r all' counts anew what the tables refer to; check the copy again afterwards".to_owned()
            }
            Step::Rebuild => continue,
            Step::FreeLeaks => format!(
                "nothing is urgent: leaks cost space, no data. Look at the guest's data first (mappings that were zeroed leave \
                 leaks behind as well, and the leaked space is their only copy); then, on a copy or with a backup and no machine \
                 running, 'qemu-img check -r leaks {name}' gives the space back"
            ),
        };
        if !cx.next.contains(&words) {
            cx.next.push(words);
        }
    }
}
