//! One request of whatever kind, so that one pipeline serves all of them.

use blkproof_block::{BlockDevice as _, BlockStatus, Node, Preallocation, Result, WriteFlags, ZeroFlags};

/// What a request brings along, or wants back.
pub(super) enum Work<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8], WriteFlags),
    WriteZeroes(ZeroFlags),
    Discard,
    Flush,
    BlockStatus(&'a mut Option<BlockStatus>),
    Resize(u64, Preallocation),
}

impl Work<'_> {
    /// Does the first `len` bytes of it at `at`. A request without a range is done whole, or not at all for 0 of 0 bytes.
    pub(super) async fn perform(&mut self, child: &Node, at: u64, len: u64) -> Result<()> {
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        match self {
            Self::Read(buf) => {
                let len = buf.len().min(bytes);
                child.read(at, buf.get_mut(..len).unwrap_or_default()).await
            }
            Self::Write(data, flags) => child.write(at, data.get(..bytes).unwrap_or(data), *flags).await,
            Self::WriteZeroes(flags) => child.write_zeroes(at, len, *flags).await,
            Self::Discard => child.discard(at, len).await,
            Self::Flush => child.flush().await,
            Self::BlockStatus(status) => {
                **status = Some(child.block_status(at, len).await?);
                Ok(())
            }
            Self::Resize(size, preallocation) => child.resize(*size, *preallocation).await,
        }
    }

    /// Leaves a caller that hears of success without anything done with something definite.
    pub(super) fn pretend(&mut self, len: u64) {
        match self {
            Self::Read(buf) => buf.fill(0),
            Self::BlockStatus(status) => **status = Some(BlockStatus::data(len, None)),
            _ => {}
        }
    }

    /// Whether bytes go along with it, in either direction.
    pub(super) fn has_data(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Write(..))
    }
}
