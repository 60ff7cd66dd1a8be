//! Threads against drivers of a few lines: what is wrong with them is found, and what is right stands.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use blkproof_block::{Errno, IoError, Result, WriteFlags, ZeroFlags};
use blkproof_torture::campaign::Silent;
use blkproof_torture::plan::{Act, Plan, TargetSpec};
use blkproof_torture::shrink::Budget;
use blkproof_torture::threads::{
    Disk, Driver, Settings, Target, Wanted, block_on, campaign, plan_of, rate, run, spread,
};

/// What is wrong with a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    None,
    /// Writes whole blocks, read and merged without a lock.
    UnlockedMerge,
    /// Reading takes two locks in one order, writing in the other.
    LockOrder,
    /// A flush panics if another one is under way.
    LonelyFlush,
    /// A write of nothing but zeroes panics with the lock in its hands that every flush takes.
    PanicsLocked,
    /// A write that fails is answered with success.
    ErrorLost,
    /// Flushes fail, for no reason.
    Moody,
    /// It has no image it likes.
    NeverOpens,
    /// It says that its disk is larger than it is.
    Boasts,
    /// It panics when it is closed.
    PanicsAtClose,
}

struct Mine(Mistake, Arc<Mutex<Vec<&'static str>>>);

struct Blocks {
    disk: Arc<Disk>,
    mistake: Mistake,
    first: Mutex<()>,
    second: Mutex<()>,
    log: Arc<Mutex<Vec<&'static str>>>,
}

const BLOCK: u64 = 4096;

impl Blocks {
    fn note(&self, what: &'static str) {
        self.log.lock().unwrap().push(what);
    }
}

impl Driver for Blocks {
    fn size(&self) -> u64 {
        self.disk.size() + u64::from(self.mistake == Mistake::Boasts) * 512
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.note("read");
        if self.mistake == Mistake::LockOrder {
            let _first = self.first.lock().unwrap();
            self.disk.read(at, buf)?;
            let _second = self.second.lock().unwrap();
            return self.disk.read(at, buf);
        }
        self.disk.read(at, buf)
    }

    fn write(&self, at: u64, data: &[u8], _flags: WriteFlags) -> Result<()> {
        self.note("write");
        match self.mistake {
            Mistake::UnlockedMerge => {
                let (from, to) = (at / BLOCK * BLOCK, (at + data.len() as u64).next_multiple_of(BLOCK));
                let to = to.min(self.disk.size());
                let mut block = vec![0; usize::try_from(to - from).unwrap()];
                self.disk.read(from, &mut block)?;
                let skip = usize::try_from(at - from).unwrap();
                block[skip..skip + data.len()].copy_from_slice(data);
                self.disk.write(from, &block)
            }
            Mistake::LockOrder => {
                let _second = self.second.lock().unwrap();
                self.disk.write(at, data)?;
                let _first = self.first.lock().unwrap();
                self.disk.write(at, data)
            }
            Mistake::ErrorLost => self.disk.write(at, data).or(Ok(())),
            _ => self.disk.write(at, data),
        }
    }

    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if self.mistake == Mistake::PanicsLocked {
            let _guard = self.first.lock().unwrap();
            self.disk.write_zeroes(at, len)?;
            panic!("the first of all");
        }
        match flags.contains(ZeroFlags::NO_FALLBACK) {
            true => Err(IoError::unsupported()),
            false => self.disk.write_zeroes(at, len),
        }
    }

    fn discard(&self, _at: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.mistake == Mistake::Moody {
            return Err(IoError::new(Errno::IO));
        }
        if self.mistake == Mistake::PanicsLocked {
            let _guard = self.first.lock().unwrap();
            return self.disk.flush();
        }
        if self.mistake == Mistake::LonelyFlush {
            let _guard = self.first.try_lock().expect("nobody else flushes");
            return self.disk.flush();
        }
        self.disk.flush()
    }

    fn close(&self) -> Result<()> {
        self.note("close");
        assert!(self.mistake != Mistake::PanicsAtClose, "not now");
        self.disk.flush()
    }
}

impl Target for Mine {
    fn name(&self) -> &str {
        "mine"
    }

    fn open(&self, disk: Arc<Disk>, _spec: &TargetSpec) -> Result<Box<dyn Driver>> {
        if self.0 == Mistake::NeverOpens {
            return Err(IoError::new(Errno::INVAL));
        }
        let (first, second) = Default::default();
        Ok(Box::new(Blocks { disk, mistake: self.0, first, second, log: Arc::clone(&self.1) }))
    }
}

fn mine(mistake: Mistake) -> Arc<dyn Target> {
    Arc::new(Mine(mistake, Arc::default()))
}

fn plan(ops: &[&str], more: &str) -> Plan {
    let ops: String = ops.iter().map(|op| format!("    \"{op}\",\n")).collect();
    let text =
        format!("schema = \"blkproof.plan/1\"\nops = [\n{ops}]\n{more}\n[target]\nname = \"mine\"\nsize = \"64K\"\n");
    Plan::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn a_driver_that_is_right_stands() {
    for threads in [1, 2, 5] {
        let wanted = Wanted { runs: Some(40), threads, ..Wanted::default() };
        let results = campaign(&wanted, &mine(Mistake::None), &Silent);
        assert!(results.found.is_empty(), "{threads}: {}\n{}", results.found[0].finding, results.found[0].least());
        let stats = results.stats;
        assert!(stats.ops > 1000 && stats.faults > 10 && stats.judged > 0 && stats.reopens > 120, "{stats:?}");
    }
}

#[test]
fn mistakes_are_found() {
    let bytes =
        ["read", "foreign", "inversion", "overlap", "zero", "reopen", "failed-write", "flush", "fua", "discard"];
    for (mistake, codes) in [
        (Mistake::UnlockedMerge, &bytes[..]),
        (Mistake::LonelyFlush, &["panic"]),
        (Mistake::ErrorLost, &bytes),
        (Mistake::Moody, &["error-contract"]),
        (Mistake::NeverOpens, &["open"]),
        (Mistake::Boasts, &["resize"]),
        (Mistake::PanicsAtClose, &["panic"]),
    ] {
        let wanted = Wanted { runs: Some(2000), shrink: None, repeats: 2, ..Wanted::default() };
        let results = campaign(&wanted, &mine(mistake), &Silent);
        let [found] = &results.found[..] else { panic!("{mistake:?}: {} seeds found nothing", results.seeds) };
        let finding = &found.finding;
        assert!(codes.contains(&finding.signature.code.as_str()), "{mistake:?}: {finding}");
        if mistake == Mistake::PanicsAtClose {
            assert!(finding.text.contains("not now") && finding.signature.site.contains("threads.rs:"), "{finding}");
        }
    }
}

/// The only thing that a clock decides: nobody would wait so long.
#[test]
fn a_deadlock_ends_and_says_who_waits() {
    let ops =
        ["1 write 0+512", "2 q1 read 4K+512", "3 write 0+512", "4 q1 read 4K+512", "5 write 0+512", "6 q1 read 0+512"];
    let plan = plan(&ops, "[schedule]\nstrategy = \"random\"\nseed = 1");
    let settings = Settings { patience: Duration::from_secs(1), ..Settings::default() };
    let (of, first) = rate(&plan, &mine(Mistake::LockOrder), &settings, None, 2000);
    let finding = first.unwrap_or_else(|| panic!("none of {} runs hangs", of.runs));
    assert_eq!(finding.signature.code, "hang");
    assert!(finding.text.contains("(write)") && finding.text.contains("(read)"), "{finding}");
    // Each run that hangs is waited for, and leaves threads behind: a few are enough.
    assert!(of.failed <= 3, "{of}");
}

#[test]
fn of_panics_the_first_one_is_told() {
    let ops = ["1 zeroes 0+4K", "2 q1 flush", "3 q2 flush", "4 q3 flush"];
    let plan = plan(&ops, "[schedule]\nstrategy = \"random\"\nseed = 1");
    for number in 0..50 {
        let finding = run(&plan, &mine(Mistake::PanicsLocked), &Settings::default(), number).finding.unwrap();
        assert!(finding.signature.code == "panic" && finding.text.contains("the first of all"), "{finding}");
    }
}

#[test]
fn what_has_to_come_first_does() {
    let ops =
        ["1 write 0+512", "2 q1 read 0+512 after 1", "3 q2 write 0+512 after 2", "4 reopen", "5 q3 read 0+512 after 1"];
    let log = Arc::new(Mutex::new(Vec::new()));
    let target: Arc<dyn Target> = Arc::new(Mine(Mistake::None, Arc::clone(&log)));
    for number in 0..20 {
        log.lock().unwrap().clear();
        let outcome = run(&plan(&ops, ""), &target, &Settings::default(), number);
        assert_eq!(outcome.finding, None);
        assert_eq!(outcome.stats.ops, 4);
        // Then everything is read, closed, and read once more.
        let log = log.lock().unwrap();
        assert_eq!(log[..5], ["write", "read", "write", "close", "read"], "run {number}");
        assert_eq!(log.iter().filter(|what| **what == "close").count(), 2);
    }
}

#[test]
fn a_fault_hits_the_request_it_names_however_threads_move() {
    let ops = ["1 write 0+512", "2 q1 write 4K+512", "3 q2 write 8K+512"];
    let with = plan(&ops, "faults = [\"2#1 fails EIO, all done\"]\n[schedule]\nstrategy = \"random\"\nseed = 1");
    for number in 0..20 {
        let outcome = run(&with, &mine(Mistake::None), &Settings::default(), number);
        assert_eq!((outcome.finding, outcome.stats.faults), (None, 1));
        assert_eq!(outcome.explicit.faults, with.faults);
    }
    let more = "[random-faults]\nseed = 3\nrate = 500\npartial = 500";
    let outcome = run(&plan(&ops, more), &mine(Mistake::None), &Settings::default(), 0);
    assert_eq!(outcome.finding, None);
    let faults = &outcome.explicit.faults;
    assert!(!faults.named.is_empty() && faults.random.rate == 0, "{faults:?}");
}

#[test]
fn a_plan_for_the_simulator_is_refused() {
    let base = |mut plan: Plan| {
        plan.target.base = Some(512);
        plan
    };
    for (plan, words) in [
        (plan(&["1 resize 4K"], ""), "no resize"),
        (plan(&["1 status 0+4K"], ""), "no status"),
        (plan(&["1 cut all-old"], ""), "no cut"),
        (plan(&["1 write 0+512 drop@1"], ""), "drop@"),
        (plan(&["1 write 0+512"], "crash = \"at end all-old\""), "crash"),
        (base(plan(&["1 write 0+512"], "")), "base"),
    ] {
        let finding = run(&plan, &mine(Mistake::None), &Settings::default(), 0).finding.unwrap();
        assert_eq!(finding.signature.code, "plan");
        assert!(finding.text.contains(words), "{}", finding.text);
    }
}

#[test]
fn seeds_make_plans_for_so_many_threads() {
    let target = mine(Mistake::None);
    for seed in 0..200 {
        let wanted = Wanted { threads: 3, ..Wanted::default() };
        let plan = plan_of(seed, &*target, &wanted);
        assert_eq!(plan, spread(plan.clone(), 3), "seed {seed}");
        assert!(plan.ops.iter().all(|op| op.queue < 3 && op.drop_at.is_none()), "seed {seed}");
        assert!(plan.ops.iter().all(|op| op.act != Act::Reopen || op.queue == 0), "seed {seed}");
        assert!(plan.validate().is_ok(), "seed {seed}");
        let queues: BTreeSet<_> = plan.ops.iter().map(|op| op.queue).collect();
        assert!(plan.ops.len() < 20 || queues.len() == 3, "seed {seed}: {queues:?}");
    }
}

/// What fails always is shrunk as well as by the simulator, and its rate says so.
#[test]
fn a_finding_is_shrunk_and_rated() {
    let budget = Budget { runs: 300, ..Budget::default() };
    let wanted = Wanted { runs: Some(2000), shrink: Some(budget), repeats: 6, ..Wanted::default() };
    let results = campaign(&wanted, &mine(Mistake::ErrorLost), &Silent);
    let [found] = &results.found[..] else { panic!("{} seeds found nothing", results.seeds) };
    assert_eq!((found.rate.failed, found.rate.runs), (6, 6));
    let least = found.least();
    assert!(least.ops.len() <= 2 && least.faults.named.len() == 1, "{least}");
    let record = found.record("quick");
    assert!(record.origin.as_ref().unwrap().shrunk.ends_with("the plan fails in 6 of 6 runs"), "{record:?}");
    let outcome = run(least, &mine(Mistake::ErrorLost), &Settings::default(), 0);
    assert!(!outcome.history.is_empty());
    assert_eq!(rate(least, &mine(Mistake::None), &Settings::default(), None, 10).0.failed, 0);
}

#[test]
fn a_future_is_waited_for_until_somebody_wakes_it() {
    let slot: Mutex<(bool, Option<Waker>)> = Mutex::default();
    std::thread::scope(|scope| {
        let wake = || {
            loop {
                let mut slot = slot.lock().unwrap();
                if let Some(waker) = slot.1.take() {
                    slot.0 = true;
                    return waker.wake();
                }
                drop(slot);
                std::thread::yield_now();
            }
        };
        scope.spawn(wake);
        block_on(std::future::poll_fn(|cx| {
            let mut slot = slot.lock().unwrap();
            slot.1 = Some(cx.waker().clone());
            if slot.0 { Poll::Ready(()) } else { Poll::Pending }
        }));
    });
}
