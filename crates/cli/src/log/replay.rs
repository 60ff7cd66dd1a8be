//! `blkproof log replay`: the image at an entry.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_block::BlockDevice as _;
use blkproof_fault::log_writes::replay::{ReplayError, Replayed, Until, replay};

use super::image::Start;
use super::{Which, open_log, say_fault, say_rest};

/// Write the image that a write log makes
///
/// The image is sparse and raw, byte for byte what the logged node held; on a qcow2 disk below which the log was made,
/// it is a qcow2 image. Without a place to end at, all entries are replayed.
///
/// Exit status: 0; 1 if the log is damaged before that place, and the image holds what comes before the damage; 4 if
/// there is no such place, and the image holds everything.
///
/// Example: `blkproof log replay writes.log --to disk.img --until-mark mkfs`
#[derive(clap::Args)]
pub(super) struct Args {
    /// The image to write; it is replaced, a block device is written in place
    #[arg(long, value_name = "IMAGE")]
    to: PathBuf,

    /// Overwrite an image that exists
    #[arg(long)]
    force: bool,

    /// The first N entries
    #[arg(long, value_name = "N", group = "place")]
    until: Option<u64>,

    /// Everything before the first mark of this text
    #[arg(long, value_name = "TEXT", group = "place")]
    until_mark: Option<String>,

    /// Up to the first flush that is not before entry N, and it
    #[arg(long, value_name = "N", group = "place", num_args = 0..=1, default_missing_value = "0")]
    next_flush: Option<u64>,

    /// Up to the first FUA request that is not before entry N, and it; QEMU's logs have none
    #[arg(long, value_name = "N", group = "place", num_args = 0..=1, default_missing_value = "0")]
    next_fua: Option<u64>,

    #[command(flatten)]
    start: Start,

    #[command(flatten)]
    which: Which,

    /// The log
    log: String,
}

/// Exit status of a replay that did not find its place.
const NOT_FOUND: u8 = 4;

impl Args {
    fn until(&self) -> Until {
        match (self.until, &self.until_mark, self.next_flush, self.next_fua) {
            (Some(most), ..) => Until::Entries(most),
            (_, Some(text), ..) => Until::Mark(text.clone()),
            (_, _, Some(from), _) => Until::Flush(from),
            (_, _, _, Some(from)) => Until::Fua(from),
            _ => Until::End,
        }
    }
}

pub(super) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = open_log(&args.log).await?;
    let image = args.start.make(&args.to, &args.log, args.force).await?;
    let mut entries = log.entries(args.which.extent());
    let done = replay(&log, &mut entries, &args.until(), &image, args.start.discards()).await;
    let close = || async { image.close().await.with_context(|| format!("closing '{}'", args.to.display())) };
    let done = match done {
        Ok(done) => done,
        Err(ReplayError::Log(error)) => {
            close().await?;
            say_fault(&args.log, &error);
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    };
    close().await?;
    let Replayed { entries: count, found, writer } = done;
    println!("replayed {count} entries to '{}'; written by {}", args.to.display(), writer.words());
    if found {
        if args.until() == Until::End {
            say_rest(&entries);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let place = match args.until() {
        Until::Entries(most) => format!("the log has no {most} entries"),
        Until::Mark(text) => format!("the log has no mark '{text}'"),
        Until::Flush(from) => format!("the log has no flush from entry {from} on"),
        Until::Fua(from) => format!("the log has no FUA request from entry {from} on"),
        Until::End => String::new(),
    };
    eprintln!("error: '{}': {place}; the image holds all {count} entries", args.log);
    say_rest(&entries);
    Ok(ExitCode::from(NOT_FOUND))
}
