//! A trace that was read: what to send again, and what each request waits for.

use super::format::{Head, Line, Outcome, Record, TraceError, parse};
use crate::request::Operation;

/// A trace as it can be sent again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The first line. `data` and `hash` hold if they do so for every session.
    pub head: Head,
    /// Requests whose lines were lost. What they did is not done again.
    pub dropped: u64,
    /// The trace was stopped, or goes on in a further session: so often requests may be missing that nobody counted.
    pub pauses: u64,
    pub(super) steps: Vec<Step>,
}

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Step {
    pub(super) record: Record,
    /// What is written, if the trace has it.
    pub(super) data: Option<Box<[u8]>>,
    /// Its place in the order in which requests ended, among those that have a line.
    pub(super) place: usize,
    /// Of the requests in that order, how many must be over before it is sent.
    pub(super) needs: usize,
}

/// A trace that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// A line is none.
    #[error("line {number}: {source}")]
    Line {
        /// Its number, from 1.
        number: u64,
        /// What is wrong with it.
        source: TraceError,
    },
    /// It does not begin as a trace does.
    #[error("no trace: the first line must have \"schema\": \"{}\"", super::format::SCHEMA)]
    NoHead,
    /// Lines contradict each other.
    #[error("request {seq}: {why}")]
    Order {
        /// The request's number.
        seq: u64,
        /// The contradiction.
        why: &'static str,
    },
}

/// Reads a trace line by line.
#[derive(Debug, Default)]
pub struct PlanReader {
    lines: u64,
    head: Option<Head>,
    dropped: u64,
    pauses: u64,
    steps: Vec<Step>,
    session: Session,
}

/// The lines behind a head. Each head counts from 0; a plan counts on.
#[derive(Debug, Default)]
struct Session {
    /// Added to numbers of requests.
    requests: u64,
    /// Added to times.
    ns: u64,
    /// Above every number there is so far.
    beyond: u64,
    /// The latest end so far.
    last_ns: u64,
}

impl Session {
    /// Puts a request where it belongs among those of all sessions: behind every one of those before.
    fn place(&mut self, record: &mut Record) {
        for number in [&mut record.seq, &mut record.done, &mut record.after] {
            *number = number.saturating_add(self.requests);
            self.beyond = self.beyond.max(number.saturating_add(1));
        }
        for time in [&mut record.submit_ns, &mut record.complete_ns] {
            *time = time.saturating_add(self.ns);
            self.last_ns = self.last_ns.max(*time);
        }
    }

    /// What comes from here on is of another session, which began so long after the first.
    fn go_on(&mut self, ns: u64) {
        self.requests = self.beyond;
        // The machine's clock may have been set back.
        self.ns = ns.max(self.last_ns);
    }
}

impl PlanReader {
    /// Takes the next line; empty ones are passed over.
    ///
    /// # Errors
    /// If it is no line of a trace.
    pub fn line(&mut self, line: &str) -> Result<(), PlanError> {
        self.lines += 1;
        if line.trim().is_empty() {
            return Ok(());
        }
        let number = self.lines;
        let parsed = parse(line.trim()).map_err(|source| match self.head {
            Some(_) => PlanError::Line { number, source },
            None => PlanError::NoHead,
        })?;
        match parsed {
            Line::Head(head) if self.head.is_none() => self.head = Some(head),
            _ if self.head.is_none() => return Err(PlanError::NoHead),
            Line::Head(head) => self.go_on(&head),
            Line::Dropped(count) => self.dropped = self.dropped.saturating_add(count),
            Line::Paused => self.pauses = self.pauses.saturating_add(1),
            Line::Request { mut record, data, .. } => {
                self.session.place(&mut record);
                let data = data.map(Vec::into_boxed_slice);
                self.steps.push(Step { record, data, place: 0, needs: 0 });
            }
        }
        Ok(())
    }

    /// A further session: the disk was closed in between, and nothing of the one before was under way any more.
    fn go_on(&mut self, head: &Head) {
        self.pauses = self.pauses.saturating_add(1);
        if let Some(first) = &mut self.head {
            self.session.go_on(head.unix_ns.saturating_sub(first.unix_ns));
            first.data &= head.data;
            first.hash &= head.hash;
        }
    }

    /// All lines are there.
    ///
    /// # Errors
    /// If they contradict each other.
    pub fn finish(self) -> Result<Plan, PlanError> {
        let Self { head, dropped, pauses, mut steps, .. } = self;
        let head = head.ok_or(PlanError::NoHead)?;
        let wrong = |step: &Step, why| PlanError::Order { seq: step.record.seq, why };
        steps.sort_by_key(|step| step.record.done);
        if let Some(second) = twice(&steps, |record| record.done) {
            return Err(wrong(second, "another one has the same place in the order of completion"));
        }
        let dones: Vec<u64> = steps.iter().map(|step| step.record.done).collect();
        // The latest submission among the first so many completions: whoever waits for them must come behind it.
        let mut latest = Vec::with_capacity(steps.len());
        for (place, step) in steps.iter_mut().enumerate() {
            step.place = place;
            step.needs = dones.partition_point(|done| *done < step.record.after);
            latest.push(latest.last().copied().unwrap_or(0).max(step.record.seq));
        }
        for step in &steps {
            let before = step.needs.checked_sub(1).and_then(|last| latest.get(last));
            if step.record.done < step.record.after || before.is_some_and(|latest| *latest >= step.record.seq) {
                return Err(wrong(step, "it waits for itself, or for one that came later"));
            }
        }
        steps.sort_by_key(|step| step.record.seq);
        if let Some(second) = twice(&steps, |record| record.seq) {
            return Err(wrong(second, "its number is there twice"));
        }
        Ok(Plan { head, dropped, pauses, steps })
    }
}

impl Plan {
    /// Requests to send.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether what reads bring can be compared: all that was written is in the trace, and what was read has a
    /// checksum. Where a line is missing, or may be, no read is judged: its data may be what a request without one wrote,
    /// or be read beside one.
    pub fn has_data(&self) -> bool {
        self.head.data && self.head.hash && self.dropped == 0 && self.pauses == 0
    }

    /// Whether the data of a read may rightly be another one: a change of the same bytes was under way beside it, or
    /// had not ended well before.
    pub(super) fn is_open(&self, read: &Record) -> bool {
        let overlaps = |of: &Record| {
            of.operation == Operation::Resize
                || (of.offset < read.offset.saturating_add(read.bytes)
                    && read.offset < of.offset.saturating_add(of.bytes))
        };
        self.steps.iter().map(|step| &step.record).filter(|of| of.operation.changes() && overlaps(of)).any(|of| {
            let beside = of.done >= read.after && read.done >= of.after;
            beside || (of.seq < read.seq && of.outcome != Outcome::Done)
        })
    }
}

/// The second of two neighbours that have the same number.
fn twice(steps: &[Step], number: fn(&Record) -> u64) -> Option<&Step> {
    let pairs = steps.iter().zip(steps.iter().skip(1));
    pairs.into_iter().find(|(a, b)| number(&a.record) == number(&b.record)).map(|(_, second)| second)
}
