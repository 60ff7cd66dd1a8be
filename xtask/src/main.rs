//! Chores of the workspace: `cargo xtask check`, `cargo xtask bench`.

mod bench;
mod check;
mod rules;
mod shell;

use clap::{Parser, Subcommand};

/// Chores of the blkproof workspace
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Everything CI runs: format, lints, house rules, documentation, tests
    Check,
    /// The house rules alone
    Rules,
    Bench(bench::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().chore {
        Chore::Check => check::run(),
        Chore::Rules => rules::run(),
        Chore::Bench(args) => bench::run(&args),
    }
}
