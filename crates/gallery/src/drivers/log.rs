//! A disk with a write-ahead log.
//!
//! ```text
//! header A 1 KiB | header B 1 KiB | log, 8 slots of 5 KiB | the guest's disk
//! ```
//! A write appends a record to the log, or several: a sector that says where the data belongs, up to 4 KiB of it, and at the
//! end of the slot a sector with a checksum of both. What the log holds is kept in memory too, for reads. When the log is full, and at close, a *checkpoint* brings
//! it all to its places, and then a header with the next generation begins an empty log.
//!
//! # The argument
//! 1. Records are appended one after the other, each when the one before it has completed; so what a flush has made
//!    durable is found by reading until the first record that is torn or of another generation or number.
//! 2. What a checkpoint has brought to its place is durable before the header that forgets the records is written, and
//!    that header is durable before anything is appended. So is each header that a recovery writes. Until then the
//!    records are all there, and can be brought to their places again.
//! 3. There are two headers, written in turn; one that is torn is known by its checksum, and the other one counts.
//! 4. A header that may or may not have landed is written again, with the same content, before anything is appended.

use std::collections::BTreeMap;

use blkproof_block::device::check_bounds;
use blkproof_block::graph::OpenError;
use blkproof_block::{
    BlockDevice, BlockStatus, DeviceInfo, IoError, Limits, Preallocation, Result, WriteFlags, ZeroFlags,
};
use tokio::sync::Mutex;

use super::late::Late;
use super::{index, refuse_fast};
use crate::{Mutant, planted};

const SECTOR: u64 = 512;
const HEADER: u64 = 1024;
const LOG_AT: u64 = 2 * HEADER;
/// Bytes of data in one record, at most.
const RECORD_MAX: u64 = 4096;
/// Bytes of a record's slot.
const SLOT: u64 = RECORD_MAX + 2 * SECTOR;
const LOG_LEN: u64 = 8 * SLOT;
const HEADER_MAGIC: u64 = 0x4c4f_4748_4541_4431;
const RECORD_MAGIC: u64 = 0x4c4f_4752_4543_4f31;

/// The log over a device. Takes whole sectors of 512 bytes.
#[derive(Debug)]
pub struct Log<D> {
    below: D,
    size: u64,
    state: Mutex<State>,
    late: Late,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    /// The number of the next record, which is that of its slot.
    number: u64,
    /// What the log holds, by guest sector.
    held: BTreeMap<u64, [u8; 512]>,
    /// The header of the next generation may be on disk.
    unsure: bool,
}

#[derive(Debug)]
struct Record {
    at: u64,
    data: Vec<u8>,
}

impl<D: BlockDevice> Log<D> {
    /// Bytes that the device needs besides those of the guest's disk, which are whole sectors.
    pub const OVERHEAD: u64 = LOG_AT + LOG_LEN;

    /// Opens what `below` holds, and recovers what is in its log.
    ///
    /// # Errors
    /// [`OpenError::Image`] if no header is one, [`OpenError::Io`] if recovery fails.
    pub async fn open(below: D) -> Result<Self, OpenError> {
        let len = below.info().size;
        if len < Self::OVERHEAD {
            return Err(OpenError::Image(format!("{len:#x} bytes are too few for a log")));
        }
        let size = (len.saturating_sub(Self::OVERHEAD)) / SECTOR * SECTOR;
        let mut slots = vec![0; index(LOG_AT)];
        below.read(0, &mut slots).await.map_err(|error| OpenError::io("reading the log's headers", error))?;
        let generation = newest(&slots)?;
        let mut log = vec![0; index(LOG_LEN)];
        below.read(LOG_AT, &mut log).await.map_err(|error| OpenError::io("reading the log", error))?;
        let mut records = records(&log, generation, size);
        if planted(Mutant::M46) {
            records.pop();
        }
        let mut state = State { generation, ..State::default() };
        for record in &records {
            state.hold(record.at, &record.data);
        }
        let disk = Self { below, size, state: Mutex::new(State::default()), late: Late::default() };
        // Also with an empty log: what a record beyond a lost one says must never count, so its generation ends here.
        disk.checkpoint(&mut state).await.map_err(|error| OpenError::io("recovering from the log", error))?;
        *disk.state.lock().await = state;
        Ok(disk)
    }

    /// Brings everything to its place and begins an empty log.
    async fn checkpoint(&self, state: &mut State) -> Result<()> {
        self.late.settle(&self.below).await?;
        let mut run: Option<(u64, Vec<u8>)> = None;
        let mut runs = Vec::new();
        for (&sector, bytes) in &state.held {
            match &mut run {
                Some((first, data)) if first.saturating_add(data.len() as u64 / SECTOR) == sector => {
                    data.extend_from_slice(bytes);
                }
                _ => runs.extend(run.replace((sector, bytes.to_vec()))),
            }
        }
        runs.extend(run);
        for (sector, data) in runs {
            let place = Self::OVERHEAD.saturating_add(sector.saturating_mul(SECTOR));
            self.late.sending(self.below.write(place, &data, WriteFlags::empty())).await?;
        }
        if !planted(Mutant::M45) {
            self.below.flush().await?; // argument 2
        }
        let generation = state.generation.saturating_add(1);
        state.unsure = true;
        let slot = generation % 2 * HEADER;
        self.late.sending(self.below.write(slot, &header(generation), WriteFlags::empty())).await?;
        self.below.flush().await?;
        *state = State { generation, ..State::default() };
        Ok(())
    }

    async fn append(&self, state: &mut State, at: u64, data: &[u8]) -> Result<()> {
        if state.unsure || state.number >= LOG_LEN / SLOT {
            self.checkpoint(state).await?;
        }
        self.late.settle(&self.below).await?;
        let bytes = record(state.generation, state.number, at, data);
        let place = LOG_AT.saturating_add(state.number.saturating_mul(SLOT));
        let sent = self.late.sending(self.below.write(place, &bytes, WriteFlags::empty())).await;
        sent.map_err(|error| IoError { transferred: 0, ..error }.rebase(place, at))?;
        state.hold(at, data);
        state.number = state.number.saturating_add(1);
        Ok(())
    }

    async fn put(&self, at: u64, data: &[u8], fua: bool) -> Result<()> {
        let mut state = self.state.lock().await;
        let mut here = at;
        for piece in data.chunks(index(RECORD_MAX)) {
            self.append(&mut state, here, piece).await?;
            here = here.saturating_add(piece.len() as u64);
        }
        if fua { self.below.flush().await } else { Ok(()) }
    }
}

impl State {
    fn hold(&mut self, at: u64, data: &[u8]) {
        let (sectors, _) = data.as_chunks::<512>();
        for (sector, bytes) in (at / SECTOR..).zip(sectors) {
            self.held.insert(sector, *bytes);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at.saturating_add(8)).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

fn put_word(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(word) = bytes.get_mut(at..at.saturating_add(8)) {
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// A header: two sectors, the generation in both, a checksum at the end.
fn header(generation: u64) -> Vec<u8> {
    let mut bytes = vec![0; index(HEADER)];
    put_word(&mut bytes, 0, HEADER_MAGIC);
    put_word(&mut bytes, 8, generation);
    put_word(&mut bytes, 512, generation);
    let sum = u64::from(crc32c::crc32c(&bytes));
    put_word(&mut bytes, 1016, sum);
    bytes
}

/// The generation of the newest header; 0 for a disk that never had one.
fn newest(slots: &[u8]) -> Result<u64, OpenError> {
    let mut best = 0;
    for slot in slots.chunks(index(HEADER)) {
        let generation = word(slot, 8);
        let whole = word(slot, 0) == HEADER_MAGIC && slot == header(generation);
        // With the defect, the first sector is believed.
        let believed = planted(Mutant::M41) && word(slot, 0) == HEADER_MAGIC;
        if believed && generation > best && word(slot, 512) != generation {
            return Err(OpenError::Image("the log's header contradicts itself".into()));
        }
        if whole && generation > best {
            best = generation;
        }
    }
    Ok(best)
}

fn sum(head: &[u8], data: &[u8]) -> u64 {
    // With the defect, the checksum says nothing about where the data belongs.
    let begin = if planted(Mutant::M11) { 0 } else { crc32c::crc32c(head) };
    u64::from(crc32c::crc32c_append(begin, data))
}

fn record(generation: u64, number: u64, at: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; index(SECTOR)];
    for (slot, value) in [RECORD_MAGIC, generation, number, at, data.len() as u64].into_iter().enumerate() {
        put_word(&mut bytes, slot * 8, value);
    }
    let mut padded = data.to_vec();
    padded.resize(index(RECORD_MAX), 0);
    let sum = sum(&bytes, &padded);
    bytes.extend_from_slice(&padded);
    let mut trailer = [0; 512];
    put_word(&mut trailer, 0, sum);
    put_word(&mut trailer, 8, RECORD_MAGIC);
    bytes.extend_from_slice(&trailer);
    bytes
}

/// The records of a generation, until the first that is none.
fn records(log: &[u8], generation: u64, size: u64) -> Vec<Record> {
    let mut records = Vec::new();
    for slot in log.chunks(index(SLOT)) {
        let Some((head, rest)) = slot.split_at_checked(index(SECTOR)) else { break };
        let Some((padded, trailer)) = rest.split_at_checked(index(RECORD_MAX)) else { break };
        let (at, len) = (word(head, 24), word(head, 32));
        let expected = word(head, 0) == RECORD_MAGIC && word(head, 8) == generation;
        let fits = len <= RECORD_MAX && len.is_multiple_of(SECTOR) && check_bounds(at, len, size).is_ok();
        let whole = word(trailer, 8) == RECORD_MAGIC && word(trailer, 0) == sum(head, padded);
        if !expected || word(head, 16) != records.len() as u64 || !fits || !whole {
            break;
        }
        records.push(Record { at, data: padded.get(..index(len)).unwrap_or_default().to_vec() });
    }
    records
}

impl<D: BlockDevice> BlockDevice for Log<D> {
    fn info(&self) -> DeviceInfo {
        let sector = 512;
        let limits =
            Limits { alignment: sector, zero_alignment: sector, discard_alignment: sector, ..self.below.info().limits };
        DeviceInfo { limits, ..super::info("log", &self.below, self.size) }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        check_bounds(at, buf.len() as u64, self.size)?;
        let state = self.state.lock().await;
        let place = Self::OVERHEAD.saturating_add(at);
        self.below.read(place, buf).await.map_err(|error| error.rebase(place, at))?;
        let (sectors, _) = buf.as_chunks_mut::<512>();
        for (sector, bytes) in (at / SECTOR..).zip(sectors) {
            if let Some(held) = state.held.get(&sector) {
                *bytes = *held;
            }
        }
        Ok(())
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        check_bounds(at, data.len() as u64, self.size)?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        self.put(at, data, flags.contains(WriteFlags::FUA)).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        check_bounds(at, len, self.size)?;
        refuse_fast(flags)?;
        let mut done = 0;
        while done < len {
            let here = len.saturating_sub(done).min(LOG_LEN);
            self.put(at.saturating_add(done), &vec![0; index(here)], flags.contains(ZeroFlags::FUA)).await?;
            done = done.saturating_add(here);
        }
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        check_bounds(at, len, self.size)
    }

    async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        check_bounds(at, len, self.size)?;
        Ok(BlockStatus::data(len, None))
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        self.below.drain().await
    }

    async fn close(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        if state.unsure || !state.held.is_empty() {
            self.checkpoint(&mut state).await?;
        }
        self.below.flush().await?;
        self.below.close().await
    }
}
