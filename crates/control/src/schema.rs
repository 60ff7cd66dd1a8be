//! What commands there are. Each is declared once, in the [table](COMMANDS): its name, its arguments, what it does and what
//! does it. From here come the checking of arguments, the introspection, `blkproof ctl`'s help and completion, and the
//! table in the documentation.

use std::fmt::Write as _;

use blkproof_block::LocalBoxFuture;
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::commands::{self, Context};
use crate::error::Error;

/// A command.
pub struct Command {
    /// Its name on the wire.
    pub name: &'static str,
    /// What it does: a sentence without its full stop, and more sentences behind it if needed.
    pub about: &'static str,
    /// What it takes.
    pub arguments: &'static [Argument],
    /// What it answers, in words.
    pub returns: &'static str,
    /// Whether it may overtake others (`exec-oob`): it does not wait for I/O.
    pub oob: bool,
    /// What does it.
    pub(crate) run: Run,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Command({})", self.name)
    }
}

/// What does a command. The arguments have been checked against its declaration.
pub(crate) type Run = for<'a> fn(&'a Context, Arguments) -> LocalBoxFuture<'a, Result<Value, Error>>;

/// An argument of a command.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// Its name.
    pub name: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// Whether the command can not do without it.
    pub required: bool,
    /// What it means.
    pub about: &'static str,
}

/// What may stand in an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Text.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number from 0.
    Count,
    /// A number of bytes, or text such as `64k`.
    Bytes,
    /// A number of seconds, or text such as `250ms`.
    Time,
    /// Bytes in base64.
    Data,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Numbers, ascending.
    Counts,
    /// The name of a node.
    Node,
    /// An object, or a list of objects, whose fields others check.
    Objects,
    /// An object whose fields others check.
    Object,
}

impl Kind {
    /// Its name in the introspection and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Flag => "flag",
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Time => "time",
            Self::Data => "base64",
            Self::Word(_) => "word",
            Self::Counts => "list of counts",
            Self::Node => "node name",
            Self::Objects => "object or list of objects",
            Self::Object => "object",
        }
    }

    /// The words that may stand here, if they are few.
    pub const fn words(self) -> &'static [&'static str] {
        match self {
            Self::Word(words) => words,
            Self::Flag => &["true", "false"],
            _ => &[],
        }
    }
}

/// Kinds of requests that commands know.
pub const OPERATIONS: &[&str] = &["read", "write", "write-zeroes", "discard", "flush", "block-status", "resize"];

const fn required(name: &'static str, kind: Kind, about: &'static str) -> Argument {
    Argument { name, kind, required: true, about }
}

const fn optional(name: &'static str, kind: Kind, about: &'static str) -> Argument {
    Argument { name, kind, required: false, about }
}

const FAULT_NODE: Argument = optional("node", Kind::Node, "the fault or blkdebug node; the only one if not given");

const BLKDEBUG_NODE: Argument = optional("node", Kind::Node, "the blkdebug node; the only one if not given");

const DISK_NODE: Argument = optional("node", Kind::Node, "the disk; the only one if not given");

/// Every command, by subject.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "query-commands",
        about: "List the names of all commands",
        arguments: &[],
        returns: "a list of `{name}`",
        oob: true,
        run: |context, arguments| Box::pin(commands::process::query_commands(context, arguments)),
    },
    Command {
        name: "query-schema",
        about: "Describe commands and their arguments, and the events",
        arguments: &[optional("command", Kind::Text, "only this one")],
        returns: "`{commands: [{name, about, arguments: [{name, type, required, about, words?}], returns, oob}], events: \
                  [{name, about}]}`",
        oob: true,
        run: |context, arguments| Box::pin(commands::process::query_schema(context, arguments)),
    },
    Command {
        name: "query-version",
        about: "Name the version of blkproof",
        arguments: &[],
        returns: "`{qemu: {major, minor, micro}, package}`, in QMP's shape; the numbers are blkproof's",
        oob: true,
        run: |context, arguments| Box::pin(commands::process::query_version(context, arguments)),
    },
    Command {
        name: "query-nodes",
        about: "List the nodes that can be controlled",
        arguments: &[],
        returns: "a list of `{node, driver}`",
        oob: true,
        run: |context, arguments| Box::pin(commands::process::query_nodes(context, arguments)),
    },
    Command {
        name: "fault-add",
        about: "Arm rules: all of them, or none if anything is wrong. A node has 10000 at most",
        arguments: &[
            FAULT_NODE,
            required("rule", Kind::Objects, "a rule or a list of rules, with the fields of rule files"),
        ],
        returns: "`{rules: [id], warnings?: [text]}`; a rule without `id` gets one",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::add(context, arguments)),
    },
    Command {
        name: "fault-remove",
        about: "Remove a rule and its damage; what it holds goes on",
        arguments: &[
            FAULT_NODE,
            optional("rule", Kind::Text, "its id"),
            optional("all", Kind::Flag, "remove every rule instead"),
        ],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::remove(context, arguments)),
    },
    Command {
        name: "fault-list",
        about: "List rules with what they have done, and the requests they hold",
        arguments: &[optional("node", Kind::Node, "only of this fault or blkdebug node")],
        returns: "a list of `{node, state, stopped, lba-size, rules: [{id, armed, fired, seen, primed?, bad-sectors?, damaged-sectors, rule}], held: [{tag, requests}]}`",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::list(context, arguments)),
    },
    Command {
        name: "fault-reset",
        about: "Make a rule as it was when it was added; without one, all rules and the state",
        arguments: &[FAULT_NODE, optional("rule", Kind::Text, "its id")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::reset(context, arguments)),
    },
    Command {
        name: "fault-arm",
        about: "Make a rule able to fire, or not, without forgetting what it has counted",
        arguments: &[
            FAULT_NODE,
            required("rule", Kind::Text, "its id"),
            optional("armed", Kind::Flag, "whether it can fire; true if not given"),
        ],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::set_armed(context, arguments)),
    },
    Command {
        name: "fault-state",
        about: "Change the state that rules look at",
        arguments: &[FAULT_NODE, required("state", Kind::Text, "the new state")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::set_state(context, arguments)),
    },
    Command {
        name: "fault-wait",
        about: "Wait until a rule has fired so often, counted from when it was added or reset",
        arguments: &[
            FAULT_NODE,
            required("rule", Kind::Text, "its id"),
            optional("count", Kind::Count, "how often; 1 if not given"),
            optional("timeout", Kind::Time, "how long to wait; a minute if not given"),
        ],
        returns: "`{fired}`, the rule's counter; an error if the time is up",
        oob: false,
        run: |context, arguments| Box::pin(commands::fault::wait(context, arguments)),
    },
    Command {
        name: "fault-hold",
        about: "Hold requests back: arm a rule whose id is the tag. `fault-wait` says when a request is parked",
        arguments: &[
            FAULT_NODE,
            required("tag", Kind::Text, "what to release them by"),
            optional(
                "on",
                Kind::Object,
                "which requests, as `on` of a rule; the next one if not given, with `times` 1",
            ),
        ],
        returns: "as `fault-add`",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::hold(context, arguments)),
    },
    Command {
        name: "fault-release",
        about: "Let parked requests go on, the oldest first",
        arguments: &[
            optional("node", Kind::Node, "only of this fault or blkdebug node"),
            optional("tag", Kind::Text, "only those parked under it; an error if there are none"),
            optional("count", Kind::Count, "so many at most"),
        ],
        returns: "`{released}`, how many",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::release(context, arguments)),
    },
    Command {
        name: "fault-register",
        about: "Have questions of `ask` rules sent to this client: of one rule of one node, or of any. The most exact registration is asked, the newest of equal ones. A client that leaves or sends its last byte is not asked any more",
        arguments: &[
            optional("node", Kind::Node, "of this fault node"),
            optional("rule", Kind::Text, "of the rule of this id; it need not be there yet"),
        ],
        returns: "nothing; `FAULT_ASK` follows for every request",
        oob: true,
        run: |context, arguments| Box::pin(commands::ask::register(context, arguments)),
    },
    Command {
        name: "fault-unregister",
        about: "Take `fault-register` back",
        arguments: &[optional("node", Kind::Node, "as it was given"), optional("rule", Kind::Text, "as it was given")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::ask::unregister(context, arguments)),
    },
    Command {
        name: "fault-answer",
        about: "Answer a question; any client may",
        arguments: &[
            required("ask", Kind::Count, "its number, from `FAULT_ASK`"),
            required(
                "answer",
                Kind::Word(&["proceed", "fail", "succeed"]),
                "what becomes of the request; `succeed` does nothing",
            ),
            optional(
                "data",
                Kind::Data,
                "with `proceed`: what is written, or read, instead; as many bytes as the request has",
            ),
            optional("error", Kind::Text, "with `fail`: the error, as rules write it; `EIO` if not given"),
        ],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::ask::answer(context, arguments)),
    },
    Command {
        name: "device-error",
        about: "Fail the next request of a kind: a rule that fires once, behind the other rules. Of those that have, the last 16 stay listed",
        arguments: &[
            FAULT_NODE,
            optional(
                "operation",
                Kind::Word(OPERATIONS),
                "requests of this kind; any that carry data, and flushes, if not given",
            ),
            optional("lba", Kind::Count, "requests that touch this sector"),
            optional(
                "error",
                Kind::Text,
                "the error, as rules write it: `EIO`, `03/1101`, `nvme:2/81 dnr`; `EIO` if not given",
            ),
            optional("times", Kind::Count, "so many requests; 1 if not given"),
        ],
        returns: "as `fault-add`",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::device_error(context, arguments)),
    },
    Command {
        name: "reassign",
        about: "Give sectors new places, as a drive does from its spares: rules whose sectors recover by `reassign` or `rewrite` lose them",
        arguments: &[
            FAULT_NODE,
            required("lba", Kind::Count, "the first"),
            optional("count", Kind::Count, "how many; 1 if not given"),
        ],
        returns: "`{rules}`, how many rules had any of them",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::reassign(context, arguments)),
    },
    Command {
        name: "stop",
        about: "Hold back every request that arrives at fault nodes from now on",
        arguments: &[optional("node", Kind::Node, "only at this fault node")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::stop(context, arguments)),
    },
    Command {
        name: "cont",
        about: "Let requests through again after `stop`",
        arguments: &[optional("node", Kind::Node, "only at this fault node")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::fault::cont(context, arguments)),
    },
    Command {
        name: "break",
        about: "Set a breakpoint of a blkdebug node, as qemu-io's command: the next request that announces the event is parked",
        arguments: &[
            BLKDEBUG_NODE,
            required("event", Kind::Text, "the step, such as `write_aio`"),
            required("tag", Kind::Text, "what to resume the request by"),
        ],
        returns: "nothing; `SUSPENDED` follows when a request is parked",
        oob: true,
        run: |context, arguments| Box::pin(commands::breaks::set(context, arguments)),
    },
    Command {
        name: "wait-break",
        about: "Wait until a request is parked at a breakpoint",
        arguments: &[
            BLKDEBUG_NODE,
            required("tag", Kind::Text, "as given to `break`"),
            optional("timeout", Kind::Time, "how long to wait; a minute if not given"),
        ],
        returns: "nothing; an error if the time is up",
        oob: false,
        run: |context, arguments| Box::pin(commands::breaks::wait(context, arguments)),
    },
    Command {
        name: "resume",
        about: "Let the newest request go on that is parked at a breakpoint",
        arguments: &[BLKDEBUG_NODE, required("tag", Kind::Text, "as given to `break`")],
        returns: "nothing; an error if none is parked",
        oob: true,
        run: |context, arguments| Box::pin(commands::breaks::resume(context, arguments)),
    },
    Command {
        name: "remove-break",
        about: "Remove the breakpoints of a tag, and let every request go on that is parked under it",
        arguments: &[BLKDEBUG_NODE, required("tag", Kind::Text, "as given to `break`")],
        returns: "nothing; an error if there was neither",
        oob: true,
        run: |context, arguments| Box::pin(commands::breaks::remove(context, arguments)),
    },
    Command {
        name: "query-breaks",
        about: "List breakpoints that were not hit yet, and the requests parked at others",
        arguments: &[optional("node", Kind::Node, "only of this blkdebug node")],
        returns: "a list of `{node, breakpoints: [{event, tag}], suspended: [{tag, requests}]}`",
        oob: true,
        run: |context, arguments| Box::pin(commands::breaks::list(context, arguments)),
    },
    Command {
        name: "power-cut",
        about: "Cut the power of a disk. Requests in flight are never answered: their clients are disconnected",
        arguments: &[
            DISK_NODE,
            optional(
                "state",
                Kind::Text,
                "the state to come back in, such as `all-old`, `drop:17`, `seed:1234`; the disk's seed picks one if not given",
            ),
        ],
        returns: "`{cut, state, size, requests, states: {count, log2}, lost, betrayed, on}` when the disk is in its new state; `state` asks for the same again",
        oob: false,
        run: |context, arguments| Box::pin(commands::disk::power_cut(context, arguments)),
    },
    Command {
        name: "power-on",
        about: "Switch a disk on that stayed off after a power cut",
        arguments: &[DISK_NODE],
        returns: "nothing",
        oob: false,
        run: |context, arguments| Box::pin(commands::disk::power_on(context, arguments)),
    },
    Command {
        name: "disk-state",
        about: "Tell what a disk holds that a power cut could lose",
        arguments: &[DISK_NODE, optional("names", Kind::Count, "so many names of states at most; 16 if not given")],
        returns: "`{node, on, kind, profile, seed, size, cuts, requests, open, cached, promised, states: {count, log2}, names: [text]}`",
        oob: true,
        run: |context, arguments| Box::pin(commands::disk::state(context, arguments)),
    },
    Command {
        name: "disk-save",
        about: "Write the state that a power cut would leave to a new image; the disk goes on",
        arguments: &[
            DISK_NODE,
            optional("state", Kind::Text, "its name; `all-new` if not given"),
            required("file", Kind::Text, "the image; a file that is there is not touched"),
            optional("format", Kind::Word(&["raw", "qcow2"]), "its format; raw if not given, qcow2 with `backing`"),
            optional(
                "backing",
                Kind::Text,
                "write an overlay with only what differs, and this name of the medium's image as its backing file",
            ),
            optional("backing-format", Kind::Text, "the format of the medium's image; raw if not given"),
        ],
        returns: "`{state, size, lost, betrayed}`",
        oob: false,
        run: |context, arguments| Box::pin(commands::disk::save(context, arguments)),
    },
    Command {
        name: "disk-fail-flushes",
        about: "Make the next flushes of a disk fail, as its option `flush-error` says",
        arguments: &[DISK_NODE, optional("count", Kind::Count, "so many; 1 if not given")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::disk::fail_flushes(context, arguments)),
    },
    Command {
        name: "log-mark",
        about: "Write a mark into a write log",
        arguments: &[
            optional("node", Kind::Node, "the blklogwrites node; the only one if not given"),
            required("text", Kind::Text, "the mark"),
        ],
        returns: "`{entries}`, how many the log has; the mark is durable",
        oob: false,
        run: |context, arguments| Box::pin(commands::log::mark(context, arguments)),
    },
    Command {
        name: "stats-start",
        about: "Count requests from now on; figures go on where they were",
        arguments: &[optional("node", Kind::Node, "only of this stats node")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::stats::start(context, arguments)),
    },
    Command {
        name: "stats-stop",
        about: "Stop counting",
        arguments: &[optional("node", Kind::Node, "only of this stats node")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::stats::stop(context, arguments)),
    },
    Command {
        name: "stats-reset",
        about: "Forget every figure",
        arguments: &[optional("node", Kind::Node, "only of this stats node")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::stats::reset(context, arguments)),
    },
    Command {
        name: "stats-query",
        about: "Tell every figure",
        arguments: &[optional("node", Kind::Node, "only of this stats node")],
        returns: "a list of what `query-blockstats` lists, ours under `driver-specific`",
        oob: true,
        run: |context, arguments| Box::pin(commands::stats::query(context, arguments)),
    },
    Command {
        name: "query-blockstats",
        about: "Tell every figure, as QEMU's command of that name",
        arguments: &[optional("query-nodes", Kind::Flag, "taken and without meaning: nodes are what there is")],
        returns: "a list of `{node-name, stats, driver-specific}`",
        oob: true,
        run: |context, arguments| Box::pin(commands::stats::query_blockstats(context, arguments)),
    },
    Command {
        name: "block-latency-histogram-set",
        about: "Set the bins of latency histograms, as QEMU's command of that name; without boundaries all are removed",
        arguments: &[
            required("id", Kind::Node, "the stats node"),
            optional("boundaries", Kind::Counts, "in nanoseconds, ascending, for every kind not named"),
            optional("boundaries-read", Kind::Counts, "of reads"),
            optional("boundaries-write", Kind::Counts, "of writes and write zeroes"),
            optional("boundaries-zap", Kind::Counts, "of zone appends, which there are none of"),
            optional("boundaries-flush", Kind::Counts, "of flushes"),
        ],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::stats::set_histograms(context, arguments)),
    },
    Command {
        name: "trace-start",
        about: "Write a line for each request from now on",
        arguments: &[optional("node", Kind::Node, "only of this trace node")],
        returns: "nothing",
        oob: true,
        run: |context, arguments| Box::pin(commands::trace::start(context, arguments)),
    },
    Command {
        name: "trace-stop",
        about: "Write no more lines but those of requests under way. The trace says so, and a replay compares no data then",
        arguments: &[optional("node", Kind::Node, "only of this trace node")],
        returns: "nothing; lines reach the file a moment later",
        oob: true,
        run: |context, arguments| Box::pin(commands::trace::stop(context, arguments)),
    },
    Command {
        name: "quit",
        about: "End the process as SIGTERM does: what is in flight is answered, images are closed",
        arguments: &[],
        returns: "nothing; the event `SHUTDOWN` follows, and the end of the connection",
        oob: true,
        run: |context, arguments| Box::pin(commands::process::quit(context, arguments)),
    },
];

/// The command of that name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

impl Command {
    /// Its description for programs.
    pub fn describe(&self) -> Value {
        let arguments: Vec<Value> = self.arguments.iter().map(Argument::describe).collect();
        json!({
            "name": self.name,
            "about": self.about,
            "arguments": arguments,
            "returns": self.returns,
            "oob": self.oob,
        })
    }
}

impl Argument {
    fn describe(&self) -> Value {
        let mut it = json!({
            "name": self.name,
            "type": self.kind.name(),
            "required": self.required,
            "about": self.about,
        });
        if let (Kind::Word(words), Some(map)) = (self.kind, it.as_object_mut()) {
            map.insert("words".to_owned(), json!(words));
        }
        it
    }
}

/// The reference of commands and events, as it stands in `docs/control.md`.
pub fn markdown() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "### Commands\n");
    for command in COMMANDS {
        let oob = if command.oob { "" } else { " (not out of band)" };
        let _ = writeln!(text, "- **`{}`**{oob}: {}. Answers {}.", command.name, command.about, command.returns);
        for Argument { name, kind, required, about } in command.arguments {
            let required = if *required { ", required" } else { "" };
            let words = match kind {
                Kind::Word(words) => format!(": `{}`", words.join("` `")),
                _ => String::new(),
            };
            let _ = writeln!(text, "  - `{name}` ({}{words}{required}): {about}", kind.name());
        }
    }
    let _ = writeln!(text, "\n### Events\n");
    for (name, about) in crate::events::EVENTS {
        let _ = writeln!(text, "- `{name}`: {about}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_sentences_have_no_full_stop() {
        let names: BTreeSet<_> = COMMANDS.iter().map(|command| command.name).collect();
        assert_eq!(names.len(), COMMANDS.len());
        for command in COMMANDS {
            let arguments: BTreeSet<_> = command.arguments.iter().map(|argument| argument.name).collect();
            assert_eq!(arguments.len(), command.arguments.len(), "{}", command.name);
            for words in [command.about, command.returns].into_iter().chain(command.arguments.iter().map(|a| a.about)) {
                assert!(
                    !words.is_empty() && !words.ends_with('.') && !words.contains("  "),
                    "{}: {words}",
                    command.name
                );
            }
        }
        assert!(find("query-schema").is_some() && find("query_schema").is_none());
    }
}
