//! `blkproof rules`: rule files checked, explained and converted.

mod convert;

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_fault::file::{self, Mistake, Mistakes, in_file, preset};
use serde_json::{Value, json};

use crate::messages::print_error;

/// Check, explain and convert rule files: what is to go wrong with a disk
///
/// A rule file says on which requests a rule fires, what it does to them, and what changes then. `serve --rules FILE`
/// runs one.
///
/// Example: `blkproof rules check lab.toml && blkproof rules explain lab.toml`
#[derive(clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Check(CheckArgs),
    Explain(ExplainArgs),
    Convert(convert::Args),
    Schema(SchemaArgs),
}

/// Say everything that is wrong with rule files
///
/// Each mistake comes with its line, its rule and its field. Warnings are about rules that are well written and can
/// hardly be meant. The exit status is 0 if every file may be used, 1 if not.
///
/// Example: `blkproof rules check --strict lab.toml`
#[derive(clap::Args)]
struct CheckArgs {
    /// Warnings count too
    #[arg(long)]
    strict: bool,

    /// human, or json: one object with schema, files, mistakes and warnings
    #[arg(long, value_name = "FORMAT", value_parser = ["human", "json"], default_value = "human")]
    format: String,

    /// Say nothing of files that are right
    #[arg(short, long)]
    quiet: bool,

    /// The files; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
}

/// Say in plain English when each rule fires, what it does, and when it stops
///
/// Example: `blkproof rules explain lab.toml`
#[derive(clap::Args)]
struct ExplainArgs {
    /// List the words that `life` takes, and what they stand for
    #[arg(long)]
    presets: bool,

    /// The file; - is standard input
    #[arg(required_unless_present = "presets", value_name = "FILE")]
    file: Option<String>,
}

/// Print the JSON schema of rule files
///
/// It is for editors and for programs that write rules; control takes rules of the same shape.
///
/// Example: `blkproof rules schema > rules-1.json`
#[derive(clap::Args)]
struct SchemaArgs {
    /// Of lab files instead: what `serve --config` reads. It refers to the schema of rules
    #[arg(long)]
    lab: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::Check(args) => check(args),
        Command::Explain(args) => explain(args),
        Command::Convert(args) => convert::run(args),
        Command::Schema(args) => {
            print(if args.lab { file::lab::SCHEMA } else { file::SCHEMA }).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::FAILURE
    })
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut right = true;
    let mut reports = Vec::new();
    for name in &args.files {
        let text = content(name)?;
        let name = shown(name);
        let read = file::read(name, &text);
        right &= read.as_ref().is_ok_and(|read| !args.strict || read.warnings.is_empty());
        if args.format == "json" {
            reports.push(report(name, &read));
            continue;
        }
        match &read {
            Ok(read) => {
                warn(name, &read.warnings);
                if !args.quiet {
                    let count = read.rules.rules.len();
                    print(&format!("{name}: {count} rule{}, all right\n", if count == 1 { "" } else { "s" }))?;
                }
            }
            Err(mistakes) => refuse(mistakes),
        }
    }
    if args.format == "json" {
        let report = json!({"schema": "blkproof.rules-check/1", "files": reports});
        print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(name: &str, read: &Result<file::Read, Mistakes>) -> Value {
    let told = |mistakes: &[Mistake]| -> Vec<Value> {
        let told = mistakes.iter().map(|mistake| {
            json!({
                "line": mistake.place.map(|place| place.line),
                "column": mistake.place.map(|place| place.column),
                "rule": mistake.rule,
                "field": mistake.field,
                "message": mistake.words,
            })
        });
        told.collect()
    };
    match read {
        Ok(read) => {
            let rules: Vec<Value> = read.rules.rules.iter().map(|rule| file::json(rule, read.rules.lba_size)).collect();
            json!({
                "file": name, "valid": true, "mistakes": [], "more": 0,
                "warnings": told(&read.warnings), "rules": rules,
            })
        }
        Err(mistakes) => json!({
            "file": name, "valid": false, "mistakes": told(&mistakes.list), "more": mistakes.more,
            "warnings": [], "rules": [],
        }),
    }
}

fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    if args.presets {
        let lines: Vec<String> =
            preset::ALL.iter().map(|preset| format!("{:<17} {}\n", preset.word, preset.story)).collect();
        print(&lines.concat())?;
    }
    let Some(name) = &args.file else {
        return Ok(ExitCode::SUCCESS);
    };
    let text = content(name)?;
    let name = shown(name);
    match file::read(name, &text) {
        Ok(read) => {
            warn(name, &read.warnings);
            print(&file::explain_set(&read.rules))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(mistakes) => {
            refuse(&mistakes);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn warn(name: &str, warnings: &[Mistake]) {
    for warning in warnings {
        eprintln!("warning: {}", in_file(name, warning));
    }
}

fn refuse(mistakes: &Mistakes) {
    for line in mistakes.lines() {
        eprintln!("error: {line}");
    }
}

/// A file, or standard input.
fn content(name: &str) -> anyhow::Result<String> {
    // One byte more than is read tells that there is more.
    let limit = u64::try_from(file::FILE_MAX)?.saturating_add(1);
    let mut bytes = Vec::new();
    let read = if name == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(name).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("could not read '{name}'"))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("'{name}' is no text: byte {at} is not UTF-8")
    })
}

/// A file's name in messages.
fn shown(name: &str) -> &str {
    if name == "-" { "<stdin>" } else { name }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("writing to standard output"))
        }
        _ => Ok(()),
    }
}
