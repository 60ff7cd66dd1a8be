//! `break`, `wait_break`, `resume` and `remove_break`: they speak to the blkdebug node beneath the image, which says
//! itself what it suspends and resumes. Their help is qemu-io's: none; the manual is `docs/blkdebug.md`.

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{Breakpoints, Errno, Event, LocalBoxFuture};

use super::{Command, Outcome, arguments};
use crate::io::reply::Reply;
use crate::io::shell::Shell;

/// How long a request is waited for that was to be suspended, and how long a command waits for one that is. QEMU waits
/// for ever.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) const BREAK: Command = Command {
    name: "break",
    alias: None,
    words_min: 2,
    words_max: Some(2),
    args: Some("event tag"),
    summary: "sets a breakpoint on event and tags the stopped request as tag",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(std::future::ready(set(shell, words, reply))),
};

pub(super) const WAIT_BREAK: Command = Command {
    name: "wait_break",
    alias: None,
    words_min: 1,
    words_max: Some(1),
    args: Some("tag"),
    summary: "waits for the suspension of a request",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(wait(shell, words, reply)),
};

pub(super) const RESUME: Command = Command {
    name: "resume",
    alias: None,
    words_min: 1,
    words_max: Some(1),
    args: Some("tag"),
    summary: "resumes the request tagged as tag",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(resume(shell, words, reply)),
};

pub(super) const REMOVE_BREAK: Command = Command {
    name: "remove_break",
    alias: None,
    words_min: 1,
    words_max: Some(1),
    args: Some("tag"),
    summary: "remove a breakpoint by tag",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(remove(shell, words, reply)),
};

/// The breakpoints beneath the image; without any, QEMU's answer is that it can not be done.
fn breakpoints(shell: &Shell) -> Result<Rc<dyn Breakpoints>, Errno> {
    shell.disk.as_ref().and_then(|disk| disk.breakpoints()).ok_or(Errno::NOTSUP)
}

/// Lets suspended requests go on when a command has waited for them too long, which nobody could end otherwise; never
/// completes. `sleep` and `wait_break` do not wait for requests to be done.
pub(super) fn watch(shell: &Shell, command: &str) -> LocalBoxFuture<'static, Outcome> {
    let waits = !matches!(command, "sleep" | "wait_break");
    let Some(breakpoints) = breakpoints(shell).ok().filter(|_| waits) else { return Box::pin(std::future::pending()) };
    let console = Rc::clone(&shell.console);
    let say = move |text: &str| console.error_line(&console.message(text));
    Box::pin(release_stuck(breakpoints, || tokio::time::sleep(PATIENCE), say))
}

async fn release_stuck(breakpoints: Rc<dyn Breakpoints>, patience: impl AsyncFn(), say: impl Fn(&str)) -> Outcome {
    loop {
        patience().await;
        let parked: Vec<String> = breakpoints.suspended().iter().map(|(tag, _)| format!("'{tag}'")).collect();
        if !parked.is_empty() {
            let seconds = PATIENCE.as_secs();
            let tags = parked.join(", ");
            say(&format!("requests have been suspended for {seconds} seconds, and go on now: {tags}"));
            breakpoints.release_all();
        }
    }
}

fn tag(words: &[String]) -> &str {
    arguments(words).last().map_or("", String::as_str)
}

fn set(shell: &Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let event = arguments(words).first().map_or("", String::as_str);
    let set = breakpoints(shell).and_then(|breakpoints| {
        breakpoints.set(Event::from_name(event).ok_or(Errno::NOENT)?, tag(words));
        Ok(())
    });
    finish("set breakpoint", set, reply)
}

async fn wait(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let breakpoints = match breakpoints(shell) {
        Ok(breakpoints) => breakpoints,
        // QEMU waits for ever here. Nobody is helped by that.
        Err(errno) => return finish("wait for breakpoint", Err(errno), reply),
    };
    let why = tokio::select! {
        biased;
        () = breakpoints.wait(tag(words)) => return Outcome::Done,
        () = shell.idle() => "no request is under way that could be suspended".to_owned(),
        () = tokio::time::sleep(PATIENCE) => format!("none was suspended within {} seconds", PATIENCE.as_secs()),
    };
    reply.out(&format!("Could not wait for breakpoint {}: {why}", tag(words)));
    for (tag, count) in breakpoints.suspended() {
        reply.out(&format!("suspended under '{tag}': {count}"));
    }
    for (event, tag) in breakpoints.pending() {
        reply.out(&format!("not hit yet: {event} '{tag}'"));
    }
    Outcome::Failed
}

async fn resume(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let resumed = breakpoints(shell)
        .and_then(|breakpoints| if breakpoints.resume(tag(words)) { Ok(()) } else { Err(Errno::NOENT) });
    go_on().await;
    finish("resume request", resumed, reply)
}

async fn remove(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let removed = breakpoints(shell)
        .and_then(|breakpoints| if breakpoints.remove(tag(words)) { Ok(()) } else { Err(Errno::NOENT) });
    go_on().await;
    finish(&format!("remove breakpoint {}", tag(words)), removed, reply)
}

/// Lets a resumed request take its next step before the next command, as in qemu-io.
async fn go_on() {
    tokio::task::yield_now().await;
}

fn finish(what: &str, done: Result<(), Errno>, reply: &mut Reply) -> Outcome {
    match done {
        Ok(()) => Outcome::Done,
        Err(errno) => {
            reply.out(&format!("Could not {what}: {errno}"));
            Outcome::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use blkproof_fault::blkdebug::breaks::Breaks;
    use blkproof_fault::clock::Stopped;
    use blkproof_fault::notice::Notices;

    use super::*;

    /// A command whose own request is suspended would never end.
    #[test]
    fn what_a_command_waits_for_goes_on_at_last() {
        let said: Rc<RefCell<Vec<String>>> = Rc::default();
        let breaks = Breaks::new(Rc::from("n"), Notices::new(Rc::new(Stopped)), Rc::new(|_| {}));
        breaks.set(Event::Pwritev, "A");
        let write = async {
            breaks.stop(Event::Pwritev).await;
            Outcome::Done
        };
        let watch = release_stuck(
            Rc::clone(&breaks) as Rc<dyn Breakpoints>,
            async || {
                futures_lite::future::yield_now().await;
            },
            |text| said.borrow_mut().push(text.to_owned()),
        );
        let outcome = futures_lite::future::block_on(futures_lite::future::or(write, watch));
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(*said.borrow(), ["requests have been suspended for 30 seconds, and go on now: 'A'"]);
    }
}
