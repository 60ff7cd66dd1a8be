//! The commands for zoned devices. No node here is one, so all of them check their arguments and then decline.

use super::{Command, Outcome, arguments, or_complain};
use crate::io::getopt::{Item, parse};
use crate::io::numbers::{offset, vector};
use crate::io::reply::Reply;

/// A command that takes an offset and a length.
macro_rules! zone_command {
    ($const:ident, $name:literal, $alias:literal, $args:literal, $summary:literal, $what:literal) => {
        pub(super) const $const: Command = Command {
            name: $name,
            alias: Some($alias),
            words_min: 2,
            words_max: Some(2),
            args: Some($args),
            summary: $summary,
            help: "",
            needs_file: true,
            writes: false,
            run: |_, words, reply| Box::pin(std::future::ready(manage(words, $what, reply))),
        };
    };
}

zone_command!(REPORT, "zone_report", "zrp", "offset number", "report zone information", "zone report");
zone_command!(
    OPEN,
    "zone_open",
    "zo",
    "offset len",
    "explicit open a range of zones in zone block device",
    "zone open"
);
zone_command!(CLOSE, "zone_close", "zc", "offset len", "close a range of zones in zone block device", "zone close");
zone_command!(FINISH, "zone_finish", "zf", "offset len", "finish a range of zones in zone block device", "zone finish");
zone_command!(
    RESET,
    "zone_reset",
    "zrs",
    "offset len",
    "reset a zone write pointer in zone block device",
    "zone reset"
);

pub(super) const APPEND: Command = Command {
    name: "zone_append",
    alias: Some("zap"),
    words_min: 3,
    words_max: Some(4),
    args: Some("offset len [len..]"),
    summary: "append write a number of bytes at a specified offset",
    help: "",
    needs_file: true,
    writes: false,
    run: |_, words, reply| Box::pin(std::future::ready(append(words, reply))),
};

fn manage(words: &[String], what: &str, reply: &mut Reply) -> Outcome {
    for word in arguments(words) {
        or_complain!(offset(word), reply);
    }
    decline(what, reply)
}

fn append(words: &[String], reply: &mut Reply) -> Outcome {
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "p", &[]);
    for item in parsed.items {
        if let Item::Wrong(text) = item {
            // Said, and then ignored, as qemu-io does.
            reply.err(&text);
        }
    }
    let Some((at, lengths)) = parsed.operands.split_first() else { return Outcome::Usage };
    or_complain!(offset(at), reply);
    or_complain!(vector(lengths), reply);
    decline("zone append", reply)
}

fn decline(what: &str, reply: &mut Reply) -> Outcome {
    reply.failed(what, &blkproof_block::IoError::unsupported());
    Outcome::Failed
}
