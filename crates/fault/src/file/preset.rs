//! Whole life cycles in a word: `life = "pending"`.
//!
//! A preset stands for a life, and for `on.op` and `do` where the rule does not say them.

use std::time::Duration;

use blkproof_block::DeviceError;

use crate::request::Operations;
use crate::rule::{Action, Corruption, Done, Failure, Growth, Life, Rot, Until};

/// A life cycle with a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The word; `N` in it stands for a number.
    pub word: &'static str,
    /// What happens to such a sector.
    pub story: &'static str,
}

/// Every preset.
pub const ALL: &[Preset] = &[
    Preset {
        word: "until-rewritten",
        story: "a bad sector: reads of it fail with 03/1101 until it has been written whole",
    },
    Preset {
        word: "until-reassigned",
        story: "a sector past help: reads of it fail with 03/110b (reassignment recommended), rewritten or not, \
                until it is \
                reassigned",
    },
    Preset {
        word: "first-N-reads",
        story: "a sector that is read at last: the first N reads of it fail with 03/1101, then it is good",
    },
    Preset {
        word: "recovered",
        story: "a weak sector: reads return its data and report 01/1701 (recovered with retries), until it is \
                rewritten",
    },
    Preset {
        word: "pending",
        story: "a pending sector: nothing shows but reads, which fail with 03/1104 (what libata makes of UNC); a write \
                makes it good",
    },
    Preset {
        word: "bit-rot",
        story: "decay: one sector after the other reads with a flipped bit and no error, which spreads to those beside it; \
                half of them after 30 days; rewriting refreshes a sector",
    },
    Preset {
        word: "growing-defects",
        story: "a dying surface: reads fail with 03/110b, each hour the next sector behind the bad ones falls too, a \
                hundred at most; a reassigned sector is good",
    },
    Preset { word: "permanent", story: "bad for ever" },
];

/// What a word stands for.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Meaning {
    pub(super) life: Life,
    pub(super) operations: Option<Operations>,
    pub(super) action: Option<Action>,
}

/// What `word` stands for.
pub(super) fn meaning(word: &str) -> Option<Meaning> {
    let until = |until: Until| Life { until, ..Life::default() };
    let reads = |life: Life, action: Action| Meaning { life, operations: Some(Operations::READ), action: Some(action) };
    Some(match word {
        "until-rewritten" => reads(until(Until::Rewrite), fail(3, 0x11, 1)),
        "until-reassigned" => reads(until(Until::Reassign), fail(3, 0x11, 0xb)),
        "recovered" => reads(until(Until::Rewrite), Action::Recovered(sense(1, 0x17, 1))),
        "pending" => reads(until(Until::Rewrite), fail(3, 0x11, 4)),
        "bit-rot" => reads(
            Life { until: Until::Rewrite, growth: None, rot: Some(Rot { half: Duration::from_secs(30 * 86_400) }) },
            Action::Corrupt { how: Corruption::Flip { bits: 1 }, sectors: None },
        ),
        "growing-defects" => reads(
            Life {
                until: Until::Reassign,
                growth: Some(Growth { each: Duration::from_secs(3600), limit: 100 }),
                rot: None,
            },
            fail(3, 0x11, 0xb),
        ),
        "permanent" => Meaning { life: Life::default(), operations: None, action: None },
        _ => {
            let count = word.strip_prefix("first-")?.strip_suffix("-reads")?;
            let count = super::words::number(count).filter(|count| (1..=i64::MAX.unsigned_abs()).contains(count))?;
            reads(until(Until::Accesses(count)), fail(3, 0x11, 1))
        }
    })
}

const fn sense(key: u8, asc: u8, ascq: u8) -> Failure {
    Failure::device(DeviceError::Scsi { key, asc, ascq })
}

const fn fail(key: u8, asc: u8, ascq: u8) -> Action {
    Action::Fail { error: sense(key, asc, ascq), done: Done::Prefix, wait: None }
}
