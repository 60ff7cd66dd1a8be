//! The simulated disk: what moves when, what a cut may leave, what a drop and a drain do.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::task::Poll;

use blkproof_block::{BlockDevice, Errno, IoError, Preallocation, WriteFlags};
use blkproof_fault::disk::{FlushError, Kind};
use blkproof_sim::disk::{Adversary, DiskOptions};
use blkproof_sim::{Fault, FaultDone, Hold, IoKey, IoKind, Owner, Schedule, SimDisk, Simulation, Stuck, TaskId};

/// What requests came to, in the order in which they ended.
type Results = Rc<RefCell<Vec<(u32, Result<(), Errno>)>>>;

struct Bench {
    simulation: Simulation,
    disk: SimDisk,
    results: Results,
}

fn bench_with(options: DiskOptions, holds: &[&str]) -> Bench {
    let holds = holds.iter().map(|text| text.parse::<Hold>().unwrap()).collect();
    let mut simulation = Simulation::new(&Schedule { holds, ..Schedule::default() });
    let disk = simulation.disk(options);
    Bench { simulation, disk, results: Rc::default() }
}

fn bench(options: DiskOptions) -> Bench {
    bench_with(options, &[])
}

fn io(text: &str) -> IoKey {
    text.parse().unwrap()
}

impl Bench {
    fn send(&mut self, owner: u32, work: impl AsyncFnOnce(SimDisk) -> Result<(), IoError> + 'static) -> TaskId {
        let (disk, results) = (self.disk.clone(), Rc::clone(&self.results));
        self.simulation.spawn(Owner(owner), async move {
            let result = work(disk).await;
            results.borrow_mut().push((owner, result.map_err(|error| error.errno)));
        })
    }

    fn write(&mut self, owner: u32, at: u64, byte: u8, flags: WriteFlags) -> TaskId {
        self.send(owner, async move |disk| disk.write(at, &[byte; 512], flags).await)
    }

    fn flush(&mut self, owner: u32) -> TaskId {
        self.send(owner, async |disk| disk.flush().await)
    }

    fn drain(&mut self, owner: u32) -> TaskId {
        self.send(owner, async |disk| disk.drain().await)
    }

    /// Steps until the next move is this one.
    fn until(&mut self, wanted: &str) {
        let wanted = wanted.parse().unwrap();
        while self.simulation.choose() != Some(wanted) {
            assert!(self.simulation.step().is_some(), "{wanted} never comes");
        }
    }

    fn run(&mut self) {
        self.simulation.run(100).unwrap();
    }

    fn byte(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.disk.read_content(at, &mut byte);
        byte[0]
    }

    /// First bytes of the first two sectors, in every state that a cut may leave now.
    fn cuts(&self) -> BTreeSet<(u8, u8)> {
        let crash = self.disk.crash();
        let states = crash.names(10_000, 0);
        assert_eq!(states.len() as u64, crash.count().count);
        let bytes = |name| {
            let mut found = [0; 513];
            crash.content(&name).unwrap().read(0, &mut found);
            (found[0], found[512])
        };
        states.into_iter().map(bytes).collect()
    }
}

#[test]
fn effect_and_completion_are_two_moves() {
    let mut bench = bench(SimDisk::options(1024));
    bench.write(1, 0, 1, WriteFlags::empty());
    bench.until("1#1.effect");
    assert_eq!((bench.byte(0), bench.results.borrow().len()), (0, 0));
    bench.until("1#1.done");
    assert_eq!((bench.byte(0), bench.results.borrow().len()), (1, 0));
    bench.run();
    assert_eq!(*bench.results.borrow(), [(1, Ok(()))]);
}

/// CM 4.6 (3): what completed before the flush was sent is durable when it ends, and nothing else.
#[test]
fn a_flush_covers_an_interval() {
    let mut bench = bench(SimDisk::options(1024));
    bench.write(1, 0, 1, WriteFlags::empty());
    bench.until("1#1.effect");
    assert_eq!(bench.cuts(), BTreeSet::from([(0, 0), (1, 0)]), "sent is enough to survive");
    bench.run();
    assert_eq!(bench.cuts(), BTreeSet::from([(0, 0), (1, 0)]), "done is not enough to be safe");
    bench.flush(2);
    bench.until("2#1.effect");
    bench.write(3, 512, 3, WriteFlags::empty());
    bench.until("2#1.done");
    assert!(bench.disk.settles(io("2#1")));
    assert_eq!(bench.cuts(), BTreeSet::from([(0, 0), (1, 0)]));
    bench.until("3#1.effect");
    assert_eq!(bench.cuts(), BTreeSet::from([(1, 0), (1, 3)]));
    bench.run();
    assert_eq!(bench.cuts(), BTreeSet::from([(1, 0), (1, 3)]));
}

#[test]
fn fua_makes_one_request_durable() {
    let mut bench = bench(SimDisk::options(1024));
    bench.write(1, 0, 1, WriteFlags::empty());
    bench.write(2, 512, 2, WriteFlags::FUA);
    bench.run();
    assert_eq!(bench.cuts(), BTreeSet::from([(0, 2), (1, 2)]));
}

#[test]
fn a_liar_makes_nothing_durable() {
    let mut bench = bench(DiskOptions { kind: Kind::Liar, ..SimDisk::options(1024) });
    bench.write(1, 0, 1, WriteFlags::FUA);
    bench.run();
    bench.flush(2);
    bench.run();
    assert_eq!(bench.cuts(), BTreeSet::from([(0, 0), (1, 0)]));
}

/// Overlapping requests have one order, that of their effects, before and after a cut.
#[test]
fn overlapping_writes_settle_in_the_order_of_their_effects() {
    let mut bench = bench_with(SimDisk::options(1024), &["1#1.effect until 2#1.effect"]);
    bench.write(1, 0, 1, WriteFlags::empty());
    bench.write(2, 0, 2, WriteFlags::empty());
    bench.run();
    assert_eq!(bench.byte(0), 1);
    bench.flush(3);
    bench.run();
    assert_eq!(bench.cuts(), BTreeSet::from([(1, 0)]));
}

#[test]
fn a_dropped_write_may_land_late() {
    let mut bench = bench(SimDisk::options(1024));
    let task = bench.write(1, 0, 1, WriteFlags::empty());
    bench.simulation.step();
    bench.simulation.cancel(task);
    assert_eq!(bench.cuts(), BTreeSet::from([(0, 0), (1, 0)]));
    bench.write(2, 0, 2, WriteFlags::empty());
    bench.run();
    assert_eq!(bench.byte(0), 2, "it landed before the write that came later");

    let mut bench = bench_with(SimDisk::options(1024), &["1#1.effect until 2#1.done"]);
    let task = bench.write(1, 0, 1, WriteFlags::empty());
    bench.simulation.step();
    bench.simulation.cancel(task);
    bench.write(2, 0, 2, WriteFlags::empty());
    bench.until("2#1.done");
    bench.simulation.step();
    assert_eq!(bench.byte(0), 2);
    bench.run();
    assert_eq!(bench.byte(0), 1, "it landed over a write that was done");
}

#[test]
fn a_drain_settles_what_was_dropped() {
    let mut fates = BTreeSet::new();
    for seed in 0..32 {
        let options = DiskOptions { seed, ..SimDisk::options(1024) };
        let mut bench = bench_with(options, &["1#1.effect until 2#1.done"]);
        let task = bench.write(1, 0, 1, WriteFlags::empty());
        bench.simulation.step();
        bench.simulation.cancel(task);
        bench.drain(2);
        bench.run();
        fates.insert(bench.byte(0));
        assert_eq!(bench.simulation.step(), None, "nothing is left that could land");
        bench.flush(3);
        bench.run();
        assert_eq!(bench.cuts().len(), 1, "a flush after the drain covers it");
    }
    assert_eq!(fates, BTreeSet::from([0, 1]), "it decides either way");
}

#[test]
fn a_write_dropped_between_effect_and_completion_stays_open() {
    let mut bench = bench(SimDisk::options(1024));
    let task = bench.write(1, 0, 1, WriteFlags::empty());
    bench.until("1#1.effect");
    bench.simulation.step();
    bench.simulation.cancel(task);
    assert_eq!(bench.byte(0), 1);
    bench.flush(2);
    bench.run();
    assert_eq!(bench.cuts(), BTreeSet::from([(0, 0), (1, 0)]), "nobody was told that it is done");
    bench.drain(3);
    bench.run();
    bench.flush(4);
    bench.run();
    assert_eq!(bench.cuts(), BTreeSet::from([(1, 0)]));
}

fn failing(at: &'static str, fault: Fault) -> Option<Adversary> {
    Some(Box::new(move |info| (info.key == io(at)).then(|| fault.clone())))
}

#[test]
fn faults_do_what_they_say() {
    let table = [
        (FaultDone::Nothing, (0, 0)),
        (FaultDone::All, (1, 1)),
        (FaultDone::First(512), (1, 0)),
        (FaultDone::From(512), (0, 1)),
    ];
    for (done, want) in table {
        for immediate in [false, true] {
            let mut bench = bench(SimDisk::options(1024));
            bench.disk.set_adversary(failing("1#1", Fault { immediate, done, error: IoError::new(Errno::NOSPC) }));
            bench.send(1, async |disk| disk.write(0, &[1; 1024], WriteFlags::empty()).await);
            bench.run();
            assert_eq!(*bench.results.borrow(), [(1, Err(Errno::NOSPC))]);
            assert_eq!((bench.byte(0), bench.byte(512)), want, "{done:?}");
            let moves = if immediate && done == FaultDone::Nothing { 1 } else { 4 };
            assert_eq!(bench.simulation.steps(), moves);
        }
    }
}

#[test]
fn a_failed_flush_keeps_or_forgets() {
    for (flush_error, want) in [(FlushError::Keep, (1, 0)), (FlushError::Forget, (0, 0))] {
        let mut bench = bench(DiskOptions { flush_error, ..SimDisk::options(1024) });
        let fault = Fault { immediate: false, done: FaultDone::Nothing, error: IoError::new(Errno::IO) };
        bench.disk.set_adversary(failing("2#1", fault));
        bench.write(1, 0, 1, WriteFlags::empty());
        bench.run();
        bench.flush(2);
        bench.run();
        bench.flush(3);
        bench.run();
        assert_eq!(bench.results.borrow()[1..], [(2, Err(Errno::IO)), (3, Ok(()))]);
        assert_eq!(bench.cuts(), BTreeSet::from([want]), "{flush_error:?}");
    }
}

#[test]
fn an_extension_can_be_lost_while_a_write_behind_it_survives() {
    let mut bench = bench(SimDisk::options(512).growing());
    bench.write(1, 512, 1, WriteFlags::empty());
    bench.run();
    let crash = bench.disk.crash();
    let sizes: BTreeSet<_> = crash.names(100, 0).iter().map(|name| crash.content(name).unwrap().size()).collect();
    assert_eq!(sizes, BTreeSet::from([512, 1024]));
    bench.send(2, async |disk| {
        disk.resize(100, Preallocation::Off).await?;
        disk.flush().await
    });
    bench.run();
    assert_eq!((bench.disk.size(), bench.disk.crash().base().size()), (100, 100));
}

#[test]
fn what_waits_for_ever_is_told_apart() {
    let mut simulation = Simulation::new(&Schedule::default());
    simulation.spawn(Owner(7), std::future::pending());
    assert_eq!(simulation.run(100), Err(Stuck::Deadlock { owners: vec![Owner(7)] }));

    let mut simulation = Simulation::new(&Schedule::default());
    let mut asked = false;
    // Ready when it is asked a second time, and tells nobody.
    let silent = std::future::poll_fn(move |_| match std::mem::replace(&mut asked, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    });
    simulation.spawn(Owner(8), silent);
    assert_eq!(simulation.run(100), Err(Stuck::LostWakeUp { owners: vec![Owner(8)] }));

    let mut simulation = Simulation::new(&Schedule::default());
    let busy = std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    simulation.spawn(Owner(9), busy);
    assert_eq!(simulation.run(100), Err(Stuck::BusyLoop { steps: 100, owners: vec![Owner(9)] }));
}

#[test]
fn requests_on_their_way_have_names() {
    let mut bench = bench(SimDisk::options(1024));
    bench.write(1, 0, 1, WriteFlags::FUA);
    bench.write(2, 512, 1, WriteFlags::empty());
    bench.until("1#1.done");
    let pending: Vec<_> = bench.disk.pending().into_iter().map(|info| (info.key, info.kind, info.fua)).collect();
    assert_eq!(pending, [(io("1#1"), IoKind::Write, true), (io("2#1"), IoKind::Write, false)]);
    assert_eq!(bench.disk.crash().ios(), [io("1#1"), io("2#1")]);
    assert!(bench.disk.settles(io("1#1")) && !bench.disk.settles(io("2#1")));
}
