//! Chores of the workspace: `cargo xtask check`, `cargo xtask bench`, `cargo xtask foreign`.

mod bench;
mod check;
mod foreign;
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
    /// Format, lints, documentation and tests of `crates/foreign`, which is a workspace of its own
    Foreign,
    Bench(bench::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().chore {
        Chore::Check => check::run(),
        Chore::Rules => rules::run(),
        Chore::Foreign => foreign::run(),
        Chore::Bench(args) => bench::run(&args),
    }
}
