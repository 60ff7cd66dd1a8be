//! One thread, many futures, one move at a time.

mod stuck;
mod tasks;

use std::future::Future;
use std::rc::Rc;

pub use self::stuck::Stuck;
pub use self::tasks::TaskId;

use self::tasks::Tasks;
use crate::clock::SimClock;
use crate::disk::{DiskOptions, SimDisk};
use crate::key::{MoveKey, Owner};
use crate::moves::{Board, Move, What};
use crate::schedule::{Chooser, Hold, Schedule};

/// Tasks and disks, and what is to happen next.
///
/// ```
/// use blkproof_block::{BlockDevice, WriteFlags};
/// use blkproof_sim::{Owner, Schedule, SimDisk, Simulation, Strategy};
///
/// let schedule = Schedule { strategy: Strategy::Random, seed: 42, ..Schedule::default() };
/// let mut simulation = Simulation::new(&schedule);
/// let disk = simulation.disk(SimDisk::options(512));
/// for byte in [1, 2] {
///     let disk = disk.clone();
///     let owner = Owner(u32::from(byte));
///     simulation.spawn(owner, async move { disk.write(0, &[byte; 512], WriteFlags::empty()).await.unwrap() });
/// }
/// simulation.run(10_000).unwrap();
/// let mut found = [0];
/// disk.read_content(0, &mut found);
/// assert!(found == [1] || found == [2]);
/// ```
#[derive(Debug)]
pub struct Simulation {
    board: Rc<Board>,
    chooser: Chooser,
    clock: SimClock,
    tasks: Tasks,
    disks: Vec<SimDisk>,
    /// Decided, and not taken yet.
    chosen: Option<Move>,
    steps: u64,
}

impl Simulation {
    /// An empty one.
    pub fn new(schedule: &Schedule) -> Self {
        let board = Board::new();
        Self {
            tasks: Tasks::new(Rc::clone(&board)),
            board,
            chooser: Chooser::new(schedule),
            clock: SimClock::default(),
            disks: Vec::new(),
            chosen: None,
            steps: 0,
        }
    }

    /// Adds a disk.
    pub fn disk(&mut self, options: DiskOptions) -> SimDisk {
        let disk = SimDisk::new(Rc::clone(&self.board), options);
        self.disks.push(disk.clone());
        disk
    }

    /// The clock of this simulation.
    pub fn clock(&self) -> SimClock {
        self.clock.clone()
    }

    /// Adds a task, whose first poll is one of the next moves. Requests that it sends to disks are `owner`'s.
    pub fn spawn(&mut self, owner: Owner, future: impl Future<Output = ()> + 'static) -> TaskId {
        self.tasks.spawn(owner, Box::pin(future))
    }

    /// Drops the task's future, as a caller that lost interest would. Does nothing if it is done.
    pub fn cancel(&mut self, task: TaskId) {
        self.tasks.cancel(task);
    }

    /// Whether the task has neither ended nor been cancelled.
    pub fn is_running(&self, task: TaskId) -> bool {
        self.tasks.is_running(task)
    }

    /// Whether any task is running.
    pub fn is_busy(&self) -> bool {
        self.tasks.running() > 0
    }

    /// Decides which move comes next, without taking it; `None` if nothing can move, not even time.
    pub fn choose(&mut self) -> Option<MoveKey> {
        if let Some(chosen) = self.chosen {
            return Some(chosen.key);
        }
        loop {
            self.tasks.publish();
            if !self.board.is_empty() {
                break;
            }
            if !self.clock.advance() {
                return None;
            }
        }
        self.chosen = self.board.take(|moves| self.chooser.choose(moves));
        self.chosen.map(|chosen| chosen.key)
    }

    /// Takes the move that was [chosen](Self::choose).
    pub fn take(&mut self) {
        let Some(taken) = self.chosen.take() else { return };
        self.steps = self.steps.saturating_add(1);
        match taken.what {
            What::Poll(task) => self.tasks.poll(task),
            What::Disk { disk, slot } => {
                if let Some(disk) = self.disks.get(disk) {
                    disk.advance(slot);
                }
            }
        }
    }

    /// Takes one move, and says which; `None` if nothing can move.
    pub fn step(&mut self) -> Option<MoveKey> {
        let key = self.choose()?;
        self.take();
        Some(key)
    }

    /// Takes moves until no task is running.
    ///
    /// # Errors
    /// [`Stuck`] if that never happens, or not within `steps` moves.
    pub fn run(&mut self, steps: u64) -> Result<(), Stuck> {
        let end = self.steps.saturating_add(steps);
        while self.is_busy() {
            if self.step().is_none() {
                return Err(self.stuck());
            }
            if self.steps >= end && self.is_busy() {
                return Err(Stuck::BusyLoop { steps, owners: self.tasks.owners() });
            }
        }
        Ok(())
    }

    /// Why nothing moves although tasks wait. Polls each of them once more to find out.
    pub fn stuck(&mut self) -> Stuck {
        let owners = self.tasks.owners();
        let before = self.tasks.running();
        self.tasks.poll_all();
        self.tasks.publish();
        // Whoever goes on when it is asked again was ready, and nobody had told it.
        if self.tasks.running() < before || !self.board.is_empty() {
            return Stuck::LostWakeUp { owners };
        }
        Stuck::Deadlock { owners }
    }

    /// Moves taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// A number that two runs share only if they took the same moves and their disks gave the same answers.
    pub fn digest(&self) -> u64 {
        self.board.digest()
    }

    /// Mixes something else into the [digest](Self::digest), such as what a request came back with.
    pub fn note(&self, number: u64) {
        self.board.note(number);
    }

    /// The order of the run so far, as what was held back: with these and [`Strategy::Fifo`](crate::Strategy::Fifo) it
    /// happens again.
    pub fn holds(&self) -> Vec<Hold> {
        self.chooser.holds()
    }

    /// The moves that could be taken now.
    pub fn moves(&mut self) -> Vec<MoveKey> {
        self.tasks.publish();
        self.board.keys()
    }

    /// Requests sent to disks from now on, and polls, are `owner`'s, until a task is polled: for what is done outside
    /// of tasks.
    pub fn set_owner(&self, owner: Owner) {
        self.board.set_owner(owner);
    }
}
