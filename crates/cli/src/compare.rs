//! `blkproof compare` and `blkproof verify`: two whole images, every differing range.
//!
//! The images are cut into pieces, and several threads take them in turn, each with graphs of its own, since a graph
//! lives on one thread. Pieces are small enough that all threads end together, and large enough that taking one costs
//! nothing.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use blkproof_block::graph::{CacheMode, OpenContext, OpenFlags};
use blkproof_block::{BlockDevice as _, ByteRange, Node};
use blkproof_verify::compare::{CompareOptions, Report, Side, Step, compare, split};
use serde_json::json;
use tokio::sync::mpsc;

use crate::graph::{parse_cache, registry};
use crate::messages::{human_size, print_error};
use crate::runtime;

/// Compare two images, or any two block graphs
///
/// Lists every range that differs. Exit status as for `qemu-img compare`: 0 identical, 1 different, 2 an image could not
/// be opened, 3 a block-status query failed, 4 a read failed or the comparison was interrupted. Where one image is
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
/// The same comparison as `blkproof compare`, with the words of blkverify: RAW is the reference, read as raw bytes; TEST
/// is the image whose driver is doubted. To compare while a workload runs, serve `blkverify:RAW:TEST`.
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
struct Work {
    pieces: Vec<ByteRange>,
    next: AtomicUsize,
    done: AtomicU64,
    stop: AtomicBool,
}

async fn compare_in_threads(images: &[Image; 2], how: &How) -> anyhow::Result<Report> {
    // Opened here first: an image that can not be opened is one error, not one of each thread.
    let [a, b] = open(images, how).await?;
    let size = a.info().size.max(b.info().size);
    let threads = how.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1).max(1);
    let work = Arc::new(Work {
        pieces: split(size, threads * 64, 8 << 20),
        next: AtomicUsize::new(0),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    // Images without a byte still have sizes and errors of their own.
    let mut report =
        compare(&a, &b, ByteRange::at(0, 0), CompareOptions { strict: how.strict, ..Default::default() }).await;

    let (tell, mut told) = mpsc::unbounded_channel();
    for number in 0..threads.min(work.pieces.len()) {
        let (images, how, work, tell) = (images.clone(), how.clone(), work.clone(), tell.clone());
        std::thread::Builder::new()
            .name(format!("compare {number}"))
            .spawn(move || {
                let part = runtime::block_on(compare_pieces(&images, &how, &work)).flatten();
                let _ = tell.send(part);
            })
            .context("starting a thread")?;
    }
    drop(tell);

    let bar = progress_bar(size, how);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            biased;
            part = told.recv() => match part {
                None => break,
                Some(part) => report.merge(part?),
            },
            _ = tokio::signal::ctrl_c() => work.stop.store(true, Ordering::Relaxed),
            _ = tick.tick() => bar.set_position(work.done.load(Ordering::Relaxed)),
        }
    }
    bar.finish_and_clear();
    let untouched = work.pieces.iter().skip(work.next.load(Ordering::Relaxed));
    report.bytes_left = report.bytes_left.saturating_add(untouched.map(|piece| piece.len()).sum());
    Ok(report)
}

/// One thread: takes pieces until none is left.
async fn compare_pieces(images: &[Image; 2], how: &How, work: &Work) -> anyhow::Result<Report> {
    let [a, b] = open(images, how).await?;
    let on_progress = |bytes| {
        work.done.fetch_add(bytes, Ordering::Relaxed);
    };
    let stop = || work.stop.load(Ordering::Relaxed);
    let options = CompareOptions { strict: how.strict, on_progress: Some(&on_progress), stop: Some(&stop) };
    let mut report = Report::default();
    while !stop() {
        let Some(piece) = work.pieces.get(work.next.fetch_add(1, Ordering::Relaxed)) else { break };
        report.merge(compare(&a, &b, *piece, options).await);
    }
    Ok(report)
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
    for error in &report.errors {
        let image = match error.side {
            Side::A => &images[0].name,
            Side::B => &images[1].name,
        };
        let step = match error.step {
            Step::BlockStatus => "asking for the block status of",
            Step::Read => "reading",
        };
        eprintln!("error: {image}: {step} {}: {}", error.range, error.error);
    }
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
        writeln!(out, "{ranges} ranges differ, {} in all.", human_size(bytes))?;
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
