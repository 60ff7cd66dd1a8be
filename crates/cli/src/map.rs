//! `blkproof map`.
use std::process::ExitCode;

/// TBD
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> ExitCode {
    ExitCode::FAILURE
}
