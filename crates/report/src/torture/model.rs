//! The events of a run, put together by request.

use std::collections::BTreeMap;

use blkproof_block::Errno;
use blkproof_sim::{IoInfo, IoKey, MoveKey, Step};
use blkproof_torture::plan::{Act, CutPoint, CutState, FaultSpec, Op, OpId, Plan, errno_words};
use blkproof_torture::run::{Outcome, What};

/// How a client's request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    NotSent,
    Open,
    Done,
    Failed(Errno),
    Dropped,
}

impl End {
    pub(crate) fn words(self) -> String {
        match self {
            Self::NotSent => "not sent".to_owned(),
            Self::Open => "not answered".to_owned(),
            Self::Done => "done".to_owned(),
            Self::Failed(errno) => format!("failed: {}", errno_words(errno)),
            Self::Dropped => "dropped".to_owned(),
        }
    }

    /// For programs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::Open => "open",
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// A request of the plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) op: &'a Op,
    /// Moves, from 1.
    pub(crate) sent: Option<u64>,
    pub(crate) ended: Option<u64>,
    pub(crate) end: End,
}

/// A request to the disk below.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Below<'a> {
    pub(crate) info: &'a IoInfo,
    pub(crate) sent: u64,
    pub(crate) moved: Option<u64>,
    pub(crate) heard: Option<u64>,
    pub(crate) fault: Option<&'a FaultSpec>,
}

impl Below<'_> {
    /// `write 0x200..0x400`.
    pub(crate) fn words(&self) -> String {
        let info = self.info;
        match info.range.is_empty() {
            true => info.kind.name().to_owned(),
            false => format!("{} {}{}", info.kind.name(), info.range, if info.fua { " fua" } else { "" }),
        }
    }
}

/// A power cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut<'a> {
    pub(crate) at: u64,
    pub(crate) point: CutPoint,
    pub(crate) state: &'a CutState,
    pub(crate) undecided: &'a [IoKey],
}

/// A run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run<'a> {
    /// In the order of the plan.
    pub(crate) requests: Vec<Request<'a>>,
    /// In the order in which they were sent.
    pub(crate) below: Vec<Below<'a>>,
    pub(crate) cuts: Vec<Cut<'a>>,
    /// Parts of the run, and the move after which each begins.
    pub(crate) parts: Vec<(u64, &'static str)>,
    /// Whether there is anything to tell: events were kept.
    pub(crate) known: bool,
}

impl<'a> Run<'a> {
    pub(crate) fn new(plan: &'a Plan, outcome: &'a Outcome) -> Self {
        let request = |op| Request { op, sent: None, ended: None, end: End::NotSent };
        let mut run = Self {
            requests: plan.ops.iter().map(request).collect(),
            known: !outcome.events.is_empty(),
            ..Self::default()
        };
        let index: BTreeMap<OpId, usize> = plan.ops.iter().enumerate().map(|(index, op)| (op.id, index)).collect();
        // Names of requests below are used again after a power cut: the last of a name is the one that goes on.
        let mut names: BTreeMap<IoKey, usize> = BTreeMap::new();
        for event in &outcome.events {
            let at = event.at;
            let mut set = |id: &OpId, end: End| {
                let Some(request) = index.get(id).and_then(|&index| run.requests.get_mut(index)) else { return };
                match end {
                    End::Open => request.sent = Some(at),
                    _ => request.ended = Some(at),
                }
                request.end = end;
            };
            match &event.what {
                What::Sent(id) => set(id, End::Open),
                What::Answered(id, None) => set(id, End::Done),
                What::Answered(id, Some(errno)) => set(id, End::Failed(*errno)),
                What::Dropped(id) => set(id, End::Dropped),
                What::Below(info) => {
                    names.insert(info.key, run.below.len());
                    run.below.push(Below { info, sent: at, moved: None, heard: None, fault: None });
                }
                What::Fault(fault) => {
                    // A fault is told right after the request that it hits.
                    if let Some(below) = run.below.last_mut() {
                        below.fault = Some(fault);
                        if fault.immediate {
                            below.heard = Some(at);
                        }
                    }
                }
                What::Moved(key) | What::Heard(key) => {
                    let Some(below) = names.get(key).and_then(|&index| run.below.get_mut(index)) else { continue };
                    match event.what {
                        What::Moved(_) => below.moved = Some(at),
                        _ => below.heard = Some(at),
                    }
                }
                What::Cut { point, state, undecided } => run.cuts.push(Cut { at, point: *point, state, undecided }),
                What::Begins(part) => run.parts.push((at, part)),
            }
        }
        // A power cut is not answered.
        for request in &mut run.requests {
            if matches!(request.op.act, Act::Cut { .. }) && request.sent.is_some() {
                request.end = End::Done;
                request.ended = request.ended.or(request.sent);
            }
        }
        run
    }

    /// The last request below of that name.
    pub(crate) fn io(&self, key: IoKey) -> Option<&Below<'a>> {
        self.below.iter().rfind(|below| below.info.key == key)
    }

    /// Whether this op is a power cut.
    pub(crate) fn is_cut(&self, id: OpId) -> bool {
        self.requests.iter().any(|request| request.op.id == id && matches!(request.op.act, Act::Cut { .. }))
    }

    /// Just before which move, in words.
    pub(crate) fn move_words(&self, key: MoveKey) -> String {
        let Some(below) = key.io().and_then(|io| self.io(io)) else { return format!("just before {key}") };
        let whose = match key.owner.0 {
            0 => "sent outside of any op".to_owned(),
            op => format!("of op {op}"),
        };
        let what = if key.step == Step::Effect { "took effect" } else { "was answered" };
        format!("just before request {} {whose}, {}, {what}", below.info.key, below.words())
    }
}
