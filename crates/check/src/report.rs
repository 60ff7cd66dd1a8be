//! What a check has to say.

use std::ops::Range;

use crate::Format;
use crate::finding::{Confidence, Finding};
use crate::map::{GuestMap, HostMap};

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing wrong with anything that was checked.
    Healthy,
    /// Space is wasted; no data is affected.
    Leaks,
    /// Data is lost or in danger.
    Damaged,
    /// Too much is missing to say.
    Undecided,
    /// A format that can not be checked (raw, or not known).
    Unsupported,
}

impl Verdict {
    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Leaks => "leaks",
            Self::Damaged => "damaged",
            Self::Undecided => "undecided",
            Self::Unsupported => "unsupported",
        }
    }

    /// The exit status of `qemu-img check` for it.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Undecided => 1,
            Self::Damaged => 2,
            Self::Leaks => 3,
            Self::Unsupported => 63,
        }
    }
}

/// Why many findings are there: the few things that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// One sentence: what happened.
    pub what: String,
    /// How sure that is.
    pub confidence: Confidence,
    /// Names of the codes it explains.
    pub codes: Vec<&'static str>,
    /// How many single errors it explains.
    pub errors: u64,
    /// Where in the image file.
    pub host: Vec<Range<u64>>,
    /// What of the guest's disk.
    pub guest: Vec<Range<u64>>,
}

/// Ranges of the guest's disk whose content is lost or not its own any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// The ranges, sorted, apart; the first ones if there are too many.
    pub ranges: Vec<Range<u64>>,
    /// Bytes in all of them, complete.
    pub bytes: u64,
    /// Ranges left out of the list.
    pub left_out: u64,
}

/// Another file the image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `backing file`, `data file`, `extent`, `parent`.
    pub role: &'static str,
    /// The name as it stands in the image; never opened because of that.
    pub name: String,
    /// Its format, if the image says so.
    pub format: Option<String>,
}

/// The figures of `qemu-img check`, with its meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Offset of the first byte after the last one in use.
    pub image_end_offset: Option<u64>,
    /// Clusters of the guest's disk.
    pub total_clusters: Option<u64>,
    /// Of these, allocated.
    pub allocated_clusters: Option<u64>,
    /// Of these, not behind their predecessor in the file.
    pub fragmented_clusters: Option<u64>,
    /// Of these, compressed.
    pub compressed_clusters: Option<u64>,
    /// Errors of severity corruption.
    pub corruptions: u64,
    /// Errors of severity leak.
    pub leaks: u64,
    /// Parts that could not be checked because reading failed.
    pub check_errors: u64,
}

/// Everything a check has to say about one image.
#[derive(Debug)]
pub struct Report {
    /// The image's name.
    pub image: String,
    /// The format it was checked as; `None` if it is none that is known.
    pub format: Option<Format>,
    /// Whether the format was recognised by its magic, not stated.
    pub probed: bool,
    /// The verdict.
    pub verdict: Verdict,
    /// What of the guest's disk is affected.
    pub lost: Lost,
    /// What happened, the weightiest first.
    pub causes: Vec<Cause>,
    /// Single findings, by place in the file.
    pub findings: Vec<Finding>,
    /// Totals per code and severity, complete.
    pub sums: Vec<(&'static str, crate::code::Severity, crate::finding::Sum)>,
    /// What was not checked, a sentence each.
    pub not_checked: Vec<String>,
    /// What to do next, a sentence or command each, safest first.
    pub next: Vec<String>,
    /// What the image says about itself: name and value, in the order of the header.
    pub facts: Vec<(&'static str, String)>,
    /// Other files it names.
    pub references: Vec<Reference>,
    /// The figures of `qemu-img check`.
    pub numbers: Numbers,
    /// The image file by owner; `None` where nothing could be made of it.
    pub host: Option<HostMap>,
    /// The guest's disk by state.
    pub guest: Option<GuestMap>,
    /// Whether somebody asked to stop before it was done.
    pub stopped: bool,
    /// Whether the image changed or was held by a writer meanwhile.
    pub live: bool,
}
