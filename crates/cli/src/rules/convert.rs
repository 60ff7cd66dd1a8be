//! `blkproof rules convert`: rules out of the files of other programs.

use std::process::ExitCode;

use blkproof_fault::file::convert::{Options, Origin, convert};

use super::{content, print, shown};

/// Something was lost.
const LOST: u8 = 3;

/// Make rules out of the files of another program
///
/// Reads a configuration file of QEMU's blkdebug, a map of GNU ddrescue, a bad block list or setup script of dm-dust,
/// parameters of nbdkit's error filter, or parameters (or debugfs lines) of scsi_debug, and prints a rule file. What
/// can not be said in rules, or means something else there, stands in it as a comment and is told. The exit status is
/// 0 if nothing was lost, 3 if something was, 1 if the file can not be read.
///
/// Example: `blkproof rules convert --from ddrescue disk.map > lab.toml`
#[derive(clap::Args)]
pub(super) struct Args {
    /// What the file is: blkdebug, ddrescue, dm-dust, nbdkit-error or scsi_debug
    #[arg(long, value_name = "PROGRAM", value_parser = Origin::ALL.map(Origin::name))]
    from: String,

    /// Bytes of a sector, where the file does not say it [default: 512]
    #[arg(long, value_name = "BYTES", value_parser = lba_size)]
    lba_size: Option<u32>,

    /// The seed that random decisions depend on
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// ddrescue: areas that were not read yet are bad too
    #[arg(long)]
    untried_bad: bool,

    /// The file; - is standard input
    file: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let origin = Origin::from_name(&args.from).ok_or_else(|| anyhow::anyhow!("there is no program '{}'", args.from))?;
    let text = content(&args.file)?;
    let options = Options { lba_size: args.lba_size, seed: args.seed, untried_bad: args.untried_bad };
    let converted = convert(origin, shown(&args.file), &text, &options)?;
    print(&converted.text())?;
    for words in &converted.lost {
        eprintln!("warning: lost: {words}");
    }
    Ok(if converted.lost.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(LOST) })
}

fn lba_size(text: &str) -> Result<u32, String> {
    let size = crate::graph::parse_size(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && (512..=65536).contains(size))
        .ok_or_else(|| "sectors have a power of two of bytes, from 512 to 64k".to_owned())
}
