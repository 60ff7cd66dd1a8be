//! What the tests of write logs share.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::rc::Rc;

use blkproof_block::nodes::memory::{Memory, SparseBytes};
use blkproof_block::testing::block_on;
use blkproof_block::{BlockDevice as _, Node};
use blkproof_fault::clock::Stopped;
use blkproof_fault::log_writes::append::{Appender, How};
use blkproof_fault::log_writes::format::SectorSize;
use blkproof_fault::log_writes::node::LogWrites;
use blkproof_fault::log_writes::read::{Entry, Extent, Log};
use blkproof_fault::log_writes::replay::{Discards, Until, replay};

pub fn how(sector: u64, details: bool) -> How {
    How { sector: SectorSize::new(sector).unwrap(), interval: 4096, details }
}

/// The filter over `file`, with a log on `log`.
pub fn node(file: Node, log: Node, how: How) -> LogWrites {
    let appender = block_on(Appender::open(log, how, None)).unwrap();
    LogWrites::new(file, appender, Rc::new(Stopped))
}

/// A node that holds what `bytes` says.
pub fn device(bytes: &SparseBytes) -> Node {
    let mut content = vec![0; usize::try_from(bytes.size()).unwrap()];
    bytes.read(0, &mut content);
    Node::new(Memory::with_content(&content))
}

pub fn content(bytes: &SparseBytes) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(bytes.size()).unwrap()];
    bytes.read(0, &mut content);
    content
}

/// Every entry, checksums included.
#[track_caller]
pub fn entries(log: &Node, extent: Extent) -> Vec<Entry> {
    block_on(async {
        let log = Log::open(log.clone()).await.unwrap();
        let mut cursor = log.entries(extent).verified();
        let mut entries = Vec::new();
        while let Some(entry) = cursor.next().await.unwrap() {
            entries.push(entry);
        }
        entries
    })
}

/// What the log makes of an image of `size` zero bytes.
#[track_caller]
pub fn replayed(log: &Node, extent: Extent, until: &Until, size: u64) -> Vec<u8> {
    block_on(async {
        let log = Log::open(log.clone()).await.unwrap();
        let image = Memory::new(size);
        replay(&log, &mut log.entries(extent), until, &image, Discards::Zero).await.unwrap();
        let mut bytes = vec![0; usize::try_from(image.info().size).unwrap()];
        image.read(0, &mut bytes).await.unwrap();
        bytes
    })
}

/// `write 0x0..0x200 FUA`, and so on: entries as a table.
pub fn lines(entries: &[Entry]) -> Vec<String> {
    let line = |entry: &Entry| {
        let mut line = entry.operation().to_owned();
        if !entry.range.is_empty() {
            line += &format!(" {}", entry.range);
        }
        for (name, _) in entry.flags.iter_names().filter(|(name, _)| *name == "FUA") {
            line += &format!(" {name}");
        }
        if let Some(text) = &entry.text {
            line += &format!(" '{text}'");
        }
        line
    };
    entries.iter().map(line).collect()
}
