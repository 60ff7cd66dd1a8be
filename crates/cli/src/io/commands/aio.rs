//! `aio_read`, `aio_write` and `aio_flush`: requests that run beside the commands that follow them.
//!
//! Such a command succeeds when its request is on its way. What becomes of it is printed when it is done, and never
//! touches the exit status.

use blkproof_block::IoError;

use super::read::UNREAD;
use super::write::PATTERN;
use super::{Command, Outcome, arguments, disk, or_complain};
use crate::io::getopt::{Item, parse};
use crate::io::numbers::{offset, pattern, vector};
use crate::io::reply::Reply;
use crate::io::report::{Manner, Transfer, dump, verify};
use crate::io::session::{WriteManner, ZeroManner};
use crate::io::shell::{Completion, Shell};

pub(super) const AIO_READ: Command = Command {
    name: "aio_read",
    alias: None,
    words_min: 2,
    words_max: None,
    args: Some("[-Ciqrv] [-P pattern] off len [len..]"),
    summary: "asynchronously reads a number of bytes",
    help: "
 Starts a read and goes on; the result is printed when it is there. 'aio_flush' waits for it. Failures, and bytes
 that differ from a pattern, are printed but not counted as failures of this command.

 Example:
 'aio_read -v 512 1k 1k' - starts to read 2 KiB, in two buffers

 -C           statistics as one line of figures, separated by commas
 -i           send nothing: count an invalid request
 -P PATTERN   compare with this byte
 -q           print neither bytes nor statistics
 -r           has no effect here: asks for a registered buffer
 -v           show what was read
",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(aio_read(shell, words, reply)),
};

pub(super) const AIO_WRITE: Command = Command {
    name: "aio_write",
    alias: None,
    words_min: 2,
    words_max: None,
    args: Some("[-Cfiqruz] [-P pattern] off len [len..]"),
    summary: "asynchronously writes a number of bytes",
    help: "
 Starts a write and goes on; the result is printed when it is there. 'aio_flush' waits for it. Failures are printed
 but not counted as failures of this command.

 Example:
 'aio_write -P 0x11 512 1k 1k' - starts to write 2 KiB of 0x11, from two buffers

 -C           statistics as one line of figures, separated by commas
 -f           durable when it completes (force unit access)
 -i           send nothing: count an invalid request
 -P PATTERN   write this byte
 -q           print no statistics
 -r           has no effect here: asks for a registered buffer
 -u           with -z: the space may be given back
 -z           write zeroes, without sending them
",
    needs_file: true,
    writes: true,
    run: |shell, words, reply| Box::pin(aio_write(shell, words, reply)),
};

pub(super) const AIO_FLUSH: Command = Command {
    name: "aio_flush",
    alias: None,
    words_min: 0,
    words_max: Some(0),
    args: None,
    summary: "completes all outstanding aio requests",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, _, _| {
        Box::pin(async move {
            shell.finish_requests().await;
            Outcome::Done
        })
    },
};

async fn aio_read(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut manner = Manner::default();
    let mut show = false;
    let mut expected = None;
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "CP:iqrv", &[]);
    for item in parsed.items {
        match item {
            Item::Flag('C') => manner.machine = true,
            Item::Flag('q') => manner.quiet = true,
            Item::Flag('v') => show = true,
            Item::Flag('i') => {
                reply.out("injecting invalid read request");
                return Outcome::Done;
            }
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
    let request = async move {
        if let Err(error) = disk.check_bounds(at, bytes) {
            return (Err(error), Vec::new());
        }
        let mut data = vec![UNREAD; usize::try_from(bytes).unwrap_or(0)];
        let result = disk.read(at, &mut data).await;
        (result, data)
    };
    let report = move |done: Completion, reply: &mut Reply| {
        if let Err(error) = done.result {
            reply.failed("readv", &error);
            return false;
        }
        let matches = expected.is_none_or(|expected| verify(at, &done.data, expected, reply));
        if show && !manner.quiet {
            dump(at, &done.data, reply);
        }
        Transfer { verb: "read", offset: at, bytes, elapsed: done.elapsed }.report(manner, reply);
        matches
    };
    shell.submit(words, reply, request, report).await;
    Outcome::Done
}

/// The options of `aio_write`.
#[derive(Default)]
struct Asked {
    manner: Manner,
    fua: bool,
    registered: bool,
    may_unmap: bool,
    zeroes: bool,
    pattern: Option<u8>,
}

async fn aio_write(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut asked = Asked::default();
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "CfiP:qruz", &[]);
    for item in parsed.items {
        match item {
            Item::Flag('C') => asked.manner.machine = true,
            Item::Flag('f') => asked.fua = true,
            Item::Flag('q') => asked.manner.quiet = true,
            Item::Flag('r') => asked.registered = true,
            Item::Flag('u') => asked.may_unmap = true,
            Item::Flag('z') => asked.zeroes = true,
            Item::Flag('i') => {
                reply.out("injecting invalid write request");
                return Outcome::Done;
            }
            Item::Value('P', text) => asked.pattern = Some(or_complain!(pattern(&text), reply)),
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
    let conflict = if asked.zeroes && lengths.len() != 1 {
        Some("-z supports only a single length parameter")
    } else if asked.may_unmap && !asked.zeroes {
        Some("-u requires -z to be specified")
    } else if asked.zeroes && asked.registered {
        Some("cannot combine zero write with registered I/O buffer")
    } else {
        None
    };
    if let Some(message) = conflict {
        reply.out(message);
        return Outcome::Failed;
    }
    let at = or_complain!(offset(at), reply);
    let bytes: u64 = if asked.zeroes {
        // No buffer is needed, and no limit is set.
        or_complain!(offset(lengths.first().map_or("", String::as_str)), reply)
    } else {
        or_complain!(vector(lengths), reply).iter().sum()
    };
    let request = async move {
        let result: Result<(), IoError> = if asked.zeroes {
            let manner = ZeroManner { fua: asked.fua, may_unmap: asked.may_unmap, no_fallback: false };
            disk.write_zeroes(at, bytes, manner).await
        } else if let Err(error) = disk.check_bounds(at, bytes) {
            Err(error)
        } else {
            let data = vec![asked.pattern.unwrap_or(PATTERN); usize::try_from(bytes).unwrap_or(0)];
            disk.write(at, &data, WriteManner { fua: asked.fua, compressed: false }).await
        };
        (result, Vec::new())
    };
    let report = move |done: Completion, reply: &mut Reply| {
        if let Err(error) = done.result {
            reply.failed("aio_write", &error);
            return false;
        }
        Transfer { verb: "wrote", offset: at, bytes, elapsed: done.elapsed }.report(asked.manner, reply);
        true
    };
    shell.submit(words, reply, request, report).await;
    Outcome::Done
}
