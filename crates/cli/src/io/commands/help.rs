//! `help`.

use super::{Command, Outcome, all, arguments, find};
use crate::io::reply::Reply;

pub(super) const HELP: Command = Command {
    name: "help",
    alias: Some("?"),
    words_min: 0,
    words_max: Some(1),
    args: Some("[command]"),
    summary: "help for one or all commands",
    help: "",
    needs_file: false,
    writes: false,
    run: |_, words, reply| Box::pin(std::future::ready(help(words, reply))),
};

fn help(words: &[String], reply: &mut Reply) -> Outcome {
    let Some(name) = arguments(words).first() else {
        for command in all(reply.as_qemu_io()) {
            reply.out(&command.usage(command.name));
        }
        reply.out("\nUse 'help commandname' for extended help.");
        return Outcome::Done;
    };
    let Some(command) = find(name, reply.as_qemu_io()) else {
        reply.out(&format!("command {name} not found"));
        return Outcome::Failed;
    };
    // Under the name that was asked for, be it an alias.
    reply.out(&command.usage(name));
    if !command.help.is_empty() {
        reply.out(command.help);
    }
    Outcome::Done
}
