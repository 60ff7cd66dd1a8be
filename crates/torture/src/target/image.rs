//! The format check of this project, on a simulated disk.

use std::io;

use blkproof_check::source::Source;
use blkproof_check::watch::Silent;
use blkproof_check::{Format, Options, Verdict, check};
use blkproof_sim::disk::Content;

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

/// Runs the check of `format` over an image.
pub fn check_image(image: &Content, format: Format) -> Checked {
    let source = Image { pages: image.pages(), len: image.size() };
    let options =
        Options { format: Some(format), data: true, threads: 1, max_findings: 4, orphans: false, ..Options::default() };
    let report = check(&source, &options, &Silent);
    let first = report.findings.iter().max_by_key(|finding| finding.severity);
    let text = || first.map_or_else(|| report.verdict.name().to_owned(), |finding| finding.what.clone());
    match report.verdict {
        Verdict::Healthy => Checked::Sound,
        Verdict::Leaks => Checked::Leaks(text()),
        Verdict::Unsupported => Checked::Unchecked,
        Verdict::Damaged | Verdict::Undecided => {
            let code = first.map_or_else(|| report.verdict.name(), |finding| finding.code.name);
            Checked::Damaged { code: code.to_owned(), text: text() }
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
