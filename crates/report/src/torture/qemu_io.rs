//! The plan as a shell script of qemu-img and qemu-io, where it can be said in one.
//!
//! What qemu-io can not say is said to be so: it has no power cuts, can not drop a request, and decides itself in which
//! order requests in flight together move. Stamps become patterns, one byte for each op. Faults become rules of
//! blkdebug by their event and count; the counts are those of the driver that was tortured, and one that sends other
//! requests below needs other ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use blkproof_block::ByteRange;
use blkproof_sim::{FaultDone, IoKind};
use blkproof_torture::plan::{Act, OpId};

use super::Case;
use super::model::{Below, End, Run};
use super::replay::quoted;
use crate::text::{safe, wrap};

/// The script.
///
/// # Errors
/// Why there is none, in words that go on from "it can not be said in qemu-io:".
pub fn script(case: &Case<'_>) -> Result<String, String> {
    let run = case.run();
    let format = case.format.ok_or("QEMU has no driver of that name")?;
    possible(case, &run)?;
    let sessions = sessions(case, &run)?;
    let rules = rules(&run)?;
    let mut out = String::from("#!/bin/sh\n");
    out.push_str(&wrap(&safe(&case.sentence()), "# ", 100));
    out.push_str("# qemu-io compares patterns where it reads; it exits with 1 if one is not what it should be.\n");
    let target = &case.plan.target;
    let options: Vec<_> = target.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let options = if options.is_empty() { String::new() } else { format!(" -o {}", quoted(&options.join(","))) };
    let base = match target.base {
        Some(size) => {
            let _ = writeln!(out, "qemu-img create -q -f raw base.img {size}");
            let _ = writeln!(out, "qemu-io -f raw -c 'write -q -P {BASE} 0 {size}' base.img");
            " -F raw -b base.img"
        }
        None => "",
    };
    let _ = writeln!(out, "qemu-img create -q -f {format}{base}{options} image.{format} {}", target.size);
    let faulty = rules.iter().any(|rules| !rules.is_empty());
    for (number, commands) in sessions.iter().enumerate() {
        let file = match rules.get(number).filter(|rules| !rules.is_empty()) {
            Some(rules) => {
                let _ = write!(out, "cat >rules{number}.conf <<'END'\n{rules}END\n");
                format!("blkdebug:rules{number}.conf:image.{format}")
            }
            None => format!("image.{format}"),
        };
        let _ = write!(out, "qemu-io -f {format}");
        for command in commands {
            let _ = write!(out, " \\\n  -c {}", quoted(command));
        }
        let _ = writeln!(out, " \\\n  {file}");
    }
    let _ = writeln!(out, "qemu-img check -f {format} image.{format}");
    if faulty {
        out.push_str("# The counts in the rules are those of requests of the driver that was tortured.\n");
    }
    Ok(out)
}

/// The pattern of the base image.
const BASE: u8 = 0xba;

/// Options of an image that `qemu-img create` knows.
fn options_of(format: &str) -> &'static [&'static str] {
    match format {
        "qcow2" => &[
            "compat",
            "cluster_size",
            "refcount_bits",
            "lazy_refcounts",
            "extended_l2",
            "compression_type",
            "preallocation",
        ],
        "vdi" => &["static", "preallocation"],
        "raw" => &["preallocation"],
        _ => &[],
    }
}

/// Whether all of it can be said at all.
fn possible(case: &Case<'_>, run: &Run<'_>) -> Result<(), String> {
    if case.finding.cut.is_some() || !run.cuts.is_empty() {
        return Err("it has no power cuts".to_owned());
    }
    if !run.known {
        return Err("what happened when is not known".to_owned());
    }
    let known = options_of(case.format.unwrap_or_default());
    if let Some((name, value)) = case.plan.target.options.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return Err(format!("qemu-img makes no image with {name}={value}"));
    }
    let mut last: Option<(OpId, u64)> = None;
    let mut sent: Vec<_> = run.requests.iter().filter(|request| request.sent.is_some()).collect();
    sent.sort_by_key(|request| request.sent);
    for request in sent {
        let id = request.op.id;
        if request.end == End::Dropped {
            return Err(format!("op {id} is dropped"));
        }
        match last {
            Some((other, until)) if request.sent.is_some_and(|sent| sent < until) => {
                return Err(format!("ops {other} and {id} are in flight together"));
            }
            _ => {}
        }
        last = Some((id, request.ended.unwrap_or(u64::MAX)));
        if let Act::Zeroes { no_fallback: true, .. } = request.op.act {
            return Err(format!("op {id} is zeroes that may be refused"));
        }
    }
    Ok(())
}

/// What a place holds, as far as that is certain; what is not in it is not.
#[derive(Default)]
struct Patterns(BTreeMap<u64, (u64, Option<u8>)>);

impl Patterns {
    fn put(&mut self, range: ByteRange, pattern: Option<u8>) {
        if range.is_empty() {
            return;
        }
        let over: Vec<_> = self
            .0
            .iter()
            .filter(|(at, (end, _))| **at < range.end && *end > range.start)
            .map(|(at, to)| (*at, *to))
            .collect();
        for (at, (end, old)) in over {
            self.0.remove(&at);
            if at < range.start {
                self.0.insert(at, (range.start, old));
            }
            if end > range.end {
                self.0.insert(range.end, (end, old));
            }
        }
        self.0.insert(range.start, (range.end, pattern));
    }

    /// Pieces of a range that hold something certain.
    fn pieces(&self, range: ByteRange) -> Vec<(ByteRange, u8)> {
        let inside = |(at, (end, pattern)): (&u64, &(u64, Option<u8>))| {
            let piece = ByteRange { start: (*at).max(range.start), end: (*end).min(range.end) };
            pattern.filter(|_| piece.start < piece.end).map(|pattern| (piece, pattern))
        };
        self.0.iter().filter_map(inside).collect()
    }
}

/// The commands, one list for each time the image is open. The last one reads the bytes that are wrong.
fn sessions(case: &Case<'_>, run: &Run<'_>) -> Result<Vec<Vec<String>>, String> {
    let target = &case.plan.target;
    let mut patterns = Patterns::default();
    patterns.put(ByteRange { start: 0, end: target.size }, Some(0));
    let base = target.base.unwrap_or(0).min(target.size);
    patterns.put(ByteRange { start: 0, end: base }, Some(BASE));
    let mut size = target.size;
    let mut all = Vec::new();
    let mut now = Vec::new();
    let mut sent: Vec<_> = run.requests.iter().filter(|request| request.sent.is_some()).collect();
    sent.sort_by_key(|request| request.sent);
    for request in sent {
        let (op, done) = (request.op, request.end == End::Done);
        let pattern = pattern(op.id);
        match &op.act {
            Act::Read { range, .. } => now.extend(reads(&patterns, *range)),
            Act::Write { range, fua, compressed } => {
                let flag = if *fua { " -f" } else { "" };
                let flag = if *compressed { " -c" } else { flag };
                now.push(format!("write{flag} -P {pattern} {} {}", range.start, range.len()));
                patterns.put(*range, done.then_some(pattern));
            }
            Act::Zeroes { range, fua, unmap, .. } => {
                let flag = if *fua { " -f" } else { "" };
                let flag = format!("{flag}{}", if *unmap { " -u" } else { "" });
                now.push(format!("write -z{flag} {} {}", range.start, range.len()));
                patterns.put(*range, done.then_some(0));
            }
            Act::Discard { range } => {
                now.push(format!("discard {} {}", range.start, range.len()));
                patterns.put(*range, None);
            }
            Act::Flush => now.push("flush".to_owned()),
            Act::Drain => {}
            Act::Status { .. } => now.push("map".to_owned()),
            Act::Resize { size: wanted } => {
                now.push(format!("truncate {wanted}"));
                let (from, to) = (size.min(*wanted), size.max(*wanted));
                patterns.put(ByteRange { start: from, end: to }, done.then_some(0));
                if done {
                    size = *wanted;
                }
            }
            Act::Reopen => all.push(std::mem::take(&mut now)),
            Act::Cut { .. } => return Err("it has no power cuts".to_owned()),
        }
    }
    let wrong = case.finding.range.filter(|range| !range.is_empty());
    match wrong {
        // What shows only when the image is opened again is read then.
        Some(wrong) => {
            now.extend(reads(&patterns, wrong));
            all.push(now);
            all.push(reads(&patterns, wrong));
        }
        None => all.push(now),
    }
    all.retain(|commands| !commands.is_empty());
    Ok(all)
}

fn reads(patterns: &Patterns, range: ByteRange) -> Vec<String> {
    let pieces = patterns.pieces(range);
    let known: u64 = pieces.iter().map(|(piece, _)| piece.len()).sum();
    let mut commands: Vec<_> =
        pieces.iter().map(|(piece, pattern)| format!("read -P {pattern} {} {}", piece.start, piece.len())).collect();
    if known < range.len() {
        commands.push(format!("read {} {}", range.start, range.len()));
    }
    commands
}

/// The byte that stands for an op's stamps: neither zero nor the base image's.
fn pattern(op: OpId) -> u8 {
    let byte = u8::try_from(op % 185).unwrap_or(0);
    byte.saturating_add(1)
}

/// Rules of blkdebug, one file for each time the image is open.
fn rules(run: &Run<'_>) -> Result<Vec<String>, String> {
    let mut files = Vec::new();
    // How often each event came since the image was opened.
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failing: Vec<(&str, u64, &Below<'_>)> = Vec::new();
    let mut closes =
        run.parts.iter().filter(|(_, part)| *part == "opens the image").map(|(at, _)| *at).skip(1).peekable();
    for below in &run.below {
        while closes.peek().is_some_and(|at| below.sent > *at) {
            closes.next();
            files.push(file(&failing)?);
            (failing, counts) = Default::default();
        }
        let event = match below.info.kind {
            IoKind::Write | IoKind::Discard | IoKind::Resize => "pwritev",
            IoKind::Zeroes => "pwritev_zero",
            IoKind::Flush => "flush_to_disk",
            IoKind::Read | IoKind::Status | IoKind::Drain => "",
        };
        let counted = matches!(below.info.kind, IoKind::Write | IoKind::Zeroes | IoKind::Flush);
        let count = counts.entry(event).or_default();
        *count = count.saturating_add(u64::from(counted));
        let Some(fault) = below.fault else { continue };
        if !counted {
            let kind = below.info.kind.name();
            return Err(format!("a failing {kind} below has no event of blkdebug's that every format raises"));
        }
        if fault.done != FaultDone::Nothing {
            return Err("a request below fails with a part of it done".to_owned());
        }
        failing.push((event, *count, below));
    }
    files.push(file(&failing)?);
    Ok(files)
}

/// One file: each failing event has a chain of states that counts up to it.
fn file(failing: &[(&str, u64, &Below<'_>)]) -> Result<String, String> {
    let mut out = String::new();
    let [(event, ..), ..] = failing else { return Ok(out) };
    if failing.iter().any(|(other, ..)| other != event) {
        return Err("requests of several kinds fail below, and blkdebug counts in one chain of states".to_owned());
    }
    let last = failing.iter().map(|(_, nth, _)| *nth).max().unwrap_or(0);
    if last > 200 {
        return Err(format!("the {last}th request of its kind fails, which takes as many states"));
    }
    for (_, nth, below) in failing {
        let Some(fault) = below.fault else { continue };
        let refused = if fault.immediate { "immediately = \"on\"\n" } else { "" };
        let _ = write!(
            out,
            "[inject-error]\nevent = \"{event}\"\nstate = \"{nth}\"\nerrno = \"{}\"\nonce = \"on\"\n{refused}",
            fault.errno.0
        );
    }
    for state in 1..last {
        let next = state.saturating_add(1);
        let _ = write!(out, "[set-state]\nevent = \"{event}\"\nstate = \"{state}\"\nnew_state = \"{next}\"\n");
    }
    // The last one leads on, so that only the one that is meant fails.
    let _ = write!(
        out,
        "[set-state]\nevent = \"{event}\"\nstate = \"{last}\"\nnew_state = \"{}\"\n",
        last.saturating_add(1)
    );
    Ok(out)
}
