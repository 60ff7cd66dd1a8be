//! Faults: `3#2 fails EIO after 512`, `nth 17 refused ENOSPC, lasting`.

use std::fmt;

use blkproof_block::Errno;
use blkproof_sim::{FaultDone, IoKind};

use super::crash::io;
use super::words::{Words, unknown};
use crate::plan::{FaultAt, FaultSpec};

/// Names of Linux's error numbers; others are written as numbers. The first name of a number is written.
const ERRNOS: &[(&str, i32)] = &[
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EINTR", 4),
    ("EIO", 5),
    ("ENXIO", 6),
    ("EBADF", 9),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EBUSY", 16),
    ("ENODEV", 19),
    ("EINVAL", 22),
    ("EFBIG", 27),
    ("ENOSPC", 28),
    ("EROFS", 30),
    ("ERANGE", 34),
    ("ENODATA", 61),
    ("EOVERFLOW", 75),
    ("EILSEQ", 84),
    ("ENOTSUP", 95),
    ("EOPNOTSUPP", 95),
    ("ENOTCONN", 107),
    ("ESHUTDOWN", 108),
    ("ETIMEDOUT", 110),
    ("EREMOTEIO", 121),
    ("EDQUOT", 122),
    ("ENOMEDIUM", 123),
];

/// An error number by name, as in plans: `EIO`.
pub(super) fn errno_text(errno: Errno) -> String {
    match ERRNOS.iter().find(|(_, number)| *number == errno.0) {
        Some((name, _)) => (*name).to_owned(),
        None => errno.0.to_string(),
    }
}

fn errno(word: &str) -> Result<Errno, String> {
    if let Some((_, number)) = ERRNOS.iter().find(|(name, _)| *name == word) {
        return Ok(Errno(*number));
    }
    match super::sizes::number(word).and_then(|number| i32::try_from(number).ok()) {
        Some(number) => Ok(Errno(number)),
        None => Err(unknown("error", word, ERRNOS.iter().map(|(name, _)| *name))),
    }
}

pub(super) fn read_at(words: &mut Words<'_>) -> Result<FaultAt, String> {
    let word = words.next("a request below, such as 3#2, 'nth 17' or 'write 3',")?;
    if word.contains('#') {
        return io(word).map(FaultAt::Io);
    }
    if word == "nth" {
        return words.number("which request of the run").map(FaultAt::Nth);
    }
    let Some(kind) = IoKind::ALL.into_iter().find(|kind| kind.name() == word) else {
        let names = IoKind::ALL.iter().map(|kind| kind.name()).chain(["nth", "3#2"]);
        return Err(unknown("request below", word, names));
    };
    words.number("which of its kind").map(|nth| FaultAt::NthOf(kind, nth))
}

pub(super) fn print_at(at: &FaultAt, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match at {
        FaultAt::Io(io) => write!(f, "{io}"),
        FaultAt::Nth(nth) => write!(f, "nth {nth}"),
        FaultAt::NthOf(kind, nth) => write!(f, "{} {nth}", kind.name()),
    }
}

pub(super) fn read(words: &mut Words<'_>) -> Result<FaultSpec, String> {
    let at = read_at(words)?;
    let immediate = match words.next("'fails' or 'refused'")? {
        "fails" => false,
        "refused" => true,
        other => return Err(unknown("way to fail", other, ["fails", "refused"].into_iter())),
    };
    words.commas();
    let errno = errno(words.next("an error such as EIO")?)?;
    let (mut done, mut lasting) = (None, false);
    while words.peek().is_some() {
        let part = match words.next("")? {
            "lasting" if !lasting => {
                lasting = true;
                continue;
            }
            "after" => FaultDone::First(words.size("a number of bytes")?),
            "from" => FaultDone::From(words.size("a number of bytes")?),
            "all" => {
                words.expect("done", "write 3 fails EIO, all done")?;
                FaultDone::All
            }
            word @ "lasting" => return Err(format!("'{word}' is said twice")),
            other => {
                let known = ["after", "from", "all", "lasting"];
                return Err(unknown("word about a fault", other, known.into_iter()));
            }
        };
        if done.replace(part).is_some() {
            return Err("what is done all the same is said twice; say it once".to_owned());
        }
    }
    Ok(FaultSpec { at, lasting, immediate, done: done.unwrap_or(FaultDone::Nothing), errno })
}

pub(super) fn print(fault: &FaultSpec, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let how = if fault.immediate { "refused" } else { "fails" };
    write!(f, "{} {how} {}", fault.at, errno_text(fault.errno))?;
    match fault.done {
        FaultDone::Nothing => {}
        FaultDone::All => f.write_str(", all done")?,
        FaultDone::First(len) => write!(f, " after {}", super::size_text(len))?,
        FaultDone::From(len) => write!(f, ", from {}", super::size_text(len))?,
    }
    if fault.lasting { f.write_str(", lasting") } else { Ok(()) }
}
