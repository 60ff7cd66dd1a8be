//! `blkproof ctl`: a thin client of a control socket. Its commands are those of the schema.

mod client;
mod show;
mod stats;
mod words;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use blkproof_control::events::EVENTS;
use blkproof_control::schema::{self, COMMANDS};
use clap::builder::{PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};
use serde_json::Map;

use self::client::{Client, Failure};
use crate::control::Address;
use crate::messages::print_error;

/// What `blkproof ctl` is asked to do.
#[derive(Debug)]
pub(crate) struct Args {
    socket: Address,
    json: bool,
    action: Action,
}

#[derive(Debug)]
enum Action {
    /// A command of the schema.
    Command(&'static schema::Command, Vec<String>),
    /// Events, until the end or so many.
    Events { only: Vec<String>, count: Option<u64> },
    /// Statistics for people.
    Stats { node: Option<String>, watch: Option<Duration> },
    /// Statistics as a page.
    StatsHtml { node: Option<String>, output: PathBuf },
}

const ABOUT: &str = "Control the nodes of a running graph: arm faults, cut the power, ask for statistics";

const MORE: &str = "\
SOCKET is what the graph was served with: `serve --control SOCKET`. Arguments are KEY=VALUE; values are JSON where they
can be, text otherwise, and a key such as `rule.on.lba` reaches into an object. `ctl SOCKET COMMAND --help` shows the
arguments of a command.

The exit status is 0 when the command was done, 1 when it was refused, 2 when the command line is wrong, 3 when nobody
answers.

Example: `blkproof ctl lab.sock fault-add rule.id=bad rule.on.lba=50 rule.do.fail=03/1101`";

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        let mut command = command
            .about(ABOUT)
            .long_about(format!("{ABOUT}\n\n{MORE}"))
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand_value_name("COMMAND")
            .subcommand_help_heading("Commands")
            .disable_help_subcommand(true)
            .arg(
                Arg::new("socket")
                    .value_name("SOCKET")
                    .required(true)
                    .value_parser(value_parser!(Address))
                    .value_hint(clap::ValueHint::FilePath)
                    .help("The control socket: a path, tcp:PORT or tcp:HOST:PORT"),
            )
            .arg(
                Arg::new("format")
                    .long("format")
                    .value_name("FORMAT")
                    .global(true)
                    .value_parser(PossibleValuesParser::new(["human", "json"]))
                    .default_value("human")
                    .help("How results are shown; json is what the socket answered"),
            );
        for it in COMMANDS {
            command = command.subcommand(of_schema(it));
        }
        command.subcommand(events()).subcommand(stats()).subcommand(stats_html())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A command of the schema, with its arguments for completion and help.
fn of_schema(it: &'static schema::Command) -> Command {
    let command = Command::new(it.name).about(it.about).arg_required_else_help(false);
    let mut help = format!("Answers {}.", it.returns);
    if it.arguments.is_empty() {
        return command.after_help(help);
    }
    help.push_str("\n\nArguments:\n");
    for argument in it.arguments {
        let required = if argument.required { ", required" } else { "" };
        let kind = match argument.kind.words() {
            [] => argument.kind.name().to_owned(),
            words => words.join("|"),
        };
        help.push_str(&format!("  {}=  {} ({kind}{required})\n", argument.name, argument.about));
    }
    command
        .arg(
            Arg::new("words")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .num_args(0..)
                .value_parser(Keys(it))
                .hide_possible_values(true)
                .help("Arguments, see below"),
        )
        .after_help(help.trim_end().to_owned())
}

/// Takes any word; shells complete the keys of a command.
#[derive(Clone)]
struct Keys(&'static schema::Command);

impl TypedValueParser for Keys {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &std::ffi::OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = self.0.arguments.iter().flat_map(|argument| {
            let values = argument.kind.words();
            let whole = values.iter().map(|value| format!("{}={value}", argument.name));
            let open = values.is_empty().then(|| format!("{}=", argument.name));
            // clap keeps words for as long as the program runs; this is asked once or twice.
            whole.chain(open).map(|word| PossibleValue::new(&*word.leak()).help(argument.about))
        });
        Some(Box::new(words))
    }
}

fn events() -> Command {
    let names = EVENTS.iter().map(|(name, about)| PossibleValue::new(*name).help(*about));
    Command::new("events")
        .about("Print events as they come, a line of JSON each")
        .arg(
            Arg::new("only")
                .value_name("EVENT")
                .action(ArgAction::Append)
                .num_args(0..)
                .value_parser(PossibleValuesParser::new(names))
                .hide_possible_values(true)
                .help("Only these"),
        )
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("End after so many"),
        )
}

fn stats() -> Command {
    Command::new("stats")
        .about("Print statistics as a table")
        .arg(Arg::new("watch").long("watch").action(ArgAction::SetTrue).help("Again and again, until Ctrl-C"))
        .arg(
            Arg::new("interval")
                .long("interval")
                .value_name("SECONDS")
                .value_parser(value_parser!(f64))
                .default_value("1")
                .help("Time between two tables"),
        )
        .arg(node())
}

fn stats_html() -> Command {
    Command::new("stats-html")
        .about("Write statistics with heat map and latencies as one page that needs no network")
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The page"),
        )
        .arg(node())
}

fn node() -> Arg {
    Arg::new("node").long("node").value_name("NAME").help("Only of this stats node")
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let wrong = |words: String| clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{words}\n"));
        let socket = matches.get_one::<Address>("socket").cloned();
        let socket = socket.ok_or_else(|| wrong("no socket is given".to_owned()))?;
        let Some((name, matches)) = matches.subcommand() else { return Err(wrong("no command is given".to_owned())) };
        let json = matches.get_one::<String>("format").is_some_and(|format| format == "json");
        let node = || matches.get_one::<String>("node").cloned();
        let all = |id: &str| matches.get_many::<String>(id).into_iter().flatten().cloned().collect::<Vec<_>>();
        let action = match name {
            "events" => Action::Events { only: all("only"), count: matches.get_one::<u64>("count").copied() },
            "stats" => {
                let seconds = matches.get_one::<f64>("interval").copied().unwrap_or(1.0);
                let interval =
                    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time >= Duration::from_millis(50));
                let interval = interval.ok_or_else(|| wrong("--interval takes seconds, from 0.05".to_owned()))?;
                Action::Stats { node: node(), watch: matches.get_flag("watch").then_some(interval) }
            }
            "stats-html" => {
                let output = matches.get_one::<PathBuf>("output").cloned().unwrap_or_default();
                Action::StatsHtml { node: node(), output }
            }
            name => {
                let command = schema::find(name).ok_or_else(|| wrong(format!("'{name}' is no command")))?;
                let words = if command.arguments.is_empty() { Vec::new() } else { all("words") };
                Action::Command(command, words)
            }
        };
        Ok(Self { socket, json, action })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The command line is wrong.
const USAGE: u8 = 2;
/// Nobody answers.
const NOBODY: u8 = 3;

pub(crate) fn run(args: &Args) -> ExitCode {
    match act(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Refused(error)) => {
            print_error(&error);
            ExitCode::FAILURE
        }
        Err(Failure::Usage(words)) => {
            print_error(&anyhow::Error::msg(words));
            ExitCode::from(USAGE)
        }
        Err(Failure::Nobody(error)) => {
            print_error(&error);
            ExitCode::from(NOBODY)
        }
        // Whoever read the output has seen enough.
        Err(Failure::Closed) => ExitCode::SUCCESS,
    }
}

fn act(args: &Args) -> Result<(), Failure> {
    // Before anybody is asked.
    let arguments = match &args.action {
        Action::Command(command, words) => words::arguments(command, words).map_err(Failure::Usage)?,
        _ => Map::new(),
    };
    let mut client = Client::connect(&args.socket)?;
    match &args.action {
        Action::Command(command, _) => {
            let result = client.execute(command.name, arguments)?;
            if args.json { print(&format!("{result}\n")) } else { print(&show::human(&result)) }
        }
        Action::Events { only, count } => {
            let mut left = *count;
            while left != Some(0) {
                let Some(event) = client.event()? else { return Ok(()) };
                let wanted = only.is_empty() || only.iter().any(|name| event["event"] == name.as_str());
                if wanted {
                    print(&format!("{event}\n"))?;
                    left = left.map(|left| left.saturating_sub(1));
                }
            }
            Ok(())
        }
        Action::Stats { node, watch } => stats::table(&mut client, node.as_deref(), *watch, args.json),
        Action::StatsHtml { node, output } => stats::page(&mut client, node.as_deref(), output),
    }
}

/// Writes to standard output, at once.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Refused(anyhow::Error::new(error).context("writing to standard output")),
    })
}
