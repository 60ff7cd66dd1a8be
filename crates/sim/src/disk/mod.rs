//! A disk whose every step is somebody else's choice.
//!
//! A request is *sent*, its data moves (*effect*), and its driver hears of it (*completion*): the last two are moves of
//! the [`Simulation`](crate::Simulation). What is visible to readers is what has moved; what a power cut may leave is what
//! the model of `blkproof_fault::disk` says of what was sent, moved, completed and flushed.
//!
//! # Invariants
//! - Overlapping requests take effect in one order, the order of their effect moves, for readers and after a cut alike.
//! - At a power cut a request that was sent and has not moved may have landed, as one that moved may be lost (CM 5.1).
//! - A flush makes durable what had completed before it was sent, at the moment its completion is heard: no sooner, so
//!   that a cut just before it finds the widest choice (CM 5.3 (1)).
//! - A dropped write stays, and may move, until a drain takes effect; the drain decides what is left of it by seed and
//!   name. A dropped read or flush leaves nothing.

mod content;
mod crash;
mod device;
mod io;
mod options;
mod state;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

pub use self::content::Content;
pub use self::crash::Crash;
pub use self::io::{Fault, FaultDone, IoInfo, IoKind};
pub use self::options::DiskOptions;
use self::state::State;
use crate::key::IoKey;
use crate::moves::Board;

/// What decides which requests fail.
pub type Adversary = Box<dyn FnMut(&IoInfo) -> Option<Fault>>;

/// A simulated disk. Cloning gives another handle on the same one.
#[derive(Clone)]
pub struct SimDisk(Rc<Shared>);

struct Shared {
    board: Rc<Board>,
    /// Its place among the disks of the simulation.
    number: usize,
    state: RefCell<State>,
    adversary: RefCell<Option<Adversary>>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("number", &self.0.number).field("size", &self.size()).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// Options of a disk of `size` zero bytes.
    pub fn options(size: u64) -> DiskOptions {
        DiskOptions::new(Content::new(size))
    }

    pub(crate) fn new(board: Rc<Board>, options: DiskOptions) -> Self {
        let number = board.add_disk();
        Self(Rc::new(Shared { board, number, state: RefCell::new(State::new(options)), adversary: RefCell::default() }))
    }

    /// A disk outside of any simulation, whose requests are done when they are sent.
    pub fn instant(options: DiskOptions) -> Self {
        Self::new(Board::new(), DiskOptions { instant: true, ..options })
    }

    /// Bytes it holds.
    pub fn size(&self) -> u64 {
        self.0.state.borrow().content.size()
    }

    /// What a reader would see now, outside of any request.
    pub fn read_content(&self, at: u64, buf: &mut [u8]) {
        self.0.state.borrow().content.read(at, buf);
    }

    /// A copy of what a reader would see now.
    pub fn content(&self) -> Content {
        self.0.state.borrow().content.clone()
    }

    /// Who decides from now on which requests fail.
    pub fn set_adversary(&self, adversary: Option<Adversary>) {
        *self.0.adversary.borrow_mut() = adversary;
    }

    /// From now on requests are done when they are sent, or again by moves. What is on its way stays on its way.
    pub fn set_instant(&self, instant: bool) {
        self.0.state.borrow_mut().instant = instant;
    }

    /// A request on its way, dropped ones included.
    pub fn io(&self, key: IoKey) -> Option<IoInfo> {
        let state = self.0.state.borrow();
        state.ios().find(|io| io.info.key == key).map(|io| io.info.clone())
    }

    /// Whether the next move of this request makes something durable, if it succeeds: the moment before is one at which
    /// a power cut has most to choose from.
    pub fn settles(&self, key: IoKey) -> bool {
        let state = self.0.state.borrow();
        state.ios().any(|io| io.info.key == key && io.settles())
    }

    /// Requests on their way, oldest first, without dropped ones.
    pub fn pending(&self) -> Vec<IoInfo> {
        let state = self.0.state.borrow();
        let mut pending: Vec<_> = state.ios().filter(|io| !io.orphan).map(|io| io.info.clone()).collect();
        pending.sort_by_key(|info| info.key);
        pending
    }

    /// The disks that a power cut may leave now.
    pub fn crash(&self) -> Crash {
        self.0.state.borrow().crash()
    }

    /// The next move of a request.
    pub(crate) fn advance(&self, slot: usize) {
        let outcome = self.0.state.borrow_mut().advance(slot);
        let Some(outcome) = outcome else { return };
        if let Some(key) = outcome.next {
            self.0.board.push(key, self.what(slot));
        }
        self.0.board.note(outcome.digest);
        if let Some(waker) = outcome.waker {
            waker.wake();
        }
        for slot in outcome.ended {
            let gone = self.what(slot);
            self.0.board.retract(|what| *what == gone);
        }
    }

    fn what(&self, slot: usize) -> crate::moves::What {
        crate::moves::What::Disk { disk: self.0.number, slot }
    }
}
