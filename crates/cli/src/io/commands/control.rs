//! `sleep`, `sigraise`, `abort` and `quit`.

use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use super::{Command, Outcome, arguments, or_complain};
use crate::io::numbers::{integer, offset};
use crate::io::reply::Reply;
use crate::io::shell::Shell;

/// One more than the last signal there is.
const SIGNAL_MAX: u64 = 65;

/// Signals without a name on Linux.
const FIRST_REALTIME: i32 = 32;
const LAST_REALTIME: i32 = 64;

pub(super) const SLEEP: Command = Command {
    name: "sleep",
    alias: None,
    words_min: 1,
    words_max: Some(1),
    args: None,
    summary: "waits for the given value in milliseconds",
    help: "",
    needs_file: false,
    writes: false,
    run: |_, words, reply| Box::pin(sleep(words, reply)),
};

pub(super) const SIGRAISE: Command = Command {
    name: "sigraise",
    alias: None,
    words_min: 1,
    words_max: Some(1),
    args: Some("signal"),
    summary: "raises a signal",
    help: "
 Sends a signal to this program, after what it has printed was written out.

 Example:
 'sigraise 9' - dies at once, as if the power failed
",
    needs_file: false,
    writes: false,
    run: |shell, words, reply| Box::pin(std::future::ready(sigraise(shell, words, reply))),
};

pub(super) const ABORT: Command = Command {
    name: "abort",
    alias: None,
    words_min: 0,
    words_max: Some(0),
    args: None,
    summary: "simulate a program crash using abort(3)",
    help: "",
    needs_file: false,
    writes: false,
    run: |shell, _, _| {
        if !shell.console.as_qemu_io {
            // qemu-io loses what it has not written out yet.
            shell.console.flush();
        }
        std::process::abort()
    },
};

pub(super) const QUIT: Command = Command {
    name: "quit",
    alias: Some("q"),
    words_min: 0,
    words_max: None,
    args: None,
    summary: "exit the program",
    help: "",
    needs_file: false,
    writes: false,
    run: |_, _, _| Box::pin(std::future::ready(Outcome::Quit)),
};

async fn sleep(words: &[String], reply: &mut Reply) -> Outcome {
    let word = arguments(words).first().map_or("", String::as_str);
    let Some(millis) = integer(word).filter(|millis| *millis >= 0) else {
        reply.out(&format!("{word} is not a valid number"));
        return Outcome::Failed;
    };
    // As in qemu-io, a time that is no number of nanoseconds is no time at all.
    if let Some(nanos) = millis.checked_mul(1_000_000) {
        tokio::time::sleep(Duration::from_nanos(nanos.unsigned_abs())).await;
    }
    Outcome::Done
}

fn sigraise(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let word = arguments(words).first().map_or("", String::as_str);
    let number = or_complain!(offset(word), reply);
    if number > SIGNAL_MAX {
        reply.out(&format!("signal argument '{word}' is too large to be a valid signal"));
        return Outcome::Failed;
    }
    shell.console.flush();
    let number = i32::try_from(number).unwrap_or(0);
    match Signal::from_named_raw(number) {
        // Sending a signal that exists to ourselves can not fail.
        Some(signal) => drop(kill_process(getpid(), signal)),
        None if (FIRST_REALTIME..=LAST_REALTIME).contains(&number) => {
            reply.complain(&format!("signal {number} is a real-time signal, which can not be raised here"));
            return Outcome::Failed;
        }
        // As in qemu-io, a number that is no signal raises none.
        None => {}
    }
    Outcome::Done
}
