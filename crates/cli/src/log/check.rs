//! `blkproof log check`: the first entry at which the image is damaged.
//!
//! One image is rolled forward, and looked at on the way; nothing is copied, and nobody but the replay writes to it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use blkproof_block::{BlockDevice as _, Node};
use blkproof_check::source::FileSource;
use blkproof_check::watch::Silent;
use blkproof_check::{Format as ImageFormat, Options, Verdict};
use blkproof_fault::log_writes::format::Flags;
use blkproof_fault::log_writes::read::{Entry, Writer};
use blkproof_fault::log_writes::replay::apply;
use serde_json::json;

use super::image::Start;
use super::{Which, open_log, say_fault, say_rest};

/// Check the image at every flush, and find the first entry at which it is damaged
///
/// The image is checked as `blkproof check` does, or by a command, which gets its name where {} stands, or as its last
/// word, and says by its exit status whether the image is good. The command must not write to the image.
///
/// Exit status: 0 the image was good wherever it was looked at; 2 damaged; 1 the log or the image could not be read; 63
/// a format that can not be checked.
///
/// Example: `blkproof log check writes.log --at flush -- qemu-img check -q -f qcow2 {}`
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where to look: flush, fua, every, or a number for every so many entries; always at the end, too
    #[arg(long, value_name = "WHERE", default_value = "flush", value_parser = parse_at)]
    at: At,

    /// Format of the image (qcow2, vdi, …); recognised by its magic if left out
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format, conflicts_with = "command")]
    image_format: Option<ImageFormat>,

    /// Leaks are damage, too
    #[arg(long, conflicts_with = "command")]
    leaks: bool,

    /// Begin with this entry: nothing is looked at before it
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,

    /// Human readable, or JSON
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,

    /// Keep the image under this name, as it was when it was first found damaged
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,

    /// Overwrite an image that exists
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    start: Start,

    #[command(flatten)]
    which: Which,

    /// The log
    log: String,

    /// A command that checks the image {}
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Human,
    Json,
}

/// Where the image is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Flush,
    Fua,
    Every(u64),
}

fn parse_at(text: &str) -> Result<At, String> {
    match text {
        "flush" => Ok(At::Flush),
        "fua" => Ok(At::Fua),
        "every" => Ok(At::Every(1)),
        number => match number.parse() {
            Ok(count @ 1..) => Ok(At::Every(count)),
            _ => Err(format!("'{number}' is no place to look at; there are flush, fua, every, and numbers from 1")),
        },
    }
}

fn parse_format(name: &str) -> Result<ImageFormat, String> {
    ImageFormat::named(name).ok_or_else(|| {
        let names: Vec<_> = ImageFormat::ALL.iter().map(|format| format.name()).collect();
        format!("'{name}' is no format known; there are {}", names.join(", "))
    })
}

impl At {
    fn is(self, entry: &Entry) -> bool {
        match self {
            Self::Flush => entry.flags.contains(Flags::FLUSH),
            Self::Fua => entry.flags.contains(Flags::FUA),
            Self::Every(count) => entry.index.saturating_add(1).is_multiple_of(count),
        }
    }
}

/// What one look at the image showed.
enum Look {
    Good,
    /// Not a format that can be checked.
    Unknown,
    Bad(Vec<String>),
}

/// What all of them came to.
#[derive(Default)]
struct Tally {
    looks: u64,
    unknown: u64,
    /// The first bad one: entries on the image, and words.
    bad: Option<(u64, Option<Entry>, Vec<String>)>,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = open_log(&args.log).await?;
    let folder = match args.image {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("making a folder for the image")?),
    };
    let temporary = folder.as_ref().map(|folder| folder.path().join("image"));
    let path = args.image.clone().or(temporary).context("an image has a name")?;
    let image = args.start.make(&path, &args.log, args.force).await?;
    let mut entries = log.entries(args.which.extent());
    let mut tally = Tally::default();
    let mut writer = Writer::Unknown;
    let mut last = None;
    let fault = loop {
        let entry = match entries.next().await {
            Ok(Some(entry)) => entry,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        writer = writer.seen(&entry);
        apply(&log, &entry, &image, args.start.discards()).await?;
        let looked = entry.index >= args.from && args.at.is(&entry);
        if looked && look(args, &mut tally, &image, &path, Some(&entry)).await? {
            break None;
        }
        last = Some((looked, entry));
    };
    if tally.bad.is_none() && !matches!(last, Some((true, _))) {
        let entry = last.map(|(_, entry)| entry);
        look(args, &mut tally, &image, &path, entry.as_ref()).await?;
    }
    image.close().await?;
    report(args, &tally, entries.index(), writer);
    if tally.bad.is_some() {
        return Ok(ExitCode::from(Verdict::Damaged.exit_status()));
    }
    if let Some(error) = fault {
        say_fault(&args.log, &error);
        return Ok(ExitCode::FAILURE);
    }
    say_rest(&entries);
    if tally.unknown == tally.looks {
        eprintln!(
            "error: the image was never in a format that can be checked\nhint: state it with -f, or give a command"
        );
        return Ok(ExitCode::from(Verdict::Unsupported.exit_status()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks at the image; `true` if it is bad.
async fn look(
    args: &Args,
    tally: &mut Tally,
    image: &Node,
    path: &Path,
    entry: Option<&Entry>,
) -> anyhow::Result<bool> {
    image.drain().await?;
    tally.looks += 1;
    let look = if args.command.is_empty() { by_library(args, path)? } else { by_command(args, path, entry)? };
    match look {
        Look::Good => {}
        Look::Unknown => tally.unknown += 1,
        Look::Bad(words) => {
            let count = entry.map_or(0, |entry| entry.index.saturating_add(1));
            tally.bad = Some((count, entry.cloned(), words));
        }
    }
    Ok(tally.bad.is_some())
}

fn by_library(args: &Args, path: &Path) -> anyhow::Result<Look> {
    let image = FileSource::open(path).with_context(|| format!("opening '{}'", path.display()))?;
    let options = Options { format: args.image_format, ..Options::default() };
    let report = blkproof_check::check(&image, &options, &Silent);
    let words = || {
        let causes = report.causes.iter().map(|cause| cause.what.clone());
        let findings = report.findings.iter().map(|finding| format!("{}: {}", finding.code.name, finding.what));
        causes.chain(findings).take(8).collect()
    };
    Ok(match report.verdict {
        Verdict::Healthy => Look::Good,
        Verdict::Leaks if !args.leaks => Look::Good,
        Verdict::Unsupported => Look::Unknown,
        Verdict::Leaks | Verdict::Damaged | Verdict::Undecided => Look::Bad(words()),
    })
}

fn by_command(args: &Args, path: &Path, entry: Option<&Entry>) -> anyhow::Result<Look> {
    let name = path.to_str().context("the name of an image has to be UTF-8")?;
    let mut words: Vec<String> = args.command.iter().map(|word| word.replace("{}", name)).collect();
    if words == args.command {
        words.push(name.to_owned());
    }
    let (program, rest) = words.split_first().context("a command has a name")?;
    let before = stamp(path)?;
    let output = Command::new(program).args(rest).output().with_context(|| format!("running '{program}'"))?;
    if stamp(path)? != before {
        let count = entry.map_or(0, |entry| entry.index.saturating_add(1));
        anyhow::bail!(
            "'{}' changed the image behind {count} entries, so what follows would be another disk's\n\
             hint: use it in a way that only reads (qemu-img check without -r, e2fsck -n)",
            args.command.join(" ")
        );
    }
    if output.status.success() {
        return Ok(Look::Good);
    }
    let mut words = vec![format!("'{}' ended with {}", args.command.join(" "), output.status)];
    for text in [output.stdout, output.stderr] {
        words.extend(String::from_utf8_lossy(&text).lines().take(20).map(str::to_owned));
    }
    Ok(Look::Bad(words))
}

fn stamp(path: &Path) -> anyhow::Result<(u64, i64, i64)> {
    let meta = std::fs::metadata(path).with_context(|| format!("looking at '{}'", path.display()))?;
    Ok((meta.len(), meta.mtime(), meta.mtime_nsec()))
}

fn report(args: &Args, tally: &Tally, entries: u64, writer: Writer) {
    if args.format == Format::Json {
        let damaged = tally.bad.as_ref().map(|(count, entry, words)| {
            json!({
                "entries": count,
                "entry": entry.as_ref().map(|entry| entry.index),
                "at": entry.as_ref().map(|entry| entry.at),
                "operation": entry.as_ref().map(Entry::operation),
                "words": words,
            })
        });
        let report = json!({
            "schema": "blkproof.log-check/1",
            "log": args.log,
            "writer": writer.words(),
            "entries": entries,
            "checked": tally.looks,
            "not-checked": tally.unknown,
            "damaged": damaged,
        });
        println!("{report:#}");
        return;
    }
    let Some((count, entry, words)) = &tally.bad else {
        let good = tally.looks.saturating_sub(tally.unknown);
        let not = if tally.unknown > 0 { format!(", {} of no known format", tally.unknown) } else { String::new() };
        println!("{entries} entries, looked at {} times: {good} good{not}", tally.looks);
        return;
    };
    match entry {
        Some(entry) => println!(
            "damaged behind {count} entries, the last a {} ({:#x} on the log); good {} times before",
            entry.operation(),
            entry.at,
            tally.looks.saturating_sub(tally.unknown).saturating_sub(1)
        ),
        None => println!("damaged before the first entry"),
    }
    words.iter().for_each(|line| println!("  {line}"));
    match &args.image {
        Some(image) => eprintln!("hint: '{}' is that image", image.display()),
        None => eprintln!("hint: `blkproof log replay {} --until {count} --to IMAGE` writes that image", args.log),
    }
}
