//! `blkproof diff-meta`: what changed between two states of an image.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_check::diff::{Change, Sink, diff};
use blkproof_check::source::FileSource;
use blkproof_check::watch::Silent;
use blkproof_check::{Format as ImageFormat, Options};
use serde_json::json;

use crate::messages::print_error;

/// The schema's name. Its number grows when a key changes its meaning or goes; new keys may come at any time.
const SCHEMA: &str = "blkproof.diff-meta/1";

/// Say what changed in the metadata between two states of an image; reads both and writes to neither
///
/// For qcow2: fields of the header by name, extensions, snapshots, bitmaps, L1 entries, what each range of the guest's
/// disk is mapped to (allocated, freed, moved, zeroed), and reference counts. For VDI, VMDK, VHD, VHDX, Parallels and
/// QED: which bytes of which structure changed, and which entries of tables. Changes that follow each other are told as
/// one; guest data is not compared (`blkproof compare` does that).
///
/// The exit status is 0 if nothing changed, 1 if something did, 2 if the images could not be compared.
///
/// Example: `blkproof diff-meta before.qcow2 after.qcow2`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Format of both images; recognised by its magic if left out
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format)]
    image_format: Option<ImageFormat>,

    /// Human readable, or one JSON object with a list of changes
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,

    /// Memory the comparison may hold
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = crate::graph::parse_size)]
    memory: u64,

    /// The image as it was
    a: PathBuf,

    /// The image as it is
    b: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Human,
    Json,
}

const SAME: u8 = 0;
const DIFFERENT: u8 = 1;
const FAILED: u8 = 2;

fn parse_format(name: &str) -> Result<ImageFormat, String> {
    ImageFormat::named(name).ok_or_else(|| {
        let names: Vec<_> = ImageFormat::ALL.iter().map(|format| format.name()).collect();
        format!("'{name}' is no format known; there are {}", names.join(", "))
    })
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let status = match compare(args) {
        Ok(0) => SAME,
        Ok(_) => DIFFERENT,
        Err(error) => {
            let broken = error.chain().any(|cause| {
                cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            });
            // Nobody reads on: that is no failure, and there was something to tell.
            if broken {
                DIFFERENT
            } else {
                print_error(&error);
                FAILED
            }
        }
    };
    ExitCode::from(status)
}

fn compare(args: &Args) -> anyhow::Result<u64> {
    let open = |path: &Path| FileSource::open(path).with_context(|| format!("could not open '{}'", path.display()));
    let (a, b) = (open(&args.a)?, open(&args.b)?);
    let options = Options { format: args.image_format, memory: args.memory, ..Options::default() };
    let mut out = BufWriter::new(io::stdout().lock());
    let words = "writing to standard output";
    let told = match args.format {
        Format::Human => {
            let told = diff(&a, &b, &options, &Silent, &mut Human { out: &mut out, owner: "" })?;
            if told == 0 {
                writeln!(out, "the metadata is the same").context(words)?;
            }
            told
        }
        Format::Json => {
            let mut json = Json { out: &mut out, told: 0 };
            let (a_name, b_name) = (json!(args.a.display().to_string()), json!(args.b.display().to_string()));
            write!(json.out, "{{\"schema\": \"{SCHEMA}\", \"a\": {a_name}, \"b\": {b_name}, \"changes\": [")
                .context(words)?;
            let compared = diff(&a, &b, &options, &Silent, &mut json);
            // What was written stays valid JSON, and says how it ended.
            let end = match &compared {
                Ok(told) => format!("], \"same\": {}}}", *told == 0),
                Err(error) => format!("], \"error\": {}}}", json!(error.to_string())),
            };
            writeln!(json.out, "{}{end}", if json.told > 0 { "\n" } else { "" }).context(words)?;
            if let Err(error) = compared {
                let _ = out.flush();
                return Err(error.into());
            }
            compared?
        }
    };
    out.flush().context(words)?;
    Ok(told)
}

/// An owner as a heading, its changes below.
struct Human<'o, W> {
    out: &'o mut W,
    owner: &'static str,
}

impl<W: Write> Sink for Human<'_, W> {
    fn change(&mut self, change: &Change) -> io::Result<()> {
        if self.owner != change.owner {
            self.owner = change.owner;
            writeln!(self.out, "{}", change.owner)?;
        }
        let place = match &change.guest {
            Some(guest) if change.what == "guest range" => format!("guest {:#x}..{:#x}", guest.start, guest.end),
            _ => change.what.clone(),
        };
        let values = match (change.before.as_str(), change.after.as_str()) {
            ("", "") => String::new(),
            ("", after) => format!(": {after}"),
            (before, "") => format!(": was {before}"),
            (before, after) => format!(": {before} -> {after}"),
        };
        let many = match (change.count, change.owner) {
            (0 | 1, _) => "",
            (_, "mapping") => &format!(" ({} clusters; values of the first)", change.count),
            (_, "L1 table") => " (values of the first)",
            (_, "refcounts") => &format!(" ({} clusters)", change.count),
            _ if change.what.starts_with("entries") => " (values of the first)",
            _ => "",
        };
        writeln!(self.out, "  {:10} {place}{values}{many}", change.kind.name())
    }
}

/// The changes as elements of a list.
struct Json<'o, W> {
    out: &'o mut W,
    told: u64,
}

impl<W: Write> Sink for Json<'_, W> {
    fn change(&mut self, change: &Change) -> io::Result<()> {
        let mut value = json!({
            "owner": change.owner,
            "kind": change.kind.name(),
            "what": change.what,
            "before": change.before,
            "after": change.after,
            "count": change.count,
        });
        if let (Some(guest), Some(object)) = (&change.guest, value.as_object_mut()) {
            let length = guest.end.saturating_sub(guest.start);
            object.insert("guest".to_owned(), json!({ "offset": guest.start, "length": length }));
        }
        let comma = if self.told > 0 { "," } else { "" };
        self.told += 1;
        write!(self.out, "{comma}\n  {value}")
    }
}
