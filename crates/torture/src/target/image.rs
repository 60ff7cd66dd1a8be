//! The format check of this project, on a simulated disk.

mod memo;

use std::cell::RefCell;
use std::io;

use blkproof_check::code::Severity;
use blkproof_check::finding::Confidence;
use blkproof_check::source::Source;
use blkproof_check::watch::Silent;
use blkproof_check::{Format, Options, Verdict, check};
use blkproof_sim::disk::Content;

use self::memo::{Memo, Recorded};

/// What a format check says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Checked {
    /// Nothing is wrong.
    Sound,
    /// Space is wasted; in words.
    Leaks(String),
    /// Something is wrong: the code of the weightiest finding, and words.
    Damaged {
        /// The finding's code.
        code: String,
        /// What it says.
        text: String,
    },
    /// There is no check.
    Unchecked,
}

/// Runs the check of `format` over an image. Findings of the codes `harmless` waste space, whatever others call them.
pub fn check_image(image: &Content, format: Format, harmless: &[&str]) -> Checked {
    thread_local! {
        // A pure function's results: nobody can tell whether one was kept.
        static MEMO: RefCell<Memo> = RefCell::default();
    }
    let source = Image { pages: image.pages(), len: image.size() };
    MEMO.with_borrow_mut(|memo| {
        let root = memo.root(format, harmless, source.len);
        memo.recall(root, &source).unwrap_or_else(|| {
            let recorded = Recorded::new(&source);
            let verdict = check_source(&recorded, format, harmless);
            memo.keep(root, recorded.into_log(), &verdict);
            verdict
        })
    })
}

fn check_source(source: &dyn Source, format: Format, harmless: &[&str]) -> Checked {
    let options = Options {
        format: Some(format),
        data: true,
        threads: 1,
        max_findings: 16,
        orphans: false,
        ..Options::default()
    };
    let report = check(source, &options, &Silent);
    // A guess of the check is no evidence: what a power cut leaves looks like many things.
    let bad = report.findings.iter().find(|finding| {
        finding.severity == Severity::Corruption
            && finding.confidence == Confidence::Certain
            && !harmless.contains(&finding.code.name)
    });
    if let Some(finding) = bad {
        return Checked::Damaged { code: finding.code.name.to_owned(), text: finding.what.clone() };
    }
    match report.verdict {
        Verdict::Healthy => Checked::Sound,
        Verdict::Unsupported => Checked::Unchecked,
        // Nothing could be made of it.
        Verdict::Undecided => {
            let text = report.findings.first().map_or_else(String::new, |finding| finding.what.clone());
            Checked::Damaged { code: report.verdict.name().to_owned(), text }
        }
        Verdict::Leaks | Verdict::Damaged => {
            Checked::Leaks(report.findings.first().map_or_else(String::new, |finding| finding.what.clone()))
        }
    }
}

/// An image as the check wants it: shared by threads, if it likes.
struct Image<'a> {
    /// Sorted by place; what is between them is zero.
    pages: Vec<(u64, &'a [u8])>,
    len: u64,
}

impl Source for Image<'_> {
    fn name(&self) -> String {
        "image".to_owned()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..len) else { return Ok(0) };
        buf.fill(0);
        let end = at.saturating_add(len as u64);
        let first = self.pages.partition_point(|(start, page)| start.saturating_add(page.len() as u64) <= at);
        for (start, page) in self.pages.iter().skip(first).take_while(|(start, _)| *start < end) {
            let skip = usize::try_from(at.saturating_sub(*start)).unwrap_or(usize::MAX);
            let to = usize::try_from(start.saturating_sub(at)).unwrap_or(usize::MAX);
            let (Some(from), Some(out)) = (page.get(skip..), buf.get_mut(to..)) else { continue };
            let len = from.len().min(out.len());
            if let (Some(from), Some(out)) = (from.get(..len), out.get_mut(..len)) {
                out.copy_from_slice(from);
            }
        }
        Ok(len)
    }

    fn next_data(&self, at: u64) -> Option<std::ops::Range<u64>> {
        let index = self.pages.partition_point(|(start, page)| start.saturating_add(page.len() as u64) <= at);
        let (start, _) = self.pages.get(index)?;
        let start = at.max(*start);
        let mut end = start;
        for (next, page) in self.pages.iter().skip(index) {
            if *next > end {
                break;
            }
            end = next.saturating_add(page.len() as u64);
        }
        (start < self.len).then(|| start..end.min(self.len))
    }
}
