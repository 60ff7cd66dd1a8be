//! Sweeps of a driver of a few lines: every request fails in every way, and a mistake on an error path is found.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::Mutex;

use blkproof_block::{
    BlockDevice, BlockStatus, DeviceInfo, IoError, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};
use blkproof_torture::campaign::{Campaign, Silent, campaign};
use blkproof_torture::plan::{FaultAt, Plan, TargetSpec};
use blkproof_torture::run::Settings;
use blkproof_torture::sweep::{Swept, plain, sweep};
use blkproof_torture::target::{self, Files, Opening, Target};
use blkproof_torture::workload::{Profile, generate};

/// What is wrong with a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    None,
    /// A flush that fails counts as done.
    FlushErrorLost,
    /// So does a write.
    WriteErrorLost,
    /// Every other run, it reads before it writes.
    Moody,
}

struct Hands(Mistake, Mutex<u64>);

struct Handing {
    below: Node,
    mistake: Mistake,
    reads_first: bool,
}

impl BlockDevice for Handing {
    fn info(&self) -> DeviceInfo {
        self.below.info()
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(at, buf).await
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if self.reads_first {
            self.below.read(at, &mut vec![0; data.len()]).await?;
        }
        let written = self.below.write(at, data, flags).await;
        if self.mistake == Mistake::WriteErrorLost { Ok(()) } else { written }
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.below.write_zeroes(at, len, flags).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.below.discard(at, len).await
    }

    async fn flush(&self) -> Result<()> {
        let flushed = self.below.flush().await;
        if self.mistake == Mistake::FlushErrorLost { Ok(()) } else { flushed }
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.below.block_status(at, len).await
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        self.below.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.below.flush().await?;
        self.below.close().await
    }
}

impl Target for Hands {
    fn name(&self) -> &str {
        "hands"
    }

    fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
        let mut opened = self.1.lock().unwrap();
        *opened += 1;
        let reads_first = self.0 == Mistake::Moody && *opened > 4 && opened.is_multiple_of(2);
        let driver = Handing { below: files.image, mistake: self.0, reads_first };
        Box::pin(async move { Ok(Node::new(driver)) })
    }
}

fn hands(mistake: Mistake) -> Hands {
    Hands(mistake, Mutex::new(0))
}

fn plan(ops: &[&str], more: &str) -> Plan {
    let ops: String = ops.iter().map(|op| format!("    \"{op}\",\n")).collect();
    let text =
        format!("schema = \"blkproof.plan/1\"\nops = [\n{ops}]\n{more}\n[target]\nname = \"hands\"\nsize = \"64K\"\n");
    Plan::parse(&text).unwrap()
}

fn swept(mistake: Mistake, plan: &Plan) -> Swept {
    sweep(plan, &hands(mistake), &Settings::default(), 1, &|| false)
}

#[test]
fn each_request_fails_in_each_way() {
    // A write of eight sectors fails in seven ways, of one in five, a flush and a read in four; a
    // reopening flushes twice, once for the driver and once for the disk below it.
    for (ops, requests, tries) in [
        (&["1 write 0+4K"][..], 1, 7),
        (&["1 write 0+512"], 1, 5),
        (&["1 write 0+4K", "2 read 0+512", "3 flush"], 3, 15),
        (&["1 write 0+4K", "2 reopen"], 3, 15),
        (&["1 zeroes 0+4K", "2 discard 0+8K"], 2, 12),
        (&["1 status 0+4K", "2 drain"], 0, 0),
    ] {
        let swept = swept(Mistake::None, &plan(ops, ""));
        assert_eq!(swept.found, [], "{ops:?}");
        assert_eq!((swept.requests, swept.runs), (requests, tries + 1), "{ops:?}");
        assert!(swept.stats.faults >= tries && !swept.stopped, "{ops:?}");
    }
}

#[test]
fn a_lost_error_is_found_and_says_which_request_failed() {
    let plain = plan(&["1 write 0+512", "2 write 4K+512", "3 read 0+8K"], "");
    let swept = self::swept(Mistake::WriteErrorLost, &plain);
    let [(finding, plan)] = &swept.found[..] else { panic!("{:?}", swept.found) };
    assert_eq!(finding.signature.code, "read");
    // The first request, refused: the first of all ways.
    let [fault] = &plan.faults.named[..] else { panic!("{plan}") };
    assert!(matches!(fault.at, FaultAt::Io(key) if key.owner.0 == 1 && key.nth == 1) && fault.immediate, "{plan}");
}

#[test]
fn a_plan_with_a_fault_is_swept_for_a_second_one() {
    let with = plan(&["1 write 0+512", "2 write 4K+512"], "faults = [\"1#1 fails EIO\"]");
    let swept = self::swept(Mistake::None, &with);
    assert_eq!((swept.requests, swept.runs, swept.found.len()), (1, 6, 0));
}

#[test]
fn a_plan_that_fails_untouched_is_not_swept() {
    let with = plan(&["1 write 0+512", "2 read 0+512"], "faults = [\"1#1 fails EIO\"]");
    let swept = self::swept(Mistake::WriteErrorLost, &with);
    assert_eq!((swept.runs, swept.requests, swept.found.len()), (1, 0, 1));
}

#[test]
fn a_driver_that_sends_something_else_is_told_so() {
    let swept = self::swept(Mistake::Moody, &plan(&["1 write 0+512", "2 write 4K+512", "3 reopen"], ""));
    let codes: Vec<_> = swept.found.iter().map(|(finding, _)| finding.signature.code.as_str()).collect();
    assert!(codes.contains(&"nondeterminism"), "{codes:?}");
}

#[test]
fn who_stops_a_sweep_gets_no_half_of_it() {
    let plan = plan(&["1 write 0+4K"], "");
    let swept = sweep(&plan, &hands(Mistake::None), &Settings::default(), 1, &|| true);
    assert!(swept.stopped && swept.runs == 1);
}

#[test]
fn plans_of_seeds_are_short_and_end_with_a_reopening() {
    let info = hands(Mistake::None).info();
    for seed in 0..200 {
        let plan = plain(generate(seed, &info, &Profile::QUICK.swept()));
        assert!((3..=9).contains(&plan.ops.len()) || plan.ops.len() == 2, "seed {seed}: {plan}");
        assert!(plan.validate().is_ok() && plan.faults.named.is_empty() && plan.faults.random.rate == 0, "seed {seed}");
        assert_eq!(plan.ops.last().unwrap().act.name(), "reopen", "seed {seed}");
    }
}

#[test]
fn the_drivers_of_this_project_stand() {
    for name in target::names() {
        let wanted = Campaign { sweep: true, runs: Some(8), ..Campaign::default() };
        let results = campaign(&wanted, target::find(name).unwrap(), &Silent);
        assert!(results.found.is_empty(), "{name}: {}\n{}", results.found[0].finding, results.found[0].least());
        assert!(results.seeds == 8 && results.stats.faults > 100, "{name}: {:?}", results.stats);
    }
}

#[test]
fn what_a_plan_has_besides_is_there_in_every_run() {
    // Nothing but the power shows a lost flush error: the plan cuts it, and the disk forgets what it could not flush.
    let more = "crash = \"at end all-old\"\n[disk]\nflush-error = \"forget\"";
    let swept = self::swept(Mistake::FlushErrorLost, &plan(&["1 write 0+512", "2 flush"], more));
    assert!(!swept.found.is_empty(), "{swept:?}");
}
