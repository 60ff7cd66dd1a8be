//! `blkproof completions` and `blkproof man`: what packagers install beside the binary.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;

use crate::messages::print_error;

/// Print a completion script for a shell
///
/// Example: `blkproof completions bash > /etc/bash_completion.d/blkproof`
#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Print the manual page, or write one page for every command
///
/// Example: `blkproof man --out man/ && man -l man/blkproof-serve.1`
#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// Write `blkproof.1` and a page for each command into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &CompletionsArgs, command: &mut Command) -> ExitCode {
    clap_complete::generate(args.shell, command, "blkproof", &mut std::io::stdout());
    ExitCode::SUCCESS
}

pub(crate) fn run_man(args: &ManArgs, command: &Command) -> ExitCode {
    // The commands of `ctl` describe themselves, and are not worth a page each.
    let command = &command.clone().mut_subcommand("ctl", |ctl| ctl.mut_subcommands(|command| command.hide(true)));
    let written = match &args.out {
        Some(folder) => clap_mangen::generate_to(command.clone(), folder)
            .map_err(|error| anyhow::anyhow!("writing manual pages to {}: {error}", folder.display())),
        None => clap_mangen::Man::new(command.clone())
            .render(&mut std::io::stdout())
            .map_err(|error| anyhow::anyhow!("writing to standard output: {error}")),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}
