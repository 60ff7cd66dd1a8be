//! `map` and `alloc`: what the image itself holds, as opposed to a backing image.

use serde_json::{Value, json};

use super::{Command, Outcome, arguments, disk, or_complain};
use crate::io::numbers::{SECTOR, offset};
use crate::io::reply::Reply;
use crate::io::report::size;
use crate::io::session::Disk;
use crate::io::shell::Shell;

pub(super) const ALLOC: Command = Command {
    name: "alloc",
    alias: Some("a"),
    words_min: 1,
    words_max: Some(2),
    args: Some("offset [count]"),
    summary: "checks if offset is allocated in the file",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(alloc(shell, words, reply)),
};

pub(super) const MAP: Command = Command {
    name: "map",
    alias: None,
    words_min: 0,
    words_max: Some(0),
    args: Some(""),
    summary: "prints the allocated areas of a file",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, _, reply| Box::pin(map(shell, reply)),
};

async fn alloc(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut words = arguments(words).iter();
    let at = or_complain!(offset(words.next().map_or("", String::as_str)), reply);
    let count = match words.next() {
        Some(count) => or_complain!(offset(count), reply),
        None => SECTOR,
    };
    let count = count.min(disk.size().saturating_sub(at));
    let end = at.saturating_add(count);
    let (mut allocated, mut here) = (0u64, at);
    while here < end {
        match extent(&disk, here, end).await {
            Ok((true, len)) => {
                allocated = allocated.saturating_add(len);
                here = here.saturating_add(len);
            }
            Ok((false, len)) => here = here.saturating_add(len),
            Err(error) => {
                reply.failed("is_allocated", &error);
                return Outcome::Failed;
            }
        }
    }
    reply.set("offset", at);
    reply.set("bytes", count);
    reply.set("allocated", allocated);
    if !reply.is_json() {
        reply.out(&format!("{allocated}/{count} bytes allocated at offset {}", size(at)));
    }
    Outcome::Done
}

async fn map(shell: &mut Shell, reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let end = disk.size();
    let mut here = 0u64;
    let mut extents: Vec<Value> = Vec::new();
    while here < end {
        let (allocated, len) = match extent(&disk, here, end).await {
            Ok(found) => found,
            Err(error) => {
                reply.out(&format!("Failed to query allocation status: {}", error.errno));
                reply.set_error(&error);
                return Outcome::Failed;
            }
        };
        if reply.is_json() {
            extents.push(json!({ "start": here, "length": len, "allocated": allocated }));
        } else {
            let state = if allocated { "    allocated" } else { "not allocated" };
            reply.out(&format!("{} ({len:#x}) bytes {state} at offset {} ({here:#x})", size(len), size(here)));
        }
        here = here.saturating_add(len);
    }
    reply.set("extents", extents);
    Outcome::Done
}

/// Whether the bytes from `at` are allocated, and how many up to `end` are so as well.
async fn extent(disk: &Disk, at: u64, end: u64) -> blkproof_block::Result<(bool, u64)> {
    let (allocated, mut len) = disk.is_allocated(at, end.saturating_sub(at)).await?;
    loop {
        let next = at.saturating_add(len);
        if next >= end {
            return Ok((allocated, end.saturating_sub(at)));
        }
        match disk.is_allocated(next, end.saturating_sub(next)).await? {
            (same, more) if same == allocated => len = len.saturating_add(more),
            _ => return Ok((allocated, len)),
        }
    }
}
