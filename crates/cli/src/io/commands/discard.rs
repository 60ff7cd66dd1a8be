//! `discard`.

use std::time::Instant;

use super::{Command, Outcome, arguments, disk, or_complain};
use crate::io::getopt::{Item, parse};
use crate::io::numbers::{REQUEST_BYTES_MAX, offset};
use crate::io::reply::Reply;
use crate::io::report::{Manner, Transfer};
use crate::io::shell::Shell;

pub(super) const DISCARD: Command = Command {
    name: "discard",
    alias: Some("d"),
    words_min: 2,
    words_max: None,
    args: Some("[-Cq] off len"),
    summary: "discards a number of bytes at a specified offset",
    help: "
 Says that the content of a range is no longer needed.

 Example:
 'discard 64k 1M' - gives up 1 MiB at 64 KiB

 -C           statistics as one line of figures, separated by commas
 -q           print no statistics
",
    needs_file: true,
    writes: true,
    run: |shell, words, reply| Box::pin(discard(shell, words, reply)),
};

async fn discard(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut manner = Manner::default();
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "Cq", &[]);
    for item in parsed.items {
        match item {
            Item::Flag('C') => manner.machine = true,
            Item::Flag('q') => manner.quiet = true,
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
    if bytes > REQUEST_BYTES_MAX {
        reply.out(&format!("length cannot exceed {REQUEST_BYTES_MAX}, given {len}"));
        return Outcome::Failed;
    }
    let start = Instant::now();
    let result = disk.discard(at, bytes).await;
    let elapsed = start.elapsed();
    if let Err(error) = result {
        reply.failed("discard", &error);
        return Outcome::Failed;
    }
    Transfer { verb: "discard", offset: at, bytes, elapsed }.report(manner, reply);
    Outcome::Done
}
