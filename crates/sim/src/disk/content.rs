//! What a disk holds, over what another one holds.
//!
//! A simulation that looks at thousands of states of one disk can not copy it each time: a state is a few pages over
//! the disk it came from, which is shared.

use std::collections::BTreeMap;
use std::rc::Rc;

use blkproof_block::ByteRange;

const PAGE: usize = 4096;

#[derive(Clone, Debug)]
enum Page {
    Zero,
    Data(Box<[u8; PAGE]>),
}

/// Bytes, of which those not written here are another disk's, or zero.
#[derive(Clone, Debug, Default)]
pub struct Content {
    size: u64,
    pages: BTreeMap<u64, Page>,
    below: Option<Rc<Content>>,
    /// Bytes of the disk below that show through; what lies behind was cut off once.
    below_size: u64,
}

impl Content {
    /// `size` zero bytes.
    pub fn new(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    /// What `below` holds, to be changed without changing it.
    pub fn over(below: Rc<Self>) -> Self {
        Self { size: below.size, below_size: below.size, below: Some(below), pages: BTreeMap::new() }
    }

    /// These bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }

    /// Number of bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size).unwrap_or(0)];
        self.read(0, &mut bytes);
        bytes
    }

    /// Where it holds data, page by page, by place. What is not among them is zero; the last page may reach past the
    /// end.
    pub fn pages(&self) -> Vec<(u64, &[u8])> {
        let mut all = BTreeMap::new();
        let mut shown = u64::MAX;
        let mut layer = Some(self);
        while let Some(content) = layer {
            for (&number, page) in &content.pages {
                if number.saturating_mul(PAGE as u64) < shown {
                    all.entry(number).or_insert((page, shown));
                }
            }
            shown = shown.min(content.below_size);
            layer = content.below.as_deref();
        }
        let mut data = Vec::with_capacity(all.len());
        for (number, (page, shown)) in all {
            let at = number.saturating_mul(PAGE as u64);
            let len = usize::try_from(shown.saturating_sub(at)).unwrap_or(usize::MAX).min(PAGE);
            if let Page::Data(bytes) = page
                && let Some(bytes) = bytes.get(..len)
            {
                data.push((at, bytes));
            }
        }
        data
    }

    /// The same bytes, over nothing.
    #[must_use]
    pub fn flattened(&self) -> Self {
        let mut flat = Self::new(self.size);
        for (at, bytes) in self.pages() {
            let len = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
            if let Some(bytes) = bytes.get(..len) {
                flat.write(at, bytes);
            }
        }
        flat
    }

    /// Copies bytes out; what lies past the end reads as zeroes.
    pub fn read(&self, at: u64, buf: &mut [u8]) {
        for (page, offset, range) in pieces(at, buf.len()) {
            let Some(out) = buf.get_mut(range.clone()) else { continue };
            match self.pages.get(&page) {
                Some(Page::Zero) => out.fill(0),
                Some(Page::Data(bytes)) => {
                    if let Some(bytes) = bytes.get(offset..offset.saturating_add(out.len())) {
                        out.copy_from_slice(bytes);
                    }
                }
                None => self.read_below(at.saturating_add(range.start as u64), out),
            }
        }
    }

    fn read_below(&self, at: u64, out: &mut [u8]) {
        let shown = usize::try_from(self.below_size.saturating_sub(at)).unwrap_or(usize::MAX).min(out.len());
        let (there, beyond) = out.split_at_mut(shown);
        match &self.below {
            Some(below) if !there.is_empty() => below.read(at, there),
            _ => there.fill(0),
        }
        beyond.fill(0);
    }

    /// Copies bytes in, growing if they reach past the end.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        self.size = self.size.max(at.saturating_add(data.len() as u64));
        for (page, offset, range) in pieces(at, data.len()) {
            let Some(data) = data.get(range) else { continue };
            let whole = data.len() == PAGE;
            if let Some(out) = self.page(page, whole).get_mut(offset..offset.saturating_add(data.len())) {
                out.copy_from_slice(data);
            }
        }
    }

    /// Makes bytes zero, growing if they reach past the end.
    pub fn zero(&mut self, range: ByteRange) {
        self.size = self.size.max(range.end);
        self.clear(range);
    }

    /// Cuts off or adds zero bytes at the end.
    pub fn set_size(&mut self, size: u64) {
        if size < self.size {
            let old = self.size;
            self.clear(ByteRange { start: size, end: old });
            self.pages.split_off(&size.div_ceil(PAGE as u64));
            self.below_size = self.below_size.min(size);
        }
        self.size = size;
    }

    /// Whether the byte at `at` lies where something was written, and for how many bytes (at most `len`) that stays so.
    pub fn extent(&self, at: u64, len: u64) -> (bool, u64) {
        let page = PAGE as u64;
        let end = at.saturating_add(len);
        let data = self.holds(at / page);
        let mut until = (at / page).saturating_add(1).saturating_mul(page);
        while until < end && self.holds(until / page) == data {
            until = until.saturating_add(page);
        }
        (data, until.min(end).saturating_sub(at))
    }

    fn holds(&self, page: u64) -> bool {
        match self.pages.get(&page) {
            Some(Page::Zero) => false,
            Some(Page::Data(_)) => true,
            None => {
                page.saturating_mul(PAGE as u64) < self.below_size
                    && self.below.as_ref().is_some_and(|below| below.holds(page))
            }
        }
    }

    fn clear(&mut self, range: ByteRange) {
        let page = PAGE as u64;
        let whole = ByteRange { start: range.start.div_ceil(page), end: range.end / page };
        for (page, offset, piece) in edges(range) {
            if let Some(out) = self.page(page, false).get_mut(offset..offset.saturating_add(piece)) {
                out.fill(0);
            }
        }
        if whole.start >= whole.end {
            return;
        }
        let mut tail = self.pages.split_off(&whole.start);
        self.pages.append(&mut tail.split_off(&whole.end));
        // Only what would show through has to be hidden.
        if let Some(below) = &self.below {
            let last = whole.end.min(self.below_size.div_ceil(page));
            let hidden: Vec<_> = (whole.start..last).filter(|&number| below.holds(number)).collect();
            self.pages.extend(hidden.into_iter().map(|number| (number, Page::Zero)));
        }
    }

    /// A page to be written to; with what shows through in it, unless all of it is.
    fn page(&mut self, number: u64, whole: bool) -> &mut [u8; PAGE] {
        let missing = !matches!(self.pages.get(&number), Some(Page::Data(_)));
        if missing {
            let mut bytes = Box::new([0; PAGE]);
            if !whole && !self.pages.contains_key(&number) {
                self.read_below(number.saturating_mul(PAGE as u64), bytes.as_mut_slice());
            }
            self.pages.insert(number, Page::Data(bytes));
        }
        match self.pages.entry(number).or_insert(Page::Zero) {
            Page::Data(bytes) => bytes,
            zero => {
                *zero = Page::Data(Box::new([0; PAGE]));
                match zero {
                    Page::Data(bytes) => bytes,
                    Page::Zero => unreachable!("it was just made"),
                }
            }
        }
    }
}

/// Splits `len` bytes from `at` by pages: page number, offset inside the page, range inside the buffer.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done: usize = 0;
    std::iter::from_fn(move || {
        let here = at.checked_add(done as u64)?;
        let offset = usize::try_from(here % PAGE as u64).ok()?;
        let piece = PAGE.saturating_sub(offset).min(len.saturating_sub(done));
        let range = done..done.saturating_add(piece);
        done = range.end;
        (piece > 0).then_some((here / PAGE as u64, offset, range))
    })
}

/// The parts of a range that are no whole pages: page number, offset inside it, length.
fn edges(range: ByteRange) -> impl Iterator<Item = (u64, usize, usize)> {
    let page = PAGE as u64;
    let inner = ByteRange { start: range.start.div_ceil(page) * page, end: range.end / page * page };
    let parts = match inner.start < inner.end {
        true => [ByteRange { start: range.start, end: inner.start }, ByteRange { start: inner.end, end: range.end }],
        false => [range, ByteRange::default()],
    };
    parts.into_iter().filter(|part| !part.is_empty()).flat_map(move |part| {
        let len = usize::try_from(part.len()).unwrap_or(0);
        pieces(part.start, len).map(|(page, offset, range)| (page, offset, range.len()))
    })
}

#[cfg(test)]
mod tests {
    use blkproof_block::choice::Choices;

    use super::*;

    /// Contents over contents, against plain bytes.
    #[test]
    fn contents_agree_with_plain_bytes() {
        for seed in 0..40 {
            let mut draws = Choices::new(seed);
            let mut plain = vec![0u8; 5 * PAGE + 100];
            let mut content = Content::new(plain.len() as u64);
            for step in 0..200u32 {
                let size = plain.len();
                let at = draws.index(size);
                let len = draws.index(size - at + 1);
                match draws.below(6) {
                    0 | 1 => {
                        let fill = u8::try_from(1 + step % 255).unwrap();
                        plain[at..at + len].fill(fill);
                        content.write(at as u64, &vec![fill; len]);
                    }
                    2 => {
                        plain[at..at + len].fill(0);
                        content.zero(ByteRange::at(at as u64, len as u64));
                    }
                    3 => {
                        let size = 1 + draws.index(7 * PAGE);
                        plain.resize(size, 0);
                        content.set_size(size as u64);
                    }
                    4 => content = Content::over(Rc::new(content)),
                    _ => {
                        let mut found = vec![0xaa; len];
                        content.read(at as u64, &mut found);
                        assert!(found == plain[at..at + len], "seed {seed}, step {step}: {len} bytes at {at}");
                    }
                }
                if !plain.is_empty() {
                    let at = draws.index(plain.len());
                    let (data, len) = content.extent(at as u64, (plain.len() - at) as u64);
                    assert!(len > 0);
                    if !data {
                        assert!(
                            plain[at..at + usize::try_from(len).unwrap()].iter().all(|&byte| byte == 0),
                            "{seed} {step}"
                        );
                    }
                }
            }
            assert!(content.to_vec() == plain, "seed {seed}");
            assert!(content.flattened().to_vec() == plain, "seed {seed}");
        }
    }
}
