//! `blkproof log`: write logs of dm-log-writes, of QEMU's `blklogwrites`, and of ours.

mod check;
mod cut;
mod image;
mod list;
mod mark;
mod replay;

use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_block::graph::{OpenContext, OpenFlags, Options};
use blkproof_block::{BlockDevice as _, Node};
use blkproof_fault::log_writes::format::SuperblockError;
use blkproof_fault::log_writes::read::{Entries, Extent, Fault, Log, LogError, Rest};

use crate::graph::registry;
use crate::messages::print_error;
use crate::runtime;

/// Read, replay and cut write logs
///
/// A write log holds every change of a disk, in order: dm-log-writes of the kernel and the node blklogwrites of QEMU
/// and of this program make them. Entries are counted from 0; "until N" means the first N of them. A log can be read
/// while it is written.
///
/// Example: `blkproof log list writes.log`
#[derive(clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    List(list::Args),
    Replay(replay::Args),
    Cut(cut::Args),
    Check(check::Args),
    Mark(mark::Args),
}

/// Which entries count.
#[derive(clap::Args, Clone)]
struct Which {
    /// Use complete entries behind those the superblock counts too, although no checksum vouches for them
    ///
    /// A writer that was killed leaves such entries. An older and longer log in the same place leaves some that look
    /// like them.
    #[arg(long)]
    uncounted: bool,
}

impl Which {
    fn extent(&self) -> Extent {
        if self.uncounted { Extent::All } else { Extent::Trusted }
    }
}

pub(crate) fn run(args: Args) -> ExitCode {
    let done = runtime::block_on(async {
        match args.command {
            Command::List(args) => list::run(&args).await,
            Command::Replay(args) => replay::run(&args).await,
            Command::Cut(args) => cut::run(&args).await,
            Command::Check(args) => check::run(&args).await,
            Command::Mark(args) => mark::run(&args).await,
        }
    });
    match done.flatten() {
        Ok(code) => code,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Opens what `name` names, byte for byte: a log is no image, and is not probed.
async fn open_bytes(name: &str, flags: OpenFlags) -> anyhow::Result<Node> {
    let registry = registry();
    let context = OpenContext { registry: &registry, flags };
    let options = Options::from_filename(name, &registry).with_context(|| format!("could not open '{name}'"))?;
    context.open(options).await.with_context(|| format!("could not open '{name}'"))
}

/// Opens a log for reading, even while somebody writes it: what is written stays as it is.
async fn open_log(name: &str) -> anyhow::Result<Log> {
    let node = open_bytes(name, OpenFlags { read_only: true, force_share: true, ..OpenFlags::default() }).await?;
    let size = node.info().size;
    Log::open(node).await.map_err(|error| {
        let hint = match &error {
            LogError::Superblock(SuperblockError::Magic(_)) => "\nhint: a write log begins with the bytes 'rhswfsj'",
            LogError::Superblock(_) if size == 0 => "\nhint: the file is empty: nothing has been logged yet",
            _ => "",
        };
        anyhow::anyhow!("'{name}' can not be read as a write log: {error}{hint}")
    })
}

/// Says what is wrong with an entry that the superblock counts; what comes before it is good.
fn say_fault(name: &str, error: &LogError) {
    eprintln!("error: '{name}': {error}");
    if let LogError::Entry { fault: Fault::Missing { .. } | Fault::Truncated { .. }, .. } = error {
        eprintln!("hint: the log was cut short; the entries before are good, and were used");
    }
}

/// Says what stands behind the last entry that was used.
fn say_rest(entries: &Entries<'_>) {
    match entries.rest() {
        Rest::Nothing => {}
        Rest::Uncounted => eprintln!(
            "note: behind the {} entries used, the log has more, which its superblock does not count: the writer was \
             killed or is still at work, or an older log stood here\nhint: --uncounted uses them",
            entries.index()
        ),
        Rest::Incomplete(error) => {
            eprintln!("note: behind the {} entries used, something is left: {error}", entries.index());
        }
    }
}
