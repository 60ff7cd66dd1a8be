//! The tasks, and who was woken.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use crate::key::Owner;
use crate::moves::{Board, What};

/// A task of a simulation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TaskId(usize);

type Future = Pin<Box<dyn std::future::Future<Output = ()>>>;

struct Task {
    owner: Owner,
    /// `None` when done or cancelled.
    future: Option<Future>,
    waker: Waker,
    woken: Arc<Woken>,
}

pub(super) struct Tasks {
    board: Rc<Board>,
    tasks: Vec<Task>,
    running: usize,
    queue: Arc<Mutex<Vec<usize>>>,
}

/// A waker has to be `Send`, so this one is, though nobody ever sends it.
struct Woken {
    task: usize,
    /// Whether the next poll is on the board, or in the queue to it.
    queued: AtomicBool,
    queue: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            lock(&self.queue).push(self.task);
        }
    }
}

fn lock(queue: &Mutex<Vec<usize>>) -> MutexGuard<'_, Vec<usize>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tasks {
    pub(super) fn new(board: Rc<Board>) -> Self {
        Self { board, tasks: Vec::new(), running: 0, queue: Arc::default() }
    }

    pub(super) fn spawn(&mut self, owner: Owner, future: Future) -> TaskId {
        let task = self.tasks.len();
        let woken = Arc::new(Woken { task, queued: AtomicBool::new(false), queue: Arc::clone(&self.queue) });
        let waker = Waker::from(Arc::clone(&woken));
        waker.wake_by_ref();
        self.tasks.push(Task { owner, future: Some(future), waker, woken });
        self.running = self.running.saturating_add(1);
        TaskId(task)
    }

    pub(super) fn cancel(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let Some(future) = task.future.take() else { return };
        self.running = self.running.saturating_sub(1);
        // Whatever it sends while it is dropped is its own.
        self.board.set_owner(task.owner);
        drop(future);
        self.board.set_owner(Owner::default());
        self.board.retract(|what| *what == What::Poll(id.0));
    }

    pub(super) fn is_running(&self, id: TaskId) -> bool {
        self.tasks.get(id.0).is_some_and(|task| task.future.is_some())
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Whose tasks are running.
    pub(super) fn owners(&self) -> Vec<Owner> {
        self.tasks.iter().filter(|task| task.future.is_some()).map(|task| task.owner).collect()
    }

    /// Puts the polls of woken tasks on the board.
    pub(super) fn publish(&mut self) {
        let mut queue = lock(&self.queue);
        for task in queue.drain(..) {
            if let Some(Task { owner, future: Some(_), .. }) = self.tasks.get(task) {
                self.board.push(self.board.next_poll(*owner), What::Poll(task));
            }
        }
    }

    pub(super) fn poll(&mut self, index: usize) {
        let Some(task) = self.tasks.get_mut(index) else { return };
        let Some(future) = task.future.as_mut() else { return };
        task.woken.queued.store(false, Ordering::Relaxed);
        self.board.set_owner(task.owner);
        let ready = future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_ready();
        if ready {
            task.future = None;
            self.running = self.running.saturating_sub(1);
        }
        self.board.set_owner(Owner::default());
    }

    /// Polls every task, woken or not.
    pub(super) fn poll_all(&mut self) {
        for index in 0..self.tasks.len() {
            self.poll(index);
        }
    }
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("running", &self.owners()).finish_non_exhaustive()
    }
}
