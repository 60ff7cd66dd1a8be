//! `blkproof log mark`: one more entry.

use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_block::graph::OpenFlags;
use blkproof_fault::clock::Clock as _;
use blkproof_fault::log_writes::append::{Appender, Content, How, INTERVAL_DEFAULT};
use blkproof_fault::log_writes::format::Flags;
use blkproof_fault::log_writes::node::check_mark;
use blkproof_fault::log_writes::read::{Log, Rest};

use super::{Which, open_bytes};
use crate::clock::MachineClock;

/// Append a mark to a write log that nobody is writing
///
/// The log of a running server is marked through its control socket.
///
/// Example: `blkproof log mark writes.log mkfs`
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,

    /// The log
    log: String,

    /// The text of the mark
    text: String,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let name = &args.log;
    let node = open_bytes(name, OpenFlags::default()).await?;
    let log = Log::open(node.clone()).await.with_context(|| format!("'{name}' can not be read as a write log"))?;
    let (resume, rest) = log.resume(args.which.extent()).await.with_context(|| format!("'{name}'"))?;
    if rest == Rest::Uncounted {
        anyhow::bail!(
            "'{name}' has entries that its superblock does not count, and a mark would overwrite them\n\
             hint: --uncounted puts it behind them"
        );
    }
    let how = How { sector: log.sector(), interval: INTERVAL_DEFAULT, details: resume.details };
    if let Err(error) = check_mark(&args.text, how.sector.mark_max(how.details)) {
        anyhow::bail!("{error}; nothing was changed");
    }
    let appender = Appender::open(node, how, Some(resume)).await.with_context(|| format!("writing '{name}'"))?;
    let time = u64::try_from(MachineClock::new().unix().as_nanos()).unwrap_or(u64::MAX);
    appender.push(Content::Mark(args.text.as_bytes()), Flags::empty(), resume.entries, time);
    appender.close().await.with_context(|| format!("writing '{name}'"))?;
    println!("entry {}: mark '{}'", resume.entries, args.text);
    Ok(ExitCode::SUCCESS)
}
