//! The stretches of a file in order, kept until the analysis is over: in memory while there are few, in an unnamed
//! temporary file once there are many. Seven dumps go over them, and the file may have as many as it has clusters.
//!
//! A stretch begins where the one before it ended, so two bytes to eleven say it: its class, and its length in 7-bit
//! groups, low ones first.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;

use blkproof_check::map::Class;

/// Bytes kept in memory before they go to the file.
const HELD: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Runs {
    held: Vec<u8>,
    file: Option<File>,
    /// The last stretch, still growing.
    last: Option<(Range<u64>, Class)>,
}

impl Runs {
    /// Adds the next stretch; it begins where the last one ended.
    pub(super) fn push(&mut self, range: Range<u64>, class: Class) -> io::Result<()> {
        match &mut self.last {
            Some((last, of)) if *of == class && last.end == range.start => last.end = range.end,
            _ => {
                self.settle()?;
                self.last = Some((range, class));
            }
        }
        Ok(())
    }

    /// Writes the last stretch down.
    fn settle(&mut self) -> io::Result<()> {
        let Some((range, class)) = self.last.take() else { return Ok(()) };
        self.held.push(class as u8);
        let mut left = range.end.saturating_sub(range.start);
        loop {
            let group = u8::try_from(left & 0x7f).unwrap_or(0);
            left >>= 7;
            self.held.push(if left > 0 { group | 0x80 } else { group });
            if left == 0 {
                break;
            }
        }
        if self.held.len() >= HELD {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        file.write_all(&self.held)?;
        self.held.clear();
        Ok(())
    }

    /// Begins to read from the first stretch on.
    pub(super) fn reader(&mut self) -> io::Result<Reader> {
        self.settle()?;
        if self.file.is_some() {
            self.spill()?;
        }
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(Reader { at: 0, buffer: Vec::new(), used: 0, done: false })
    }
}

/// Reads stretches one by one.
pub(super) struct Reader {
    /// Where the next stretch begins.
    at: u64,
    buffer: Vec<u8>,
    used: usize,
    done: bool,
}

impl Reader {
    /// The next stretch, in order.
    pub(super) fn next(&mut self, runs: &mut Runs) -> io::Result<Option<(Range<u64>, Class)>> {
        let Some(class) = self.byte(runs)? else {
            self.done = true;
            return Ok(None);
        };
        let (mut len, mut shift) = (0u64, 0u32);
        while let Some(byte) = self.byte(runs)? {
            len |= u64::from(byte & 0x7f) << shift.min(63);
            shift = shift.saturating_add(7);
            if byte & 0x80 == 0 {
                break;
            }
        }
        let start = self.at;
        self.at = start.saturating_add(len);
        let class = Class::ALL.get(usize::from(class)).copied().unwrap_or(Class::Unknown);
        Ok(Some((start..self.at, class)))
    }

    /// Whether all were read.
    pub(super) fn done(&self) -> bool {
        self.done
    }

    fn byte(&mut self, runs: &mut Runs) -> io::Result<Option<u8>> {
        let Some(file) = &mut runs.file else {
            let byte = runs.held.get(self.used).copied();
            self.used = self.used.saturating_add(1);
            return Ok(byte);
        };
        if self.used >= self.buffer.len() {
            self.buffer.clear();
            file.take(1 << 16).read_to_end(&mut self.buffer)?;
            self.used = 0;
        }
        let byte = self.buffer.get(self.used).copied();
        self.used = self.used.saturating_add(1);
        Ok(byte)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_merged() {
        for count in [0u64, 1, 5, 700_000] {
            let mut runs = Runs::default();
            let mut want: Vec<(Range<u64>, Class)> = Vec::new();
            let mut at = 0;
            for index in 0..count {
                let class = Class::ALL[usize::try_from(index % 7 / 2).unwrap()];
                let end = at + 1 + (index % 5) * 70_000;
                runs.push(at..end, class).unwrap();
                match want.last_mut() {
                    Some((range, last)) if *last == class => range.end = end,
                    _ => want.push((at..end, class)),
                }
                at = end;
            }
            assert!(count < 100_000 || runs.file.is_some(), "many go to the file");
            for _ in 0..2 {
                let mut reader = runs.reader().unwrap();
                let mut got = Vec::new();
                while let Some(run) = reader.next(&mut runs).unwrap() {
                    got.push(run);
                }
                assert!(got == want, "{count} stretches");
                assert!(reader.done());
            }
        }
    }
}
