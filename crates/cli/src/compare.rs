//! `blkproof compare` and `blkproof verify`: two whole images, every differing range.
//!
//! The images are cut into pieces, and several threads take them in turn, each with graphs of its own, since a graph
//! lives on one thread. Pieces are small enough that all threads end together, and large enough that taking one costs
//! nothing.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use blkproof_block::graph::{CacheMode, OpenContext, OpenFlags};
use blkproof_block::{BlockDevice as _, ByteRange, Node};
use blkproof_verify::compare::{CompareOptions, Report, Side, Step, compare, split};
use serde_json::json;
use tokio::sync::mpsc;

use crate::graph::{parse_cache, registry};
use crate::messages::{human_size, print_error};
use crate::runtime::{self, stop_signal};

/// Compare two images, or any two block graphs
///
/// Lists every range that differs. Exit status as for `qemu-img compare`: 0 identical, 1 different, 2 an image could
/// not be opened, 3 a block-status query failed, 4 a read failed or the comparison was interrupted. Where one image is
/// longer, the rest of it must read as zeroes.
///
/// Example: `blkproof compare -f raw -F qcow2 disk.raw disk.qcow2`
#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// Format of the first image
    #[arg(short = 'f', value_name = "FMT")]
    first_format: Option<String>,

    /// Format of the second image
    #[arg(short = 'F', value_name = "FMT")]
    second_format: Option<String>,

    #[command(flatten)]
    how: How,

    /// The first image
    a: String,

    /// The second image
    b: String,
}

/// Compare a test image with its raw reference, once and completely
///
/// The same comparison as `blkproof compare`, with the words of blkverify: RAW is the reference, read as raw bytes;
/// TEST is the image whose driver is doubted. To compare while a workload runs, serve `blkverify:RAW:TEST`.
///
/// Example: `blkproof verify reference.raw disk.qcow2`
#[derive(clap::Args)]
pub(crate) struct VerifyArgs {
    /// Format of TEST; probed if left out
    #[arg(short = 'f', long, value_name = "FMT")]
    image_format: Option<String>,

    #[command(flatten)]
    how: How,

    /// The reference
    raw: String,

    /// The image under test
    test: String,
}

#[derive(clap::Args, Clone)]
struct How {
    /// Different sizes, and extents allocated or zero on one side only, are differences too
    #[arg(short, long)]
    strict: bool,

    /// Human readable, or one JSON object
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,

    /// The images are lists of options
    #[arg(long)]
    image_opts: bool,

    /// Open the backing and data files that the images themselves name
    #[arg(long)]
    allow_backing: bool,

    /// Cache mode of the host files
    #[arg(short = 'T', long, value_name = "MODE", default_value = "writeback", value_parser = parse_cache)]
    cache: CacheMode,

    /// Open although another process holds an image
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Threads; as many as there are processors if left out
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Show progress even if standard error is no terminal
    #[arg(short, long)]
    progress: bool,

    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Human,
    Json,
}

/// One image as the threads open it.
#[derive(Clone)]
struct Image {
    name: String,
    format: Option<String>,
}

const OPEN_FAILED: u8 = 2;
const INTERRUPTED: u8 = 4;

pub(crate) fn run_compare(args: CompareArgs) -> ExitCode {
    let a = Image { name: args.a, format: args.first_format };
    let b = Image { name: args.b, format: args.second_format };
    run([a, b], &args.how)
}

pub(crate) fn run_verify(args: VerifyArgs) -> ExitCode {
    let raw = Image { name: args.raw, format: (!args.how.image_opts).then(|| "raw".to_owned()) };
    let test = Image { name: args.test, format: args.image_format };
    run([raw, test], &args.how)
}

fn run(images: [Image; 2], how: &How) -> ExitCode {
    let started = Instant::now();
    let report = match runtime::block_on(compare_in_threads(&images, how)).flatten() {
        Ok(report) => report,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(OPEN_FAILED);
        }
    };
    if let Err(error) = print(&report, &images, how, started.elapsed()) {
        print_error(&error);
    }
    match report.exit_status() {
        0 if report.bytes_left > 0 => ExitCode::from(INTERRUPTED),
        status => ExitCode::from(status),
    }
}

/// What the threads share.
#[derive(Default)]
struct Work {
    /// Set once, when the images' sizes are known.
    pieces: OnceLock<Vec<ByteRange>>,
    next: AtomicUsize,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Work {
    fn pieces(&self) -> &[ByteRange] {
        self.pieces.get().map_or(&[], Vec::as_slice)
    }

    /// How many pieces some thread has taken.
    fn taken(&self) -> usize {
        self.next.load(Ordering::Acquire).min(self.pieces().len())
    }
}

/// What a thread tells the one that coordinates.
enum Told {
    /// The first thread has both images open: their larger size, and what holds even for images without a byte.
    Opened(u64, Report),
    /// An image could not be opened by the first thread.
    NotOpened(anyhow::Error),
    /// One piece, as far as it was compared.
    Piece(ByteRange, Report),
}

/// Compares in as many threads as get both images open.
///
/// A server may take one client at a time and let the next one wait for ever, as `qemu-nbd` does. So the first thread
/// alone decides whether the images can be opened; further ones help if they can, and nobody waits for a thread that
/// has not taken a piece. What no thread has reported is left, so that a report never claims more than was seen.
async fn compare_in_threads(images: &[Image; 2], how: &How) -> anyhow::Result<Report> {
    let threads = how.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1).max(1);
    let work = Arc::new(Work::default());
    let (tell, mut told) = mpsc::unbounded_channel();
    start(0, threads, images, how, &work, &tell)?;
    let mut tell = Some(tell);

    let mut stop = Box::pin(stop_signal()?);
    let mut bar = indicatif::ProgressBar::hidden();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let mut report = Report::default();
    let (mut left, mut finished) = (0u64, 0);
    loop {
        tokio::select! {
            biased;
            message = told.recv() => match message {
                Some(Told::Opened(size, sizes)) => {
                    report.merge(sizes);
                    left = size;
                    bar = progress_bar(size, how);
                    // Dropped after this, so that the channel ends should all threads be gone.
                    if let Some(tell) = tell.take() {
                        for number in 1..threads.min(work.pieces().len()) {
                            start(number, threads, images, how, &work, &tell)?;
                        }
                    }
                }
                Some(Told::NotOpened(error)) => return Err(error),
                Some(Told::Piece(piece, part)) => {
                    report.merge(part);
                    left = left.saturating_sub(piece.len());
                    finished += 1;
                }
                None => break,
            },
            () = &mut stop => {
                if work.pieces.get().is_none() {
                    anyhow::bail!("interrupted before both images were open");
                }
                if work.stop.swap(true, Ordering::AcqRel) {
                    break;
                }
                stop = Box::pin(stop_signal()?);
            }
            _ = tick.tick() => bar.set_position(work.done.load(Ordering::Relaxed)),
        }
        let all_taken = work.taken() == work.pieces().len() || work.stop.load(Ordering::Acquire);
        if work.pieces.get().is_some() && tell.is_none() && all_taken && finished == work.taken() {
            break;
        }
    }
    bar.finish_and_clear();
    report.bytes_left = report.bytes_left.saturating_add(left);
    Ok(report)
}

/// Starts thread `number`; the first one is 0.
fn start(
    number: usize,
    threads: usize,
    images: &[Image; 2],
    how: &How,
    work: &Arc<Work>,
    tell: &mpsc::UnboundedSender<Told>,
) -> anyhow::Result<()> {
    let (images, how, work, tell) = (images.clone(), how.clone(), work.clone(), tell.clone());
    let body = move || {
        let first = (number == 0).then_some(threads);
        match runtime::block_on(compare_pieces(first, &images, &how, &work, &tell)).flatten() {
            Err(error) if number == 0 => drop(tell.send(Told::NotOpened(error))),
            // A helper that could not open an image: the others do its share.
            Ok(()) | Err(_) => {}
        }
    };
    std::thread::Builder::new().name(format!("compare {number}")).spawn(body).context("starting a thread")?;
    Ok(())
}

/// One thread: takes pieces until none is left. The `first` one cuts them, for so many threads.
async fn compare_pieces(
    first: Option<usize>,
    images: &[Image; 2],
    how: &How,
    work: &Work,
    tell: &mpsc::UnboundedSender<Told>,
) -> anyhow::Result<()> {
    let [a, b] = open(images, how).await?;
    if let Some(threads) = first {
        let size = a.info().size.max(b.info().size);
        let options = CompareOptions { strict: how.strict, ..CompareOptions::default() };
        let sizes = compare(&a, &b, ByteRange::at(0, 0), options).await;
        work.pieces.get_or_init(|| split(size, threads * 64, 8 << 20));
        let _ = tell.send(Told::Opened(size, sizes));
    }
    let on_progress = |bytes| {
        work.done.fetch_add(bytes, Ordering::Relaxed);
    };
    let stop = || work.stop.load(Ordering::Acquire);
    let options = CompareOptions { strict: how.strict, on_progress: Some(&on_progress), stop: Some(&stop) };
    while !stop() {
        let Some(piece) = work.pieces().get(work.next.fetch_add(1, Ordering::AcqRel)) else { break };
        let part = compare(&a, &b, *piece, options).await;
        let _ = tell.send(Told::Piece(*piece, part));
    }
    Ok(())
}

async fn open(images: &[Image; 2], how: &How) -> anyhow::Result<[Node; 2]> {
    let registry = registry();
    let flags = OpenFlags {
        read_only: true,
        cache: how.cache,
        allow_backing: how.allow_backing,
        force_share: how.force_share,
        ..OpenFlags::default()
    };
    let context = OpenContext { registry: &registry, flags };
    let open = async |image: &Image| {
        context
            .open_image(&image.name, image.format.as_deref(), how.image_opts)
            .await
            .with_context(|| format!("could not open '{}'", image.name))
    };
    let [a, b] = images;
    Ok([open(a).await?, open(b).await?])
}

fn progress_bar(size: u64, how: &How) -> indicatif::ProgressBar {
    if how.quiet || !(how.progress || std::io::stderr().is_terminal()) {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)");
    let bar = indicatif::ProgressBar::new(size);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn print(report: &Report, images: &[Image; 2], how: &How, took: Duration) -> anyhow::Result<()> {
    print_errors(report, images);
    if how.quiet && how.format == Format::Human {
        return Ok(());
    }
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match how.format {
        Format::Json => writeln!(out, "{:#}", as_json(report, images))?,
        Format::Human => print_human(&mut out, report, took)?,
    }
    out.flush().context("writing to standard output")
}

/// One line for each error; neighbours that fail alike are one error.
fn print_errors(report: &Report, images: &[Image; 2]) {
    let mut errors = report.errors.iter().peekable();
    while let Some(first) = errors.next() {
        let (mut end, mut more) = (first.range.end, 0u64);
        while let Some(next) = errors.next_if(|next| {
            let like = (next.side, next.step, next.error.errno) == (first.side, first.step, first.error.errno);
            like && next.range.start == end && next.error.detail == first.error.detail
        }) {
            end = next.range.end;
            more += 1;
        }
        let image = match first.side {
            Side::A => &images[0].name,
            Side::B => &images[1].name,
        };
        let step = match first.step {
            Step::BlockStatus => "asking for the block status of",
            Step::Read => "reading",
        };
        eprintln!("error: {image}: {step} {}: {}", first.range, first.error);
        match more {
            0 => {}
            1 => eprintln!("  and once more, up to {end:#x}"),
            _ => eprintln!("  and {more} times more, up to {end:#x}"),
        }
    }
}

fn print_human(out: &mut impl std::io::Write, report: &Report, took: Duration) -> anyhow::Result<()> {
    if report.sizes_differ() {
        let kind = if report.strict { "Strict mode: Image size mismatch!" } else { "Warning: Image size mismatch!" };
        writeln!(out, "{kind} ({} and {} bytes)", report.size_a, report.size_b)?;
    }
    if let Some(first) = report.differing.first() {
        writeln!(out, "Content mismatch at offset {}!", first.start)?;
        for range in &report.differing {
            writeln!(
                out,
                "  {range}  {} bytes, sectors {}..{}",
                range.len(),
                range.start / 512,
                range.end.div_ceil(512)
            )?;
        }
        let (ranges, bytes) = (report.differing.len(), report.bytes_differing());
        let differ = if ranges == 1 { "range differs" } else { "ranges differ" };
        writeln!(out, "{ranges} {differ}, {} in all.", human_size(bytes))?;
    }
    for range in &report.status_differing {
        writeln!(out, "Strict mode: Offset {} block status mismatch! ({} bytes)", range.start, range.len())?;
    }
    if report.bytes_left > 0 {
        writeln!(out, "Interrupted: {} were not compared.", human_size(report.bytes_left))?;
    }
    if report.identical() {
        writeln!(out, "Images are identical.")?;
    }
    let (read, zero) = (human_size(report.bytes_read), human_size(report.bytes_zero));
    eprintln!("compared {read}, skipped {zero} that are zero on both sides, in {:.2} s", took.as_secs_f64());
    Ok(())
}

fn as_json(report: &Report, images: &[Image; 2]) -> serde_json::Value {
    let ranges = |ranges: &[ByteRange]| -> Vec<_> {
        ranges.iter().map(|range| json!({ "offset": range.start, "length": range.len() })).collect()
    };
    let errors: Vec<_> = report
        .errors
        .iter()
        .map(|error| {
            json!({
                "image": match error.side { Side::A => &images[0].name, Side::B => &images[1].name },
                "step": match error.step { Step::BlockStatus => "block-status", Step::Read => "read" },
                "offset": error.range.start,
                "length": error.range.len(),
                "errno": error.error.errno.0,
                "message": error.error.to_string(),
            })
        })
        .collect();
    json!({
        "schema": "blkproof.compare/1",
        "images": [
            { "filename": images[0].name, "size": report.size_a },
            { "filename": images[1].name, "size": report.size_b },
        ],
        "identical": report.identical(),
        "strict": report.strict,
        "differing": ranges(&report.differing),
        "bytes-differing": report.bytes_differing(),
        "status-differing": ranges(&report.status_differing),
        "errors": errors,
        "bytes-compared": report.bytes_read,
        "bytes-zero": report.bytes_zero,
        "bytes-left": report.bytes_left,
    })
}
