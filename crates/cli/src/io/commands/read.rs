//! `read` and `readv`.

use std::time::Instant;

use super::{Command, Outcome, arguments, disk, or_complain};
use crate::io::getopt::{Item, parse};
use crate::io::numbers::{REQUEST_BYTES_MAX, SECTOR, offset, pattern, vector};
use crate::io::reply::Reply;
use crate::io::report::{Manner, Transfer, dump, verify};
use crate::io::shell::Shell;

/// What buffers hold before a read, so that bytes which were not read show.
pub(super) const UNREAD: u8 = 0xab;

pub(super) const READ: Command = Command {
    name: "read",
    alias: Some("r"),
    words_min: 2,
    words_max: None,
    args: Some("[-abCqrv] [-P pattern [-s off] [-l len]] off len"),
    summary: "reads a number of bytes at a specified offset",
    help: "
 Reads one range. With -v the bytes are shown, with -P each is compared.

 Example:
 'read -P 0x11 -s 512 -l 1k 0 4k' - reads 4 KiB and compares bytes 512 to 1535 with 0x11

 -b           read the VM state instead of the disk
 -C           statistics as one line of figures, separated by commas
 -l LEN       compare this many bytes only (with -P)
 -p           has no effect, for old scripts
 -P PATTERN   compare with this byte
 -q           print neither bytes nor statistics
 -r           has no effect here: asks for a registered buffer
 -s OFF       compare from here, counted from the start of the read (with -P)
 -v           show what was read
",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(read(shell, words, reply)),
};

pub(super) const READV: Command = Command {
    name: "readv",
    alias: None,
    words_min: 2,
    words_max: None,
    args: Some("[-Cqrv] [-P pattern] off len [len..]"),
    summary: "reads a number of bytes at a specified offset",
    help: "
 Reads one range into as many buffers as there are lengths.

 Example:
 'readv -v 512 1k 1k' - reads and shows 2 KiB, in two buffers

 -C           statistics as one line of figures, separated by commas
 -P PATTERN   compare with this byte
 -q           print neither bytes nor statistics
 -r           has no effect here: asks for a registered buffer
 -v           show what was read
",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(readv(shell, words, reply)),
};

async fn read(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut manner = Manner::default();
    let (mut vm_state, mut registered, mut show) = (false, false, false);
    let (mut expected, mut check_from, mut check_len) = (None, None, None);
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "bCl:pP:qrs:v", &[]);
    for item in parsed.items {
        match item {
            Item::Flag('b') => vm_state = true,
            Item::Flag('C') => manner.machine = true,
            Item::Flag('q') => manner.quiet = true,
            Item::Flag('r') => registered = true,
            Item::Flag('v') => show = true,
            Item::Value('l', text) => check_len = Some(or_complain!(offset(&text), reply)),
            Item::Value('s', text) => check_from = Some(or_complain!(offset(&text), reply)),
            Item::Value('P', text) => expected = Some(or_complain!(pattern(&text), reply)),
            Item::Flag(_) | Item::Value(..) => {}
            Item::Wrong(text) => {
                reply.err(&text);
                return Outcome::Usage;
            }
        }
    }
    let [at, len] = parsed.operands.as_slice() else { return Outcome::Usage };
    let at = or_complain!(offset(at), reply);
    let bytes = or_complain!(offset(len), reply);
    let Some(capacity) = usize::try_from(bytes).ok().filter(|_| bytes <= REQUEST_BYTES_MAX) else {
        reply.out(&format!("length cannot exceed {REQUEST_BYTES_MAX}, given {len}"));
        return Outcome::Failed;
    };
    if expected.is_none() && (check_from.is_some() || check_len.is_some()) {
        return Outcome::Usage;
    }
    let from = check_from.unwrap_or(0);
    let checked = check_len.or_else(|| bytes.checked_sub(from)).and_then(|len| Some((from, from.checked_add(len)?)));
    let Some((from, until)) = checked.filter(|(_, until)| *until <= bytes) else {
        reply.out("pattern verification range exceeds end of read data");
        return Outcome::Failed;
    };
    if vm_state {
        or_complain!(sector_aligned(at, "offset"), reply);
        or_complain!(sector_aligned(bytes, "count"), reply);
        if registered {
            reply.out("I/O buffer registration is not supported when reading from vmstate");
            return Outcome::Failed;
        }
    }
    // Asked before memory is taken.
    let possible = if vm_state { disk.read_vm_state(at, &mut []).await } else { disk.check_bounds(at, bytes) };
    if let Err(error) = possible {
        reply.failed("read", &error);
        return Outcome::Failed;
    }
    let mut data = vec![UNREAD; capacity];
    let start = Instant::now();
    let result = if vm_state { disk.read_vm_state(at, &mut data).await } else { disk.read(at, &mut data).await };
    let elapsed = start.elapsed();
    if let Err(error) = result {
        reply.failed("read", &error);
        return Outcome::Failed;
    }
    let checked = usize::try_from(from).ok().zip(usize::try_from(until).ok());
    let checked = checked.and_then(|(from, until)| data.get(from..until)).unwrap_or_default();
    let matches = expected.is_none_or(|expected| verify(at.saturating_add(from), checked, expected, reply));
    if show && !manner.quiet {
        dump(at, &data, reply);
    }
    Transfer { verb: "read", offset: at, bytes, elapsed }.report(manner, reply);
    Outcome::from_success(matches)
}

async fn readv(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut manner = Manner::default();
    let mut show = false;
    let mut expected = None;
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "CP:qrv", &[]);
    for item in parsed.items {
        match item {
            Item::Flag('C') => manner.machine = true,
            Item::Flag('q') => manner.quiet = true,
            Item::Flag('v') => show = true,
            Item::Value('P', text) => expected = Some(or_complain!(pattern(&text), reply)),
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
        reply.failed("readv", &error);
        return Outcome::Failed;
    }
    let mut data = vec![UNREAD; usize::try_from(bytes).unwrap_or(0)];
    let start = Instant::now();
    let result = disk.read(at, &mut data).await;
    let elapsed = start.elapsed();
    if let Err(error) = result {
        reply.failed("readv", &error);
        return Outcome::Failed;
    }
    let matches = expected.is_none_or(|expected| verify(at, &data, expected, reply));
    if show && !manner.quiet {
        dump(at, &data, reply);
    }
    Transfer { verb: "read", offset: at, bytes, elapsed }.report(manner, reply);
    Outcome::from_success(matches)
}

/// VM state and compressed clusters are addressed by whole sectors.
pub(super) fn sector_aligned(value: u64, name: &str) -> Result<(), String> {
    if value.is_multiple_of(SECTOR) {
        Ok(())
    } else {
        Err(format!("{value} is not a sector-aligned value for '{name}'"))
    }
}
