//! Parts of a plan in words, as reports say them: "write 4 KiB at 0x10000, durable".

use blkproof_block::{ByteRange, Errno};
use blkproof_sim::FaultDone;

use super::{Act, CutPoint, CutState, FaultAt, FaultSpec, Op};

impl Act {
    /// Its word in plans.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Zeroes { .. } => "zeroes",
            Self::Discard { .. } => "discard",
            Self::Flush => "flush",
            Self::Drain => "drain",
            Self::Status { .. } => "status",
            Self::Resize { .. } => "resize",
            Self::Reopen => "reopen",
            Self::Cut { .. } => "cut",
        }
    }

    /// The bytes it is about, if it is about some.
    pub const fn range(&self) -> Option<ByteRange> {
        match self {
            Self::Read { range, .. }
            | Self::Write { range, .. }
            | Self::Zeroes { range, .. }
            | Self::Discard { range }
            | Self::Status { range } => Some(*range),
            Self::Flush | Self::Drain | Self::Resize { .. } | Self::Reopen | Self::Cut { .. } => None,
        }
    }

    /// The same bytes, to change.
    pub const fn range_mut(&mut self) -> Option<&mut ByteRange> {
        match self {
            Self::Read { range, .. }
            | Self::Write { range, .. }
            | Self::Zeroes { range, .. }
            | Self::Discard { range }
            | Self::Status { range } => Some(range),
            Self::Flush | Self::Drain | Self::Resize { .. } | Self::Reopen | Self::Cut { .. } => None,
        }
    }

    /// Whether it may change what a client reads there: the write class of CM 2.
    pub const fn writes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zeroes { .. } | Self::Discard { .. })
    }

    /// In words: `write 4 KiB at 0x10000, durable`.
    pub fn describe(&self) -> String {
        let mut words = match self {
            Self::Read { range, .. } => format!("read {}", place(*range)),
            Self::Write { range, .. } => format!("write {}", place(*range)),
            Self::Zeroes { range, .. } => format!("write {} as zeroes", place(*range)),
            Self::Discard { range } => format!("discard {}", place(*range)),
            Self::Flush => "flush".to_owned(),
            Self::Drain => "drain".to_owned(),
            Self::Status { range } => format!("ask for the map of {}", place(*range)),
            Self::Resize { size } => format!("resize to {}", bytes_text(*size)),
            Self::Reopen => "close, check and open again".to_owned(),
            Self::Cut { state } => format!("power cut that leaves {}", state.describe()),
        };
        match self {
            Self::Read { vector, .. } if !vector.is_empty() => {
                words.push_str(&format!(", in {}", counted(vector.len() as u64, "piece")));
            }
            Self::Write { fua, compressed, .. } => {
                words.push_str(if *fua { ", durable" } else { "" });
                words.push_str(if *compressed { ", compressed" } else { "" });
            }
            Self::Zeroes { fua, unmap, no_fallback, .. } => {
                words.push_str(if *fua { ", durable" } else { "" });
                words.push_str(if *unmap { ", giving space back" } else { "" });
                words.push_str(if *no_fallback { ", or not at all" } else { "" });
            }
            _ => {}
        }
        words
    }
}

impl Op {
    /// In words: `write 4 KiB at 0x10000, durable, after op 3, dropped after 5 moves`.
    pub fn describe(&self) -> String {
        let mut words = self.act.describe();
        if let [first, rest @ ..] = self.after.as_slice() {
            let ops = if rest.is_empty() { "op" } else { "ops" };
            words.push_str(&format!(", after {ops} {first}"));
            rest.iter().for_each(|op| words.push_str(&format!(", {op}")));
        }
        match self.drop_at {
            None => {}
            Some(0) => words.push_str(", dropped before its first move"),
            Some(moves) => words.push_str(&format!(", dropped after {}", counted(u64::from(moves), "move"))),
        }
        words
    }
}

impl FaultSpec {
    /// In words: `the 2nd request below of op 3 fails with "Input/output error" after 512 bytes`.
    pub fn describe(&self) -> String {
        let which = match self.at {
            FaultAt::Io(key) if key.owner.0 == 0 => {
                format!("the {} request outside of any op", ordinal(key.nth.into()))
            }
            FaultAt::Io(key) => format!("the {} request of op {}", ordinal(key.nth.into()), key.owner.0),
            FaultAt::Nth(nth) => format!("the {} request of the run", ordinal(nth)),
            FaultAt::NthOf(kind, nth) => format!("the {} {} of the run", ordinal(nth), kind.name()),
        };
        let all = if self.lasting { ", and every one of its kind after it," } else { "" };
        let (how, error) = (if self.immediate { "is refused" } else { "fails" }, errno_words(self.errno));
        let done = match self.done {
            FaultDone::Nothing => String::new(),
            FaultDone::All => ", though all of it is done".to_owned(),
            FaultDone::First(len) => format!(", though its first {} are done", bytes_text(len)),
            FaultDone::From(len) => format!(", though all but its first {} is done", bytes_text(len)),
        };
        format!("{which}{all} {how} with \"{error}\"{done}")
    }
}

impl CutState {
    /// In words, after "leaves": `nothing that was not durable`.
    pub fn describe(&self) -> String {
        let list = |ios: &[blkproof_sim::IoKey]| ios.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::AllOld => "nothing that was not durable".to_owned(),
            Self::Keep(ios) if ios.is_empty() => "nothing that was not durable".to_owned(),
            Self::AllNew => "everything".to_owned(),
            Self::Drop(ios) if ios.is_empty() => "everything".to_owned(),
            Self::Drop(ios) => format!("everything but {}", list(ios)),
            Self::Keep(ios) => format!("of what was not durable only {}", list(ios)),
            Self::Tear { io, first, blocks } => {
                let end = if *first { "first" } else { "last" };
                format!("everything, but of {io} only the {end} {}", counted(*blocks, "block"))
            }
            Self::Seed(seed) => format!("what seed {seed:#x} picks"),
            Self::Number(number) => format!("state {number}"),
        }
    }
}

impl CutPoint {
    /// In words: `just after op 7 succeeded`.
    pub fn describe(&self) -> String {
        match self {
            Self::Before(key) => format!("just before {key}"),
            Self::BeforeOp(op) => format!("just before op {op} was sent"),
            Self::AfterOp(op) => format!("just after op {op} succeeded"),
            Self::End => "after the image was closed".to_owned(),
        }
    }
}

/// Where: `4 KiB at 0x10000`.
fn place(range: ByteRange) -> String {
    format!("{} at {:#x}", bytes_text(range.len()), range.start)
}

/// How many bytes, exactly: `4 KiB`, `1 MiB`, `513 bytes`.
pub(super) fn bytes_text(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => counted(bytes, "byte"),
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn ordinal(nth: u64) -> String {
    let suffix = match (nth % 100, nth % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{nth}{suffix}")
}

/// What an error number means: `Input/output error`.
pub fn errno_words(errno: Errno) -> String {
    errno.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_in_words() {
        for (line, want) in [
            ("3 write 64K+4K fua", "write 4 KiB at 0x10000, durable"),
            ("3 q1 read 1M+512 as 200+312", "read 512 bytes at 0x100000, in 2 pieces"),
            (
                "3 zeroes 1+1 unmap fua no-fallback",
                "write 1 byte at 0x1 as zeroes, durable, giving space back, or not at all",
            ),
            (
                "3 write 0+1M compressed after 1,2 drop@1",
                "write 1 MiB at 0x0, compressed, after ops 1, 2, dropped after 1 move",
            ),
            ("3 flush drop@0", "flush, dropped before its first move"),
            ("3 discard 4G+1T after 1", "discard 1 TiB at 0x100000000, after op 1"),
            ("3 resize 1000", "resize to 1000 bytes"),
            ("3 reopen", "close, check and open again"),
            ("3 cut keep 3#2+4#1", "power cut that leaves of what was not durable only 3#2, 4#1"),
            ("3 cut tear 3#2 last 1", "power cut that leaves everything, but of 3#2 only the last 1 block"),
        ] {
            assert_eq!(line.parse::<Op>().unwrap().describe(), want, "{line}");
        }
    }

    #[test]
    fn faults_in_words() {
        for (line, want) in [
            (
                "3#2 fails EIO after 512",
                "the 2nd request of op 3 fails with \"Input/output error\", though its first 512 bytes are done",
            ),
            (
                "write 11 refused ENOSPC, lasting",
                "the 11th write of the run, and every one of its kind after it, is refused with \"No space left on device\"",
            ),
            (
                "0#1 fails EIO, all done",
                "the 1st request outside of any op fails with \"Input/output error\", though all of it is done",
            ),
        ] {
            assert_eq!(line.parse::<FaultSpec>().unwrap().describe(), want, "{line}");
        }
    }
}
