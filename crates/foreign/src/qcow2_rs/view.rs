//! A raw disk as a qcow2 file: the crate takes nothing else below an overlay.
//!
//! Header, L1 table and L2 tables are made up; the data begins behind them, each cluster where its number says. Nobody
//! writes to such a file, so it has no refcounts.

use blkproof_block::{BlockDevice as _, Node, Result};

const CLUSTER: u64 = 64 << 10;
const CLUSTER_BITS: u32 = 16;
/// Entries of a table.
const ENTRIES: u64 = CLUSTER / 8;
const COPIED: u64 = 1 << 63;

/// A raw disk as a qcow2 file.
#[derive(Debug)]
pub(super) struct View {
    node: Node,
    /// The file up to its data.
    head: Vec<u8>,
}

impl View {
    pub(super) fn new(node: Node) -> Self {
        let size = node.info().size.next_multiple_of(512);
        let clusters = size.div_ceil(CLUSTER);
        let tables = clusters.div_ceil(ENTRIES).max(1);
        // Header, refcount table, L1 table, L2 tables.
        let data = CLUSTER * (3 + tables);
        let mut head = vec![0; usize::try_from(data).unwrap_or(0)];
        put(&mut head, 0, &0x5146_49fb_u32.to_be_bytes());
        put(&mut head, 4, &3_u32.to_be_bytes());
        put(&mut head, 20, &CLUSTER_BITS.to_be_bytes());
        put(&mut head, 24, &size.to_be_bytes());
        put(&mut head, 36, &u32::try_from(tables).unwrap_or(u32::MAX).to_be_bytes());
        put(&mut head, 40, &(2 * CLUSTER).to_be_bytes());
        put(&mut head, 48, &CLUSTER.to_be_bytes());
        put(&mut head, 56, &1_u32.to_be_bytes());
        put(&mut head, 96, &4_u32.to_be_bytes());
        put(&mut head, 100, &104_u32.to_be_bytes());
        for table in 0..tables {
            put(&mut head, 2 * CLUSTER + 8 * table, &(COPIED | (CLUSTER * (3 + table))).to_be_bytes());
        }
        for cluster in 0..clusters {
            put(&mut head, 3 * CLUSTER + 8 * cluster, &(COPIED | (data + CLUSTER * cluster)).to_be_bytes());
        }
        Self { node, head }
    }

    /// Fills `buf`, with zeroes behind the end.
    pub(super) async fn read(&self, at: u64, buf: &mut [u8]) -> Result<usize> {
        buf.fill(0);
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(head) = self.head.get(start..) {
            let len = head.len().min(buf.len());
            if let (Some(from), Some(to)) = (head.get(..len), buf.get_mut(..len)) {
                to.copy_from_slice(from);
            }
        }
        let skip = self.head.len().saturating_sub(start);
        let from = at.saturating_sub(self.head.len() as u64);
        let there = self.node.info().size.saturating_sub(from);
        let end = skip.saturating_add(usize::try_from(there).unwrap_or(usize::MAX)).min(buf.len());
        if let Some(data) = buf.get_mut(skip..end)
            && !data.is_empty()
        {
            self.node.read(from, data).await?;
        }
        Ok(buf.len())
    }
}

fn put(head: &mut [u8], at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    if let Some(place) = head.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        place.copy_from_slice(bytes);
    }
}
