//! Ops: `3 q1 write 64K+4K fua after 1,2 drop@5`.

use std::fmt;

use super::crash::{op, print_state, read_state};
use super::size_text;
use super::sizes::size;
use super::words::{Words, shown, unknown};
use crate::plan::{Act, Op};

const ACTS: [&str; 10] = ["read", "write", "zeroes", "discard", "flush", "drain", "status", "resize", "reopen", "cut"];

pub(super) fn read(words: &mut Words<'_>) -> Result<Op, String> {
    let id = op(words.next("an op's number")?)?;
    let queue = match words.take_prefixed("q") {
        None => 0,
        Some(digits) => super::sizes::number(digits)
            .and_then(|queue| u8::try_from(queue).ok())
            .ok_or_else(|| format!("'q{}' is no queue: there are q0 to q255", shown(digits)))?,
    };
    let act = act(words)?;
    let after = match words.take("after") {
        false => Vec::new(),
        true => words.next("numbers of ops, such as 1,2,")?.split(',').map(op).collect::<Result<_, _>>()?,
    };
    let drop_at = match words.take_prefixed("drop@") {
        None => None,
        Some(digits) => Some(
            super::sizes::number(digits)
                .and_then(|moves| u32::try_from(moves).ok())
                .ok_or_else(|| format!("'drop@{}' is no moment: write it as drop@5", shown(digits)))?,
        ),
    };
    match words.peek() {
        None => Ok(Op { id, queue, act, after, drop_at }),
        Some(word) => Err(unknown("word of this op", word, act_words(&act).iter().copied().chain(["after", "drop@5"]))),
    }
}

/// The words an act may have after its range.
fn act_words(act: &Act) -> &'static [&'static str] {
    match act {
        Act::Read { .. } => &["as"],
        Act::Write { .. } => &["fua", "compressed"],
        Act::Zeroes { .. } => &["fua", "unmap", "no-fallback"],
        _ => &[],
    }
}

fn act(words: &mut Words<'_>) -> Result<Act, String> {
    let act = match words.next("what is done, such as write,")? {
        "read" => {
            let range = words.range()?;
            let vector = match words.take("as") {
                false => Vec::new(),
                true => vector(words.next("lengths of pieces, such as 200+312,")?)?,
            };
            Act::Read { range, vector }
        }
        "write" => {
            let range = words.range()?;
            let [fua, compressed] = flags(words, ["fua", "compressed"])?;
            Act::Write { range, fua, compressed }
        }
        "zeroes" => {
            let range = words.range()?;
            let [fua, unmap, no_fallback] = flags(words, ["fua", "unmap", "no-fallback"])?;
            Act::Zeroes { range, fua, unmap, no_fallback }
        }
        "discard" => Act::Discard { range: words.range()? },
        "flush" => Act::Flush,
        "drain" => Act::Drain,
        "status" => Act::Status { range: words.range()? },
        "resize" => Act::Resize { size: words.size("a size")? },
        "reopen" => Act::Reopen,
        "cut" => Act::Cut { state: read_state(words)? },
        other => return Err(unknown("thing to do", other, ACTS.into_iter())),
    };
    Ok(act)
}

fn vector(word: &str) -> Result<Vec<u32>, String> {
    let piece = |text: &str| {
        size(text)
            .and_then(|len| u32::try_from(len).ok())
            .ok_or_else(|| format!("'{}' is no length of a piece, such as 200", shown(text)))
    };
    word.split('+').map(piece).collect()
}

/// Which of these words follow, in any order, each once.
fn flags<const N: usize>(words: &mut Words<'_>, names: [&str; N]) -> Result<[bool; N], String> {
    let mut set = [false; N];
    while let Some(word) = words.peek() {
        let Some((flag, name)) = set.iter_mut().zip(names).find(|(_, name)| *name == word) else { break };
        if std::mem::replace(flag, true) {
            return Err(format!("'{name}' is said twice"));
        }
        words.next(name)?;
    }
    Ok(set)
}

pub(super) fn print(op: &Op, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{}", op.id)?;
    if op.queue != 0 {
        write!(f, " q{}", op.queue)?;
    }
    write!(f, " {}", op.act.name())?;
    if let Some(range) = op.act.range() {
        write!(f, " {}+{}", size_text(range.start), size_text(range.len()))?;
    }
    let flag = |f: &mut fmt::Formatter<'_>, set: bool, name: &str| match set {
        true => write!(f, " {name}"),
        false => Ok(()),
    };
    match &op.act {
        Act::Read { vector, .. } => list(f, " as ", "+", vector.iter().map(|len| size_text(u64::from(*len))))?,
        Act::Write { fua, compressed, .. } => {
            flag(f, *fua, "fua")?;
            flag(f, *compressed, "compressed")?;
        }
        Act::Zeroes { fua, unmap, no_fallback, .. } => {
            flag(f, *fua, "fua")?;
            flag(f, *unmap, "unmap")?;
            flag(f, *no_fallback, "no-fallback")?;
        }
        Act::Resize { size } => write!(f, " {}", size_text(*size))?,
        Act::Cut { state } => {
            f.write_str(" ")?;
            print_state(state, f)?;
        }
        Act::Discard { .. } | Act::Flush | Act::Drain | Act::Status { .. } | Act::Reopen => {}
    }
    list(f, " after ", ",", op.after.iter())?;
    match op.drop_at {
        Some(moves) => write!(f, " drop@{moves}"),
        None => Ok(()),
    }
}

/// The items, if there are any, with `head` before them all.
fn list<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    head: &str,
    between: &str,
    items: impl Iterator<Item = T>,
) -> fmt::Result {
    for (index, item) in items.enumerate() {
        write!(f, "{}{item}", if index == 0 { head } else { between })?;
    }
    Ok(())
}
