//! `blkproof log cut`: what a power cut at an entry may leave.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_block::{BlockDevice as _, Node};
use blkproof_fault::disk::config::Profile;
use blkproof_fault::disk::name::StateName;
use blkproof_fault::log_writes::cut::{Cut, How};

use super::image::Start;
use super::{Which, open_log};
use crate::graph::parse_size;

/// Write an image that a power cut behind the first N entries may leave
///
/// What was durable then is in the image; of the rest, the state says what. States have the names that the node disk
/// gives them, request numbers being entry numbers: all-old, all-new, drop:17, keep:17, prefix:completion:5,
/// tear:17:first:3, number:12, seed:1234. What counts as durable depends on who wrote the log, and is printed.
///
/// Example: `blkproof log cut writes.log 120 --state drop:117 -o disk.img`
#[derive(clap::Args)]
pub(super) struct Args {
    /// The state to write, by name
    #[arg(long, value_name = "NAME", value_parser = parse_state, conflicts_with = "seed")]
    state: Option<StateName>,

    /// What the disk may do: ordered, request, block, torn, shorn or garbage
    #[arg(long, value_name = "WORD", value_parser = parse_profile)]
    profile: Option<Profile>,

    /// The seed that picks a state, and begins the list of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// List names of states, the most telling ones first, and write nothing
    #[arg(long)]
    list: bool,

    /// Names to list
    #[arg(long, value_name = "N", default_value_t = 64)]
    budget: usize,

    /// Bytes that the disk writes whole or not at all
    #[arg(long, value_name = "SIZE", default_value = "512", value_parser = parse_block)]
    block_size: u32,

    /// Data that may be held in memory
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    memory: u64,

    /// The image to write
    #[arg(short, long, value_name = "IMAGE", required_unless_present = "list")]
    output: Option<PathBuf>,

    /// Overwrite an image that exists
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    start: Start,

    #[command(flatten)]
    which: Which,

    /// The log
    log: String,

    /// The number of entries that are in the log when the power goes
    #[arg(value_name = "N")]
    at: u64,
}

fn parse_state(text: &str) -> Result<StateName, String> {
    text.parse().map_err(|error: blkproof_fault::disk::name::UnknownState| error.to_string())
}

fn parse_profile(text: &str) -> Result<Profile, String> {
    let known = Profile::NAMES.iter().find(|(name, _)| *name == text);
    known.map(|(_, profile)| *profile).ok_or_else(|| {
        let names: Vec<_> = Profile::NAMES.iter().map(|(name, _)| *name).collect();
        format!("'{text}' is no profile; there are {}", names.join(", "))
    })
}

fn parse_block(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    let fits = size.is_power_of_two() && (512..=64 << 10).contains(&size);
    u32::try_from(size).ok().filter(|_| fits).ok_or_else(|| format!("'{text}' is no power of two from 512 to 64k"))
}

pub(super) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let log = open_log(&args.log).await?;
    let image = match args.output.as_ref().filter(|_| !args.list) {
        Some(path) => Some(args.start.make(path, &args.log, args.force).await?),
        None => None,
    };
    let how = How {
        extent: args.which.extent(),
        block: args.block_size,
        memory: args.memory,
        discards: args.start.discards(),
        size: args.start.disk_size()?,
    };
    let cut = Cut::new(&log, args.at, image.as_ref(), how).await?;
    let least = args.state.as_ref().map(StateName::least_profile).unwrap_or_default();
    let profile = args.profile.unwrap_or(least.max(Profile::default()));
    explain(&cut, profile);
    if args.list {
        for name in cut.names(profile, args.budget, args.seed) {
            println!("{name}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let name = args.state.clone().unwrap_or(StateName::Seed(args.seed));
    let state = cut.state(&name, profile)?;
    let Some(image) = image else { return Ok(ExitCode::SUCCESS) };
    write(args, &cut, &state, &image).await?;
    Ok(ExitCode::SUCCESS)
}

async fn write(args: &Args, cut: &Cut, state: &blkproof_fault::disk::state::State, image: &Node) -> anyhow::Result<()> {
    cut.write(state, image).await?;
    let shown = args.output.as_deref().unwrap_or_else(|| "".as_ref()).display();
    image.close().await.with_context(|| format!("closing '{shown}'"))?;
    println!("wrote '{shown}': state {}, {} acknowledged bytes lost", state.name, state.lost);
    Ok(())
}

/// Says what is known of the disk at that moment, and how.
fn explain(cut: &Cut, profile: Profile) {
    eprintln!("log written by {}; {}", cut.writer.words(), cut.writer.model());
    let estimate = cut.count(profile);
    let states = match estimate.count {
        u64::MAX => format!("2^{:.0} states", estimate.log2),
        1 => "1 state".to_owned(),
        count => format!("{count} states"),
    };
    eprintln!(
        "behind {} entries: those before entry {} are durable, {} changes are cached, {} under way; \
         {states} of profile {}",
        cut.at,
        cut.covered,
        cut.volatile,
        cut.under_way,
        profile.name()
    );
    if cut.failed > 0 {
        eprintln!("note: {} requests failed there; what they left beyond what the log says is in no state", cut.failed);
    }
}
