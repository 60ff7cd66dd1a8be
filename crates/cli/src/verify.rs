//! `blkproof verify` and `blkproof compare`.
use std::process::ExitCode;

/// TBD
#[derive(clap::Args)]
pub(crate) struct VerifyArgs {}
/// TBD
#[derive(clap::Args)]
pub(crate) struct CompareArgs {}

pub(crate) fn run_verify(_args: VerifyArgs) -> ExitCode {
    ExitCode::FAILURE
}
pub(crate) fn run_compare(_args: CompareArgs) -> ExitCode {
    ExitCode::FAILURE
}
