//! `write` and `writev`.

use std::io::Read as _;
use std::time::Instant;

use blkproof_block::IoError;

use super::read::sector_aligned;
use super::{Command, Outcome, arguments, disk, or_complain};
use crate::io::getopt::{Item, parse};
use crate::io::numbers::{REQUEST_BYTES_MAX, offset, pattern, vector};
use crate::io::reply::Reply;
use crate::io::report::{Manner, Transfer};
use crate::io::session::{WriteManner, ZeroManner};
use crate::io::shell::Shell;

/// What is written unless something else is asked for.
pub(super) const PATTERN: u8 = 0xcd;

pub(super) const WRITE: Command = Command {
    name: "write",
    alias: Some("w"),
    words_min: 2,
    words_max: None,
    args: Some("[-bcCfnqruz] [-P pattern | -s source_file] off len"),
    summary: "writes a number of bytes at a specified offset",
    help: "
 Writes one range, with bytes 0xcd unless told otherwise.

 Example:
 'write -P 0x11 64k 4k' - writes 4 KiB of 0x11 at 64 KiB

 -b           write the VM state instead of the disk
 -c           store compressed
 -C           statistics as one line of figures, separated by commas
 -f           durable when it completes (force unit access)
 -n           with -z: fail rather than write zero bytes
 -p           has no effect, for old scripts
 -P PATTERN   write this byte
 -q           print no statistics
 -r           has no effect here: asks for a registered buffer
 -s FILE      write the content of FILE, over and over
 -u           with -z: the space may be given back
 -z           write zeroes, without sending them
",
    needs_file: true,
    writes: true,
    run: |shell, words, reply| Box::pin(write(shell, words, reply)),
};

pub(super) const WRITEV: Command = Command {
    name: "writev",
    alias: None,
    words_min: 2,
    words_max: None,
    args: Some("[-Cfqr] [-P pattern] off len [len..]"),
    summary: "writes a number of bytes at a specified offset",
    help: "
 Writes one range from as many buffers as there are lengths, with bytes 0xcd unless told otherwise.

 Example:
 'writev 512 1k 1k' - writes 2 KiB at 512, from two buffers

 -C           statistics as one line of figures, separated by commas
 -f           durable when it completes (force unit access)
 -P PATTERN   write this byte
 -q           print no statistics
 -r           has no effect here: asks for a registered buffer
",
    needs_file: true,
    writes: true,
    run: |shell, words, reply| Box::pin(writev(shell, words, reply)),
};

/// The options of `write`.
#[derive(Default)]
struct Asked {
    manner: Manner,
    vm_state: bool,
    compressed: bool,
    fua: bool,
    no_fallback: bool,
    may_unmap: bool,
    zeroes: bool,
    registered: bool,
    pattern: Option<u8>,
    source: Option<String>,
}

impl Asked {
    /// Options that do not go together, in the order in which qemu-io looks.
    fn conflict(&self) -> Option<&'static str> {
        let contents = [self.zeroes, self.pattern.is_some(), self.source.is_some()];
        if self.vm_state && self.zeroes {
            Some("-b and -z cannot be specified at the same time")
        } else if self.fua && (self.vm_state || self.compressed) {
            Some("-f and -b or -c cannot be specified at the same time")
        } else if self.no_fallback && !self.zeroes {
            Some("-n requires -z to be specified")
        } else if self.may_unmap && !self.zeroes {
            Some("-u requires -z to be specified")
        } else if contents.into_iter().filter(|given| *given).count() > 1 {
            Some("Only one of -z, -P, and -s can be specified at the same time")
        } else {
            None
        }
    }
}

async fn write(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut asked = Asked::default();
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "bcCfnpP:qrs:uz", &[]);
    for item in parsed.items {
        match item {
            Item::Flag('b') => asked.vm_state = true,
            Item::Flag('c') => asked.compressed = true,
            Item::Flag('C') => asked.manner.machine = true,
            Item::Flag('f') => asked.fua = true,
            Item::Flag('n') => asked.no_fallback = true,
            Item::Flag('q') => asked.manner.quiet = true,
            Item::Flag('r') => asked.registered = true,
            Item::Flag('u') => asked.may_unmap = true,
            Item::Flag('z') => asked.zeroes = true,
            Item::Value('P', text) => asked.pattern = Some(or_complain!(pattern(&text), reply)),
            Item::Value('s', name) => asked.source = Some(name),
            Item::Flag(_) | Item::Value(..) => {}
            Item::Wrong(text) => {
                reply.err(&text);
                return Outcome::Usage;
            }
        }
    }
    let [at, len] = parsed.operands.as_slice() else { return Outcome::Usage };
    if let Some(message) = asked.conflict() {
        reply.out(message);
        return Outcome::Failed;
    }
    let at = or_complain!(offset(at), reply);
    let bytes = or_complain!(offset(len), reply);
    if bytes > REQUEST_BYTES_MAX && !asked.no_fallback {
        reply.out(&format!("length cannot exceed {REQUEST_BYTES_MAX} without -n, given {len}"));
        return Outcome::Failed;
    }
    if asked.vm_state || asked.compressed {
        or_complain!(sector_aligned(at, "offset"), reply);
        or_complain!(sector_aligned(bytes, "count"), reply);
    }
    if asked.zeroes && asked.registered {
        reply.out("cannot combine zero write with registered I/O buffer");
        return Outcome::Failed;
    }
    let content = match asked.source.as_deref().map(|name| (name, content_of(name, bytes))) {
        None => Vec::new(),
        Some((_, Ok(content))) => content,
        Some((name, Err(reason))) => {
            reply.err(&format!("{name}: {reason}"));
            return Outcome::Failed;
        }
    };
    // Asked before memory is taken.
    let possible = if asked.vm_state { disk.write_vm_state(at, &[]).await } else { disk.check_bounds(at, bytes) };
    let data = match (asked.zeroes || possible.is_err(), &asked.source) {
        (true, _) => Vec::new(),
        (false, None) => vec![asked.pattern.unwrap_or(PATTERN); usize::try_from(bytes).unwrap_or(0)],
        (false, Some(_)) => content.iter().copied().cycle().take(usize::try_from(bytes).unwrap_or(0)).collect(),
    };
    let start = Instant::now();
    let result = if possible.is_err() {
        possible
    } else if asked.vm_state {
        disk.write_vm_state(at, &data).await
    } else if asked.zeroes {
        let manner = ZeroManner { fua: asked.fua, may_unmap: asked.may_unmap, no_fallback: asked.no_fallback };
        disk.write_zeroes(at, bytes, manner).await
    } else {
        disk.write(at, &data, WriteManner { fua: asked.fua, compressed: asked.compressed }).await
    };
    let elapsed = start.elapsed();
    if let Err(error) = result {
        reply.failed("write", &error);
        return Outcome::Failed;
    }
    Transfer { verb: "wrote", offset: at, bytes, elapsed }.report(asked.manner, reply);
    Outcome::Done
}

/// The first `bytes` bytes of a file, or fewer; never none.
fn content_of(name: &str, bytes: u64) -> Result<Vec<u8>, String> {
    let strerror = |error: std::io::Error| IoError::from(error).errno.to_string();
    let mut content = Vec::new();
    let file = std::fs::File::open(name).map_err(strerror)?;
    file.take(bytes).read_to_end(&mut content).map_err(strerror)?;
    if content.is_empty() { Err("file is empty".into()) } else { Ok(content) }
}

async fn writev(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut manner = Manner::default();
    let mut how = WriteManner::default();
    let mut byte = PATTERN;
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "CfqrP:", &[]);
    for item in parsed.items {
        match item {
            Item::Flag('C') => manner.machine = true,
            Item::Flag('f') => how.fua = true,
            Item::Flag('q') => manner.quiet = true,
            Item::Value('P', text) => byte = or_complain!(pattern(&text), reply),
            Item::Flag(_) | Item::Value(..) => {}
            Item::Wrong(text) => {
                reply.err(&text);
                return Outcome::Usage;
            }
        }
    }
    let Some((at, lengths)) = parsed.operands.split_first().filter(|(_, lengths)| !lengths.is_empty()) else {
        return Outcome::Usage;
    };
    let at = or_complain!(offset(at), reply);
    let bytes: u64 = or_complain!(vector(lengths), reply).iter().sum();
    if let Err(error) = disk.check_bounds(at, bytes) {
        reply.failed("writev", &error);
        return Outcome::Failed;
    }
    let data = vec![byte; usize::try_from(bytes).unwrap_or(0)];
    let start = Instant::now();
    let result = disk.write(at, &data, how).await;
    let elapsed = start.elapsed();
    if let Err(error) = result {
        reply.failed("writev", &error);
        return Outcome::Failed;
    }
    Transfer { verb: "wrote", offset: at, bytes, elapsed }.report(manner, reply);
    Outcome::Done
}
