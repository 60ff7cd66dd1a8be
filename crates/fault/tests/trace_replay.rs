//! A trace is sent again: with its order, its overlaps and its times, and every difference is told.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use blkproof_block::choice::Choices;
use blkproof_block::nodes::memory::Memory;
use blkproof_block::{
    BlockDevice, BlockStatus, DeviceInfo, Errno, IoError, LocalBoxFuture, Preallocation, Result, WriteFlags, ZeroFlags,
};
use blkproof_fault::clock::{Clock, Stopped};
use blkproof_fault::request::Operation;
use blkproof_fault::trace::{
    Difference, Line, Plan, PlanReader, Record, Sink, Speed, Summary, Trace, TraceNode, TraceOptions, parse, replay,
};
use futures_lite::future::block_on;

const SIZE: u64 = 1 << 20;

/// Memory that completes requests in an order of its own, and writes down when each begins and ends.
#[derive(Clone)]
struct Shuffled {
    memory: Rc<Memory>,
    choices: Rc<RefCell<Choices>>,
    /// `(begins, place, operation)`.
    log: Rc<RefCell<Vec<(bool, u64)>>>,
    fail_at: Option<u64>,
}

impl Shuffled {
    fn new(seed: u64) -> Self {
        Self {
            memory: Rc::new(Memory::new(SIZE)),
            choices: Rc::new(RefCell::new(Choices::new(seed))),
            log: Rc::default(),
            fail_at: None,
        }
    }

    async fn work(&self, at: u64, len: u64) -> Result<()> {
        self.log.borrow_mut().push((true, at));
        let mut turns = self.choices.borrow_mut().below(20);
        std::future::poll_fn(|context| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.log.borrow_mut().push((false, at));
        match self.fail_at {
            Some(bad) if (at..at + len).contains(&bad) => Err(IoError::new(Errno::IO).at(bad)),
            _ => Ok(()),
        }
    }
}

impl BlockDevice for Shuffled {
    fn info(&self) -> DeviceInfo {
        self.memory.info()
    }
    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.work(at, buf.len() as u64).await?;
        self.memory.read(at, buf).await
    }
    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.work(at, data.len() as u64).await?;
        self.memory.write(at, data, flags).await
    }
    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.work(at, len).await?;
        self.memory.write_zeroes(at, len, flags).await
    }
    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.work(at, len).await?;
        self.memory.discard(at, len).await
    }
    async fn flush(&self) -> Result<()> {
        self.work(u64::MAX, 0).await
    }
    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.memory.block_status(at, len).await
    }
    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.memory.resize(size, preallocation).await
    }
    async fn drain(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Lines(RefCell<Vec<String>>);

impl Sink for Lines {
    fn line(&self, line: &str) -> bool {
        self.0.borrow_mut().push(line.to_owned());
        true
    }
}

/// Records a workload of eight requests at a time; every request has a place of its own among those under way.
fn record(device: &Shuffled, data: bool) -> Vec<String> {
    let lines = Rc::<Lines>::default();
    let options = TraceOptions { data, ..TraceOptions::default() };
    let trace = Trace::new("t", SIZE, Rc::new(Stopped), Rc::clone(&lines) as Rc<dyn Sink>, options);
    let node = TraceNode::new(device.clone(), trace);
    let mut choices = Choices::new(7);
    let mut context = Context::from_waker(Waker::noop());
    let mut running: Vec<(u64, LocalBoxFuture<'_, ()>)> = Vec::new();
    let mut left = 300;
    while left > 0 || !running.is_empty() {
        while left > 0 && running.len() < 8 {
            left -= 1;
            let (at, node) = (choices.below(32) * 4096, &node);
            if running.iter().any(|(other, _)| *other == at) {
                continue;
            }
            let kind = choices.below(10);
            let byte = u8::try_from(choices.below(256)).unwrap();
            running.push((
                at,
                Box::pin(async move {
                    let _ = match kind {
                        0..4 => node.read(at, &mut [0; 4096]).await,
                        4..8 => node.write(at, &[byte; 4096], WriteFlags::FUA).await,
                        8 => node.write_zeroes(at, 4096, ZeroFlags::MAY_UNMAP).await,
                        _ => node.flush().await,
                    };
                }),
            ));
        }
        running.retain_mut(|(_, request)| request.as_mut().poll(&mut context).is_pending());
    }
    drop(running);
    drop(node);
    lines.0.take()
}

fn plan(lines: &[String]) -> Plan {
    let mut reader = PlanReader::default();
    lines.iter().for_each(|line| reader.line(line).unwrap());
    reader.finish().unwrap()
}

fn records(lines: &[String]) -> Vec<Record> {
    let record = |line: &String| match parse(line.trim_end()).unwrap() {
        Line::Request { record, .. } => Some(record),
        _ => None,
    };
    lines.iter().filter_map(record).collect()
}

fn run(plan: &Plan, device: &Shuffled) -> (Summary, Vec<Difference>) {
    let mut told = Vec::new();
    let clock: Rc<dyn Clock> = Rc::new(Stopped);
    let summary = block_on(replay(plan, device, &clock, Speed::AsFastAsPossible, |difference| told.push(difference)));
    (summary, told)
}

/// Whether the replay's trace keeps the order of the first: what was over when a request came is over again.
fn keeps_order(first: &[Record], again: &[Record]) -> Result<(), String> {
    let mut by_seq: Vec<&Record> = first.iter().collect();
    by_seq.sort_by_key(|record| record.seq);
    // The second run numbers requests by their submission, which is the order of the first.
    for record in again {
        let then = by_seq[usize::try_from(record.seq).unwrap()];
        if (then.operation, then.offset) != (record.operation, record.offset) {
            return Err(format!("request {} is another one", record.seq));
        }
        for before in first.iter().filter(|before| before.done < then.after) {
            let now = again.iter().find(|of| of.seq == before.seq).unwrap();
            if now.done >= record.after {
                return Err(format!("request {} was sent before {} was over", record.seq, before.seq));
            }
        }
    }
    Ok(())
}

#[test]
fn a_replay_on_an_equal_disk_is_the_same_in_everything() {
    let first = Shuffled::new(1);
    let lines = record(&first, true);
    let recorded = plan(&lines);
    assert!(recorded.has_data() && recorded.len() > 200);
    for seed in 0..20 {
        let again = Shuffled::new(100 + seed);
        let sink = Rc::<Lines>::default();
        let as_sink = Rc::clone(&sink) as Rc<dyn Sink>;
        let trace = Trace::new("u", SIZE, Rc::new(Stopped), as_sink, TraceOptions::default());
        let node = TraceNode::new(again.clone(), trace);
        let mut told = Vec::new();
        let clock: Rc<dyn Clock> = Rc::new(Stopped);
        let summary = block_on(replay(&recorded, &node, &clock, Speed::AsFastAsPossible, |of| told.push(of)));
        assert_eq!((summary.differences, told.len(), summary.requests), (0, 0, recorded.len() as u64), "{told:?}");
        assert!(summary.compared > 50 && summary.in_flight_max > 4, "{summary:?}");
        keeps_order(&records(&lines), &records(&sink.0.borrow())).unwrap();
        let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        block_on(async {
            first.memory.read(0, &mut a).await.unwrap();
            again.memory.read(0, &mut b).await.unwrap();
        });
        assert!(a == b, "seed {seed}: the disks differ");
    }
}

#[test]
fn the_check_of_the_order_sees_a_replay_without_it() {
    // Planted: a trace whose requests say that they wait for nothing.
    let lines = record(&Shuffled::new(1), false);
    let loose: Vec<String> = lines
        .iter()
        .map(|line| match line.split_once("\"after\":") {
            Some((head, tail)) => format!("{head}\"after\":0{}", tail.trim_start_matches(|c: char| c.is_ascii_digit())),
            None => line.clone(),
        })
        .collect();
    let again = Shuffled::new(5);
    let sink = Rc::<Lines>::default();
    let trace = Trace::new("u", SIZE, Rc::new(Stopped), Rc::clone(&sink) as Rc<dyn Sink>, TraceOptions::default());
    let node = TraceNode::new(again, trace);
    let clock: Rc<dyn Clock> = Rc::new(Stopped);
    block_on(replay(&plan(&loose), &node, &clock, Speed::AsFastAsPossible, |_| {}));
    let verdict = keeps_order(&records(&lines), &records(&sink.0.borrow())).unwrap_err();
    assert!(verdict.contains("was sent before"), "{verdict}");
}

#[test]
fn every_difference_is_told() {
    let lines = record(&Shuffled::new(1), true);
    let bad = Shuffled { fail_at: Some(5 * 4096 + 7), ..Shuffled::new(2) };
    let (summary, told) = run(&plan(&lines), &bad);
    let hit = records(&lines).iter().filter(|of| of.offset == 5 * 4096 && of.operation != Operation::Flush).count();
    assert!(hit > 0);
    // Whatever was not written there is not read again either, but those reads fail themselves.
    assert_eq!((summary.differences, told.len(), summary.failed), (hit as u64, hit, hit as u64));
    let words = told[0].to_string();
    assert!(words.ends_with("of 4096 bytes at 0x5000): was ok, is EIO at 0x5007"), "{words}");
    // The other way round: recorded with the fault, sent to a sound disk, and to one that fails elsewhere.
    let faulty = record(&Shuffled { fail_at: Some(5 * 4096 + 7), ..Shuffled::new(2) }, true);
    let (_, told) = run(&plan(&faulty), &Shuffled::new(3));
    let words = told[0].to_string();
    assert!(words.ends_with("was EIO at 0x5007, is ok"), "{words}");
    let (summary, _) = run(&plan(&faulty), &Shuffled { fail_at: Some(5 * 4096 + 7), ..Shuffled::new(9) });
    assert_eq!((summary.differences, summary.failed > 0), (0, true), "the same fault is no difference");
    let (_, told) = run(&plan(&faulty), &Shuffled { fail_at: Some(5 * 4096 + 8), ..Shuffled::new(9) });
    assert!(told[0].to_string().ends_with("was EIO at 0x5007, is EIO at 0x5008"), "{}", told[0]);
}

#[test]
fn other_data_is_told() {
    let lines = record(&Shuffled::new(1), true);
    let other = Shuffled::new(2);
    block_on(other.memory.write(0, &vec![0xee; 32 * 4096], WriteFlags::empty())).unwrap();
    let (summary, told) = run(&plan(&lines), &other);
    assert!(summary.differences > 0 && told.iter().all(|of| of.record.operation == Operation::Read));
    assert!(told[0].to_string().contains("read data with checksum"), "{}", told[0]);
    // Without the data of the writes nothing can be said of what reads bring.
    let (summary, _) = run(&plan(&record(&Shuffled::new(1), false)), &other);
    assert_eq!((summary.differences, summary.compared), (0, 0));
}

#[test]
fn lost_lines_and_nonsense() {
    let lines = record(&Shuffled::new(1), true);
    // A few lines are missing: what is left is still sent in its order.
    let mut holey = lines.clone();
    holey.drain(20..40);
    holey.insert(20, "{\"dropped\":20}\n".into());
    let holey = plan(&holey);
    assert_eq!((holey.dropped, holey.has_data()), (20, false));
    let (summary, _) = run(&holey, &Shuffled::new(4));
    assert_eq!(summary.requests, holey.len() as u64);

    let head = &lines[0];
    let request = |seq: u64, done: u64, after: u64| {
        format!(
            "{{\"seq\":{seq},\"done\":{done},\"after\":{after},\"op\":\"flush\",\"offset\":0,\"bytes\":0,\
             \"submit_ns\":0,\"complete_ns\":0,\"outcome\":\"ok\"}}"
        )
    };
    let read = |list: &[String]| {
        let mut reader = PlanReader::default();
        list.iter().try_for_each(|line| reader.line(line))?;
        reader.finish()
    };
    let good = [head.clone(), request(0, 0, 0), request(1, 1, 1)];
    assert_eq!(read(&good).unwrap().len(), 2);
    for (list, want) in [
        (vec![], "no trace: "),
        (vec!["RIFF".to_owned()], "no trace: "),
        (vec![request(0, 0, 0)], "no trace: "),
        (vec![head.clone(), "{".into()], "line 2: no JSON object"),
        (vec![head.clone(), request(0, 0, 0), request(0, 1, 0)], "request 0: its number is there twice"),
        (vec![head.clone(), request(0, 0, 0), request(1, 0, 0)], "request 1: another one has the same place"),
        (vec![head.clone(), request(0, 0, 1)], "request 0: it waits for itself"),
        (vec![head.clone(), request(0, 1, 1), request(1, 0, 0)], "request 0: it waits for itself, or for one that"),
    ] {
        let error = read(&list).unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}");
    }
    // Numbers that no memory could hold are refused without trying.
    let huge = request(0, 0, 0).replace("flush", "read").replace("\"bytes\":0", &format!("\"bytes\":{}", u64::MAX));
    let (summary, told) = run(&read(&[head.clone(), huge]).unwrap(), &Shuffled::new(0));
    assert_eq!((summary.requests, summary.differences), (0, 1));
    assert!(told[0].to_string().ends_with("not sent, it is longer than 1073741824 bytes"), "{}", told[0]);
}

/// A head amid the lines begins another session: its requests come behind those of the first, with numbers and times that
/// begin anew, and what reads bring is not judged, since nobody knows what happened in between.
#[test]
fn a_trace_goes_on_behind_a_second_head() {
    let lines = record(&Shuffled::new(1), true);
    let one = plan(&lines);
    let later = lines[0].replace("\"unix_ns\":0", "\"unix_ns\":5000000000");
    assert_ne!(later, lines[0]);
    let twice: Vec<String> = [&lines[..], &[later], &lines[1..]].concat();
    let twice = plan(&twice);
    assert_eq!((twice.len(), twice.pauses, one.has_data(), twice.has_data()), (2 * one.len(), 1, true, false));
    let device = Shuffled::new(2);
    let asleep = Asleep::default();
    let clock: Rc<dyn Clock> = Rc::new(asleep.clone());
    let summary = block_on(replay(&twice, &device, &clock, Speed::Times(1.0), |_| {}));
    assert_eq!((summary.requests, summary.differences, summary.compared), (2 * one.len() as u64, 0, 0));
    assert_eq!(asleep.0.get(), Duration::from_secs(5));
    // All of the first session is over when the second begins.
    let log = device.log.borrow();
    let (first, second) = log.split_at(log.len() / 2);
    for session in [first, second] {
        let begun = session.iter().filter(|(begins, _)| *begins).count();
        assert_eq!(begun * 2, session.len());
    }
}

#[test]
fn a_pause_leaves_nothing_to_judge() {
    let mut lines = record(&Shuffled::new(1), true);
    lines.insert(lines.len() / 2, "{\"paused\":true}\n".into());
    let paused = plan(&lines);
    assert_eq!((paused.pauses, paused.has_data()), (1, false));
    let other = Shuffled::new(2);
    block_on(other.memory.write(0, &vec![0xee; 32 * 4096], WriteFlags::empty())).unwrap();
    assert_eq!(run(&paused, &other).0.differences, 0, "whatever was written meanwhile");
}

/// Reads of 600 MiB that overlapped: no two of them have memory at a time.
#[test]
fn what_is_under_way_at_a_time_is_bounded() {
    let head = record(&Shuffled::new(1), false).remove(0);
    let mut reader = PlanReader::default();
    reader.line(&head).unwrap();
    for seq in 0..3 {
        let line = format!(
            "{{\"seq\":{seq},\"done\":{seq},\"after\":0,\"op\":\"read\",\"offset\":0,\"bytes\":{},\"submit_ns\":0,\
             \"complete_ns\":0,\"outcome\":\"ok\"}}",
            600_u64 << 20
        );
        reader.line(&line).unwrap();
    }
    let (summary, told) = run(&reader.finish().unwrap(), &Shuffled::new(1));
    assert_eq!((summary.requests, summary.in_flight_max, summary.held_back, told.len()), (3, 1, 2, 3), "{told:?}");
}

/// Time that passes by sleeping alone.
#[derive(Clone, Default)]
struct Asleep(Rc<Cell<Duration>>);

impl Clock for Asleep {
    fn now(&self) -> Duration {
        self.0.get()
    }
    fn unix(&self) -> Duration {
        self.0.get()
    }
    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move { clock.0.set(clock.0.get() + time) })
    }
}

#[test]
fn times_are_kept_as_fast_as_wanted() {
    let head = record(&Shuffled::new(1), false).remove(0);
    let mut reader = PlanReader::default();
    reader.line(&head).unwrap();
    for (seq, second) in [(0, 5_u64), (1, 5), (2, 8), (3, 15)] {
        let line = format!(
            "{{\"seq\":{seq},\"done\":{seq},\"after\":{seq},\"op\":\"flush\",\"offset\":0,\"bytes\":0,\
             \"submit_ns\":{},\"complete_ns\":0,\"outcome\":\"ok\"}}",
            second * 1_000_000_000
        );
        reader.line(&line).unwrap();
    }
    let plan = reader.finish().unwrap();
    for (speed, want) in [(Speed::Times(1.0), 10_000), (Speed::Times(4.0), 2_500), (Speed::AsFastAsPossible, 0)] {
        let asleep = Asleep::default();
        asleep.0.set(Duration::from_secs(77));
        let clock: Rc<dyn Clock> = Rc::new(asleep);
        let summary = block_on(replay(&plan, &Shuffled::new(1), &clock, speed, |_| {}));
        assert_eq!((summary.requests, summary.elapsed), (4, Duration::from_millis(want)), "{speed:?}");
    }
}
