//! Reading logs: the kernel's, hostile ones, damaged ones.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod log_common;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::testing::block_on;
use blkproof_block::{BlockDevice as _, Node, WriteFlags};
use blkproof_fault::log_writes::append::{Appender, Content};
use blkproof_fault::log_writes::format::{Flags, Superblock};
use blkproof_fault::log_writes::read::{Extent, Fault, Log, LogError, Rest, Writer};
use blkproof_fault::log_writes::replay::{Discards, Until, replay};
use log_common::{entries, how, lines, replayed};
use proptest::prelude::*;

/// A log as the description of the format has it, nothing of this program's.
struct Bytes {
    bytes: Vec<u8>,
    sector: usize,
}

impl Bytes {
    fn new(sector: usize, entries: u64) -> Self {
        let mut bytes = b"rhswfsj\0".to_vec();
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes.extend((sector as u32).to_le_bytes());
        bytes.resize(sector, 0);
        Self { bytes, sector }
    }

    fn entry(mut self, sector: u64, sectors: u64, flags: u64, text: &[u8], payload: &[u8]) -> Self {
        let start = self.bytes.len();
        for word in [sector, sectors, flags, text.len() as u64] {
            self.bytes.extend(word.to_le_bytes());
        }
        self.bytes.extend(text);
        self.bytes.resize(start + self.sector, 0);
        self.bytes.extend(payload);
        self
    }

    fn node(&self) -> Node {
        Node::new(Memory::with_content(&self.bytes))
    }
}

fn walk(node: &Node, extent: Extent) -> (Vec<String>, Result<Rest, LogError>) {
    block_on(async {
        let log = match Log::open(node.clone()).await {
            Ok(log) => log,
            Err(error) => return (Vec::new(), Err(error)),
        };
        let mut cursor = log.entries(extent).verified();
        let mut all = Vec::new();
        loop {
            match cursor.next().await {
                Ok(Some(entry)) => all.push(entry),
                Ok(None) => return (lines(&all), Ok(cursor.rest().clone())),
                Err(error) => {
                    assert_eq!(cursor.next().await, Ok(None), "an error is the last answer");
                    return (lines(&all), Err(error));
                }
            }
        }
    })
}

/// What dm-log-writes writes: FUA on completion, the rest before the flush that covers it, a mark, a preflush with
/// data, METADATA, a discard, the end mark; with sectors of 4 KiB.
fn kernel_log() -> Bytes {
    Bytes::new(4096, 7)
        .entry(0, 1, 0, b"", &[1; 4096])
        .entry(2, 1, 16, b"", &[2; 4096])
        .entry(0, 0, 1, b"", b"")
        .entry(0, 0, 8, b"mkfs", b"")
        .entry(1, 1, 1 | 2 | 16, b"", &[3; 4096])
        .entry(2, 1, 4, b"", b"")
        .entry(0, 0, 8, b"dm-log-writes-end", b"")
}

#[test]
fn the_kernels_log_is_read() {
    let log = kernel_log().node();
    let all = entries(&log, Extent::Counted);
    let want = [
        "write 0x0..0x1000",
        "write 0x2000..0x3000",
        "flush",
        "mark 'mkfs'",
        "write 0x1000..0x2000 FUA",
        "discard 0x2000..0x3000",
        "mark 'dm-log-writes-end'",
    ];
    assert_eq!(lines(&all), want);
    assert_eq!(all[1].flags, Flags::METADATA);
    let writer = all.iter().fold(Writer::Unknown, Writer::seen);
    assert_eq!(writer, Writer::Kernel);
    let image = replayed(&log, Extent::Counted, &Until::Mark("mkfs".into()), 12288);
    assert!(image[..4096] == [1; 4096] && image[4096..8192] == [0; 4096] && image[8192..] == [2; 4096]);
    let image = replayed(&log, Extent::Counted, &Until::Fua(0), 12288);
    assert!(image[4096..8192] == [3; 4096] && image[8192..] == [2; 4096]);
    let image = replayed(&log, Extent::Counted, &Until::End, 12288);
    assert!(image[8192..] == [0; 4096]);
}

#[test]
fn places_to_end_at() {
    let log = kernel_log().node();
    for (until, done, found) in [
        (Until::Entries(0), 0, true),
        (Until::Entries(3), 3, true),
        (Until::Entries(7), 7, true),
        (Until::Entries(8), 7, false),
        (Until::Mark("mkfs".into()), 3, true),
        (Until::Mark("none".into()), 7, false),
        (Until::Flush(0), 3, true),
        (Until::Flush(3), 5, true),
        (Until::Flush(5), 7, false),
        (Until::Fua(0), 5, true),
        (Until::Fua(5), 7, false),
        (Until::End, 7, true),
    ] {
        block_on(async {
            let log = Log::open(log.clone()).await.unwrap();
            let image = Memory::new(0);
            let got = replay(&log, &mut log.entries(Extent::All), &until, &image, Discards::Zero).await.unwrap();
            assert_eq!((got.entries, got.found), (done, found), "{until:?}");
        });
    }
}

#[test]
fn what_is_damaged_is_named_and_what_comes_before_is_used() {
    let good = || Bytes::new(512, 3).entry(0, 1, 0, b"", &[1; 512]).entry(0, 0, 1, b"", b"");
    let table: [(Bytes, usize, &str); 7] = [
        (good(), 2, "entry 2 at 0x800: the superblock counts 3 entries, and the log ends before this one"),
        (
            good().entry(0, 9, 0, b"", &[1; 512]),
            2,
            "entry 2 at 0x800: the log ends within it: it needs 0x1400 bytes, and there are 0x400",
        ),
        (good().entry(0, 1, 32, b"", &[1; 512]), 2, "entry 2 at 0x800: flags 0x20 are not known"),
        (
            good().entry(u64::MAX / 512, 1, 0, b"", &[1; 512]),
            2,
            "entry 2 at 0x800: 1 sectors from sector 36028797018963967 end past any disk",
        ),
        (
            good().entry(1, u64::MAX, 4, b"", b""),
            2,
            "entry 2 at 0x800: 18446744073709551615 sectors from sector 1 end past any disk",
        ),
        (
            good().entry(0, u64::MAX, 0, b"", b""),
            2,
            "entry 2 at 0x800: the log ends within it: it needs 0x2000000000000000000 bytes, and there are 0x200",
        ),
        (
            good().entry(0, 0, 8, &[b'x'; 600], b""),
            2,
            "entry 2 at 0x800: the text of a mark has 600 bytes, which do not fit",
        ),
    ];
    for (bytes, count, words) in table {
        let (lines, end) = walk(&bytes.node(), Extent::Counted);
        assert_eq!(lines.len(), count, "{words}");
        let error = end.unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}\nwanted {words}");
    }
    // Half a sector.
    let mut bytes = good();
    bytes.bytes.extend([7; 100]);
    let (lines, end) = walk(&bytes.node(), Extent::Counted);
    assert_eq!((lines.len(), end.is_err()), (2, true));
}

#[test]
fn what_the_superblock_does_not_count_is_used_when_asked_for() {
    let bytes = Bytes::new(512, 1).entry(0, 1, 0, b"", &[1; 512]).entry(0, 0, 1, b"", b"");
    let one = ["write 0x0..0x200"];
    for (extent, rest) in [(Extent::Counted, Rest::Uncounted), (Extent::Trusted, Rest::Uncounted)] {
        let (lines, end) = walk(&bytes.node(), extent);
        assert_eq!((lines.as_slice(), end), (&one.map(String::from)[..], Ok(rest)), "{extent:?}");
    }
    let (lines, end) = walk(&bytes.node(), Extent::All);
    assert_eq!((lines.len(), end), (2, Ok(Rest::Nothing)));
    // And what is no entry is said, and is no error.
    let torn = bytes.entry(0, 5, 0, b"", &[1; 512]);
    let (lines, end) = walk(&torn.node(), Extent::All);
    assert_eq!(lines.len(), 2);
    let Ok(Rest::Incomplete(LogError::Entry { index: 2, fault: Fault::Truncated { .. }, .. })) = end else {
        panic!("{end:?}");
    };
}

#[test]
fn checksums_vouch_for_entries_and_show_damage() {
    // Counted: 0. With checksums that does not matter.
    let log = Node::new(Memory::new(64 << 10));
    let appender = block_on(Appender::open(log.clone(), how(512, true), None)).unwrap();
    block_on(async {
        for byte in 0..4 {
            let entries = appender.push(Content::Data(512 * u64::from(byte), &[byte; 512]), Flags::empty(), 0, 0);
            appender.commit(entries).await.unwrap();
        }
        appender.push(Content::Zeroes(0, 4096), Flags::empty(), 4, 0);
        let entries = appender.push(Content::Mark(b"here"), Flags::empty(), 5, 0);
        appender.commit(entries).await.unwrap();
    });
    assert_eq!(walk(&log, Extent::Counted).0.len(), 0);
    assert_eq!(walk(&log, Extent::Trusted).0.len(), 6);
    // One bit in the payload of the third.
    let at = 512 + 2 * 1024 + 512 + 17;
    block_on(async {
        let mut byte = [0];
        log.read(at, &mut byte).await.unwrap();
        log.write(at, &[byte[0] ^ 8], WriteFlags::empty()).await.unwrap();
    });
    let (lines, end) = walk(&log, Extent::Trusted);
    assert_eq!(lines.len(), 2);
    assert!(matches!(end, Ok(Rest::Incomplete(LogError::Entry { index: 2, fault: Fault::Chain, .. }))), "{end:?}");
}

#[test]
fn an_older_log_behind_the_new_one_is_not_trusted() {
    // As QEMU leaves it: four entries of an older log, one of the new one over the first.
    let old = |byte: u8, bytes: Bytes| bytes.entry(0, 1, 0, b"", &[byte; 512]);
    let bytes = old(4, old(3, old(2, old(9, Bytes::new(512, 1)))));
    assert_eq!(walk(&bytes.node(), Extent::Trusted).0.len(), 1);
    assert_eq!(walk(&bytes.node(), Extent::All).0.len(), 4, "asked for, they are used: nothing tells them apart");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn hostile_bytes_end_in_words(
        entries in any::<u64>(),
        shift in 5_u32..14,
        words in prop::collection::vec(
            (0_u64..8, prop_oneof![0_u64..4, any::<u64>()], 0_u64..40, prop_oneof![0_u64..64, any::<u64>()]),
            0..8,
        ),
        cut in 0_usize..400,
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let sector = 1_usize << shift;
        let mut bytes = Superblock { entries, sector: how(sector as u64, false).sector }.encode();
        for (at, sectors, flags, data_len) in words {
            let start = bytes.len();
            for word in [at, sectors, flags, data_len] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.resize(start + sector, 0);
            if sectors < 4 {
                bytes.resize(bytes.len() + sector * sectors as usize, 3);
            }
        }
        for (index, byte) in noise {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let node = Node::new(Memory::with_content(&bytes));
        for extent in [Extent::Counted, Extent::Trusted, Extent::All] {
            let _ = walk(&node, extent);
        }
        block_on(async {
            if let Ok(log) = Log::open(node).await {
                let image = Memory::new(0);
                let _ = replay(&log, &mut log.entries(Extent::All), &Until::Entries(100), &image, Discards::Zero).await;
            }
        });
    }
}
