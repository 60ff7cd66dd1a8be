//! `blkproof log list`: the entries, one a line.

use std::io::Write as _;
use std::process::ExitCode;

use blkproof_fault::log_writes::format::Flags;
use blkproof_fault::log_writes::read::{Entry, Log, LogError, Rest, Writer};
use serde_json::{Value, json};

use super::{Which, open_log, say_fault, say_rest};

/// List the entries of a write log
///
/// Exit status: 0, or 1 if an entry that the superblock counts can not be read; those before it are listed.
///
/// Example: `blkproof log list --format json writes.log`
#[derive(clap::Args)]
pub(super) struct Args {
    /// Human readable, or JSON
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,

    #[command(flatten)]
    which: Which,

    /// Also check the checksums, where the log has them
    #[arg(long)]
    verify: bool,

    /// The log
    log: String,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Human,
    Json,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = open_log(&args.log).await?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let sector = log.sector().bytes();
    match args.format {
        Format::Human => writeln!(
            out,
            "{:>8} {:>12} {:<9} {:>12} {:>10} {:<18} Text",
            "Entry", "At", "Operation", "Sector", "Bytes", "Flags"
        )?,
        Format::Json => begin_json(&mut out, args, &log)?,
    }
    let mut entries = log.entries(args.which.extent());
    if args.verify {
        entries = entries.verified();
    }
    let mut writer = Writer::Unknown;
    let mut first = true;
    let fault = loop {
        let entry = match entries.next().await {
            Ok(Some(entry)) => entry,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        writer = writer.seen(&entry);
        match args.format {
            Format::Human => print_human(&mut out, &entry, sector)?,
            Format::Json => {
                write!(out, "{}    {}", if first { "\n" } else { ",\n" }, entry_json(&entry, sector))?;
            }
        }
        first = false;
    };
    match args.format {
        Format::Human => {
            let counted = log.superblock().entries;
            writeln!(
                out,
                "{} entries, {counted} counted by the superblock; sectors of {sector} bytes; written by {}",
                entries.index(),
                writer.words()
            )?;
        }
        Format::Json => {
            let rest = match (&fault, entries.rest()) {
                (Some(error), _) => fault_json("damaged", error),
                (None, Rest::Incomplete(error)) => fault_json("incomplete", error),
                (None, Rest::Uncounted) => json!({ "kind": "uncounted" }),
                (None, Rest::Nothing) => Value::Null,
            };
            let end = json!({ "writer": writer_word(writer), "order": writer.model(), "rest": rest });
            let end = format!("{end:#}");
            writeln!(out, "{}],{}", if first { "" } else { "\n  " }, end.strip_prefix('{').unwrap_or(&end))?;
        }
    }
    out.flush()?;
    drop(out);
    match fault {
        Some(error) => {
            say_fault(&args.log, &error);
            Ok(ExitCode::FAILURE)
        }
        None => {
            say_rest(&entries);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print_human(out: &mut impl std::io::Write, entry: &Entry, sector: u64) -> std::io::Result<()> {
    let mut flags = flag_words(entry.flags).join(",");
    if !entry.counted {
        flags += if flags.is_empty() { "uncounted" } else { ",uncounted" };
    }
    let (at, bytes) = (format!("{:#x}", entry.at), entry.range.len());
    let place = entry.range.start.checked_div(sector).unwrap_or(0);
    let text = entry.text.as_deref().map(|text| text.escape_debug().to_string()).unwrap_or_default();
    let operation = entry.operation();
    let line = format!("{:>8} {at:>12} {operation:<9} {place:>12} {bytes:>10} {flags:<18} {text}", entry.index);
    writeln!(out, "{}", line.trim_end())
}

/// The flags that the operation does not say already.
fn flag_words(flags: Flags) -> Vec<String> {
    flags.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect()
}

fn begin_json(out: &mut impl std::io::Write, args: &Args, log: &Log) -> std::io::Result<()> {
    let begin = json!({
        "schema": "blkproof.log/1",
        "log": args.log,
        "sector-size": log.sector().bytes(),
        "counted": log.superblock().entries,
    });
    let begin = format!("{begin:#}");
    write!(out, "{},\n  \"entries\": [", begin.strip_suffix("\n}").unwrap_or(&begin))
}

fn entry_json(entry: &Entry, sector: u64) -> Value {
    let mut value = json!({
        "entry": entry.index,
        "at": entry.at,
        "operation": entry.operation(),
        "sector": entry.range.start.checked_div(sector),
        "offset": entry.range.start,
        "bytes": entry.range.len(),
        "flags": flag_words(entry.flags),
        "counted": entry.counted,
    });
    let Some(object) = value.as_object_mut() else { return value };
    if let Some(text) = &entry.text {
        object.insert("text".into(), json!(text));
    }
    if let Some(details) = &entry.details {
        object.insert(
            "details".into(),
            json!({
                "submitted": details.submitted,
                "bytes": details.bytes,
                "time-ns": details.time_ns,
                "checksum": details.chain,
            }),
        );
    }
    value
}

fn fault_json(kind: &str, error: &LogError) -> Value {
    match error {
        LogError::Entry { index, at, fault } => {
            json!({ "kind": kind, "entry": index, "at": at.0, "words": fault.to_string() })
        }
        error => json!({ "kind": kind, "words": error.to_string() }),
    }
}

fn writer_word(writer: Writer) -> &'static str {
    match writer {
        Writer::Ours => "blkproof",
        Writer::Kernel => "kernel",
        Writer::Completion => "qemu-or-blkproof",
        Writer::Unknown => "unknown",
    }
}
