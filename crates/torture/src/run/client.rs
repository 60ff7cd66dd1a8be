//! The client: its requests, what it is told, and what it makes of it.

use std::cell::{Cell, RefCell, RefMut};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use blkproof_block::{
    BlockDevice, BlockStatus, ByteRange, Errno, IoError, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};

use super::adversary::Damage;
use super::events::{Log, What};
use super::finding::Finding;
use crate::oracle::{Ending, Oracle, Violation};
use crate::plan::{Act, Op, OpId};
use crate::stamp;

/// Extents of one status request, at most.
const EXTENTS_MAX: usize = 1 << 16;

/// What the tasks of a run share.
pub(super) struct Client {
    pub(super) oracle: RefCell<Oracle>,
    pub(super) damage: Rc<Damage>,
    pub(super) log: Rc<Log>,
    pub(super) findings: RefCell<Vec<Finding>>,
    /// Requests that have ended and were not yet looked at.
    pub(super) ended: RefCell<Vec<OpId>>,
    /// Requests whose success settled something: moments worth a power cut (CM 5.3 (2)).
    pub(super) settled: RefCell<Vec<OpId>>,
    pub(super) judged: Cell<u64>,
    /// What the findings are called that are seen now.
    pub(super) phase: Cell<&'static str>,
    /// A flush has failed: later ones may go on failing (CM 4.7 (2)).
    pub(super) flush_failed: Cell<bool>,
}

impl Client {
    /// The oracle, which knows by then whether the driver has sent its disk anything since it was last asked.
    pub(super) fn oracle(&self) -> RefMut<'_, Oracle> {
        let mut oracle = self.oracle.borrow_mut();
        if self.damage.take_reached() {
            oracle.disk_reached();
        }
        oracle
    }

    pub(super) fn report(&self, finding: Finding) {
        self.findings.borrow_mut().push(finding);
    }

    /// A read that must not have been answered so.
    pub(super) fn violated(&self, op: Option<OpId>, violation: Violation) {
        let mut finding = Finding::new(violation.code.name(), self.phase.get(), violation.to_string());
        finding.op = op;
        finding.range = Some(violation.range);
        finding.allowed = violation.allowed;
        self.report(finding);
    }

    /// Judges the size that the driver says its disk has.
    pub(super) fn sized(&self, op: Option<OpId>, node: &Node) {
        let verdict = self.oracle().sized(node.info().size);
        if let Err(violation) = verdict {
            self.violated(op, violation);
        }
    }

    /// Judges an error: whether anything that was done to the driver explains it (CM 4.2 (5)).
    pub(super) fn judge_error(&self, op: Option<OpId>, what: &str, error: &IoError, faults_before: usize) {
        let explained = error.injected_by.is_some() || self.damage.count() > faults_before;
        if !explained {
            let text = format!("{what} failed with '{error}', although nothing had failed below");
            let mut finding = Finding::new("error-contract", self.phase.get(), text);
            finding.op = op;
            self.report(finding);
        }
    }
}

/// Does what `op` says, and tells the oracle.
pub(super) async fn perform(client: Rc<Client>, node: Node, op: Op) {
    let id = op.id;
    let faults_before = client.damage.count();
    client.log.note(|| What::Sent(id));
    client.oracle().submit(id, &op.act);
    let size = node.info().size;
    let result = match &op.act {
        Act::Read { range, vector } => read(&client, &node, id, *range, vector).await,
        Act::Write { range, fua, compressed } => {
            let mut data = vec![0; usize::try_from(range.len()).unwrap_or(0)];
            let mut flags = WriteFlags::empty();
            flags.set(WriteFlags::FUA, *fua);
            flags.set(WriteFlags::COMPRESSED, *compressed);
            if *compressed {
                stamp::fill_compressible(&mut data, range.start, id);
            } else {
                stamp::fill(&mut data, range.start, id);
            }
            node.write(range.start, &data, flags).await
        }
        Act::Zeroes { range, fua, unmap, no_fallback } => {
            let mut flags = ZeroFlags::empty();
            flags.set(ZeroFlags::FUA, *fua);
            flags.set(ZeroFlags::MAY_UNMAP, *unmap);
            flags.set(ZeroFlags::NO_FALLBACK, *no_fallback);
            node.write_zeroes(range.start, range.len(), flags).await
        }
        Act::Discard { range } => node.discard(range.start, range.len()).await,
        Act::Flush => node.flush().await,
        Act::Drain => node.drain().await,
        Act::Status { range } => status(&client, &node, id, *range).await,
        Act::Resize { size } => node.resize(*size, Preallocation::Off).await,
        Act::Reopen | Act::Cut { .. } => Ok(()),
    };
    finish(&client, &node, &op, result, faults_before, size);
}

fn finish(client: &Client, node: &Node, op: &Op, result: Result<()>, faults_before: usize, size: u64) {
    let id = op.id;
    client.log.note(|| What::Answered(id, result.as_ref().err().map(|error| error.errno)));
    match &result {
        Ok(()) => {
            client.oracle().end(id, Ending::Done);
            if let Act::Flush | Act::Write { fua: true, .. } | Act::Zeroes { fua: true, .. } = op.act {
                client.settled.borrow_mut().push(id);
            }
        }
        Err(error) => {
            client.oracle().end(id, Ending::Failed);
            if let Act::Resize { .. } = op.act {
                client.sized(Some(id), node);
            }
            let refused = matches!(op.act, Act::Zeroes { no_fallback: true, .. } | Act::Write { compressed: true, .. })
                && error.errno == Errno::NOTSUP;
            let flushes = match op.act {
                Act::Flush => true,
                Act::Write { fua, .. } | Act::Zeroes { fua, .. } => fua,
                _ => false,
            };
            // A resize may have failed that the request counted on; another one may have come since.
            let size = size.min(node.info().size);
            let beyond = op.act.range().is_some_and(|range| range.end > size);
            let excused = refused || beyond || flushes && client.flush_failed.get();
            if !excused {
                client.judge_error(Some(id), &format!("op {id} ({})", op.act.name()), error, faults_before);
            }
            if flushes {
                client.flush_failed.set(true);
            }
        }
    }
    client.ended.borrow_mut().push(id);
}

async fn read(client: &Client, node: &Node, id: OpId, range: ByteRange, vector: &[u32]) -> Result<()> {
    let mut data = vec![0xcc; usize::try_from(range.len()).unwrap_or(0)];
    if vector.is_empty() {
        node.read(range.start, &mut data).await?;
        judge_read(client, id, range, &data);
        return Ok(());
    }
    let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(vector.len());
    let (mut rest, mut at) = (data.as_mut_slice(), range.start);
    for &len in vector {
        let len = usize::try_from(len).unwrap_or(0).min(rest.len());
        let (piece, tail) = rest.split_at_mut(len);
        // Each is a request of its own, and is judged when it ends: two of them may see a write between them, also within
        // a sector that both touch.
        pieces.push(Box::pin(async move {
            node.read(at, piece).await?;
            judge_read(client, id, ByteRange::at(at, piece.len() as u64), piece);
            Ok(())
        }));
        rest = tail;
        at = at.saturating_add(len as u64);
    }
    All { pieces: pieces.into_iter().map(Some).collect(), failed: None }.await
}

/// Judges what a read found.
pub(super) fn judge_read(client: &Client, id: OpId, range: ByteRange, data: &[u8]) {
    client.judged.set(client.judged.get().saturating_add(range.len()));
    let verdict = client.oracle().read_end(id, range, data);
    if let Err(violation) = verdict {
        client.violated(Some(id), violation);
    }
}

/// Asks for the status of a range, extent by extent: what is said to be zero must read as zeroes at that moment
/// (CM 4.13 (1)).
async fn status(client: &Client, node: &Node, id: OpId, range: ByteRange) -> Result<()> {
    let mut at = range.start;
    for _ in 0..EXTENTS_MAX {
        if at >= range.end {
            return Ok(());
        }
        let found: BlockStatus = node.block_status(at, range.end.saturating_sub(at)).await?;
        let extent = ByteRange::at(at, found.len.min(range.end.saturating_sub(at)));
        if found.len == 0 {
            let text = format!("the status of byte {at:#x} is an extent of no bytes");
            client.report(Finding::new("map", client.phase.get(), text).by(id));
            return Ok(());
        }
        let verdict = client.oracle().status_end(id, extent, found.zero);
        if let Err(violation) = verdict {
            client.violated(Some(id), violation);
        }
        at = extent.end;
    }
    Ok(())
}

type Piece<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// All pieces of one read, polled in order.
struct All<'a> {
    pieces: Vec<Option<Piece<'a>>>,
    failed: Option<IoError>,
}

impl Future for All<'_> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Self { pieces, failed } = &mut *self;
        let mut waiting = false;
        for slot in pieces {
            let Some(piece) = slot else { continue };
            match piece.as_mut().poll(cx) {
                Poll::Pending => waiting = true,
                Poll::Ready(result) => {
                    *slot = None;
                    if let Err(error) = result {
                        failed.get_or_insert(error);
                    }
                }
            }
        }
        match (waiting, failed.take()) {
            (true, error) => {
                *failed = error;
                Poll::Pending
            }
            (false, Some(error)) => Poll::Ready(Err(error)),
            (false, None) => Poll::Ready(Ok(())),
        }
    }
}
