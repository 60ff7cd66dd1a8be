//! The node `trace`: a line for every request, the order of the recorded client, and sinks that are full.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use blkproof_block::nodes::memory::Memory;
use blkproof_block::{
    BlockDevice, BlockStatus, DeviceInfo, Errno, IoError, Preallocation, Result, RuleId, WriteFlags, ZeroFlags,
};
use blkproof_fault::clock::Stopped;
use blkproof_fault::request::Operation;
use blkproof_fault::trace::{
    Line, Outcome, PlanReader, Record, Sink, Trace, TraceFlags, TraceNode, TraceOptions, parse,
};
use futures_lite::future::block_on;

/// A list with room for so many more lines.
#[derive(Default)]
struct Lines {
    list: RefCell<Vec<String>>,
    room: Cell<usize>,
    finished: Cell<usize>,
}

impl Sink for Lines {
    fn line(&self, line: &str) -> bool {
        let room = self.room.get();
        if room > 0 {
            self.room.set(room - 1);
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line}");
            self.list.borrow_mut().push(line.to_owned());
        }
        room > 0
    }

    fn finish(&self) {
        self.finished.set(self.finished.get() + 1);
    }
}

impl Lines {
    fn parsed(&self) -> Vec<Line> {
        self.list.borrow().iter().map(|line| parse(line.trim_end()).unwrap()).collect()
    }

    fn records(&self) -> Vec<Record> {
        let record = |line| match line {
            Line::Request { record, .. } => Some(record),
            _ => None,
        };
        self.parsed().into_iter().filter_map(record).collect()
    }
}

/// Memory whose requests wait until their place is let through.
#[derive(Clone)]
struct Held {
    memory: Rc<Memory>,
    /// Requests at places below this go on.
    open: Rc<Cell<u64>>,
    fail: Rc<RefCell<Option<IoError>>>,
}

impl Held {
    async fn work(&self, at: u64) -> Result<()> {
        std::future::poll_fn(|_| if at < self.open.get() { Poll::Ready(()) } else { Poll::Pending }).await;
        self.fail.borrow().clone().map_or(Ok(()), Err)
    }
}

impl BlockDevice for Held {
    fn info(&self) -> DeviceInfo {
        self.memory.info()
    }
    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.work(at).await?;
        self.memory.read(at, buf).await
    }
    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        at < self.open.get() && self.memory.read_now(at, buf)
    }
    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.work(at).await?;
        self.memory.write(at, data, flags).await
    }
    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.work(at).await?;
        self.memory.write_zeroes(at, len, flags).await
    }
    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.work(at).await?;
        self.memory.discard(at, len).await
    }
    async fn flush(&self) -> Result<()> {
        self.work(0).await
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

fn bench(room: usize, options: TraceOptions) -> (TraceNode<Held>, Held, Rc<Lines>) {
    let lines = Rc::new(Lines { room: Cell::new(room), ..Lines::default() });
    let held = Held { memory: Rc::new(Memory::new(1 << 20)), open: Rc::new(Cell::new(u64::MAX)), fail: Rc::default() };
    let sink = Rc::clone(&lines) as Rc<dyn Sink>;
    let trace = Trace::new("trace0", 1 << 20, Rc::new(Stopped), sink, options);
    (TraceNode::new(held.clone(), trace), held, lines)
}

#[test]
fn every_request_has_its_line() {
    let (node, held, lines) = bench(100, TraceOptions { data: true, ..TraceOptions::default() });
    let client = node.for_client("client \"A\"").unwrap();
    block_on(async {
        node.write(512, b"123456789", WriteFlags::FUA).await.unwrap();
        let mut buf = [0; 9];
        assert!(client.read_now(512, &mut buf));
        held.open.set(0);
        assert!(!client.read_now(512, &mut buf));
        held.open.set(u64::MAX);
        client.read(512, &mut buf).await.unwrap();
        node.write_zeroes(0, 4096, ZeroFlags::MAY_UNMAP | ZeroFlags::NO_FALLBACK).await.unwrap();
        node.discard(0, 512).await.unwrap();
        node.flush().await.unwrap();
        node.block_status(0, 4096).await.unwrap();
        node.resize(2 << 20, Preallocation::Off).await.unwrap();
        *held.fail.borrow_mut() =
            Some(IoError { injected_by: Some(RuleId("bad".into())), ..IoError::new(Errno::IO).at(700) });
        node.read(512, &mut buf).await.unwrap_err();
        *held.fail.borrow_mut() = None;
        node.close().await.unwrap();
    });
    assert_eq!(lines.finished.get(), 1);
    let parsed = lines.parsed();
    assert!(matches!(&parsed[0], Line::Head(head) if head.size == 1 << 20 && head.node == "trace0" && head.data));
    let clients: Vec<bool> = parsed
        .iter()
        .skip(1)
        .map(|line| matches!(line, Line::Request { client: Some(c), .. } if c == "client \"A\""))
        .collect();
    assert_eq!(clients, [false, true, true, false, false, false, false, false, false]);
    let data: Vec<_> = parsed.iter().filter(|line| matches!(line, Line::Request { data: Some(_), .. })).collect();
    assert!(matches!(data.as_slice(), [Line::Request { data: Some(data), .. }] if data == b"123456789"));
    let records = lines.records();
    // The check value of CRC-32C (RFC 3720, and every catalogue of CRCs) is that of "123456789".
    let sum = Some(0xe306_9283);
    let want = [
        (Operation::Write, 512, 9, TraceFlags::FUA, sum),
        (Operation::Read, 512, 9, TraceFlags::empty(), sum),
        (Operation::Read, 512, 9, TraceFlags::empty(), sum),
        (Operation::WriteZeroes, 0, 4096, TraceFlags::MAY_UNMAP | TraceFlags::NO_FALLBACK, None),
        (Operation::Discard, 0, 512, TraceFlags::empty(), None),
        (Operation::Flush, 0, 0, TraceFlags::empty(), None),
        (Operation::BlockStatus, 0, 4096, TraceFlags::empty(), None),
        (Operation::Resize, 0, 2 << 20, TraceFlags::empty(), None),
        (Operation::Read, 512, 9, TraceFlags::empty(), None),
    ];
    assert_eq!(records.len(), want.len());
    for (number, (record, want)) in (0_u64..).zip(records.iter().zip(want)) {
        let got = (record.operation, record.offset, record.bytes, record.flags, record.crc32c);
        assert_eq!(got, want, "line {number}");
        assert_eq!((record.seq, record.done, record.after), (number, number, number));
        match &record.outcome {
            Outcome::Done => assert_ne!(number, 8),
            Outcome::Failed(error) => {
                assert_eq!((number, error.errno, error.first_bad.unwrap().0), (8, Errno::IO, 700));
                assert_eq!(error.injected_by, Some(RuleId("bad".into())));
            }
            Outcome::Cancelled => panic!("line {number}"),
        }
    }
}

#[test]
fn lines_come_in_the_order_of_the_ends_and_keep_that_of_the_beginnings() {
    let (node, held, lines) = bench(100, TraceOptions::default());
    held.open.set(0);
    let mut context = Context::from_waker(Waker::noop());
    let mut first = pin!(node.write(4096, &[1; 512], WriteFlags::empty()));
    let mut second = pin!(node.write(0, &[2; 512], WriteFlags::empty()));
    assert!(first.as_mut().poll(&mut context).is_pending());
    assert!(second.as_mut().poll(&mut context).is_pending());
    {
        let mut third = pin!(node.write(8192, &[3; 512], WriteFlags::empty()));
        assert!(third.as_mut().poll(&mut context).is_pending());
    }
    held.open.set(4096);
    assert!(second.as_mut().poll(&mut context).is_ready());
    let mut fourth = pin!(node.flush());
    assert!(fourth.as_mut().poll(&mut context).is_ready());
    held.open.set(u64::MAX);
    assert!(first.as_mut().poll(&mut context).is_ready());
    let seen: Vec<_> =
        lines.records().into_iter().map(|of| (of.seq, of.done, of.after, of.outcome == Outcome::Cancelled)).collect();
    assert_eq!(seen, [(2, 0, 0, true), (1, 1, 0, false), (3, 2, 2, false), (0, 3, 0, false)]);
}

#[test]
fn a_full_sink_loses_lines_and_nothing_else() {
    let (node, _, lines) = bench(2, TraceOptions { hash: false, ..TraceOptions::default() });
    let write = |byte: u8| block_on(node.write(0, &[byte; 512], WriteFlags::empty())).unwrap();
    (0..5).for_each(write);
    assert_eq!((node.trace().lines(), node.trace().dropped()), (2, 4));
    // Room for the word on the gap alone: nothing may stand behind it that belongs before it.
    lines.room.set(1);
    write(5);
    lines.room.set(10);
    write(6);
    write(7);
    let parsed = lines.parsed();
    let words: Vec<String> = parsed
        .iter()
        .map(|line| match line {
            Line::Head(_) => "head".into(),
            Line::Request { record, .. } => format!("{}", record.done),
            Line::Dropped(count) => format!("dropped {count}"),
            Line::Paused => "paused".to_owned(),
        })
        .collect();
    assert_eq!(words, ["head", "0", "dropped 4", "dropped 1", "6", "7"]);
    let mut buf = [0; 1];
    block_on(node.read(0, &mut buf)).unwrap();
    assert_eq!(buf, [7]);
}

#[test]
fn stopped_it_writes_nothing_but_that() {
    let (node, held, lines) = bench(100, TraceOptions { start: false, ..TraceOptions::default() });
    let trace = Rc::clone(node.trace());
    block_on(node.flush()).unwrap();
    trace.start();
    block_on(node.flush()).unwrap();
    // One that is under way when it is stopped has its line all the same.
    held.open.set(0);
    let mut slow = pin!(node.write(4096, &[1; 512], WriteFlags::empty()));
    let mut context = Context::from_waker(Waker::noop());
    assert!(slow.as_mut().poll(&mut context).is_pending());
    trace.stop();
    trace.stop();
    held.open.set(u64::MAX);
    block_on(node.flush()).unwrap();
    block_on(slow).unwrap();
    assert!(!trace.is_running());
    trace.start();
    block_on(node.flush()).unwrap();
    let words: Vec<String> = lines
        .parsed()
        .iter()
        .map(|line| match line {
            Line::Head(_) => "head".to_owned(),
            Line::Paused => "paused".to_owned(),
            Line::Request { record, .. } => format!("{} {} {}", record.seq, record.done, record.after),
            Line::Dropped(count) => panic!("{count} dropped"),
        })
        .collect();
    assert_eq!(words, ["head", "paused", "0 0 0", "paused", "1 1 1", "2 2 2"]);
    let mut reader = PlanReader::default();
    lines.list.borrow().iter().for_each(|line| reader.line(line).unwrap());
    let plan = reader.finish().unwrap();
    assert_eq!((plan.len(), plan.pauses), (3, 2));
}

/// What a graph that does not open leaves of an earlier trace: a trace without a node has written nothing.
#[test]
fn nothing_is_written_before_there_is_a_node() {
    let lines = Rc::new(Lines { room: Cell::new(100), ..Lines::default() });
    let sink = Rc::clone(&lines) as Rc<dyn Sink>;
    let trace = Trace::new("t", 512, Rc::new(Stopped), sink, TraceOptions::default());
    trace.stop();
    trace.start();
    assert_eq!(lines.list.borrow().len(), 0);
    let node = TraceNode::new(Memory::new(512), Rc::clone(&trace));
    assert_eq!(lines.list.borrow().len(), 1);
    drop(node);
}
