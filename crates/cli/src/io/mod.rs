//! `blkproof io`: qemu-io's command set.

use std::ffi::OsString;
use std::process::ExitCode;

/// Read and write an image with qemu-io's commands
///
/// Takes the options and commands of qemu-io, and prints what it prints. Started under the name `qemu-io`, through a
/// link, this program is qemu-io for a script.
///
/// Example: `blkproof io -f qcow2 -c 'write -P 0x11 0 64k' -c 'read -P 0x11 0 64k' disk.qcow2`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Options, commands (`-c`) and the image, as for qemu-io
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS|FILE")]
    pub(crate) words: Vec<OsString>,
}

/// Runs with the words after the program's name.
pub(crate) fn run(words: Vec<OsString>, as_qemu_io: bool) -> ExitCode {
    let _ = (words, as_qemu_io);
    ExitCode::FAILURE
}
