//! `blkproof explain`: what a finding's code means.

use std::io::Write as _;
use std::process::ExitCode;

use blkproof_block::graph::nearest;
use blkproof_check::catalogue;
use blkproof_report::{Style, explain};

use crate::messages::print_error;
use crate::terminal;

/// Say what the code of a finding means, why it matters, and what to do
///
/// The codes are those that `blkproof check` prints.
///
/// Example: `blkproof explain IMAGE-UNREADABLE`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// List every code with its severity and title
    #[arg(long)]
    list: bool,

    /// The codes, in upper or lower case
    #[arg(required_unless_present = "list", value_name = "CODE")]
    codes: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let style = Style { colour: terminal::colour() };
    let width = terminal::width().unwrap_or(100);
    let mut text = String::new();
    let mut unknown = false;
    for (number, name) in args.codes.iter().enumerate() {
        match catalogue::find(name) {
            Some(code) => {
                if number > 0 {
                    text.push('\n');
                }
                text.push_str(&explain::code(code, style, width));
            }
            None => {
                unknown = true;
                print_unknown(name);
            }
        }
    }
    if args.list {
        text.push_str(&explain::list());
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            print_error(&anyhow::Error::new(error).context("writing to standard output"));
            ExitCode::FAILURE
        }
        _ if unknown => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Names what the user may have meant: codes that contain the word, else the one spelled most alike.
fn print_unknown(name: &str) {
    const MOST: usize = 8;
    let word = name.to_ascii_uppercase();
    eprintln!("error: there is no code '{name}'");
    let mut alike: Vec<&str> = catalogue::all().map(|code| code.name).filter(|known| known.contains(&word)).collect();
    if alike.is_empty() {
        let near = nearest(&word, catalogue::all().map(|code| code.name));
        match near {
            Some(near) => eprintln!("hint: did you mean {near}?"),
            None => eprintln!("hint: `blkproof explain --list` shows all of them"),
        }
        return;
    }
    let more = alike.len() > MOST;
    alike.truncate(MOST);
    eprintln!("hint: there are {}{}", alike.join(", "), if more { ", …; see `blkproof explain --list`" } else { "" });
}
