//! An image of any length that costs only the sectors it holds, and its form as one small file (of a corpus, or out of
//! a fuzzer).
//!
//! The form, little endian: the image's length in bytes (u64), a byte of which bit 0 asks for checksums to be set right
//! ([`super::seal`]); then records: the sector they begin at (u32), their length (u16), their bytes. Later records win.
//! Anything decodes: what is cut short is as long as it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use blkproof_check::source::Source;

pub const SECTOR: u64 = 512;
/// Longer ones are cut when decoded: 16 GiB.
const LEN_MAX: u64 = 1 << 34;

/// Bytes by sector; sectors that are not there are zeroes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    pub len: u64,
    sectors: BTreeMap<u64, [u8; SECTOR as usize]>,
}

impl Sparse {
    pub fn new(len: u64) -> Self {
        Self { len, sectors: BTreeMap::new() }
    }

    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Self::new(0);
        image.put(0, bytes);
        image
    }

    /// Reads a file; its zeroes are left out.
    pub fn from_file(path: &Path) -> Self {
        let source = blkproof_check::source::FileSource::open(path).unwrap();
        let mut image = Self::new(source.len());
        let mut at = 0;
        while let Some(data) = source.next_data(at) {
            for start in data.clone().step_by(1 << 16) {
                let mut bytes = vec![0; usize::try_from((data.end - start).min(1 << 16)).unwrap()];
                let read = source.read_at(start, &mut bytes).unwrap();
                image.put(start, &bytes[..read]);
            }
            at = data.end;
        }
        image.len = source.len();
        image
    }

    /// Writes it to a file that is not there yet, or replaces one.
    pub fn to_file(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.len).unwrap();
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (index, sector) in &self.sectors {
            let at = index * SECTOR;
            let there = usize::try_from(self.len.saturating_sub(at).min(SECTOR)).unwrap();
            match &mut run {
                Some((start, bytes)) if *start + bytes.len() as u64 == at => bytes.extend(&sector[..there]),
                _ => {
                    if let Some((start, bytes)) = run.take() {
                        file.write_all_at(&bytes, start).unwrap();
                    }
                    run = Some((at, sector[..there].to_vec()));
                }
            }
        }
        if let Some((start, bytes)) = run {
            file.write_all_at(&bytes, start).unwrap();
        }
    }

    /// Writes bytes; the image grows where they reach past its end. Zeroes over nothing cost nothing.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = usize::try_from(at % SECTOR).unwrap_or(0);
            let (now, later) = rest.split_at(rest.len().min(SECTOR as usize - within));
            let index = at / SECTOR;
            if self.sectors.contains_key(&index) || now.iter().any(|byte| *byte != 0) {
                let sector = self.sectors.entry(index).or_insert([0; SECTOR as usize]);
                sector[within..within + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            rest = later;
        }
        self.len = self.len.max(at);
    }

    /// Makes a hole of a sector.
    pub fn clear(&mut self, at: u64) {
        self.sectors.remove(&(at / SECTOR));
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        let _ = self.read_at(at, &mut buf);
        buf
    }

    /// A number of `width` bytes, big endian or little.
    pub fn number(&self, at: u64, width: usize, big: bool) -> u64 {
        let bytes = self.bytes(at, width);
        let fold = |all: u64, byte: &u8| (all << 8) | u64::from(*byte);
        if big { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) }
    }

    pub fn set_number(&mut self, at: u64, width: usize, big: bool, value: u64) {
        let bytes = value.to_le_bytes();
        let mut bytes = bytes[..width].to_vec();
        if big {
            bytes.reverse();
        }
        // A field past the end stays where nobody reads it.
        if at.checked_add(width as u64).is_some_and(|end| end <= self.len) {
            self.put(at, &bytes);
        }
    }

    /// Cuts it, or lengthens it by zeroes.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.sectors.split_off(&len.div_ceil(SECTOR));
            let within = usize::try_from(len % SECTOR).unwrap_or(0);
            if within > 0
                && let Some(last) = self.sectors.get_mut(&(len / SECTOR))
            {
                last[within..].fill(0);
            }
        }
        self.len = len;
    }

    /// First bytes of the stretches that hold anything, sector by sector.
    pub fn sectors(&self) -> impl Iterator<Item = (u64, &[u8; SECTOR as usize])> {
        self.sectors.iter().map(|(index, sector)| (index * SECTOR, sector))
    }

    pub fn encode(&self, seal: bool) -> Vec<u8> {
        let mut out = self.len.to_le_bytes().to_vec();
        out.push(u8::from(seal));
        for (index, sector) in &self.sectors {
            let used = sector.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let Ok(index) = u32::try_from(*index) else { continue };
            if used > 0 {
                out.extend(index.to_le_bytes());
                out.extend((used as u16).to_le_bytes());
                out.extend(&sector[..used]);
            }
        }
        out
    }

    /// The image, and whether its checksums are to be set right.
    pub fn decode(input: &[u8]) -> (Self, bool) {
        let mut rest = input;
        let mut take = |n: usize| {
            let (now, later) = rest.split_at(n.min(rest.len()));
            rest = later;
            now
        };
        let little = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |all, byte| (all << 8) | u64::from(*byte));
        let len = little(take(8)).min(LEN_MAX);
        let seal = little(take(1)) & 1 == 1;
        let mut image = Self::new(len);
        loop {
            let head = take(6);
            if head.len() < 6 {
                break;
            }
            let at = little(&head[..4]) * SECTOR;
            let bytes = take(usize::try_from(little(&head[4..])).unwrap_or(0));
            image.put(at, bytes);
        }
        image.set_len(len);
        (image, seal)
    }
}

impl Source for Sparse {
    fn name(&self) -> String {
        "generated".to_owned()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        buf[..len].fill(0);
        if len == 0 {
            return Ok(0);
        }
        let end = at + len as u64;
        for (index, sector) in self.sectors.range(at / SECTOR..end.div_ceil(SECTOR)) {
            let start = index * SECTOR;
            let (from, to) = (start.max(at), (start + SECTOR).min(end));
            let part = |base: u64| (from - base) as usize..(to - base) as usize;
            buf[part(at)].copy_from_slice(&sector[part(start)]);
        }
        Ok(len)
    }

    fn next_data(&self, at: u64) -> Option<Range<u64>> {
        let mut run: Option<Range<u64>> = None;
        for index in self.sectors.range(at / SECTOR..).map(|(index, _)| *index) {
            let start = index * SECTOR;
            match &mut run {
                Some(run) if run.end == start => run.end += SECTOR,
                Some(_) => break,
                None => run = Some(start.max(at)..start + SECTOR),
            }
        }
        let run = run?;
        (run.start < self.len).then(|| run.start..run.end.min(self.len))
    }
}
