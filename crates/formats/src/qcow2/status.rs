//! Block status: what the map says of a guest range.

use blkproof_block::{BlockDevice, BlockStatus, Result};

use super::Qcow2;
use super::read::Source;

impl<D: BlockDevice> Qcow2<D> {
    /// The extent that begins at `at`, inside the disk. Adjacent pieces of one kind are one extent.
    pub(crate) async fn guest_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let end = at + len;
        // Nobody changes the map of this range while we look (bug gallery G22).
        let _range = self.requests.shared(self.clusters_of(at, len)).await;
        self.check_still_inside(at, len)?;
        let mut status = self.status_piece(at, end).await?;
        while status.len < len {
            let next = self.status_piece(at + status.len, end).await?;
            if !status.continues_as(&next) {
                break;
            }
            status.len += next.len;
        }
        Ok(status)
    }

    /// The piece that begins at `at`. The caller has its clusters locked.
    pub(crate) async fn status_piece(&self, at: u64, end: u64) -> Result<BlockStatus> {
        let slot = self.l1_slot(at);
        let end = end.min(self.slot_end(slot));
        let table = self.l2_table(slot).await.map_err(|e| e.at(at))?;
        let piece = match self.piece(table.as_deref(), at, end) {
            Ok(piece) => piece,
            Err(bad) => return Err(self.bad_entry(table.as_deref(), at, bad).await),
        };
        Ok(match piece.source {
            Source::Zero => BlockStatus::zero(piece.len),
            Source::Data(host) => BlockStatus::data(piece.len, Some(host)),
            Source::Compressed(..) => BlockStatus { compressed: true, ..BlockStatus::data(piece.len, None) },
            Source::Unallocated => match &self.backing {
                Some(backing) if at < backing.info().size => {
                    let len = piece.len.min(backing.info().size - at);
                    let below = backing.block_status(at, len).await?;
                    BlockStatus { allocated: false, depth: below.depth + 1, ..below }
                }
                _ => BlockStatus::unallocated(piece.len),
            },
        })
    }
}
