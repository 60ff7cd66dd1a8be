//! Reading: the guest range in pieces that come from one place each.

use blkproof_block::{BlockDevice, Errno, Event, IoError, Result};

use futures_util::stream::{self, StreamExt};

use super::Qcow2;
use super::cache::Table;
use super::entry::{BadEntry, CompressedExtent};
use super::units::index;

/// Pieces of one guest read that are under way at a time.
const PIECES_AT_ONCE: usize = 16;

/// Where a piece of guest data comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// Reads as zeroes, said by the map.
    Zero,
    /// Not determined here: the backing file, or zeroes without one.
    Unallocated,
    /// At this host offset.
    Data(u64),
    /// Inflated from there; the guest offset of the cluster.
    Compressed(CompressedExtent, u64),
}

/// Adjacent guest bytes that come from one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) len: u64,
    pub(crate) source: Source,
}

impl<D: BlockDevice> Qcow2<D> {
    /// The piece that begins at `at`, up to `end` at most; both lie in the range of `table`.
    pub(crate) fn piece(&self, table: Option<&Table>, at: u64, end: u64) -> Result<Piece, BadEntry> {
        if table.is_none() {
            return Ok(Piece { len: end - at, source: Source::Unallocated });
        }
        let mut piece = self.piece_in_cluster(table, at, end)?;
        while at + piece.len < end {
            // A bad entry behind this piece is reported when its turn comes.
            let Ok(next) = self.piece_in_cluster(table, at + piece.len, end) else { break };
            let continues = match (piece.source, next.source) {
                (Source::Data(here), Source::Data(there)) => here.checked_add(piece.len) == Some(there),
                (Source::Compressed(..), _) => false,
                (here, there) => here == there,
            };
            if !continues {
                break;
            }
            piece.len += next.len;
        }
        Ok(piece)
    }

    fn piece_in_cluster(&self, table: Option<&Table>, at: u64, end: u64) -> Result<Piece, BadEntry> {
        let geometry = &self.geometry;
        let mapping = self.mapping(table, at)?;
        let start = geometry.cluster_start(at);
        let end = end.min(start + geometry.cluster_size());
        if let Some(extent) = mapping.compressed {
            return Ok(Piece { len: end - at, source: Source::Compressed(extent, start) });
        }
        let kind = |sub: u64| (mapping.allocated >> sub & 1, mapping.zero >> sub & 1);
        let size = geometry.subcluster_size();
        let first = (at - start) / size;
        let last = (end - 1 - start) / size;
        let same = (first..=last).take_while(|&sub| kind(sub) == kind(first)).last().unwrap_or(first);
        let len = end.min(start + (same + 1) * size) - at;
        let source = match (kind(first), mapping.host) {
            ((0, 0), _) | ((1, _), None) => Source::Unallocated,
            ((1, _), Some(host)) => Source::Data(host + (at - start)),
            _ => Source::Zero,
        };
        Ok(Piece { len, source })
    }

    /// Serves a guest read that is inside the disk.
    pub(crate) async fn guest_read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        // Shared: whoever wants to give a cluster of this range away waits until we are done with it.
        let _range = self.requests.shared(self.clusters_of(at, buf.len() as u64)).await;
        self.check_still_inside(at, buf.len() as u64)?;
        self.read_locked(at, buf).await
    }

    /// Reads guest bytes of a range that the caller has locked.
    pub(crate) async fn read_locked(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = at;
        let mut rest = buf;
        let mut pieces = Vec::new();
        let mut bad = None;
        while !rest.is_empty() {
            let slot = self.l1_slot(at);
            let end = at.saturating_add(rest.len() as u64).min(self.slot_end(slot));
            let found = match self.l2_table(slot).await {
                Err(error) => Err(error.rebase(u64::MAX, at).at(at)),
                Ok(table) => match self.piece(table.as_deref(), at, end) {
                    Ok(piece) => Ok(piece),
                    Err(entry) => Err(self.bad_entry(table.as_deref(), at, entry).await),
                },
            };
            let piece = match found {
                Ok(piece) => piece,
                Err(error) => {
                    bad = Some(error);
                    break;
                }
            };
            let (here, after) = std::mem::take(&mut rest).split_at_mut(index(piece.len));
            if after.is_empty() && pieces.is_empty() {
                return self.read_piece(at, here, piece.source).await; // the common case: one place
            }
            pieces.push((at, here, piece.source));
            at += piece.len;
            rest = after;
        }
        // The caller holds the range, so that the pieces stay where they are. Side by side, but their errors in order:
        // what lies before the first bad byte is valid.
        let reads = pieces.into_iter().map(|(at, here, source)| self.read_piece(at, here, source));
        let mut reads = stream::iter(reads).buffered(PIECES_AT_ONCE);
        while let Some(result) = reads.next().await {
            result?;
        }
        bad.map_or(Ok(()), Err)
    }

    async fn read_piece(&self, at: u64, buf: &mut [u8], source: Source) -> Result<()> {
        match source {
            Source::Zero => buf.fill(0),
            Source::Unallocated => self.read_backing(at, buf).await?,
            Source::Data(host) => {
                self.file.event(Event::ReadAio).await;
                self.read_data(host, buf).await.map_err(|e| e.rebase(host, at))?;
            }
            Source::Compressed(extent, start) => {
                self.file.event(Event::ReadCompressed).await;
                let cluster = self.read_compressed(extent).await.map_err(|e| {
                    // The place below is inside a stream and says nothing about a guest byte.
                    e.context(format_args!("compressed cluster at {:#x}", extent.offset)).rebase(u64::MAX, at).at(at)
                })?;
                let from = index(at - start);
                match cluster.get(from..from + buf.len()) {
                    Some(bytes) => buf.copy_from_slice(bytes),
                    None => return Err(IoError::new(Errno::IO).at(at)),
                }
            }
        }
        Ok(())
    }

    /// Reads data from its host offset. The last cluster of a file may be partial; the missing part reads as zeroes.
    async fn read_data(&self, host: u64, buf: &mut [u8]) -> Result<()> {
        let size = self.data().info().size;
        let len = buf.len() as u64;
        if host.saturating_add(len) <= size {
            return self.data().read(host, buf).await;
        }
        if !self.geometry.external_data && host >= size.saturating_add(self.geometry.cluster_size()) {
            let words = format!("data cluster at {host:#x} lies past end of file ({size:#x})");
            return Err(IoError::new(Errno::IO).at(host).detail(words));
        }
        super::header::read_padded(self.data(), host, buf).await
    }

    /// Reads from the backing file; what it does not have reads as zeroes.
    async fn read_backing(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(backing) = &self.backing else {
            buf.fill(0);
            return Ok(());
        };
        // The backing file may be shorter, and may end anywhere (bug gallery Q1). It may be longer too, but has nothing
        // to say of the VM state behind our own end.
        let end = backing.info().size.min(self.size.get());
        let inside = index(end.saturating_sub(at)).min(buf.len());
        let (head, tail) = buf.split_at_mut(inside);
        tail.fill(0);
        if head.is_empty() {
            return Ok(());
        }
        self.file.event(Event::ReadBackingAio).await;
        backing.read(at, head).await.map_err(|e| e.context("backing file"))
    }

    /// Whether the map alone says that guest bytes `at..end` are zero. Nothing is loaded.
    pub(crate) fn is_zero_by_map(&self, table: Option<&Table>, at: u64, end: u64) -> bool {
        let mut at = at;
        while at < end {
            let Ok(piece) = self.piece(table, at, end) else { return false };
            let zero = match piece.source {
                Source::Zero => true,
                Source::Unallocated => self.backing.as_ref().is_none_or(|backing| at >= backing.info().size),
                _ => false,
            };
            if !zero {
                return false;
            }
            at += piece.len;
        }
        true
    }

    /// Serves a read without waiting, if the table is in memory and the nodes below can.
    pub(crate) fn guest_read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        if buf.is_empty() {
            return true;
        }
        let Some(_range) = self.requests.try_shared(self.clusters_of(at, buf.len() as u64)) else { return false };
        // A node that wants to hear of reads gets them the slow way.
        if self.file.listens(Event::ReadAio) {
            return false;
        }
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let slot = self.l1_slot(at);
            let end = at.saturating_add(rest.len() as u64).min(self.slot_end(slot));
            let Some(table) = self.l2_table_now(slot) else { return false };
            let Ok(piece) = self.piece(table.as_deref(), at, end) else { return false };
            let (here, after) = rest.split_at_mut(index(piece.len));
            let done = match source_now(piece.source, self.backing.is_some()) {
                Now::Zero => {
                    here.fill(0);
                    true
                }
                Now::Data(host) => self.data().read_now(host, here),
                Now::Backing => self.backing.as_ref().is_some_and(|backing| {
                    let inside = index(backing.info().size.saturating_sub(at)).min(here.len());
                    let (head, tail) = here.split_at_mut(inside);
                    tail.fill(0);
                    head.is_empty() || backing.read_now(at, head)
                }),
                Now::Never => false,
            };
            if !done {
                return false;
            }
            at += piece.len;
            rest = after;
        }
        true
    }
}

enum Now {
    Zero,
    Data(u64),
    Backing,
    Never,
}

fn source_now(source: Source, backing: bool) -> Now {
    match source {
        Source::Zero => Now::Zero,
        Source::Unallocated if backing => Now::Backing,
        Source::Unallocated => Now::Zero,
        Source::Data(host) => Now::Data(host),
        Source::Compressed(..) => Now::Never,
    }
}
