//! Compressed clusters (specification, "Cluster mapping", compressed clusters descriptor).
//!
//! Reading inflates the whole cluster. Writing packs streams one behind the other into host clusters; each stream holds
//! one reference to each host cluster it touches. A compressed cluster is never changed: writing to it gives the guest
//! cluster a new home.

use std::io::Read;

use blkproof_block::{BlockDevice, Errno, Event, IoError, Result};

use super::Qcow2;
use super::entry::CompressedExtent;
use super::header::{Compression, read_padded};
use super::units::index;

/// A zstd frame says how much memory its reader needs, 128 MiB if it likes. A cluster has 2 MiB at most, and no
/// compressor's window for it is larger than this (16 MiB).
const ZSTD_WINDOW_LOG_MAX: u32 = 24;

/// Inflates one cluster of `size` bytes; what lies behind the stream in `data` is ignored.
pub(crate) fn inflate(kind: Compression, data: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut cluster = vec![0; size];
    let whole = match kind {
        Compression::Zlib => {
            let mut inflater = flate2::Decompress::new(false);
            let done = inflater.decompress(data, &mut cluster, flate2::FlushDecompress::Finish);
            done.is_ok() && inflater.total_out() == size as u64
        }
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(data)
            .and_then(|mut decoder| {
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                decoder.read_exact(&mut cluster)
            })
            .is_ok(),
    };
    if whole { Ok(cluster) } else { Err(IoError::new(Errno::IO).detail("the stream does not inflate to one cluster")) }
}

/// Deflates one cluster; `None` if that saves nothing.
pub(crate) fn deflate(kind: Compression, cluster: &[u8]) -> Option<Vec<u8>> {
    let packed = match kind {
        Compression::Zlib => {
            // A window of 4 KiB, as QEMU writes it: some readers reserve no more.
            let mut deflater = flate2::Compress::new_with_window_bits(flate2::Compression::default(), false, 12);
            let mut out = vec![0; cluster.len()];
            let done = deflater.compress(cluster, &mut out, flate2::FlushCompress::Finish).ok()?;
            if done != flate2::Status::StreamEnd {
                return None;
            }
            out.truncate(index(deflater.total_out()));
            out
        }
        Compression::Zstd => zstd::stream::encode_all(cluster, 0).ok()?,
    };
    (packed.len() < cluster.len()).then_some(packed)
}

impl<D: BlockDevice> Qcow2<D> {
    /// Reads and inflates a compressed cluster.
    pub(crate) async fn read_compressed(&self, extent: CompressedExtent) -> Result<Vec<u8>> {
        let size = self.file.info().size;
        if extent.offset >= size || extent.len > 2 * self.geometry.cluster_size() + 512 {
            return Err(IoError::new(Errno::IO)
                .detail(format!("{:#x} bytes past end of file ({size:#x}) or too long", extent.len)));
        }
        // The last sector may lie past the end of the file in part.
        let mut data = vec![0; index(extent.len)];
        read_padded(&self.file, extent.offset, &mut data).await?;
        let kind = self.header.borrow().compression;
        inflate(kind, &data, index(self.geometry.cluster_size()))
    }

    /// Serves a compressed write: whole clusters, the last one of the disk may be partial.
    pub(crate) async fn guest_write_compressed(&self, at: u64, data: &[u8]) -> Result<()> {
        let end = at + data.len() as u64;
        let geometry = &self.geometry;
        let _range = self.requests.exclusive(self.clusters_of(at, data.len() as u64)).await;
        self.check_still_inside(at, data.len() as u64)?;
        if geometry.in_cluster(at) != 0 || (geometry.in_cluster(end) != 0 && end != self.size.get()) {
            return Err(IoError::new(Errno::INVAL).detail("a compressed write takes whole clusters"));
        }
        if geometry.external_data {
            return Err(IoError::unsupported().detail("an external data file holds no compressed clusters"));
        }
        let kind = self.header.borrow().compression;
        let mut at = at;
        for bytes in data.chunks(index(geometry.cluster_size())) {
            let mut cluster = bytes.to_vec();
            cluster.resize(index(geometry.cluster_size()), 0);
            match deflate(kind, &cluster) {
                Some(packed) => self.write_packed(at, &packed).await.map_err(|e| e.rebase(u64::MAX, at).at(at))?,
                None => self.write_locked(at, bytes).await?,
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    async fn write_packed(&self, at: u64, packed: &[u8]) -> Result<()> {
        let table = self.writable_l2_table(self.l1_slot(at)).await?;
        let old = self.mapping_or_fail(Some(&table), at).await?;
        let (offset, reserved) = self.allocate_bytes(packed.len() as u64).await?;
        let extent = CompressedExtent { offset, len: packed.len() as u64 };
        let Some(raw) = extent.encode(&self.geometry) else {
            return Err(IoError::new(Errno::FBIG).detail("the offset is out of reach of a compressed descriptor"));
        };
        self.file.event(Event::WriteCompressed).await;
        self.file_write(offset, packed).await?;
        self.file.event(Event::L2UpdateCompressed).await;
        self.set_raw_entry(&table, at, raw, 0);
        self.drop_old(&old, false);
        reserved.keep();
        Ok(())
    }

    /// Room for a stream of `len` bytes, less than a cluster, inside one host cluster, of which it holds a reference.
    async fn allocate_bytes(&self, len: u64) -> Result<(u64, BytesReserved<'_, D>)> {
        self.file.event(Event::ClusterAllocBytes).await;
        let bits = self.geometry.cluster_bits;
        if let Some(tail) = self.compressed_tail.get()
            && self.geometry.in_cluster(tail) + len <= self.geometry.cluster_size()
        {
            let cluster = tail >> bits;
            // Asked again once the block is loaded: the cluster may have been freed, and be about to be punched.
            let raised = self.raise_if(cluster, || self.compressed_tail.get() == Some(tail)).await?;
            if raised {
                let next = tail + len;
                self.compressed_tail.set((self.geometry.in_cluster(next) != 0).then_some(next));
                return Ok((tail, BytesReserved { qcow2: self, cluster, kept: false }));
            }
        }
        let reserved = self.allocate(1).await?;
        let offset = reserved.keep();
        self.compressed_tail.set(Some(offset + len));
        Ok((offset, BytesReserved { qcow2: self, cluster: offset >> bits, kept: false }))
    }
}

/// A reference to a host cluster that no entry accounts for yet.
struct BytesReserved<'a, D: BlockDevice> {
    qcow2: &'a Qcow2<D>,
    cluster: u64,
    kept: bool,
}

impl<D: BlockDevice> BytesReserved<'_, D> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl<D: BlockDevice> Drop for BytesReserved<'_, D> {
    fn drop(&mut self) {
        if !self.kept {
            self.qcow2.push_freed(super::alloc::Freed { start: self.cluster, count: 1, punch: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_round_trip_with_garbage_behind_them() {
        let mut cluster = vec![0u8; 65536];
        for (i, byte) in cluster.iter_mut().enumerate() {
            *byte = u8::try_from(i / 300 % 251).unwrap();
        }
        for kind in [Compression::Zlib, Compression::Zstd] {
            let mut packed = deflate(kind, &cluster).unwrap();
            packed.resize(packed.len().next_multiple_of(512) + 512, 0xa5);
            assert_eq!(inflate(kind, &packed, cluster.len()).unwrap(), cluster, "{kind:?}");
            assert!(inflate(kind, &packed[..100], cluster.len()).is_err(), "{kind:?}: a cut stream");
            assert!(inflate(kind, &[0xff; 512], cluster.len()).is_err(), "{kind:?}: garbage");
        }
        // A frame without a content size that asks for a window of 64 MiB, holding one raw block of the right length.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (26 - 10) << 3];
        frame.extend_from_slice(&(512u32 << 3 | 1).to_le_bytes()[..3]);
        frame.extend_from_slice(&[7; 512]);
        assert!(inflate(Compression::Zstd, &frame, 512).is_err(), "a window of 64 MiB");
        frame[5] = (20 - 10) << 3;
        assert_eq!(inflate(Compression::Zstd, &frame, 512).unwrap(), [7; 512], "a window of 1 MiB");
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u8::try_from(state >> 56).unwrap()
        })
        .take(65536)
        .collect();
        assert_eq!(deflate(Compression::Zlib, &noise), None);
    }
}
