//! `blkproof io`: qemu-io's command set.
//!
//! Started under the name `qemu-io` this is qemu-io for a script: its options, prompt, texts, streams and exit status
//! (block-layer.md, section 4). Under its own name the commands and results are the same, and more is said: the first
//! wrong byte of a failed pattern, the place of a failed request, `--format json`. It also keeps the rules of this
//! program: an image without a stated format is not guessed to be raw for writing, and files that an image names are
//! opened only with `--allow-backing`.

mod commands;
mod console;
mod getopt;
mod input;
mod numbers;
mod open;
mod options;
mod replay;
mod reply;
mod report;
mod session;
mod shell;

use std::ffi::OsString;
use std::process::ExitCode;
use std::rc::Rc;

use blkproof_verify::OnMismatch;
use commands::Outcome;
use console::Console;
use input::Input;
use options::{Options, Request};
use reply::Reply;
use shell::Shell;

use crate::graph::{blkdebug, lab, registry_with};
use crate::mismatches::Mismatches;

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

/// Runs with the words after the program's name. Exit status 1 if the image could not be opened, any
/// command failed, or a mirror found a mismatch.
pub(crate) fn run(words: Vec<OsString>, as_qemu_io: bool) -> ExitCode {
    let words: Vec<String> = words.into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let invoked = std::env::args().next().filter(|_| as_qemu_io).unwrap_or_else(|| "blkproof io".into());
    let name = invoked.rsplit('/').next().unwrap_or(&invoked).to_owned();
    let mut console = Console::new(name, as_qemu_io);
    let code = match options::read(&invoked, &words, as_qemu_io, &mut console) {
        Request::Exit(code) => code,
        Request::Run(options) => {
            let console = Rc::new(console);
            let code = match crate::runtime::block_on(work(Rc::clone(&console), *options)) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => {
                    console.error_line(&console.message(&format!("{error:#}")));
                    ExitCode::FAILURE
                }
            };
            console.flush();
            return code;
        }
    };
    console.flush();
    code
}

/// Opens the image, runs every command, closes the image; whether all went well.
async fn work(console: Rc<Console>, options: Options) -> bool {
    let mismatches = Mismatches::default().before_exit({
        let console = Rc::clone(&console);
        move || console.flush()
    });
    // QEMU's blkverify says one line and ends the program; ours tells the story and goes on, unless the graph says
    // exit.
    let lab = lab();
    let mut registry = if console.as_qemu_io {
        registry_with(&mismatches.clone().in_qemu_words(), OnMismatch::Exit, &lab)
    } else {
        registry_with(&mismatches, OnMismatch::Report, &lab)
    };
    registry.add(blkdebug(&lab).say({
        let console = Rc::clone(&console);
        move |line| {
            let mut reply = Reply::new(&console, &["breakpoint".to_owned()]);
            reply.out(line);
            reply.finish(true);
        }
    }));
    let mut shell = Shell::new(Rc::clone(&console), registry, options.image_opts, options.allow_backing);
    if let Some(spec) = options.image {
        let mut reply = Reply::new(&console, &["open".to_owned()]);
        let registry = shell.registry.clone();
        let disk = open::open(spec, &registry, &mut reply).await;
        let opened = disk.is_some();
        if !opened {
            reply.finish(false);
            return false;
        }
        shell.disk = disk.map(Rc::new);
    }
    // Nothing but the shell holds the image while commands run: `close` lets it go.
    let replayed = options.replay.as_ref().zip(shell.disk.clone());
    let mut ok = match replayed {
        Some((asked, disk)) => replay::run(asked, &disk, &console).await,
        None => run_commands(&mut shell, options.commands, &console).await,
    };
    let mut reply = Reply::new(&console, &["close".to_owned()]);
    if !shell.close(&mut reply).await {
        reply.finish(false);
        // qemu-io does not count this; whoever reads our own status wants to know that data may be missing.
        ok &= console.as_qemu_io;
    }
    ok && mismatches.seen() == 0
}

/// Runs commands, or those of standard input; whether all of them went well.
async fn run_commands(shell: &mut Shell, list: Vec<String>, console: &Rc<Console>) -> bool {
    let mut input = Input::new(list, console);
    let mut ok = true;
    while let Some(line) = input.next_line(console).await {
        match commands::run_line(shell, &line).await {
            Outcome::Done => {}
            Outcome::Failed | Outcome::Usage => ok = false,
            Outcome::Quit => break,
        }
    }
    ok
}
