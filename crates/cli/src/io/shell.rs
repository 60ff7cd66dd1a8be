//! The state between commands: the open image, and the requests that are still under way.

use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use blkproof_block::graph::Registry;
use blkproof_block::{LocalBoxFuture, Result};
use tokio::task::JoinHandle;

use super::console::Console;
use super::reply::Reply;
use super::session::SharedDisk;

/// Everything a command may use.
pub(super) struct Shell {
    /// Where it talks.
    pub(super) console: Rc<Console>,
    /// The drivers there are.
    pub(super) registry: Registry,
    /// `--image-opts`: the `open` command takes a list of options in place of a filename.
    pub(super) image_opts: bool,
    /// Backing files named inside an image may be opened.
    pub(super) allow_backing: bool,
    /// The open image.
    pub(super) disk: Option<SharedDisk>,
    under_way: Vec<JoinHandle<()>>,
    submitted: u64,
}

/// What became of an asynchronous request.
pub(super) struct Completion {
    /// Success or failure.
    pub(super) result: Result<()>,
    /// From its submission to its end.
    pub(super) elapsed: Duration,
    /// What was read.
    pub(super) data: Vec<u8>,
}

impl Shell {
    /// Nothing is open.
    pub(super) fn new(console: Rc<Console>, registry: Registry, image_opts: bool, allow_backing: bool) -> Self {
        Self { console, registry, image_opts, allow_backing, disk: None, under_way: Vec::new(), submitted: 0 }
    }

    /// Starts `request` at once, and lets `report` speak when it is done; that is never before this returns.
    ///
    /// The request begins here and not when the loop next runs, so that a write submitted first is on its way first.
    pub(super) async fn submit(
        &mut self,
        words: &[String],
        reply: &mut Reply,
        request: impl Future<Output = (Result<()>, Vec<u8>)> + 'static,
        report: impl FnOnce(Completion, &mut Reply) -> bool + 'static,
    ) {
        let id = self.submitted;
        self.submitted = id.saturating_add(1);
        reply.set("submitted", id);
        let start = Instant::now();
        let mut timed: LocalBoxFuture<'static, Completion> = Box::pin(async move {
            let (result, data) = request.await;
            Completion { result, elapsed: start.elapsed(), data }
        });
        let first_poll = std::future::poll_fn(|context| Poll::Ready(timed.as_mut().poll(context))).await;
        let mut later = Reply::new(&self.console, words);
        self.under_way.retain(|task| !task.is_finished());
        self.under_way.push(tokio::task::spawn_local(async move {
            let completion = match first_poll {
                Poll::Ready(completion) => completion,
                Poll::Pending => timed.await,
            };
            later.set("completes", id);
            let ok = report(completion, &mut later);
            later.finish(ok);
        }));
    }

    /// Waits for every request under way.
    pub(super) async fn finish_requests(&mut self) {
        for task in std::mem::take(&mut self.under_way) {
            // A task that panicked has said so itself; the others still have to be waited for.
            let _ = task.await;
        }
    }

    /// Completes when no request is under way.
    pub(super) async fn idle(&mut self) {
        while let Some(task) = self.under_way.last_mut() {
            let _ = task.await;
            self.under_way.pop();
        }
    }

    /// Lets requests go on that are parked at breakpoints, and removes those: nobody is left who could resume them.
    fn release_parked(&self, reply: &mut Reply) {
        let Some(breakpoints) = self.disk.as_ref().and_then(|disk| disk.breakpoints()) else { return };
        let parked = breakpoints.suspended();
        if !parked.is_empty() {
            let tags: Vec<String> = parked.iter().map(|(tag, _)| format!("'{tag}'")).collect();
            reply.complain(&format!("requests were still suspended, and go on now: {}", tags.join(", ")));
        }
        breakpoints.release_all();
    }

    /// Lets the image go, once nothing is under way on it; `false` if that could not be done cleanly.
    pub(super) async fn close(&mut self, reply: &mut Reply) -> bool {
        self.release_parked(reply);
        self.finish_requests().await;
        let Some(disk) = self.disk.take() else { return true };
        let Err(error) = disk.close().await else { return true };
        if reply.as_qemu_io() {
            // Of the other formats qemu-io says nothing.
            if disk.info().driver != "qcow2" {
                return true;
            }
            reply.complain(&format!("Failed to flush the L2 table cache: {}", error.errno));
        } else {
            reply.complain(&format!("closing the image: {error}"));
        }
        reply.set_error(&error);
        false
    }
}
