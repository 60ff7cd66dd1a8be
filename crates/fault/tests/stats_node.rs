//! The node `stats` over a disk of the tests, against a plain list of what was sent; and planted faults that the
//! comparison must see.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use blkproof_block::choice::Choices;
use blkproof_block::nodes::memory::Memory;
use blkproof_block::{
    BlockDevice, BlockStatus, DeviceError, DeviceInfo, Errno, IoError, LocalBoxFuture, Preallocation, Result, RuleId,
    WriteFlags, ZeroFlags,
};
use blkproof_fault::clock::Clock;
use blkproof_fault::request::Operation;
use blkproof_fault::stats::{
    Snapshot, Stats, StatsNode, StatsOptions, prometheus_text, snapshot_from_json, snapshot_json,
};
use futures_lite::future::block_on;

/// A clock that goes only when told.
#[derive(Debug, Default)]
struct Told(Cell<u64>);

impl Told {
    fn pass(&self, ns: u64) {
        self.0.set(self.0.get() + ns);
    }
}

struct Shared(Rc<Told>);

impl Clock for Shared {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.0.get())
    }
    fn unix(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.now()
    }
    fn sleep(&self, _: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Memory that takes as long as it is told, waits where it is told, and fails where it is told.
#[derive(Clone)]
struct Slow {
    memory: Rc<Memory>,
    clock: Rc<Told>,
    /// Nanoseconds of the next requests.
    ns: Rc<Cell<u64>>,
    /// Requests wait at their beginning.
    hold: Rc<Cell<bool>>,
    fail: Rc<RefCell<Option<IoError>>>,
    at_once: Rc<Cell<bool>>,
}

impl Slow {
    fn new(size: u64, clock: &Rc<Told>) -> Self {
        Self {
            memory: Rc::new(Memory::new(size)),
            clock: Rc::clone(clock),
            ns: Rc::default(),
            hold: Rc::default(),
            fail: Rc::default(),
            at_once: Rc::default(),
        }
    }

    async fn work(&self) -> Result<()> {
        std::future::poll_fn(|_| if self.hold.get() { Poll::Pending } else { Poll::Ready(()) }).await;
        self.clock.pass(self.ns.get());
        match self.fail.borrow().clone() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl BlockDevice for Slow {
    fn info(&self) -> DeviceInfo {
        self.memory.info()
    }
    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.work().await?;
        self.memory.read(at, buf).await
    }
    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        self.clock.pass(self.ns.get());
        self.at_once.get() && self.memory.read_now(at, buf)
    }
    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.work().await?;
        self.memory.write(at, data, flags).await
    }
    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.work().await?;
        self.memory.write_zeroes(at, len, flags).await
    }
    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.work().await?;
        self.memory.discard(at, len).await
    }
    async fn flush(&self) -> Result<()> {
        self.work().await
    }
    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.work().await?;
        self.memory.block_status(at, len).await
    }
    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.work().await?;
        self.memory.resize(size, preallocation).await
    }
    async fn drain(&self) -> Result<()> {
        self.memory.drain().await
    }
}

struct Bench {
    clock: Rc<Told>,
    slow: Slow,
    stats: Rc<Stats>,
    node: StatsNode<Slow>,
}

fn bench(size: u64, options: StatsOptions) -> Bench {
    let clock = Rc::<Told>::default();
    let slow = Slow::new(size, &clock);
    let stats = Stats::new("disk0", size, Rc::new(Shared(Rc::clone(&clock))), options);
    let node = StatsNode::new(slow.clone(), Rc::clone(&stats));
    Bench { clock, slow, stats, node }
}

const SIZE: u64 = 16 << 20;

/// What a request did, written down by the test.
#[derive(Clone, Debug)]
struct Did {
    operation: Operation,
    at: u64,
    len: u64,
    ns: u64,
    ok: bool,
}

/// Sends a few thousand requests and writes down what each was.
fn workload(bench: &Bench, requests: u64) -> Vec<Did> {
    let mut choices = Choices::new(2010);
    let mut list = Vec::new();
    let mut sequential = 0;
    for _ in 0..requests {
        let operation = Operation::ALL[choices.index(6)];
        let unit = [1, 512, 4096][choices.index(3)];
        let len = (1 + choices.below(32)) * unit;
        let at = if choices.chance(300) { sequential } else { choices.below(SIZE / unit - 32) * unit };
        let at = at.min(SIZE - len);
        sequential = at + len;
        let magnitude = choices.below(40);
        let ns = 1 + choices.below(1 << magnitude);
        let ok = !choices.chance(20);
        bench.slow.ns.set(ns);
        let error = IoError::new(Errno::IO).at(at + len / 2);
        *bench.slow.fail.borrow_mut() = (!ok).then_some(error);
        let at_once = operation == Operation::Read && ok && choices.chance(500);
        bench.slow.at_once.set(at_once);
        let node = &bench.node;
        let bytes = usize::try_from(len).unwrap();
        let result = block_on(async {
            match operation {
                Operation::Read if at_once => {
                    assert!(node.read_now(at, &mut vec![0; bytes]));
                    Ok(())
                }
                Operation::Read => node.read(at, &mut vec![0; bytes]).await,
                Operation::Write => node.write(at, &vec![1; bytes], WriteFlags::empty()).await,
                Operation::WriteZeroes => node.write_zeroes(at, len, ZeroFlags::FUA).await,
                Operation::Discard => node.discard(at, len).await,
                Operation::Flush => node.flush().await,
                _ => node.block_status(at, len).await.map(|_| ()),
            }
        });
        assert_eq!(result.is_ok(), ok);
        bench.clock.pass(choices.below(1000));
        list.push(Did { operation, at, len, ns, ok });
    }
    list
}

/// Compares a snapshot with the list; the first difference in words.
fn judge(seen: &Snapshot, list: &[Did]) -> Result<(), String> {
    let same = |what: String, got: u64, want: u64| {
        if got == want { Ok(()) } else { Err(format!("{what} is {got}, not {want}")) }
    };
    for operation in Operation::ALL {
        let per = seen.of(operation);
        let mine: Vec<&Did> = list.iter().filter(|did| did.operation == operation).collect();
        let count = |ok: bool| mine.iter().filter(|did| did.ok == ok).count() as u64;
        let has_range = !matches!(operation, Operation::Flush | Operation::BlockStatus | Operation::Resize);
        let bytes = mine.iter().filter(|did| did.ok && has_range).map(|did| did.len).sum();
        let mut ns: Vec<u64> = mine.iter().map(|did| did.ns).collect();
        ns.sort_unstable();
        for (what, got, want) in [
            ("submitted", per.submitted, mine.len() as u64),
            ("done", per.done, count(true)),
            ("failed", per.failed, count(false)),
            ("invalid", per.invalid, 0),
            ("cancelled", per.cancelled, 0),
            ("in_flight", per.in_flight, 0),
            ("bytes", per.bytes, bytes),
            ("total_time_ns", per.total_time_ns, ns.iter().sum()),
            ("latency.count", per.latency.count, mine.len() as u64),
            ("latency.max_ns", per.latency.max_ns, ns.last().copied().unwrap_or(0)),
            ("latency.min_ns", per.latency.min_ns, ns.first().copied().unwrap_or(0)),
            ("bins", per.latency.bins.iter().map(|bin| bin.count).sum(), mine.len() as u64),
            ("sizes", per.sizes.iter().sum(), if has_range { mine.len() as u64 } else { 0 }),
            ("alignments", per.alignments.iter().sum(), if has_range { mine.len() as u64 } else { 0 }),
        ] {
            same(format!("{operation}: {what}"), got, want)?;
        }
        for &(percent, got) in &per.latency.percentiles {
            let rank = ((percent / 100.0 * ns.len() as f64).ceil() as usize).clamp(1, ns.len());
            let want = ns[rank - 1];
            if got.abs_diff(want) * 100 > want.max(100) {
                return Err(format!("{operation}: p{percent} is {got}, not {want}"));
            }
        }
    }
    let cell = seen.heat.cell_size;
    for (number, heat) in (0_u64..).zip(&seen.heat.cells) {
        let (start, end) = (number * cell, (number + 1) * cell);
        let touching = |ok: bool, operations: &[Operation]| {
            let hit = |did: &&Did| match ok {
                true => did.at < end && did.at + did.len > start,
                false => (start..end).contains(&(did.at + did.len / 2)),
            };
            list.iter().filter(|did| did.ok == ok && operations.contains(&did.operation)).filter(hit).count() as u64
        };
        let writes = [Operation::Write, Operation::WriteZeroes, Operation::Discard];
        same(format!("cell {number}: reads"), heat.reads, touching(true, &[Operation::Read]))?;
        same(format!("cell {number}: writes"), heat.writes, touching(true, &writes))?;
        let all = [Operation::Read, Operation::Write, Operation::WriteZeroes, Operation::Discard];
        same(format!("cell {number}: errors"), heat.errors, touching(false, &all))?;
    }
    let failed: u64 = seen.errors.iter().map(|error| error.count).sum();
    same("errors".into(), failed, list.iter().filter(|did| !did.ok).count() as u64)?;
    let busy = list.iter().map(|did| did.ns).sum();
    same("busy_ns".into(), seen.queue.busy_ns, busy)?;
    same("queue.max".into(), seen.queue.max, 1)
}

#[test]
fn every_figure_is_that_of_the_plain_list() {
    let bench = bench(SIZE, StatsOptions::default());
    let list = workload(&bench, 4000);
    let seen = bench.stats.snapshot();
    judge(&seen, &list).unwrap();
    assert_eq!(seen.elapsed_ns, bench.clock.0.get());
    let average = seen.queue.busy_ns as f64 / seen.elapsed_ns as f64;
    assert!((seen.queue.average - average).abs() < 1e-6, "one at a time: {}", seen.queue.average);
    assert!(seen.of(Operation::Read).sequential > 0);
}

#[test]
fn the_comparison_sees_planted_faults() {
    let bench = bench(SIZE, StatsOptions::default());
    let list = workload(&bench, 600);
    let good = bench.stats.snapshot();
    type Plant = fn(&mut Snapshot);
    let plants: [(&str, Plant, &str); 7] = [
        ("a failure that is not counted", |seen| seen.operations[1].failed -= 1, "write: failed"),
        (
            "percentiles of the other end",
            |seen| seen.operations[0].latency.percentiles[3].1 = seen.operations[0].latency.min_ns,
            "read: p99",
        ),
        ("bytes of a failed request", |seen| seen.operations[0].bytes += 512, "read: bytes"),
        ("a request counted twice", |seen| seen.operations[4].done += 1, "flush: done"),
        ("a cell beside the right one", |seen| seen.heat.cells.rotate_right(1), "cell 0: "),
        ("an error that is forgotten", |seen| seen.errors[0].count -= 1, "errors is"),
        ("idle time that counts as busy", |seen| seen.queue.busy_ns += 1, "busy_ns is"),
    ];
    for (what, plant, want) in plants {
        let mut seen = good.clone();
        plant(&mut seen);
        let verdict = judge(&seen, &list).unwrap_err();
        assert!(verdict.starts_with(want), "{what}: {verdict}");
    }
}

#[test]
fn requests_under_way_and_those_given_up() {
    let bench = bench(SIZE, StatsOptions::default());
    let per = || bench.stats.snapshot().of(Operation::Read);
    bench.slow.hold.set(true);
    let mut context = Context::from_waker(Waker::noop());
    let (mut a, mut b, mut c) = ([0; 512], [0; 512], [0; 512]);
    {
        let mut first = pin!(bench.node.read(0, &mut a));
        assert!(first.as_mut().poll(&mut context).is_pending());
        bench.clock.pass(100);
        {
            let mut second = pin!(bench.node.read(512, &mut b));
            assert!(second.as_mut().poll(&mut context).is_pending());
            bench.clock.pass(100);
            assert_eq!((per().in_flight, per().submitted, bench.stats.snapshot().queue.max), (2, 2, 2));
        }
        assert_eq!((per().in_flight, per().cancelled), (1, 1));
        bench.clock.pass(200);
        bench.slow.hold.set(false);
        assert!(first.as_mut().poll(&mut context).is_ready());
    }
    let seen = bench.stats.snapshot();
    assert_eq!((per().done, per().in_flight, per().latency.max_ns), (1, 0, 400));
    assert!((seen.queue.average - 500.0 / 400.0).abs() < 1e-6, "{}", seen.queue.average);
    // A reset in between: what began before is not counted when it ends, whichever way it ends.
    bench.slow.hold.set(true);
    let mut third = pin!(bench.node.read(0, &mut c));
    assert!(third.as_mut().poll(&mut context).is_pending());
    bench.stats.reset();
    bench.slow.hold.set(false);
    assert!(third.as_mut().poll(&mut context).is_ready());
    let seen = bench.stats.snapshot();
    assert_eq!((per().submitted, per().done, per().in_flight, seen.queue.in_flight), (0, 0, 0, 0));
}

#[test]
fn stopped_counts_nothing_but_the_end_of_what_began() {
    let bench = bench(SIZE, StatsOptions { start: false, ..StatsOptions::default() });
    let read = || block_on(bench.node.read(0, &mut [0; 512])).unwrap();
    bench.slow.at_once.set(true);
    bench.slow.ns.set(7);
    read();
    assert!(bench.node.read_now(0, &mut [0; 512]));
    assert_eq!((bench.stats.snapshot().of(Operation::Read).submitted, bench.stats.snapshot().elapsed_ns), (0, 0));
    bench.stats.start();
    read();
    assert!(bench.node.read_now(0, &mut [0; 512]));
    bench.stats.stop();
    read();
    let seen = bench.stats.snapshot();
    assert_eq!((seen.of(Operation::Read).done, seen.elapsed_ns, seen.running), (2, 14, false));
}

#[test]
fn invalid_requests_are_told_from_failed_ones() {
    let bench = bench(SIZE, StatsOptions::default());
    bench.clock.pass(5);
    let outcome = block_on(bench.node.read(SIZE, &mut [0; 1]));
    assert!(outcome.is_err());
    let seen = bench.stats.snapshot();
    let per = seen.of(Operation::Read);
    assert_eq!((per.invalid, per.failed, per.latency.count, seen.idle_ns), (1, 0, 0, Some(0)));
    assert!(seen.heat.cells.is_empty(), "a request past the end touches nothing");
    let quiet =
        self::bench(SIZE, StatsOptions { account_invalid: false, account_failed: false, ..StatsOptions::default() });
    block_on(quiet.node.read(SIZE, &mut [0; 1])).unwrap_err();
    quiet.slow.ns.set(50);
    *quiet.slow.fail.borrow_mut() = Some(IoError::new(Errno::NOSPC));
    block_on(quiet.node.write(0, &[1], WriteFlags::empty())).unwrap_err();
    let seen = quiet.stats.snapshot();
    let per = seen.of(Operation::Write);
    assert_eq!((seen.idle_ns, per.failed, per.total_time_ns, per.latency.count), (None, 1, 0, 1));
}

#[test]
fn a_disk_that_grows_keeps_its_map() {
    let bench = bench(1 << 20, StatsOptions::default());
    block_on(async {
        bench.node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        bench.node.resize(1 << 30, Preallocation::Off).await.unwrap();
        bench.node.write((1 << 30) - 512, &[1; 512], WriteFlags::empty()).await.unwrap();
    });
    let seen = bench.stats.snapshot();
    assert_eq!((seen.size, seen.wr_highest_offset), (1 << 30, 1 << 30));
    assert_eq!((seen.heat.cell_size, seen.heat.cells[0].writes, seen.heat.cells[4095].writes), (256 << 10, 1, 1));
}

/// One failure far away, by its own offset or by what a rule says of its place, must not blur the map for good.
#[test]
fn a_far_failure_leaves_the_cells_as_they_are() {
    let bench = bench(1 << 20, StatsOptions::default());
    for (at, bad) in [(1 << 62, None), (0, Some(1 << 62))] {
        let error = IoError::new(Errno::IO);
        *bench.slow.fail.borrow_mut() = Some(bad.map_or(error.clone(), |bad| error.at(bad)));
        block_on(bench.node.write(at, &[1; 512], WriteFlags::empty())).unwrap_err();
    }
    *bench.slow.fail.borrow_mut() = None;
    block_on(bench.node.write(512, &[1; 512], WriteFlags::empty())).unwrap();
    let seen = bench.stats.snapshot();
    assert_eq!((seen.heat.cell_size, seen.heat.cells.len(), seen.heat.cells[1].writes), (512, 2, 1));
}

/// A snapshot with something in every field.
fn full() -> Snapshot {
    let bench = bench(SIZE, StatsOptions { intervals: vec![1, 60], ..StatsOptions::default() });
    bench.stats.set_histograms(Some(vec![10, 1000, 100_000]), None, None, None, Some(vec![5])).unwrap();
    workload(&bench, 1000);
    let sense = DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 };
    *bench.slow.fail.borrow_mut() = Some(IoError {
        device: Some(sense),
        injected_by: Some(RuleId("bad \"50\" \\ \n".into())),
        ..IoError::new(Errno::IO).at(512 * 50).detail("medium error")
    });
    block_on(bench.node.read(0, &mut [0; 512])).unwrap_err();
    *bench.slow.fail.borrow_mut() = None;
    block_on(bench.node.read(SIZE, &mut [0; 512])).unwrap_err();
    bench.clock.pass(12_345);
    bench.stats.snapshot()
}

#[test]
fn json_leads_back_to_the_snapshot() {
    let seen = full();
    assert!(seen.timed.len() == 2 && seen.histograms.flush.is_some() && !seen.errors.is_empty());
    let json = snapshot_json(&seen);
    let text = json.to_string();
    let back = snapshot_from_json(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(back, seen);
    for name in ["stats", "driver-specific", "node-name"] {
        let mut without = json.clone();
        without.as_object_mut().unwrap().remove(name);
        assert_eq!(snapshot_from_json(&without).unwrap_err().0, name);
    }
    let mut huge = json.clone();
    huge["driver-specific"]["heat"]["cells"] = serde_json::json!([[1_u64 << 60, 1, 1, 1]]);
    assert_eq!(snapshot_from_json(&huge).unwrap_err().0, "heat.cells");
}

#[test]
fn histograms_of_the_user_are_set_kept_and_removed() {
    let bench = bench(SIZE, StatsOptions::default());
    let stats = &bench.stats;
    bench.slow.ns.set(20);
    let run = || {
        block_on(async {
            bench.node.read(0, &mut [0; 1]).await.unwrap();
            bench.node.write(0, &[0; 1], WriteFlags::empty()).await.unwrap();
            bench.node.write_zeroes(0, 1, ZeroFlags::empty()).await.unwrap();
            bench.node.flush().await.unwrap();
            bench.node.discard(0, 1).await.unwrap();
        });
    };
    let bins = |pick: fn(&Snapshot) -> Option<Vec<u64>>| pick(&stats.snapshot());
    stats.set_histograms(Some(vec![10, 20]), None, None, None, Some(vec![100])).unwrap();
    run();
    let read: fn(&Snapshot) -> Option<Vec<u64>> = |seen| seen.histograms.read.as_ref().map(|of| of.bins.clone());
    let write: fn(&Snapshot) -> Option<Vec<u64>> = |seen| seen.histograms.write.as_ref().map(|of| of.bins.clone());
    let flush: fn(&Snapshot) -> Option<Vec<u64>> = |seen| seen.histograms.flush.as_ref().map(|of| of.bins.clone());
    assert_eq!((bins(read), bins(write), bins(flush)), (Some(vec![0, 0, 1]), Some(vec![0, 0, 2]), Some(vec![1, 0])));
    // One set anew begins empty; the others go on. A wrong one changes nothing.
    stats.set_histograms(None, Some(vec![50]), None, None, None).unwrap();
    stats.set_histograms(None, None, Some(vec![7]), None, Some(vec![])).unwrap_err();
    run();
    assert_eq!((bins(read), bins(write), bins(flush)), (Some(vec![1, 0]), Some(vec![0, 0, 4]), Some(vec![2, 0])));
    stats.reset();
    assert_eq!((bins(read), bins(write)), (Some(vec![0, 0]), Some(vec![0, 0, 0])));
    stats.set_histograms(None, None, None, None, None).unwrap();
    assert_eq!((bins(read), bins(write), bins(flush)), (None, None, None));
}

/// Every field that QEMU's own schema demands is there with its type, and none but those it knows.
#[test]
fn qemu_knows_the_shape() {
    let schema = qemu::Schema::ask();
    let full = snapshot_json(&full());
    schema.check(&full["stats"], "BlockDeviceStats").unwrap();
    schema.check(&snapshot_json(&bench(SIZE, StatsOptions::default()).stats.snapshot())["stats"], "").unwrap();
    // Planted: a field that QEMU does not know, one that is missing, one of another type.
    for (plant, want) in
        [("rd_bytez", "rd_bytez is unknown"), ("wr_bytes", "wr_bytes is missing"), ("timed_stats", "timed_stats")]
    {
        let mut wrong = full["stats"].clone();
        match plant {
            "rd_bytez" => wrong[plant] = 1.into(),
            "wr_bytes" => drop(wrong.as_object_mut().unwrap().remove(plant)),
            _ => wrong[plant] = "x".into(),
        }
        let verdict = schema.check(&wrong, "").unwrap_err();
        assert!(verdict.starts_with(want), "{verdict}");
    }
}

mod qemu {
    //! What `qemu-storage-daemon` says of its own `query-blockstats`.

    use std::collections::BTreeMap;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    use serde_json::Value;

    pub(crate) struct Schema {
        types: BTreeMap<String, Value>,
        stats: String,
    }

    impl Schema {
        /// Asks it.
        pub(crate) fn ask() -> Self {
            let mut daemon = Command::new("qemu-storage-daemon")
                .args(["--chardev", "stdio,id=c", "--monitor", "chardev=c"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("qemu-storage-daemon is installed (scripts/install-peers)");
            let mut input = daemon.stdin.take().unwrap();
            let mut output = BufReader::new(daemon.stdout.take().unwrap()).lines();
            for command in ["qmp_capabilities", "query-qmp-schema", "quit"] {
                writeln!(input, "{{\"execute\":\"{command}\"}}").unwrap();
            }
            let mut lines =
                std::iter::from_fn(|| output.next()).map(|line| serde_json::from_str(&line.unwrap()).unwrap());
            let schema: Value = lines.find(|line: &Value| line["return"].is_array()).unwrap();
            let list = schema["return"].as_array().unwrap();
            let types: BTreeMap<String, Value> =
                list.iter().map(|of| (of["name"].as_str().unwrap().to_owned(), of.clone())).collect();
            let entry =
                types[types["query-blockstats"]["ret-type"].as_str().unwrap()]["element-type"].as_str().unwrap();
            let members = types[entry]["members"].as_array().unwrap();
            let stats =
                members.iter().find(|member| member["name"] == "stats").unwrap()["type"].as_str().unwrap().to_owned();
            daemon.wait().unwrap();
            Self { types, stats }
        }

        /// Checks the object `stats`; the first difference in words.
        pub(crate) fn check(&self, value: &Value, _: &str) -> Result<(), String> {
            self.check_type(value, &self.stats, "stats")
        }

        fn check_type(&self, value: &Value, name: &str, place: &str) -> Result<(), String> {
            let of = &self.types[name];
            let fits = match of["meta-type"].as_str().unwrap() {
                "object" => {
                    let members = of["members"].as_array().unwrap();
                    let object = value.as_object().ok_or_else(|| format!("{place} is no object"))?;
                    for member in members {
                        let field = member["name"].as_str().unwrap();
                        match object.get(field) {
                            Some(value) => self.check_type(value, member["type"].as_str().unwrap(), field)?,
                            None if member.get("default").is_some() => {}
                            None => return Err(format!("{field} is missing")),
                        }
                    }
                    let known = |field: &str| members.iter().any(|member| member["name"] == *field);
                    match object.keys().find(|field| !known(field)) {
                        Some(field) => return Err(format!("{field} is unknown")),
                        None => true,
                    }
                }
                "array" => {
                    let list = value.as_array().ok_or_else(|| format!("{place} is no list"))?;
                    list.iter()
                        .try_for_each(|value| self.check_type(value, of["element-type"].as_str().unwrap(), place))?;
                    true
                }
                "builtin" => match of["json-type"].as_str().unwrap() {
                    "int" => value.is_u64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "string" => value.is_string(),
                    other => panic!("{place}: {other}"),
                },
                other => panic!("{place}: {other}"),
            };
            if fits { Ok(()) } else { Err(format!("{place} is {value}, no {name}")) }
        }
    }
}

#[test]
fn prometheus_reads_the_text() {
    let seen = full();
    let text = prometheus_text(&[seen.clone(), Snapshot { node: "disk\"1\\".into(), ..seen.clone() }]);
    let script = r#"
import sys
from prometheus_client.parser import text_string_to_metric_families as parse
for family in parse(sys.stdin.read()):
    assert family.name.startswith("blkproof_"), family.name
    assert family.documentation and family.type in ("counter", "gauge", "histogram"), family
    series = {}
    seen = set()
    for s in family.samples:
        key = (s.name, tuple(sorted(s.labels.items())))
        assert key not in seen, key
        seen.add(key)
        if s.name.endswith("_bucket"):
            of = tuple(sorted((k, v) for k, v in s.labels.items() if k != "le"))
            series.setdefault(of, []).append((float(s.labels["le"]), s.value))
    for of, buckets in series.items():
        assert buckets == sorted(buckets), (family.name, of)
        assert [b[1] for b in buckets] == sorted(b[1] for b in buckets), (family.name, of)
        count = [s.value for s in family.samples if s.name.endswith("_count") and tuple(sorted(s.labels.items())) == of]
        assert count == [buckets[-1][1]] and buckets[-1][0] == float("inf"), (family.name, of)
    for s in family.samples:
        op, le, rule = (s.labels.get(name, "-") for name in ("op", "le", "rule"))
        print(s.name, s.labels.get("node"), op, le, rule.encode(), s.value, sep="|")
"#;
    let (ok, out) = python(script, &text);
    assert!(ok, "{out}");
    let value = |start: &str| -> f64 {
        let line = out.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start} in {out}"));
        line.rsplit('|').next().unwrap().parse().unwrap()
    };
    let read = seen.of(Operation::Read);
    for (start, want) in [
        ("blkproof_done_total|disk0|read|", read.done as f64),
        ("blkproof_failed_total|disk0|read|", read.failed as f64),
        ("blkproof_invalid_total|disk\"1\\|read|", 1.0),
        ("blkproof_bytes_total|disk0|write|", seen.of(Operation::Write).bytes as f64),
        ("blkproof_request_duration_seconds_count|disk0|read|", read.latency.count as f64),
        ("blkproof_request_duration_seconds_sum|disk0|read|", read.latency.total_ns as f64 / 1e9),
        ("blkproof_request_size_bytes_count|disk0|read|", read.submitted as f64),
        ("blkproof_request_size_bytes_bucket|disk0|read|4096|", read.sizes[..=12].iter().sum::<u64>() as f64),
    ] {
        let got = value(start);
        assert!((got - want).abs() <= want.abs() * 1e-9, "{start}: {got}, not {want}");
    }
    assert!(out.contains(r#"|b'bad "50" \\ \n'|1.0"#), "the rule's name survives: {out}");
    // Planted: the script sees a bucket that is not cumulative.
    let wrong = text.replacen("le=\"+Inf\"} ", "le=\"+Inf\"} 0", 1);
    assert!(wrong != text && !python(script, &wrong.replacen("le=\"1\"} 0", "le=\"1\"} 99999", 1)).0);
}

/// Runs a script of the Python that `scripts/install-peers` prepares.
fn python(script: &str, input: &str) -> (bool, String) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}
