//! One disk under test: its medium, the disk over it, the rule that cuts the power, the witness, and a socket.
//!
//! ```text
//! NBD server -> witness -> fault (the rule) -> disk (write cache) -> medium in memory
//! ```

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;

use anyhow::{Context as _, anyhow};
use blkproof_block::align::Aligned;
use blkproof_block::nodes::memory::Memory;
use blkproof_block::{BlockDevice, ByteRange, Node, RuleId, WriteFlags};
use blkproof_fault::disk::{Disk, DiskNode, DiskOptions};
use blkproof_fault::filter::{Fault, Faults};
use blkproof_fault::notice::{Notice, What};
use blkproof_fault::request::{Operation, Operations};
use blkproof_fault::rule::{Action, Done, On, Rule, RuleSet, Then};
use blkproof_nbd::server::{Exports, Limits, Server};
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use super::betrayal::{Betrayal, judge};
use super::program::{self, Ended, How};
use super::witness::{Log, Witness};
use crate::graph::lab;

/// The rule's id.
const RULE: &str = "cut";

/// Bytes copied at once.
const CHUNK: u64 = 1 << 20;

/// Requests that are counted: those that can change what a cut leaves.
const COUNTED: Operations =
    Operations::WRITE.union(Operations::WRITE_ZEROES).union(Operations::DISCARD).union(Operations::FLUSH);

/// When the power goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    /// At this request, from 1, counting writes, zeroes, discards and flushes.
    pub(super) request: u64,
    /// That request is done before; it is answered in no case.
    pub(super) done: bool,
}

/// What a power cut did.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    /// The request it came in the middle of; `None`: the program had ended.
    pub(super) during: Option<Cause>,
    /// The state the disk came back in.
    pub(super) state: String,
    /// Bytes acknowledged and lost, and of these flushed, as the disk sees it.
    pub(super) lost: u64,
    pub(super) betrayed: u64,
    /// The same as the witness sees it.
    pub(super) betrayal: Betrayal,
}

/// A request during which the power went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cause {
    pub(super) moment: Moment,
    pub(super) operation: Operation,
    pub(super) range: ByteRange,
}

/// A disk under test.
pub(super) struct Bench {
    medium: Node,
    disk: Disk,
    faults: Rc<Faults>,
    notices: broadcast::Receiver<Rc<Notice>>,
    log: Rc<RefCell<Log>>,
    /// What clients get.
    node: Node,
    dir: PathBuf,
    /// The state it comes back in after the next cut; its seed picks one if not given.
    pub(super) state: Option<Rc<str>>,
    /// Cuts that were looked at.
    told: u64,
}

impl Bench {
    /// A disk that holds what `image` holds. `dir` is for its socket.
    pub(super) async fn new(image: &Node, options: DiskOptions, dir: &Path) -> anyhow::Result<Self> {
        let medium = Node::new(Memory::new(image.info().size));
        copy(image, &medium).await.context("copying the disk's first content")?;
        let lab = lab();
        let name: Rc<str> = Rc::from("disk");
        let disk = DiskNode::listed(medium.clone(), options, &lab, &name);
        let disk = disk.map_err(|taken| anyhow!("{taken}"))?;
        let handle = disk.handle();
        let faults = Faults::new(Rc::from("fault"), RuleSet::default(), &lab)?;
        faults.set_disks(lab.switches())?;
        let notices = lab.notices().listen();
        let witness = Witness::new(Node::new(Fault::new(Node::new(disk), Rc::clone(&faults))));
        let log = witness.log();
        let node = Aligned::wrap(Node::new(witness));
        Ok(Self { medium, disk: handle, faults, notices, log, node, dir: dir.to_owned(), state: None, told: 0 })
    }

    /// The socket, while something runs.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// Requests so far that count.
    pub(super) fn requests(&self) -> u64 {
        self.log.borrow().requests
    }

    /// Serves the disk while a command line runs. With a moment, the power goes when it comes.
    pub(super) async fn run(
        &self,
        line: &str,
        cut_at: Option<Moment>,
        patience: std::time::Duration,
    ) -> anyhow::Result<Ended> {
        let socket = self.socket();
        let listener = UnixListener::bind(&socket).with_context(|| format!("listening on '{}'", socket.display()))?;
        if let Some(moment) = cut_at {
            self.faults.add(vec![rule(moment, self.state.clone())])?;
        }
        let server = Rc::new(Server::new(Exports::single(self.node.clone()), Limits::default()));
        let gone = async {
            // `false`: there is no such rule, and the power stays.
            if !self.faults.wait_fired(RULE, 1).await {
                std::future::pending::<()>().await;
            }
        };
        let mut program = pin!(program::run(line, gone, patience));
        let mut clients = JoinSet::new();
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut program => break ended,
                Ok((stream, _)) = listener.accept() => {
                    let server = Rc::clone(&server);
                    clients.spawn_local(async move {
                        // How a client leaves is of no interest here: the power takes it in the middle of anything.
                        let _ = server.serve(stream, "program", std::future::pending()).await;
                    });
                }
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
            }
        };
        clients.shutdown().await;
        // Every connection is gone by now; what they had in flight was dropped.
        std::fs::remove_file(&socket).with_context(|| format!("removing '{}'", socket.display()))?;
        self.node.drain().await.context("waiting for requests left behind")?;
        self.faults.remove(RULE);
        // A cut that was in the middle of something when its client was killed comes to its end.
        self.disk.power_on().await.context("switching the disk on")?;
        ended
    }

    /// Whether the power went during the last run.
    pub(super) fn is_cut(&self) -> bool {
        self.disk.state(0).cuts > self.told
    }

    /// What the cut did that happened during the last run; makes one if there was none. Begins a new life.
    pub(super) async fn cut(&mut self, wanted: Moment) -> anyhow::Result<Loss> {
        let mut seen = self.take_notices(wanted)?;
        let state = self.state.take();
        if seen.loss.is_none() {
            // Nothing happened so far, or the state it was to have is none of its own: then it is told here.
            self.disk.power_cut(state.as_deref()).await?;
            seen = self.take_notices(wanted)?;
        }
        let (state, lost, betrayed) = seen.loss.context("the disk did not say what it lost")?;
        self.told = self.disk.state(0).cuts;
        let log = self.log.take();
        let betrayal = judge(&log, &self.medium).await.context("looking at what is left")?;
        Ok(Loss { during: seen.cause, state, lost, betrayed, betrayal })
    }

    fn take_notices(&mut self, wanted: Moment) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        loop {
            let notice = match self.notices.try_recv() {
                Ok(notice) => notice,
                Err(broadcast::error::TryRecvError::Empty) => return Ok(seen),
                Err(error) => return Err(error).context("listening to the disk"),
            };
            match &notice.what {
                What::Fired { operation: Some(operation), range, .. } => {
                    seen.cause = Some(Cause { moment: wanted, operation: *operation, range: *range });
                }
                What::PowerCut { state, lost, betrayed, .. } => {
                    seen.loss = Some((state.to_string(), *lost, *betrayed));
                }
                _ => {}
            }
        }
    }

    /// Shuts the disk down properly; what it holds then.
    pub(super) async fn close(self) -> anyhow::Result<Node> {
        self.node.close().await.context("closing the disk")?;
        Ok(self.medium)
    }
}

/// What the nodes told of a run.
#[derive(Default)]
struct Seen {
    cause: Option<Cause>,
    loss: Option<(String, u64, u64)>,
}

fn rule(moment: Moment, state: Option<Rc<str>>) -> Rule {
    let done = if moment.done { Done::All } else { Done::None };
    Rule {
        id: RuleId(RULE.into()),
        on: On { operations: COUNTED, nth: Some(moment.request), times: Some(1), ..On::default() },
        action: Action::PowerCut { disk: None, state, done },
        then: Then::default(),
        life: None,
    }
}

/// Copies what is not zero to a device that is.
async fn copy(from: &Node, to: &Node) -> blkproof_block::Result<()> {
    let size = from.info().size;
    let mut buf = Vec::new();
    let mut at = 0;
    while at < size {
        let left = size.saturating_sub(at);
        let status = from.block_status(at, left).await?;
        let len = status.len.clamp(1, left);
        if status.zero {
            at = at.saturating_add(len);
            continue;
        }
        buf.resize(usize::try_from(len.min(CHUNK)).unwrap_or(0), 0);
        from.read(at, &mut buf).await?;
        if !blkproof_block::buffer::is_zero(&buf) {
            to.write(at, &buf, WriteFlags::empty()).await?;
        }
        at = at.saturating_add(buf.len() as u64);
    }
    Ok(())
}

/// Whether a program did what it was started for, or lost its disk.
pub(super) fn did_its_work(ended: &Ended) -> bool {
    matches!(ended.how, How::Itself(status) if status.success())
}
