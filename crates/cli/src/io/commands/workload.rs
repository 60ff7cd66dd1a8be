//! `workload`: a seeded random workload; one of the commands qemu-io does not have.

use super::{Command, Outcome, arguments, disk, or_complain};
use crate::io::getopt::{Item, parse};
use crate::io::numbers::offset;
use crate::io::reply::Reply;
use crate::io::shell::Shell;
use crate::workload::Workload;

pub(super) const WORKLOAD: Command = Command {
    name: "workload",
    alias: None,
    words_min: 0,
    words_max: Some(8),
    args: Some("[-s seed] [-n operations] [-q depth] [-l length]"),
    summary: "runs a random workload that its seed repeats",
    help: "
 runs reads, writes, zeroes, discards and flushes at random places of the whole
 disk, many at a time, and ends with a flush; every decision follows from the seed
 and the number of the operation

 Example:
 'workload -s 2010 -n 4000' - the four thousand operations of seed 2010

 What was read is not judged: put the disk under blkverify for that.
 -s, -- seed (default 1)
 -n, -- number of operations (default 1000)
 -q, -- operations in flight (default 16)
 -l, -- largest request (default 128k)
",
    needs_file: true,
    writes: true,
    run: |shell, words, reply| Box::pin(workload(shell, words, reply)),
};

async fn workload(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut workload = Workload { seed: 1, operations: 1000, depth: 16, length_max: 128 << 10 };
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "l:n:q:s:", &[]);
    for item in parsed.items {
        match item {
            Item::Value(option, text) => {
                let number = or_complain!(offset(&text), reply);
                match option {
                    's' => workload.seed = number,
                    'n' => workload.operations = number,
                    'q' => workload.depth = usize::try_from(number).unwrap_or(usize::MAX),
                    _ => workload.length_max = number,
                }
            }
            Item::Flag(_) => {}
            Item::Wrong(text) => {
                reply.err(&text);
                return Outcome::Usage;
            }
        }
    }
    if !parsed.operands.is_empty() {
        return Outcome::Usage;
    }
    let Workload { seed, operations, depth, length_max } = workload;
    reply.set("seed", seed);
    if !reply.is_json() {
        reply.out(&format!("replay: workload -s {seed} -n {operations} -q {depth} -l {length_max}"));
    }
    match workload.run(disk.node()).await {
        Ok(summary) => {
            if !reply.is_json() {
                reply.out(&summary.to_string());
            }
            Outcome::Done
        }
        Err(failure) => {
            reply.complain(&failure.to_string());
            Outcome::Failed
        }
    }
}
