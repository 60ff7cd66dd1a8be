//! `cargo xtask bench`: speed, side by side with the peers.

/// Measure speed side by side with QEMU, nbdkit and cmp
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the benchmarks whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("no benchmark matches {:?}", args.filter)
}
