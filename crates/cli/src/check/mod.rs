//! `blkproof check`: images are read and explained, never written.

mod checkpoint;
mod letters;
mod metadump;
mod outputs;
mod references;
mod watcher;

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_block::graph::nearest;
use blkproof_check::source::FileSource;
use blkproof_check::{Assume, Format as ImageFormat, Options, Report, Verdict, check};
use blkproof_report::human::Show;
use blkproof_report::{Style, human, json, map};

use crate::graph::parse_size;
use crate::messages::{print_error, without_number};
use crate::stop::Stop;
use crate::terminal;
use letters::Letters;
use outputs::{MapKind, Outputs};
use references::Seen;
use watcher::Watcher;

/// Read images and say what is wrong with them, why, and what to do; never writes to them
///
/// Checks every header, table and pointer of qcow2, VDI, VMDK, VHD, VHDX, Parallels and QED images. The verdict comes
/// first, then the causes, the findings, what of the guest's disk is lost, what was not checked, and the next safe
/// step.
///
/// The exit status is that of `qemu-img check`: 0 healthy, 2 damaged, 3 leaks only, 1 could not be decided (or opened),
/// 63 a format that can not be checked. A qcow2 image that was not closed (dirty bit) differs: counts that are too low,
/// which `qemu-img check` calls errors (2), are rebuilt when it is next opened and are no damage: 0, or 3 with leaks.
/// Of several images the worst counts: damaged, undecided, leaks, not checked, healthy.
///
/// With a preset or letters (-s -q -b -v -x -d -l -e) the output is qcheck's: sections of the streams chosen. f fatal
/// errors, w other errors, s summaries, e start-up line, h headings, i information, p problems, c passed tests, d
/// debugging, H header, L L1 table, l L2 tables, R refcount table, 2 1 0 refcounts of two and more, one, nought, M
/// metadata, D data, V vacant, F leaked, A allocated, U unallocated ranges, E the whole file.
///
/// Example: `blkproof check disk.qcow2`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Format of the images (qcow2, vdi, vmdk, vhd, vhdx, parallels, qed); recognised by its magic if left out
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format)]
    image_format: Option<ImageFormat>,

    /// Look into the data too, where the format has checks for it: inflate every compressed cluster
    #[arg(long)]
    data: bool,

    /// Facts a damaged header can not supply any more, such as cluster_bits=16,size=10G
    #[arg(long, value_name = "NAME=VALUE,…", value_parser = Assume::parse)]
    assume: Option<Assume>,

    /// Memory the analysis may hold; less of it takes more passes
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    memory: u64,

    /// Threads; as many as there are processors if left out
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Check the backing, data and extent files that the images name as well
    #[arg(long)]
    allow_backing: bool,

    /// The images come from a stranger: every other file they name is a finding
    #[arg(long)]
    untrusted: bool,

    /// Keep and show this many single findings; all are counted
    #[arg(long, value_name = "N")]
    max_findings: Option<usize>,

    /// Human readable, JSON (an array if there are several images), or JSON in a line for each image
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,

    /// Draw the maps of file and disk: svg=FILE, html=FILE, or term for the terminal; may be repeated
    #[arg(long, value_name = "KIND", value_parser = outputs::parse_map)]
    map: Vec<MapKind>,

    /// Write what of the guest's disk is lost as a map of GNU ddrescue
    #[arg(long, value_name = "FILE")]
    ddrescue_map: Option<PathBuf>,

    /// Write all metadata of the image, and no guest data, into a new sparse file on which check says the same
    ///
    /// Data clusters are never in it. Where a guest's data has overwritten a table, words that could be pointers stay,
    /// since the answer depends on them, and text is blanked: look at such a file before you hand it on.
    #[arg(long, value_name = "FILE")]
    metadump: Option<PathBuf>,

    /// Leave names of files, snapshots and bitmaps, and unknown extensions, in the metadump as they are
    #[arg(long, requires = "metadump")]
    keep_names: bool,

    /// Keep what was read in a file, and go on from it if the check is ended before it is done
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,

    #[command(flatten)]
    letters: Letters,

    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Human,
    Json,
    Jsonl,
}

/// Why an image was not checked.
enum Failed {
    Open(std::io::Error),
    Other(anyhow::Error),
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::Open(error)
    }
}

/// Exit status of a check that could not be made.
const FAILED: u8 = 1;

fn parse_format(name: &str) -> Result<ImageFormat, String> {
    ImageFormat::named(name).ok_or_else(|| {
        let names: Vec<_> = ImageFormat::ALL.iter().map(|format| format.name()).collect();
        format!("'{name}' is no format known; there are {}", names.join(", "))
    })
}

pub(crate) fn run(args: Args) -> ExitCode {
    let status = match Run::new(args) {
        Ok(run) => run.all(),
        Err(error) => {
            print_error(&error);
            FAILED
        }
    };
    ExitCode::from(status)
}

/// One image to be checked.
struct Job {
    path: PathBuf,
    format: Option<ImageFormat>,
    /// The image that names it; `None` if the user does.
    named_by: Option<PathBuf>,
}

struct Run {
    args: Args,
    outputs: Outputs,
    stop: Stop,
    colour: bool,
    width: Option<usize>,
}

impl Run {
    fn new(args: Args) -> anyhow::Result<Self> {
        if args.format != Format::Human && args.letters.streams().is_some() {
            anyhow::bail!("--format json prints everything; presets and letters choose from the human output only");
        }
        if args.format != Format::Human && args.map.iter().any(|kind| matches!(kind, MapKind::Term)) {
            anyhow::bail!("--map term and --format json would both print to standard output; choose --map svg=FILE");
        }
        if let (Some(assume), Some(format)) = (&args.assume, args.image_format)
            && let Some(name) = assume.unknown(format)
        {
            let known = Assume::known(format);
            match (nearest(name, known.iter().copied()), known) {
                (_, []) => anyhow::bail!("nothing can be assumed for {}", format.name()),
                (Some(near), _) => anyhow::bail!("'{name}' can not be assumed; did you mean '{near}'?"),
                (None, _) => {
                    anyhow::bail!("'{name}' can not be assumed for {}, only {}", format.name(), known.join(", "))
                }
            }
        }
        let outputs = Outputs::new(&args.map, args.ddrescue_map.as_deref(), &args.images)?;
        if let Some(file) = &args.metadump {
            metadump::refuse(file, &args.images)?;
        }
        if let Some(file) = &args.checkpoint {
            checkpoint::refuse(file, &args.images)?;
        }
        Ok(Self {
            outputs,
            stop: Stop::listen().context("listening for signals")?,
            colour: terminal::colour(),
            width: terminal::width(),
            args,
        })
    }

    fn all(self) -> u8 {
        let (mut worst, mut said) = (0u8, 0usize);
        let mut array = Vec::new();
        let mut seen = Seen::default();
        let mut jobs: VecDeque<Job> = (self.args.images.iter())
            .map(|path| Job { path: path.clone(), format: self.args.image_format, named_by: None })
            .collect();
        while let Some(job) = jobs.pop_front() {
            // Whatever image is named twice is checked once.
            if job.named_by.is_some() && seen.before(&job.path) {
                continue;
            }
            let (status, report) = match self.one(&job, said) {
                Ok(Some(report)) => (report.verdict.exit_status(), report),
                Ok(None) => continue,
                Err(failed) => {
                    worst = worse(worst, FAILED);
                    let words = match failed {
                        Failed::Open(error) => self.not_opened(&job, &error),
                        Failed::Other(error) => {
                            print_error(&error);
                            error.to_string()
                        }
                    };
                    match self.args.format {
                        Format::Json => array.push(json::unopened(&job.path.display().to_string(), &words)),
                        Format::Jsonl => print(&json::unopened(&job.path.display().to_string(), &words).to_string()),
                        Format::Human => {}
                    }
                    continue;
                }
            };
            said += 1;
            // A raw disk behind an image is as it should be.
            if job.named_by.is_none() || report.verdict != Verdict::Unsupported {
                worst = worse(worst, status);
            }
            match self.args.format {
                Format::Json => array.push(json::report(&report)),
                Format::Jsonl => print(&json::report(&report).to_string()),
                Format::Human => {}
            }
            if let Err(error) = self.outputs.write(&report) {
                print_error(&error);
                worst = worse(worst, FAILED);
            }
            if let Some(file) = self.args.metadump.as_deref().filter(|_| job.named_by.is_none())
                && let Err(error) = self.metadump(file, &job, &report)
            {
                print_error(&error);
                worst = worse(worst, FAILED);
            }
            if self.args.allow_backing {
                seen.before(&job.path);
                for other in references::jobs(&job.path, &report, self.args.untrusted).into_iter().rev() {
                    jobs.push_front(other);
                }
            }
            if self.stop.asked() && !jobs.is_empty() {
                let left: Vec<_> = jobs.iter().map(|job| format!("'{}'", job.path.display())).collect();
                eprintln!("note: not checked any more: {}", left.join(", "));
                worst = worse(worst, FAILED);
                break;
            }
        }
        if self.args.format == Format::Json {
            match <[_; 1]>::try_from(array) {
                Ok([one]) => print(&format!("{one:#}")),
                Err(array) => print(&format!("{:#}", serde_json::Value::Array(array))),
            }
        }
        worst
    }

    /// Checks one image, and prints what a person reads of it. `None` for a file that an image names and that has
    /// nothing to check.
    fn one(&self, job: &Job, said: usize) -> Result<Option<Report>, Failed> {
        let image = FileSource::open(&job.path)?;
        if job.named_by.is_some() && job.format == Some(ImageFormat::Raw) {
            return Ok(None);
        }
        let mut options = self.options(job);
        if self.args.allow_backing {
            options.data_file_len = references::data_file_len(&job.path, &image, &options);
        }
        let watcher = Watcher::new(&self.stop, self.args.letters.streams());
        watcher.start(&job.path);
        let report = match self.args.checkpoint.as_deref().filter(|_| job.named_by.is_none()) {
            Some(file) => checkpoint::check_with(file, &image, &options, &watcher).map_err(Failed::Other)?,
            None => check(&image, &options, &watcher),
        };
        self.stop.calm();
        if self.args.format == Format::Human {
            if said > 0 && self.args.letters.streams().is_none() {
                print("");
            }
            self.print(&watcher, &report);
        }
        Ok(Some(report))
    }

    /// Dumps the metadata of an image that was checked.
    fn metadump(&self, file: &Path, job: &Job, report: &Report) -> anyhow::Result<()> {
        if report.stopped {
            anyhow::bail!("the metadump '{}' was not written: the check was stopped", file.display());
        }
        let image = FileSource::open(&job.path).with_context(|| format!("opening '{}' again", job.path.display()))?;
        let watcher = Watcher::new(&self.stop, None);
        watcher.start(&job.path);
        let dumped = metadump::write(file, &image, &self.options(job), self.args.keep_names, &watcher);
        watcher.clear();
        self.stop.calm();
        dumped
    }

    fn options(&self, job: &Job) -> Options {
        let args = &self.args;
        let processors = || std::thread::available_parallelism().map_or(1, Into::into);
        let drawn = if args.map.is_empty() { 0 } else { map::CELLS };
        let defaults = Options::default();
        Options {
            format: job.format,
            data: args.data,
            assume: if job.named_by.is_none() { args.assume.clone().unwrap_or_default() } else { Assume::default() },
            memory: args.memory,
            threads: args.threads.unwrap_or_else(processors).max(1),
            max_findings: args.max_findings.unwrap_or(defaults.max_findings),
            cells: drawn,
            untrusted: args.untrusted,
            allow_backing: args.allow_backing,
            ..defaults
        }
    }

    fn print(&self, watcher: &Watcher<'_>, report: &Report) {
        if watcher.finish(report) {
            // The letters said it.
        } else {
            let mut show = Show { style: Style { colour: self.colour }, width: self.width, ..Show::default() };
            if let Some(most) = self.args.max_findings {
                (show.findings, show.per_code) = (most, most);
            }
            let mut text = String::new();
            // Writing to memory does not fail.
            let _ = human::write(&mut text, report, &show);
            print(text.trim_end_matches('\n'));
        }
        if self.args.map.iter().any(|kind| matches!(kind, MapKind::Term)) {
            let maps = map::term_maps(report, self.width.unwrap_or(80), self.colour);
            print(maps.trim_end_matches('\n'));
        }
    }

    /// Says that an image could not be opened; returns why.
    fn not_opened(&self, job: &Job, error: &std::io::Error) -> String {
        let words = error.to_string();
        let words = without_number(&words);
        if self.args.letters.streams().is_some() {
            let watcher = Watcher::new(&self.stop, self.args.letters.streams());
            watcher.fatal(&format!("{}: could not open it: {words}", job.path.display()));
            return words.to_owned();
        }
        let by = job.named_by.as_ref().map(|by| format!(" (named by '{}')", by.display())).unwrap_or_default();
        eprintln!("error: could not open '{}'{by}: {words}", job.path.display());
        let hint = match (error.kind(), &job.named_by) {
            (std::io::ErrorKind::NotFound, Some(_)) => {
                "the image can not be used without it; restore the file, or correct the name"
            }
            (std::io::ErrorKind::NotFound, None) => {
                "check the path; an image on another host has to be copied or mounted first"
            }
            (std::io::ErrorKind::PermissionDenied, _) => "run as a user who may read it; reading is all that is needed",
            _ => return words.to_owned(),
        };
        eprintln!("hint: {hint}");
        words.to_owned()
    }
}

/// The worse of two exit statuses: damaged, undecided, leaks, not checked, healthy.
fn worse(a: u8, b: u8) -> u8 {
    let rank = |status: u8| [2, FAILED, 3, 63, 0].iter().position(|known| *known == status).unwrap_or(0);
    if rank(b) < rank(a) { b } else { a }
}

/// Prints a line. That nobody reads it any more is no error of ours.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            print_error(&anyhow::Error::new(error).context("writing to standard output"));
        }
        _ => {}
    }
}

/// Whether two paths lead to the same file.
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::worse;

    #[test]
    fn damaged_is_worst_and_healthy_is_best() {
        let order = [2u8, 1, 3, 63, 0];
        for (place, a) in order.iter().enumerate() {
            for b in &order[place..] {
                assert_eq!((worse(*a, *b), worse(*b, *a)), (*a, *a), "{a} {b}");
            }
        }
    }
}
