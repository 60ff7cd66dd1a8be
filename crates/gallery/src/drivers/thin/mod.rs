//! A thin disk for several threads: clusters that are given out when they are first written, and a cache in front.
//!
//! The image begins with the map, an entry of four bytes for each cluster of the guest: 0, or the number of its place,
//! from 1. Places follow the map. The map is kept in memory and written by flushes.
//!
//! # Locks
//! Whoever works on a cluster of the guest, reading included, has that cluster's lock. `map` and `cache` are each locked
//! for as long as it takes to look something up or to change it, and never while the disk is asked. Flushes follow each
//! other (`flushing`). The order is: cluster, then map, then cache; a flush takes no cluster's lock.
//!
//! A place that is given back is given out again after the map on the disk names it no more: after the next flush.

mod cache;
mod map;
mod race;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkproof_block::device::check_bounds;
use blkproof_block::{Errno, IoError, Result, WriteFlags, ZeroFlags};
use blkproof_torture::threads::{Disk, Driver};

use self::cache::Cache;
use self::map::Map;
pub use self::race::Race;
use super::{index, refuse_fast};

/// Bytes of a cluster.
pub(crate) const CLUSTER: u64 = 4096;
/// Locks; a cluster's is found by its number.
const LOCKS: usize = 16;

/// The thin disk over a shared one.
#[derive(Debug)]
pub struct Thin {
    disk: Arc<Disk>,
    size: u64,
    /// Where places begin.
    data: u64,
    locks: [Mutex<()>; LOCKS],
    map: Mutex<Map>,
    cache: Mutex<Cache>,
    flushing: Mutex<()>,
    race: Option<Race>,
}

/// A part of a request in one cluster.
struct Piece {
    cluster: u64,
    /// Bytes of the cluster, from and to.
    from: usize,
    to: usize,
    /// Where it begins in the request.
    at: usize,
}

impl Piece {
    fn is_whole(&self) -> bool {
        self.from == 0 && self.to == index(CLUSTER)
    }
}

impl Thin {
    /// Opens the image of a disk of `size` bytes, with something wrong, if one likes.
    ///
    /// # Errors
    /// Those of the disk; a map that names one place twice.
    pub fn open(disk: Arc<Disk>, size: u64, race: Option<Race>) -> Result<Self> {
        let clusters = size.div_ceil(CLUSTER);
        let mut bytes = vec![0; index(clusters.saturating_mul(4))];
        disk.read(0, &mut bytes)?;
        let map = Map::parse(&bytes).map_err(|words| IoError::new(Errno::INVAL).detail(words))?;
        let (locks, cache, flushing) = Default::default();
        Ok(Self { disk, size, data: Self::data_begins(size), locks, map: map.into(), cache, flushing, race })
    }

    /// Where places begin in the image of a disk of that size.
    pub(crate) fn data_begins(size: u64) -> u64 {
        size.div_ceil(CLUSTER).saturating_mul(4).next_multiple_of(CLUSTER)
    }

    fn has(&self, race: Race) -> bool {
        self.race == Some(race)
    }

    fn cluster(&self, cluster: u64) -> MutexGuard<'_, ()> {
        let [first, ..] = &self.locks;
        lock(self.locks.get(index(cluster) % LOCKS).unwrap_or(first))
    }

    fn place(&self, host: u32) -> u64 {
        self.data.saturating_add(u64::from(host).saturating_mul(CLUSTER))
    }

    /// What is in a cluster.
    fn load(&self, cluster: u64) -> Result<Vec<u8>> {
        if let Some(bytes) = lock(&self.cache).get(cluster) {
            return Ok(bytes);
        }
        let mut bytes = vec![0; index(CLUSTER)];
        let host = lock(&self.map).get(cluster);
        if let Some(host) = host {
            self.disk.read(self.place(host), &mut bytes)?;
            lock(&self.cache).put(cluster, bytes.clone());
        }
        Ok(bytes)
    }

    /// Changes a part of a cluster; without data, to zeroes.
    fn change(&self, piece: &Piece, data: Option<&[u8]>) -> Result<()> {
        let alone = piece.is_whole() || !self.has(Race::UnlockedMerge);
        let _guard = alone.then(|| self.cluster(piece.cluster));
        let known = lock(&self.map).get(piece.cluster);
        if known.is_none() && data.is_none() {
            return Ok(());
        }
        let mut bytes = if piece.is_whole() { vec![0; index(CLUSTER)] } else { self.load(piece.cluster)? };
        match (bytes.get_mut(piece.from..piece.to), data) {
            (Some(bytes), Some(data)) => bytes.copy_from_slice(data),
            (Some(bytes), None) => bytes.fill(0),
            (None, _) => {}
        }
        let early = self.has(Race::EarlyTest);
        let host = known.unwrap_or_else(|| if early { lock(&self.map).next() } else { lock(&self.map).take() });
        if let Err(error) = self.disk.write(self.place(host), &bytes) {
            // Some of it may be there.
            lock(&self.cache).forget(piece.cluster);
            if known.is_none() && !early {
                lock(&self.map).put_back(host);
            }
            return Err(error);
        }
        if known.is_none() {
            let mut map = lock(&self.map);
            if early {
                map.taken(host);
            }
            map.set(piece.cluster, host);
        }
        lock(&self.cache).put(piece.cluster, bytes);
        Ok(())
    }

    /// Gives a cluster's place back.
    fn give_back(&self, cluster: u64) {
        if self.has(Race::LockOrder) {
            let mut map = lock(&self.map);
            let _guard = self.cluster(cluster);
            map.unset(cluster, false);
            lock(&self.cache).forget(cluster);
            return;
        }
        let early = self.has(Race::EarlyReuse);
        let _guard = (!early).then(|| self.cluster(cluster));
        lock(&self.map).unset(cluster, early);
        lock(&self.cache).forget(cluster);
    }

    fn pieces(at: u64, len: u64) -> impl Iterator<Item = Piece> {
        let end = at.saturating_add(len);
        let clusters = if len == 0 { 0..0 } else { at / CLUSTER..end.div_ceil(CLUSTER) };
        clusters.map(move |cluster| {
            let start = cluster.saturating_mul(CLUSTER);
            let (from, to) = (start.max(at), start.saturating_add(CLUSTER).min(end));
            Piece {
                cluster,
                from: index(from.saturating_sub(start)),
                to: index(to.saturating_sub(start)),
                at: index(from.saturating_sub(at)),
            }
        })
    }

    /// The place of a piece in the request's buffer.
    fn of(piece: &Piece) -> std::ops::Range<usize> {
        piece.at..piece.at.saturating_add(piece.to.saturating_sub(piece.from))
    }

    fn write_map(&self) -> Result<()> {
        let pending = lock(&self.map).begin_flush();
        let mut written = Ok(());
        for &(cluster, entry) in pending.entries() {
            written = self.disk.write(cluster.saturating_mul(4), &entry.to_le_bytes());
            if written.is_err() {
                break;
            }
        }
        let written = written.and_then(|()| self.disk.flush());
        lock(&self.map).end_flush(pending, written.is_ok());
        written
    }
}

impl Driver for Thin {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        check_bounds(at, buf.len() as u64, self.size)?;
        for piece in Self::pieces(at, buf.len() as u64) {
            let alone = !self.has(Race::UnlockedFill);
            let _guard = alone.then(|| self.cluster(piece.cluster));
            let bytes = self.load(piece.cluster)?;
            if let (Some(out), Some(bytes)) = (buf.get_mut(Self::of(&piece)), bytes.get(piece.from..piece.to)) {
                out.copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        check_bounds(at, data.len() as u64, self.size)?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        for piece in Self::pieces(at, data.len() as u64) {
            self.change(&piece, Some(data.get(Self::of(&piece)).unwrap_or_default()))?;
        }
        if flags.contains(WriteFlags::FUA) { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        check_bounds(at, len, self.size)?;
        refuse_fast(flags)?;
        for piece in Self::pieces(at, len) {
            match piece.is_whole() && flags.contains(ZeroFlags::MAY_UNMAP) {
                true => self.give_back(piece.cluster),
                false => self.change(&piece, None)?,
            }
        }
        if flags.contains(ZeroFlags::FUA) { self.flush() } else { Ok(()) }
    }

    fn discard(&self, at: u64, len: u64) -> Result<()> {
        check_bounds(at, len, self.size)?;
        Self::pieces(at, len).filter(Piece::is_whole).for_each(|piece| self.give_back(piece.cluster));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.has(Race::UnlockedFlush) {
            return self.write_map();
        }
        let _guard = match self.has(Race::LonelyFlush) {
            true => self.flushing.try_lock().expect("nobody else flushes"),
            false => lock(&self.flushing),
        };
        self.write_map()
    }

    fn close(&self) -> Result<()> {
        self.flush()
    }
}

/// What a thread that panicked was at is whole: nothing here panics with a lock held, but what is planted.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
