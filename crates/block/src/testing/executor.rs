//! One thread, many futures, every choice from a seed.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::disk::TestDisk;
use crate::choice::{Choices, hash};

/// Steps of one run after which it counts as a busy loop.
const STEPS_MAX: u64 = 10_000_000;

/// A task's number, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TaskId(pub usize);

/// Runs futures that need no `Send`, on the caller's thread.
///
/// [`run`](Self::run) takes one step at a time: it polls a task that was woken, moves the data of a request parked in
/// an [attached](Self::attach) disk, completes one, or lands a dropped one. Which of them, the seed says.
///
/// ```
/// use blkproof_block::testing::{Executor, TestDisk};
/// use blkproof_block::{BlockDevice, WriteFlags};
///
/// let disk = TestDisk::new(512);
/// let mut executor = Executor::new();
/// executor.attach(&disk);
/// for byte in [1, 2] {
///     let disk = disk.clone();
///     executor.spawn(async move { disk.write(0, &[byte; 512], WriteFlags::empty()).await.unwrap() });
/// }
/// executor.run(42).unwrap();
/// let mut found = [0];
/// disk.image().read(0, &mut found);
/// assert!(found == [1] || found == [2]);
/// ```
#[derive(Default)]
pub struct Executor {
    tasks: Vec<Task>,
    ready: Arc<Mutex<Vec<usize>>>,
    disks: Vec<TestDisk>,
    trace: u64,
}

struct Task {
    name: String,
    /// `None` when done or cancelled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Waker,
    polls: u64,
}

struct TaskWaker {
    task: usize,
    ready: Arc<Mutex<Vec<usize>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready.contains(&self.task) {
            ready.push(self.task);
        }
    }
}

/// Why a run can not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Nothing is ready and no disk step can be taken, yet tasks wait: a lost wake-up, a lock never released, or a
    /// request held for ever.
    Deadlock {
        /// The waiting tasks.
        tasks: Vec<String>,
        /// The requests held in attached disks.
        parked: Vec<String>,
    },
    /// No end in sight.
    BusyLoop {
        /// Steps taken.
        steps: u64,
        /// The tasks still running.
        tasks: Vec<String>,
    },
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadlock { tasks, parked } => {
                write!(f, "deadlock: waiting: {}; held in disks: {}", tasks.join(", "), parked.join(", "))
            }
            Self::BusyLoop { steps, tasks } => {
                write!(f, "busy loop: after {steps} steps still running: {}", tasks.join(", "))
            }
        }
    }
}

impl std::error::Error for Stuck {}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("running", &self.running()).finish_non_exhaustive()
    }
}

impl Executor {
    /// An executor without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over the scheduling of `disk`: from now on each of its requests parks twice, before its effect and before
    /// its completion, until a step of this executor lets it go on.
    pub fn attach(&mut self, disk: &TestDisk) {
        disk.set_scheduled(true);
        self.disks.push(disk.clone());
    }

    /// Adds a task; it is polled for the first time by the next run.
    pub fn spawn<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let name = format!("task {}", self.tasks.len());
        self.spawn_named(name, future)
    }

    /// Adds a task whose name appears in [`Stuck`].
    pub fn spawn_named<T: 'static>(
        &mut self,
        name: impl Into<String>,
        future: impl Future<Output = T> + 'static,
    ) -> JoinHandle<T> {
        let shared = Rc::new(RefCell::new(Joined { value: None, waker: None }));
        let slot = shared.clone();
        let future = Box::pin(async move {
            let value = future.await;
            let waker = {
                let mut slot = slot.borrow_mut();
                slot.value = Some(value);
                slot.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        let task = self.tasks.len();
        let waker = Waker::from(Arc::new(TaskWaker { task, ready: self.ready.clone() }));
        waker.wake_by_ref();
        self.tasks.push(Task { name: name.into(), future: Some(future), waker, polls: 0 });
        JoinHandle { id: TaskId(task), shared }
    }

    /// Drops the task's future, as a caller that lost interest would. Does nothing if it is done.
    pub fn cancel(&mut self, task: TaskId) {
        if let Some(task) = self.tasks.get_mut(task.0) {
            task.future = None;
        }
    }

    /// Whether the task has neither ended nor been cancelled.
    pub fn is_running(&self, task: TaskId) -> bool {
        self.tasks.get(task.0).is_some_and(|task| task.future.is_some())
    }

    /// How often the task was polled.
    pub fn polls(&self, task: TaskId) -> u64 {
        self.tasks.get(task.0).map_or(0, |task| task.polls)
    }

    /// Names of the tasks that have neither ended nor been cancelled.
    pub fn running(&self) -> Vec<String> {
        self.tasks.iter().filter(|task| task.future.is_some()).map(|task| task.name.clone()).collect()
    }

    /// Polls tasks in the order they were woken until none is ready; takes no disk step.
    ///
    /// # Panics
    /// If tasks wake each other without end.
    pub fn run_until_stalled(&mut self) {
        for _ in 0..STEPS_MAX {
            let next = {
                let mut ready = self.ready();
                (!ready.is_empty()).then(|| ready.remove(0))
            };
            match next {
                Some(task) => self.poll(task),
                None => return,
            }
        }
        panic!("{}", Stuck::BusyLoop { steps: STEPS_MAX, tasks: self.running() });
    }

    /// Steps until every task is done.
    ///
    /// # Errors
    /// [`Stuck`] if that never happens.
    pub fn run(&mut self, seed: u64) -> Result<(), Stuck> {
        let mut choices = Choices::new(seed);
        let mut steps = 0;
        while self.tasks.iter().any(|task| task.future.is_some()) {
            if !self.step(&mut choices) {
                return Err(self.deadlock());
            }
            steps += 1;
            if steps == STEPS_MAX {
                return Err(Stuck::BusyLoop { steps, tasks: self.running() });
            }
        }
        Ok(())
    }

    /// Runs `future` together with all other tasks, and returns its value.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn block_on<T: 'static>(&mut self, seed: u64, future: impl Future<Output = T> + 'static) -> Result<T, Stuck> {
        let handle = self.spawn_named("block_on", future);
        self.run(seed)?;
        handle.take().ok_or_else(|| self.deadlock())
    }

    /// Takes one step; `false` if there is none to take.
    pub fn step(&mut self, choices: &mut Choices) -> bool {
        let ready = {
            let mut ready = self.ready();
            ready.retain(|&task| self.tasks.get(task).is_some_and(|task| task.future.is_some()));
            ready.clone()
        };
        let moves: Vec<_> =
            self.disks.iter().flat_map(|disk| disk.steps().into_iter().map(move |op| (disk.clone(), op))).collect();
        let total = ready.len() + moves.len();
        // A dropped request mostly waits: one that lands at once is the easy case, and one that lands years later the
        // instructive one. If nothing else can move it does not either, so that a drain is what ends the waiting.
        if total > 0 && choices.chance(40) {
            let orphans: Vec<_> = self
                .disks
                .iter()
                .flat_map(|disk| disk.orphans().into_iter().map(move |op| (disk.clone(), op.id)))
                .collect();
            if let Some((disk, op)) = orphans.get(choices.index(orphans.len())) {
                self.trace = hash(self.trace, op.0 ^ 1 << 62);
                disk.land(*op);
                return true;
            }
        }
        if total == 0 {
            return false;
        }
        let pick = choices.index(total);
        self.trace = hash(self.trace, (pick as u64) << 32 | total as u64);
        match ready.get(pick) {
            Some(&task) => {
                self.ready().retain(|&other| other != task);
                self.poll(task);
            }
            None => {
                if let Some((disk, op)) = moves.get(pick - ready.len()) {
                    disk.step(*op);
                }
            }
        }
        true
    }

    /// A number that tells two runs with different choices apart.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Names what waits, for a run that can not go on.
    pub fn deadlock(&self) -> Stuck {
        let parked = self.disks.iter().flat_map(|disk| disk.parked()).map(|op| op.to_string()).collect();
        Stuck::Deadlock { tasks: self.running(), parked }
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&mut self, index: usize) {
        let Some(task) = self.tasks.get_mut(index) else { return };
        let Some(future) = task.future.as_mut() else { return };
        task.polls += 1;
        if future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_ready() {
            task.future = None;
        }
    }
}

#[derive(Debug)]
struct Joined<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// The value of a task, now or by waiting for it. Dropping it leaves the task alone.
#[derive(Debug)]
pub struct JoinHandle<T> {
    id: TaskId,
    shared: Rc<RefCell<Joined<T>>>,
}

impl<T> JoinHandle<T> {
    /// The task.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Whether the value is there and was not taken.
    pub fn is_done(&self) -> bool {
        self.shared.borrow().value.is_some()
    }

    /// Takes the value if the task is done.
    pub fn take(&self) -> Option<T> {
        self.shared.borrow_mut().value.take()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut shared = self.shared.borrow_mut();
        match shared.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                shared.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Runs one future that only waits for things its own polls bring about, such as a [`TestDisk`] that holds nothing.
///
/// # Panics
/// If it waits for anything else: nobody could ever wake it.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let ready = Arc::new(Mutex::new(Vec::new()));
    let waker = Waker::from(Arc::new(TaskWaker { task: 0, ready: ready.clone() }));
    let mut future = pin!(future);
    for _ in 0..STEPS_MAX {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        let woken = ready.lock().unwrap_or_else(PoisonError::into_inner).pop().is_some();
        assert!(woken, "deadlock: the future waits, and nothing is left that could wake it");
    }
    panic!("busy loop: the future wakes itself without end");
}
