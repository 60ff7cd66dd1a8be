//! `length`, `truncate` and `flush`.

use blkproof_block::{Errno, IoError, Preallocation};

use super::{Command, Outcome, arguments, disk, or_complain};
use crate::io::getopt::{Item, parse};
use crate::io::numbers::{SECTOR, offset_shown_as};
use crate::io::reply::Reply;
use crate::io::report;
use crate::io::shell::Shell;

pub(super) const LENGTH: Command = Command {
    name: "length",
    alias: Some("l"),
    words_min: 0,
    words_max: Some(0),
    args: None,
    summary: "gets the length of the current file",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, _, reply| Box::pin(std::future::ready(length(shell, reply))),
};

pub(super) const TRUNCATE: Command = Command {
    name: "truncate",
    alias: Some("t"),
    words_min: 1,
    words_max: Some(3),
    args: Some("[-m prealloc_mode] off"),
    summary: "truncates the current file at the given offset",
    help: "",
    needs_file: true,
    writes: true,
    run: |shell, words, reply| Box::pin(truncate(shell, words, reply)),
};

pub(super) const FLUSH: Command = Command {
    name: "flush",
    alias: Some("f"),
    words_min: 0,
    words_max: Some(0),
    args: None,
    summary: "flush all in-core file state to disk",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, _, reply| Box::pin(flush(shell, reply)),
};

fn length(shell: &mut Shell, reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    reply.set("bytes", disk.size());
    if !reply.is_json() {
        reply.out(&report::size(disk.size()));
    }
    Outcome::Done
}

async fn truncate(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut preallocation = Preallocation::Off;
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "m:", &[]);
    for item in parsed.items {
        match item {
            Item::Value(_, mode) => {
                preallocation = match mode.as_str() {
                    "off" => Preallocation::Off,
                    "metadata" => Preallocation::Metadata,
                    "falloc" => Preallocation::Falloc,
                    "full" => Preallocation::Full,
                    _ => {
                        reply.complain(&format!("Invalid preallocation mode '{mode}'"));
                        return Outcome::Failed;
                    }
                };
            }
            Item::Flag(_) => {}
            Item::Wrong(text) => {
                reply.err(&text);
                return Outcome::Usage;
            }
        }
    }
    // A wrong size is reported by the first word, whichever that is after getopt sorted them.
    let shown = parsed.permuted.first().map_or("", String::as_str);
    let size = parsed.operands.first().map_or("", String::as_str);
    let size = or_complain!(offset_shown_as(size, shown), reply);
    let driver = disk.info().driver;
    if reply.as_qemu_io() && driver == "qcow2" && !size.is_multiple_of(SECTOR) {
        reply.complain("The new size must be a multiple of 512");
        return Outcome::Failed;
    }
    if preallocation == Preallocation::Metadata && matches!(driver, "raw" | "file") {
        reply.complain("Unsupported preallocation mode: metadata");
        return Outcome::Failed;
    }
    if let Err(error) = disk.resize(size, preallocation).await {
        let text = match (&error.detail, error.errno) {
            (Some(detail), _) if !reply.as_qemu_io() => format!("{}: {detail}", error.errno),
            (Some(detail), _) => detail.to_string(),
            (None, Errno::NOTSUP) => "Image format driver does not support resize".into(),
            (None, errno) => errno.to_string(),
        };
        reply.complain(&text);
        reply.set_error(&error);
        return Outcome::Failed;
    }
    Outcome::Done
}

async fn flush(shell: &mut Shell, reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    match disk.flush().await {
        Ok(()) => Outcome::Done,
        Err(error) => {
            complain_of_flush(&error, reply);
            Outcome::Failed
        }
    }
}

/// qemu-io says nothing at all here; only its exit status tells.
fn complain_of_flush(error: &IoError, reply: &mut Reply) {
    if reply.as_qemu_io() {
        reply.set_error(error);
    } else {
        reply.failed("flush", error);
    }
}
