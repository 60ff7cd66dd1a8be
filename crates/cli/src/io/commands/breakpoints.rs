//! `break`, `wait_break`, `resume` and `remove_break`: they speak to a blkdebug node beneath the image.
//!
//! Without one, which is always so until this program has that driver, QEMU's answer is that it can not be done.

use super::{Command, Outcome, arguments};
use crate::io::reply::Reply;

const UNSUPPORTED: &str = "Operation not supported";

pub(super) const BREAK: Command = Command {
    name: "break",
    alias: None,
    words_min: 2,
    words_max: Some(2),
    args: Some("event tag"),
    summary: "sets a breakpoint on event and tags the stopped request as tag",
    help: "",
    needs_file: true,
    writes: false,
    run: |_, _, reply| Box::pin(std::future::ready(refuse("set breakpoint", reply))),
};

pub(super) const WAIT_BREAK: Command = Command {
    name: "wait_break",
    alias: None,
    words_min: 1,
    words_max: Some(1),
    args: Some("tag"),
    summary: "waits for the suspension of a request",
    help: "",
    needs_file: true,
    writes: false,
    // QEMU waits for ever here. Nobody is helped by that.
    run: |_, _, reply| Box::pin(std::future::ready(refuse("wait for breakpoint", reply))),
};

pub(super) const RESUME: Command = Command {
    name: "resume",
    alias: None,
    words_min: 1,
    words_max: Some(1),
    args: Some("tag"),
    summary: "resumes the request tagged as tag",
    help: "",
    needs_file: true,
    writes: false,
    run: |_, _, reply| Box::pin(std::future::ready(refuse("resume request", reply))),
};

pub(super) const REMOVE_BREAK: Command = Command {
    name: "remove_break",
    alias: None,
    words_min: 1,
    words_max: Some(1),
    args: Some("tag"),
    summary: "remove a breakpoint by tag",
    help: "",
    needs_file: true,
    writes: false,
    run: |_, words, reply| {
        let tag = arguments(words).first().map_or("", String::as_str);
        Box::pin(std::future::ready(refuse(&format!("remove breakpoint {tag}"), reply)))
    },
};

fn refuse(what: &str, reply: &mut Reply) -> Outcome {
    reply.out(&format!("Could not {what}: {UNSUPPORTED}"));
    Outcome::Failed
}
