//! Whether a compressed cluster inflates to a cluster.
//!
//! The stream is inflated into a small buffer and forgotten: a bomb costs no memory, and never more time than a cluster
//! and a buffer take. Bytes behind the end of a stream are legal: the descriptor knows its length only to 512 bytes.

use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};

/// Bytes inflated at a time.
const BUFFER: usize = 32 << 10;

/// Memory a zstd frame may ask for (2^24 bytes): no compressor's window for a cluster is larger; the format allows 128
/// MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;

/// What is wrong with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It breaks the rules of its compression after this many good bytes.
    Broken(u64),
    /// It ends after this many bytes, too few.
    Short(u64),
    /// It goes on after a cluster. Programs take its beginning.
    Long,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(after) => write!(f, "the stream is damaged after {after} bytes"),
            Self::Short(bytes) => write!(f, "the stream ends after {bytes} bytes"),
            Self::Long => write!(f, "the stream is longer than a cluster"),
        }
    }
}

/// Whether `bytes` begin with a stream (raw deflate, or zstd) of exactly `cluster_size` bytes.
pub(crate) fn inflates(bytes: &[u8], cluster_size: u64, zstd: bool) -> Result<(), Flaw> {
    let ended = if zstd { inflate_zstd(bytes, cluster_size) } else { inflate_deflate(bytes, cluster_size) };
    match ended {
        (total, End::Broken) if total < cluster_size => Err(Flaw::Broken(total)),
        (total, _) if total < cluster_size => Err(Flaw::Short(total)),
        (total, _) if total > cluster_size => Err(Flaw::Long),
        // What follows a whole cluster is behind the stream for every reader.
        _ => Ok(()),
    }
}

enum End {
    Reached,
    Broken,
}

/// Bytes inflated, and how it ended; stops when there are more than `limit`.
fn inflate_deflate(bytes: &[u8], limit: u64) -> (u64, End) {
    let mut inflater = Decompress::new(false);
    let mut buffer = vec![0u8; BUFFER];
    loop {
        let (read, written) = (inflater.total_in(), inflater.total_out());
        let rest = usize::try_from(read).ok().and_then(|read| bytes.get(read..)).unwrap_or_default();
        let ended = inflater.decompress(rest, &mut buffer, FlushDecompress::None);
        let total = inflater.total_out();
        match ended {
            Ok(Status::StreamEnd) => return (total, End::Reached),
            _ if total > limit => return (total, End::Reached),
            // No progress: the input ended within the stream.
            Ok(_) if inflater.total_in() == read && total == written => return (total, End::Reached),
            Ok(_) => {}
            Err(_) => return (total, End::Broken),
        }
    }
}

fn inflate_zstd(bytes: &[u8], limit: u64) -> (u64, End) {
    use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

    let decoder = Decoder::new().and_then(|mut decoder| {
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
        Ok(decoder)
    });
    let Ok(mut decoder) = decoder else { return (0, End::Broken) };
    let mut buffer = vec![0u8; BUFFER];
    let mut input = InBuffer::around(bytes);
    let mut total = 0u64;
    loop {
        let before = input.pos();
        let mut output = OutBuffer::around(buffer.as_mut_slice());
        let ended = decoder.run(&mut input, &mut output);
        let written = output.pos() as u64;
        total = total.saturating_add(written);
        match ended {
            Ok(0) => return (total, End::Reached),
            _ if total > limit => return (total, End::Reached),
            Ok(_) if input.pos() == before && written == 0 => return (total, End::Reached),
            Ok(_) => {}
            Err(_) => return (total, End::Broken),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn deflated(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn only_whole_clusters_pass() {
        const CLUSTER: usize = 1 << 16;
        let noise: Vec<u8> = (0..=CLUSTER).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
        for zstd in [false, true] {
            let pack = |data: &[u8]| if zstd { zstd::encode_all(data, 3).unwrap() } else { deflated(data) };
            let judge = |bytes: &[u8]| inflates(bytes, CLUSTER as u64, zstd);
            let whole = pack(&noise[..CLUSTER]);
            assert_eq!(judge(&whole), Ok(()), "zstd: {zstd}");
            assert_eq!(judge(&[&whole[..], &[0xff; 600]].concat()), Ok(()), "bytes behind the stream, zstd: {zstd}");
            assert_eq!(judge(&pack(&noise[..CLUSTER - 1])), Err(Flaw::Short(CLUSTER as u64 - 1)), "zstd: {zstd}");
            assert_eq!(judge(&pack(&noise)), Err(Flaw::Long), "zstd: {zstd}");
            assert!(matches!(judge(&whole[..whole.len() / 2]), Err(Flaw::Short(_))), "cut, zstd: {zstd}");
            assert_eq!(judge(&[]), Err(Flaw::Short(0)), "zstd: {zstd}");
            assert!(matches!(judge(&[0xff; 512]), Err(Flaw::Broken(0))), "garbage, zstd: {zstd}");
            let bomb = pack(&vec![0; 64 << 20]);
            assert_eq!(judge(&bomb), Err(Flaw::Long), "bomb, zstd: {zstd}");
        }
        // A frame without a content size that asks for a window of 64 MiB, holding one raw block.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (26 - 10) << 3];
        frame.extend_from_slice(&(512u32 << 3 | 1).to_le_bytes()[..3]);
        frame.extend_from_slice(&[7; 512]);
        assert_eq!(inflates(&frame, 512, true), Err(Flaw::Broken(0)), "a window of 64 MiB");
        frame[5] = (20 - 10) << 3;
        assert_eq!(inflates(&frame, 512, true), Ok(()), "a window of 1 MiB");
    }
}
