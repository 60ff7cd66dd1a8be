//! `blkproof map`: where the bytes of a disk come from.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_block::{BlockDevice as _, BlockStatus, Node};

use crate::graph::{ImageArgs, parse_size, registry};
use crate::messages::{human_size, print_error};
use crate::runtime;

/// Show which parts of a disk are data, zero or unallocated
///
/// Lists every extent of the guest disk in order. `--format json` prints what `qemu-img map --output=json` prints.
///
/// Example: `blkproof map disk.qcow2`
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArgs,

    /// Human readable, or qemu-img's JSON
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,

    /// First byte to look at
    #[arg(short, long, value_name = "OFFSET", default_value = "0", value_parser = parse_size)]
    start_offset: u64,

    /// Bytes to look at; all that follow if left out
    #[arg(short = 'l', long, value_name = "BYTES", value_parser = parse_size)]
    max_length: Option<u64>,

    /// The image
    graph: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Human,
    Json,
}

pub(crate) fn run(args: Args) -> ExitCode {
    match runtime::block_on(show(&args)).flatten() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn show(args: &Args) -> anyhow::Result<()> {
    let registry = registry();
    let node = args.image.open(&registry, &args.graph, args.image.reading()).await?;
    let size = node.info().size;
    if args.start_offset > size {
        anyhow::bail!("offset {:#x} lies past the end of the disk ({size:#x})", args.start_offset);
    }
    let end = args.max_length.map_or(size, |len| args.start_offset.saturating_add(len).min(size));
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut printer = Printer::new(args.format, &mut out)?;
    let mut at = args.start_offset;
    while at < end {
        let extent = extent(&node, at, end).await?;
        printer.print(at, &extent)?;
        at = at.saturating_add(extent.len);
    }
    printer.finish()?;
    out.flush().context("writing to standard output")?;
    node.close().await.with_context(|| format!("closing '{}'", args.graph))
}

/// The longest extent from `at` whose parts are of one kind and lie side by side.
async fn extent(node: &Node, at: u64, end: u64) -> anyhow::Result<BlockStatus> {
    let mut whole: Option<BlockStatus> = None;
    let mut next = at;
    while next < end {
        let piece = node
            .block_status(next, end - next)
            .await
            .with_context(|| format!("asking for the block status at {next:#x}"))?;
        next = next.saturating_add(piece.len);
        match &mut whole {
            None => whole = Some(piece),
            Some(so_far) if so_far.continues_as(&piece) => so_far.len = so_far.len.saturating_add(piece.len),
            Some(_) => break,
        }
    }
    whole.context("an extent has at least one byte")
}

struct Printer<'a, W> {
    format: Format,
    out: &'a mut W,
    first: bool,
    totals: Totals,
}

#[derive(Default)]
struct Totals {
    data: u64,
    zero: u64,
    unallocated: u64,
}

impl<'a, W: std::io::Write> Printer<'a, W> {
    fn new(format: Format, out: &'a mut W) -> anyhow::Result<Self> {
        match format {
            Format::Human => {
                writeln!(out, "{:<18} {:<18} {:<12} {:<5} Host offset", "Offset", "Length", "State", "Depth")?
            }
            Format::Json => write!(out, "[")?,
        }
        Ok(Self { format, out, first: true, totals: Totals::default() })
    }

    fn print(&mut self, at: u64, extent: &BlockStatus) -> anyhow::Result<()> {
        match self.format {
            Format::Human => {
                let state = state(extent);
                let host = extent.host_offset.map_or_else(|| "-".to_owned(), |offset| format!("{offset:#x}"));
                writeln!(self.out, "{at:<#18x} {:<#18x} {state:<12} {:<5} {host}", extent.len, extent.depth)?;
            }
            Format::Json => {
                let separator = if self.first { "" } else { ",\n" };
                write!(self.out, "{separator}{}", json(at, extent))?;
            }
        }
        self.first = false;
        let total = match extent {
            _ if !present(extent) => &mut self.totals.unallocated,
            BlockStatus { zero: true, .. } => &mut self.totals.zero,
            _ => &mut self.totals.data,
        };
        *total = total.saturating_add(extent.len);
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        match self.format {
            Format::Human => {
                let Totals { data, zero, unallocated } = self.totals;
                let [data, zero, unallocated] = [data, zero, unallocated].map(human_size);
                writeln!(self.out, "data {data}, zero {zero}, unallocated {unallocated}")?;
            }
            Format::Json => writeln!(self.out, "]")?,
        }
        Ok(())
    }
}

/// Whether some image of the backing chain stores the extent; `allocated` speaks of the top one only.
fn present(extent: &BlockStatus) -> bool {
    extent.allocated || extent.data || extent.host_offset.is_some()
}

fn state(extent: &BlockStatus) -> &'static str {
    match extent {
        BlockStatus { compressed: true, .. } => "compressed",
        _ if !present(extent) => "unallocated",
        BlockStatus { zero: true, .. } => "zero",
        _ => "data",
    }
}

/// One extent as `qemu-img map --output=json` writes it.
fn json(at: u64, extent: &BlockStatus) -> String {
    let BlockStatus { len, data, zero, compressed, host_offset, depth, .. } = extent;
    let present = present(extent);
    let mut text = format!(
        "{{ \"start\": {at}, \"length\": {len}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
         \"data\": {data}, \"compressed\": {compressed}"
    );
    if let Some(offset) = host_offset {
        let _ = write!(text, ", \"offset\": {offset}");
    }
    text.push('}');
    text
}
