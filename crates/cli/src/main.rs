//! The `blkproof` binary: arguments, sockets, progress and exit codes. What another program would want is in a library.

mod clock;
mod control;
mod graph;
mod messages;
mod mismatches;
mod runtime;
mod sockets;
mod stop;
mod terminal;
mod trace_file;

mod check;
mod compare;
mod completions;
mod crashloop;
mod create;
mod ctl;
mod diff_meta;
mod explain;
mod findings;
mod io;
mod log;
mod map;
mod replay;
mod rules;
mod serve;
mod torture;
mod workload;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// A laboratory for block storage
///
/// Mirrors a driver against a reference and catches the first wrong sector, tortures drivers until they fail and shrinks
/// what broke them to a few lines, serves any image over NBD, and reads and writes qcow2, VDI and raw images.
#[derive(Parser)]
#[command(name = "blkproof", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Args),
    Explain(explain::Args),
    DiffMeta(diff_meta::Args),
    Serve(serve::Args),
    Torture(torture::Args),
    Replay(replay::Args),
    Findings(findings::Args),
    Verify(compare::VerifyArgs),
    Compare(compare::CompareArgs),
    Io(io::Args),
    Log(log::Args),
    Create(create::Args),
    Crashloop(crashloop::Args),
    Ctl(ctl::Args),
    Map(map::Args),
    Rules(rules::Args),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// `check` as a program of its own: of what the other commands can be told nothing comes into memory, and a wrong command
/// line is no damaged image.
///
/// Who checks an image of many terabytes on a host that has none to spare looks at the memory of the whole process, and
/// most of it is the program itself (`cargo xtask bench check-1t`).
#[derive(Parser)]
#[command(name = "blkproof", version, max_term_width = 100)]
struct CheckCli {
    #[command(subcommand)]
    command: CheckCommand,
}

#[derive(Subcommand)]
enum CheckCommand {
    Check(check::Args),
}

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    if called_as_qemu_io(words.first()) {
        words.remove(0);
        return io::run(words, true);
    }
    // qemu-io's options may stand anywhere and repeat in ways of their own, so `io` reads its words itself.
    if words.get(1).is_some_and(|word| word == "io") {
        words.drain(..2);
        return io::run(words, false);
    }
    if words.get(1).is_some_and(|word| word == "check") {
        let CheckCommand::Check(args) = parse_check(&words).command;
        return check::run(args);
    }
    run(&words)
}

/// Every other command. Apart from `main`, whose stack `check` has to carry too.
#[inline(never)]
fn run(words: &[OsString]) -> ExitCode {
    match Cli::parse_from(words).command {
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(&args),
        Command::DiffMeta(args) => diff_meta::run(&args),
        Command::Serve(args) => serve::run(args),
        Command::Torture(args) => torture::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Findings(args) => findings::run(&args),
        Command::Verify(args) => compare::run_verify(args),
        Command::Compare(args) => compare::run_compare(args),
        Command::Io(args) => io::run(args.words, false),
        Command::Log(args) => log::run(args),
        Command::Create(args) => create::run(args),
        Command::Crashloop(args) => crashloop::run(&args),
        Command::Ctl(args) => ctl::run(&args),
        Command::Map(args) => map::run(args),
        Command::Rules(args) => rules::run(&args),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
        Command::Man(args) => completions::run_man(&args, &Cli::command()),
    }
}

/// Reads the command line of `check`; ends the program, as clap does, where it is wrong.
///
/// But `check` has the exit statuses of `qemu-img check`, where clap's 2 means that an image is damaged.
fn parse_check(words: &[OsString]) -> CheckCli {
    match CheckCli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            std::process::exit(1);
        }
        Err(error) => error.exit(),
    }
}

/// Whether this program was started through a link called `qemu-io`, as the test suites of QEMU do.
fn called_as_qemu_io(name: Option<&OsString>) -> bool {
    name.and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == "qemu-io")
}
