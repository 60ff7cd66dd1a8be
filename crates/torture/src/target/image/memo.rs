//! Verdicts of the format check, kept by what it read.
//!
//! The check is a function of the answers to its questions, and asks the next one as the answers so far have it. So its
//! questions form a tree, in which an image that answers as an earlier one did comes to that one's verdict, at the cost of
//! the reads. States of one moment mostly differ in guest data, which the check does not read.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use blkproof_check::Format;
use blkproof_check::source::Source;

use super::Checked;

/// Bytes of answers kept; then all are forgotten.
const KEPT_MAX: usize = 16 << 20;

/// What the check asks of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
    Read { at: u64, len: usize },
    NextData { at: u64 },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Bytes(Box<[u8]>),
    Data(Option<Range<u64>>),
}

/// One run of the check.
pub(super) type Log = Vec<(Question, Answer)>;

#[derive(Debug, Default)]
struct Node {
    question: Option<Question>,
    /// What follows from each answer.
    next: Vec<(Answer, usize)>,
    verdict: Option<Checked>,
}

#[derive(Debug)]
struct Root {
    format: Format,
    harmless: Vec<String>,
    len: u64,
    node: usize,
}

/// The tree.
#[derive(Debug, Default)]
pub(super) struct Memo {
    roots: Vec<Root>,
    nodes: Vec<Node>,
    bytes: usize,
    scratch: Vec<u8>,
}

impl Memo {
    /// Where checks of such an image begin.
    pub(super) fn root(&mut self, format: Format, harmless: &[&str], len: u64) -> usize {
        if self.bytes > KEPT_MAX {
            *self = Self { scratch: std::mem::take(&mut self.scratch), ..Self::default() };
        }
        let known = |root: &&Root| root.format == format && root.len == len && root.harmless == harmless;
        if let Some(root) = self.roots.iter().find(known) {
            return root.node;
        }
        let node = self.add();
        let harmless: Vec<_> = harmless.iter().map(|&code| code.to_owned()).collect();
        self.bytes = self.bytes.saturating_add(size_of::<Root>());
        self.roots.push(Root { format, harmless, len, node });
        node
    }

    fn add(&mut self) -> usize {
        self.bytes = self.bytes.saturating_add(size_of::<Node>());
        self.nodes.push(Node::default());
        self.nodes.len().saturating_sub(1)
    }

    /// The verdict on an image that answers as an earlier one did.
    pub(super) fn recall(&mut self, root: usize, image: &impl Source) -> Option<Checked> {
        let mut node = self.nodes.get(root)?;
        loop {
            if let Some(verdict) = &node.verdict {
                return Some(verdict.clone());
            }
            let answered = match node.question? {
                Question::Read { at, len } => {
                    self.scratch.resize(len, 0);
                    let got = image.read_at(at, &mut self.scratch).ok()?;
                    let bytes = self.scratch.get(..got)?;
                    node.next.iter().find(|(answer, _)| matches!(answer, Answer::Bytes(kept) if **kept == *bytes))
                }
                Question::NextData { at } => {
                    let data = image.next_data(at);
                    node.next.iter().find(|(answer, _)| matches!(answer, Answer::Data(kept) if *kept == data))
                }
            };
            node = self.nodes.get(answered?.1)?;
        }
    }

    /// Keeps what a check asked, was answered, and made of it.
    pub(super) fn keep(&mut self, root: usize, log: Log, verdict: &Checked) {
        let mut at = root;
        for (question, answer) in log {
            let Some(node) = self.nodes.get_mut(at) else { return };
            if node.verdict.is_some() || *node.question.get_or_insert(question) != question {
                // Not a function of what it reads after all: nothing can be kept of it.
                return;
            }
            at = match node.next.iter().find(|(kept, _)| *kept == answer) {
                Some(&(_, next)) => next,
                None => {
                    let size = size_of::<(Answer, usize)>().saturating_add(match &answer {
                        Answer::Bytes(bytes) => bytes.len(),
                        Answer::Data(_) => 0,
                    });
                    let next = self.add();
                    self.bytes = self.bytes.saturating_add(size);
                    if let Some(node) = self.nodes.get_mut(at) {
                        node.next.push((answer, next));
                    }
                    next
                }
            };
        }
        if let Some(node) = self.nodes.get_mut(at)
            && node.question.is_none()
        {
            node.verdict = Some(verdict.clone());
        }
    }
}

/// An image that takes down what it is asked.
pub(super) struct Recorded<'a, S> {
    image: &'a S,
    log: Mutex<Log>,
}

impl<'a, S: Source> Recorded<'a, S> {
    pub(super) fn new(image: &'a S) -> Self {
        Self { image, log: Mutex::default() }
    }

    pub(super) fn into_log(self) -> Log {
        self.log.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, question: Question, answer: Answer) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push((question, answer));
    }
}

impl<S: Source> Source for Recorded<'_, S> {
    fn name(&self) -> String {
        self.image.name()
    }

    fn len(&self) -> u64 {
        self.image.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let question = Question::Read { at, len: buf.len() };
        let got = self.image.read_at(at, buf)?;
        self.note(question, Answer::Bytes(buf.get(..got).unwrap_or_default().into()));
        Ok(got)
    }

    fn next_data(&self, at: u64) -> Option<Range<u64>> {
        let data = self.image.next_data(at);
        self.note(Question::NextData { at }, Answer::Data(data.clone()));
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::image::Image;
    use blkproof_sim::disk::Content;

    fn ask(memo: &mut Memo, content: &Content) -> (Checked, bool) {
        let image = Image { pages: content.pages(), len: content.size() };
        let root = memo.root(Format::Vdi, &[], image.len);
        if let Some(verdict) = memo.recall(root, &image) {
            return (verdict, true);
        }
        // Looks where the first byte says, and judges by what is there.
        let recorded = Recorded::new(&image);
        let mut byte = [0];
        recorded.read_at(0, &mut byte).unwrap();
        recorded.read_at(u64::from(byte[0]), &mut byte).unwrap();
        let verdict = if byte[0] == 0 { Checked::Sound } else { Checked::Leaks(byte[0].to_string()) };
        memo.keep(root, recorded.into_log(), &verdict);
        (verdict, false)
    }

    #[test]
    fn what_was_read_decides_and_nothing_else() {
        let mut memo = Memo::default();
        let mut content = Content::new(8192);
        content.write(0, &[16]);
        assert_eq!(ask(&mut memo, &content), (Checked::Sound, false));
        content.write(20, &[7]);
        assert_eq!(ask(&mut memo, &content), (Checked::Sound, true), "byte 20 is not read");
        content.write(16, &[3]);
        assert_eq!(ask(&mut memo, &content), (Checked::Leaks("3".to_owned()), false));
        content.write(0, &[20]);
        assert_eq!(ask(&mut memo, &content), (Checked::Leaks("7".to_owned()), false));
        for (first, verdict) in [(16, "3"), (20, "7")] {
            content.write(0, &[first]);
            assert_eq!(ask(&mut memo, &content), (Checked::Leaks(verdict.to_owned()), true));
        }
        content.set_size(4096);
        assert!(!ask(&mut memo, &content).1, "another size, another image");
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let mut memo = Memo::default();
        let mut most = 0;
        for number in 0..300_u32 {
            let root = memo.root(Format::Qcow2, &[], 0);
            let bytes = number.to_le_bytes().repeat(25 << 10);
            let log = vec![(Question::Read { at: 0, len: bytes.len() }, Answer::Bytes(bytes.into()))];
            memo.keep(root, log, &Checked::Sound);
            most = most.max(memo.bytes);
        }
        assert!((KEPT_MAX - (1 << 20)..KEPT_MAX + (1 << 20)).contains(&most), "{most}");
    }
}
