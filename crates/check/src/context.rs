//! What an analyser is handed: the image, what was asked, and the places for what it finds.

use std::ops::Range;

use rangemap::RangeSet;

use crate::Options;
use crate::budget::Budget;
use crate::code::general;
use crate::finding::{Finding, Findings};
use crate::map::{Claim, Class, Grid, GuestMap, GuestState, HostMap};
use crate::report::{Cause, Lost, Numbers, Reference};
use crate::source::Source;
use crate::vacant::Vacant;
use crate::watch::{Event, Progress, Wants, Watch};

/// Lost ranges kept apart; more are only summed up.
const LOST_MAX: usize = 100_000;

pub(crate) struct Context<'a> {
    pub(crate) image: &'a dyn Source,
    pub(crate) options: &'a Options,
    pub(crate) watch: &'a dyn Watch,
    pub(crate) budget: &'a Budget,
    pub(crate) findings: Findings,
    pub(crate) causes: Vec<Cause>,
    pub(crate) not_checked: Vec<String>,
    pub(crate) next: Vec<String>,
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) references: Vec<Reference>,
    pub(crate) numbers: Numbers,
    pub(crate) host: Option<HostMap>,
    pub(crate) guest: Option<GuestMap>,
    /// Stretches of the file nothing refers to, out of what was added to its map.
    pub(crate) vacant: Vacant,
    /// Whether the verdict may be "healthy": nothing essential was left out.
    pub(crate) complete: bool,
    lost: RangeSet<u64>,
    lost_left_out: (u64, u64),
}

impl<'a> Context<'a> {
    pub(crate) fn new(image: &'a dyn Source, options: &'a Options, watch: &'a dyn Watch, budget: &'a Budget) -> Self {
        Self {
            image,
            options,
            watch,
            budget,
            findings: Findings::new(options.max_findings),
            causes: Vec::new(),
            not_checked: Vec::new(),
            next: Vec::new(),
            facts: Vec::new(),
            references: Vec::new(),
            numbers: Numbers::default(),
            host: None,
            guest: None,
            vacant: Vacant::default(),
            complete: true,
            lost: RangeSet::new(),
            lost_left_out: (0, 0),
        }
    }

    /// Length of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.image.len()
    }

    pub(crate) fn find(&mut self, finding: Finding) {
        self.findings.add(finding);
    }

    /// The guest can not get these bytes back, or gets others.
    pub(crate) fn lose(&mut self, guest: Range<u64>) {
        if guest.is_empty() {
            return;
        }
        if self.lost.len() >= LOST_MAX && !self.lost.overlaps(&guest) {
            self.lost_left_out.0 = self.lost_left_out.0.saturating_add(1);
            self.lost_left_out.1 = self.lost_left_out.1.saturating_add(guest.end.saturating_sub(guest.start));
            return;
        }
        self.lost.insert(guest);
    }

    /// More of it, of which only the number of ranges and of bytes is known.
    pub(crate) fn lose_more(&mut self, ranges: u64, bytes: u64) {
        self.lost_left_out.0 = self.lost_left_out.0.saturating_add(ranges);
        self.lost_left_out.1 = self.lost_left_out.1.saturating_add(bytes);
    }

    pub(crate) fn lost(&self) -> Lost {
        let bytes = self.lost.iter().fold(0u64, |all, range| all.saturating_add(range.end.saturating_sub(range.start)));
        Lost {
            ranges: self.lost.iter().cloned().collect(),
            bytes: bytes.saturating_add(self.lost_left_out.1),
            left_out: self.lost_left_out.0,
        }
    }

    /// A line of NOT CHECKED that does not stand in the way of a verdict.
    pub(crate) fn not_checked(&mut self, sentence: impl Into<String>) {
        self.not_checked.push(sentence.into());
    }

    /// A line of NOT CHECKED without which nobody can call the image healthy.
    pub(crate) fn could_not(&mut self, sentence: impl Into<String>) {
        self.not_checked.push(sentence.into());
        self.complete = false;
    }

    pub(crate) fn fact(&mut self, name: &'static str, value: impl Into<String>) {
        let value = value.into();
        if self.watch.wants().contains(Wants::HEADER) {
            self.watch.event(&Event::Field(name, &value));
        }
        self.facts.push((name, value));
    }

    pub(crate) fn stopped(&self) -> bool {
        self.watch.stop()
    }

    pub(crate) fn progress(&self, phase: &'static str, done: u64, total: u64) {
        self.watch.progress(Progress { phase, done, total });
    }

    /// Reads up to `len` bytes from `at`; what lies past the end is left out. A part the medium does not give is a
    /// finding and reads as zeroes. `what` names it, as in "the block map". Callers bound `len` and pay for it first.
    pub(crate) fn read(&mut self, at: u64, len: usize, what: &str) -> Vec<u8> {
        self.read_from(self.image, at, len, what)
    }

    /// As [`read`](Self::read), out of another view of the image (a VHDX file with its log replayed).
    pub(crate) fn read_from(&mut self, source: &dyn Source, at: u64, len: usize, what: &str) -> Vec<u8> {
        let there = usize::try_from(source.len().saturating_sub(at)).unwrap_or(usize::MAX).min(len);
        let mut buf = vec![0u8; there];
        match source.read_at(at, &mut buf) {
            Ok(read) if read < there => {
                let end = at.saturating_add(there as u64);
                let words = format!(
                    "the file became shorter: {what} at {at:#x} ended {} bytes early",
                    there.saturating_sub(read)
                );
                self.find(Finding::new(general::SHRANK, words).host(at..end));
            }
            Ok(_) => {}
            Err(error) => {
                buf.fill(0);
                // What can be read sector by sector is not given up with its neighbours.
                let mut bad: RangeSet<u64> = RangeSet::new();
                for (index, sector) in buf.chunks_mut(512).enumerate() {
                    let start = at.saturating_add((index as u64).saturating_mul(512));
                    if source.read_at(start, sector).is_err() {
                        sector.fill(0);
                        bad.insert(start..start.saturating_add(sector.len() as u64));
                    }
                }
                // A medium that gives everything at the second try has hidden nothing.
                if !bad.is_empty() {
                    self.numbers.check_errors = self.numbers.check_errors.saturating_add(1);
                }
                for range in bad.iter() {
                    let words = format!("{what}: reading {:#x}..{:#x} failed: {error}", range.start, range.end);
                    self.findings.add(Finding::new(general::UNREADABLE, words).host(range.clone()));
                }
            }
        }
        buf
    }

    /// Begins the map of the file.
    pub(crate) fn map_host(&mut self, unit: u64, claims: Vec<Claim>) {
        let len = self.file_len();
        let grid = (self.options.cells > 0).then(|| Grid::new(len, unit, self.options.cells));
        self.host = Some(HostMap { len, unit, claims, totals: [0; Class::COUNT], grid });
    }

    /// Adds a stretch of the file to the map; in order, without gaps. Beyond the end nothing is added.
    pub(crate) fn add_host(&mut self, range: Range<u64>, class: Class) {
        let Some(map) = &mut self.host else { return };
        let range = range.start..range.end.min(map.len);
        if range.is_empty() {
            return;
        }
        self.vacant.note(&range, class, self.options.memory, self.budget);
        if let Some(bytes) = map.totals.get_mut(class as usize) {
            *bytes = bytes.saturating_add(range.end.saturating_sub(range.start));
        }
        if let Some(grid) = &mut map.grid {
            grid.add(range.clone(), class as usize);
        }
        if self.watch.wants().contains(Wants::HOST) {
            self.watch.event(&Event::Host(range, class));
        }
    }

    /// Begins the map of the guest's disk.
    pub(crate) fn map_guest(&mut self, size: u64, unit: u64) {
        let grid = (self.options.cells > 0).then(|| Grid::new(size, unit, self.options.cells));
        self.guest = Some(GuestMap { size, totals: [0; GuestState::COUNT], grid });
    }

    /// Adds a stretch of the guest's disk to its map; in any order.
    pub(crate) fn add_guest(&mut self, range: Range<u64>, state: GuestState) {
        let Some(map) = &mut self.guest else { return };
        let range = range.start..range.end.min(map.size);
        if range.is_empty() {
            return;
        }
        if let Some(bytes) = map.totals.get_mut(state as usize) {
            *bytes = bytes.saturating_add(range.end.saturating_sub(range.start));
        }
        if let Some(grid) = &mut map.grid {
            grid.add(range, state as usize);
        }
    }

    /// Turns what is lost from data into damaged on the map of the guest's disk. Called once, at the end, by analysers
    /// that added every stretch some entry maps as data, sound or not.
    pub(crate) fn damage_guest(&mut self) {
        let Some(map) = &mut self.guest else { return };
        for range in self.lost.iter() {
            map.turn(range.start..range.end, GuestState::Data, GuestState::Damaged);
        }
    }

    /// As [`add_guest`](Self::add_guest), what is lost already as damaged.
    pub(crate) fn add_guest_unless_lost(&mut self, range: Range<u64>, state: GuestState) {
        let lost: Vec<Range<u64>> = self.lost.overlapping(&range).cloned().collect();
        let mut at = range.start;
        for lost in lost {
            let lost = lost.start.max(range.start)..lost.end.min(range.end);
            self.add_guest(at..lost.start, state);
            self.add_guest(lost.clone(), GuestState::Damaged);
            at = lost.end;
        }
        self.add_guest(at..range.end, state);
    }
}
