//! Whoever watches a check: progress, a wish to stop, and the details qcheck's streams print.

use std::ops::Range;

use crate::finding::Finding;
use crate::map::Class;

bitflags::bitflags! {
    /// Details a watcher wants. Each costs a walk of its own over the tables, after the check.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Wants: u32 {
        /// Fields of the header ([`Event::Field`]).
        const HEADER = 1;
        /// Every L1 entry, empty ones too.
        const L1 = 1 << 1;
        /// Every nonzero L2 entry.
        const L2 = 1 << 2;
        /// Every nonzero entry of the refcount table.
        const REFCOUNT_TABLE = 1 << 3;
        /// Entries of refcount blocks.
        const REFCOUNTS = 1 << 4;
        /// The image file as ranges of one class each, in order ([`Event::Host`]).
        const HOST = 1 << 5;
        /// Tests passed ([`Event::Confirm`]).
        const CONFIRM = 1 << 6;
        /// Sections with their summaries ([`Event::Section`], [`Event::Summary`]).
        const SECTIONS = 1 << 7;
        /// Each finding in its section ([`Event::Problem`]), and flawed entries also of tables not asked for.
        const PROBLEMS = 1 << 8;
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, in a word or two.
    pub phase: &'static str,
    /// Bytes of metadata read.
    pub done: u64,
    /// Bytes of metadata there are, as far as is known.
    pub total: u64,
}

/// A detail, in the order of the sections of a report.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A section begins.
    Section(&'a str),
    /// A section ended: its label, the number of problems found in it, and whether it was cut short.
    Summary(&'a str, u64, bool),
    /// A field of the header, with its value as text.
    Field(&'a str, &'a str),
    /// A test was passed.
    Confirm(&'a str),
    /// Something worth knowing.
    Info(&'a str),
    /// A finding, in the section of what it is about.
    Problem(&'a Finding),
    /// An entry of a table.
    Entry {
        /// The table's class.
        class: Class,
        /// Where the table is; 0 if it has none.
        table: u64,
        /// Index of the entry in its table.
        index: u64,
        /// Which cluster it is about: of the guest's disk for L1 and L2 entries (the first one), of the image file for
        /// refcounts (the first one of a block).
        cluster: u64,
        /// The value as stored.
        raw: u64,
        /// Where it points, or the count it holds.
        value: u64,
        /// Flags in words, as `+COPIED -ZEROES`.
        flags: &'a str,
        /// Whether something is wrong with it.
        flawed: bool,
    },
    /// A stretch of the image file of one class, as long as can be, in order.
    Host(Range<u64>, Class),
}

/// A watcher. Everything has a default: [`Silent`] is one.
pub trait Watch: Sync {
    /// Which details [`event`](Self::event) is called for.
    fn wants(&self) -> Wants {
        Wants::empty()
    }

    /// A detail; always on the thread that called `check`.
    fn event(&self, _event: &Event<'_>) {}

    /// Called now and then, from any thread.
    fn progress(&self, _progress: Progress) {}

    /// Whether to stop and report what is known so far. Asked often, from any thread.
    fn stop(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Watch for Silent {}
