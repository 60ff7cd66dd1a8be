//! Planted faults: a TEST that goes wrong the way disks and drivers do, and what the mirror says of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, clippy::type_complexity)]

mod common;

use blkproof_block::testing::{block_on, hash};
use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_verify::{Diagnosis, Difference, Mismatch, OnMismatch, Outcome, RequestKind, VerifyOptions};
use common::{Bench, K};

/// Sectors that are all different.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len.div_ceil(8) as u64).flat_map(|word| hash(seed, word).to_le_bytes()).take(len).collect()
}

/// Writes `noise(1)`, then `noise(2)` over the first 16 KiB, then lets `plant` spoil TEST, then reads all of it.
fn planted(plant: impl FnOnce(&Bench)) -> (Bench, Mismatch) {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    block_on(async {
        bench.verify.write(0, &noise(1, 16384), WriteFlags::empty()).await.unwrap();
        bench.verify.write(0, &noise(2, 16384), WriteFlags::empty()).await.unwrap();
        bench.verify.write(32768, &noise(3, 4096), WriteFlags::empty()).await.unwrap();
        plant(&bench);
        bench.verify.read(0, &mut vec![0; 65536]).await.unwrap();
    });
    let mut seen = bench.seen();
    assert_eq!(seen.len(), 1);
    (bench, seen.remove(0))
}

fn put(at: u64, bytes: Vec<u8>) -> impl FnOnce(&Bench) {
    move |bench| bench.test.tamper(|content| content.write(at, &bytes))
}

fn old(at: usize, len: usize) -> Vec<u8> {
    noise(1, 16384)[at..at + len].to_vec()
}

fn new(at: usize, len: usize) -> Vec<u8> {
    noise(2, 16384)[at..at + len].to_vec()
}

#[test]
fn each_planted_fault_is_called_by_its_name() {
    // What TEST holds in the sector at 1024, and what the mirror makes of it.
    let torn = |cut: usize| [new(1024, cut), old(1024 + cut, 512 - cut)].concat();
    let reversed = |cut: usize| [old(1024, cut), new(1024 + cut, 512 - cut)].concat();
    let mut flipped = new(1024, 512);
    flipped[100] ^= 0x10;
    let mut two_flips = flipped.clone();
    two_flips[511] ^= 0x01;
    let table: Vec<(&str, Vec<u8>, fn(&Diagnosis) -> bool)> = vec![
        ("stale", old(1024, 512), |d| matches!(d, Diagnosis::Stale { found } if found.op == 1)),
        (
            "misdirected, from a neighbour",
            new(4096, 512),
            |d| matches!(d, Diagnosis::Misdirected { from: 4096, version: Some(v) } if v.op == 2),
        ),
        (
            "misdirected, an old version of another",
            old(8192, 512),
            |d| matches!(d, Diagnosis::Misdirected { from: 8192, version: Some(v) } if v.op == 1),
        ),
        (
            "misdirected, from afar",
            noise(3, 512),
            |d| matches!(d, Diagnosis::Misdirected { from: 32768, version: Some(v) } if v.op == 3),
        ),
        ("zeroes", vec![0; 512], |d| matches!(d, Diagnosis::Zeroes)),
        (
            "torn",
            torn(128),
            |d| matches!(d, Diagnosis::Torn { cut, new_first: true, old: Some(v) } if *cut == 1024 + 128 && v.op == 1),
        ),
        (
            "torn at an odd byte",
            torn(77),
            |d| matches!(d, Diagnosis::Torn { cut, new_first: true, old: Some(v) } if *cut == 1024 + 77 && v.op == 1),
        ),
        (
            "torn, the end arrived",
            reversed(200),
            |d| matches!(d, Diagnosis::Torn { cut, new_first: false, old: Some(v) } if *cut == 1024 + 200 && v.op == 1),
        ),
        (
            "torn over zeroes",
            [new(1024, 256), vec![0; 256]].concat(),
            |d| matches!(d, Diagnosis::Torn { cut, new_first: true, old: None } if *cut == 1024 + 256),
        ),
        ("a foreign piece in the middle", [new(1024, 200), noise(98, 50), new(1274, 262)].concat(), |d| {
            matches!(d, Diagnosis::Foreign)
        }),
        ("a flipped bit", flipped, |d| matches!(d, Diagnosis::BitFlips)),
        ("two flipped bits", two_flips, |d| matches!(d, Diagnosis::BitFlips)),
        ("foreign", noise(99, 512), |d| matches!(d, Diagnosis::Foreign)),
    ];
    for (name, bytes, is_it) in table {
        let (_, mismatch) = planted(put(1024, bytes));
        let diagnosis = mismatch.diagnosis().unwrap();
        assert!(is_it(diagnosis), "{name}: {diagnosis:?}");
        let Difference::Content { ranges, sectors, .. } = &mismatch.difference else { panic!() };
        assert_eq!((ranges.len(), ranges[0].start, ranges[0].end), (1, 1024, 1536), "{name}");
        let last = sectors[0].last_write.as_ref().unwrap();
        assert_eq!((last.op, last.kind, last.outcome), (2, RequestKind::Write, Outcome::Done), "{name}");
        assert_eq!(sectors[0].expected, new(1024, 512), "{name}");
        let earlier: Vec<_> = sectors[0].earlier.iter().map(|version| version.op).collect();
        assert_eq!(earlier, [1], "{name}: the version before the last");
        assert!(mismatch.to_string().contains("\n    before that by operation 1 (write)"), "{name}: {mismatch}");
    }
}

#[test]
fn a_wrong_reference_is_not_blamed_on_test() {
    let (_, mismatch) = planted(|bench| bench.raw.tamper(|content| content.write(1024, &noise(50, 512))));
    assert!(matches!(mismatch.diagnosis(), Some(Diagnosis::ReferenceWrong { version }) if version.op == 2));
}

#[test]
fn the_bits_are_named() {
    let (_, mismatch) = planted(|bench| {
        bench.test.tamper(|content| {
            let mut byte = [0];
            content.read(1030, &mut byte);
            content.write(1030, &[byte[0] ^ 0x81]);
        });
    });
    let Difference::Content { sectors, first_bad, .. } = &mismatch.difference else { panic!() };
    let bits: Vec<_> = sectors[0].bits.iter().map(|flip| (flip.at, flip.bit)).collect();
    assert_eq!((*first_bad, sectors[0].bits_differing, &*bits), (1030, 2, &[(1030, 0), (1030, 7)][..]));
    let should = new(1030, 1)[0];
    assert_eq!(sectors[0].bits[0].expected, should & 1 == 1);
}

#[test]
fn a_lost_write_is_told_in_every_sector_it_should_have_changed() {
    let (_, mismatch) = planted(put(4096, old(4096, 4096)));
    let Difference::Content { sectors, ranges, .. } = &mismatch.difference else { panic!() };
    assert_eq!((ranges[0].start, ranges[0].end, sectors.len()), (4096, 8192, 8));
    for sector in sectors {
        assert!(matches!(&sector.diagnosis, Diagnosis::Stale { found } if found.op == 1), "{sector:?}");
        assert_eq!(sector.last_write.as_ref().unwrap().op, 2);
    }
}

#[test]
fn a_write_torn_between_sectors_shows_as_a_lost_end() {
    let (_, mismatch) = planted(put(8192, old(8192, 8192)));
    assert_eq!(mismatch.first_bad(), Some(8192));
    let text = mismatch.to_string();
    assert!(text.contains("operation 2 (write) reached test up to 0x2000"), "{text}");
}

#[test]
fn a_sector_read_in_part_is_still_recognised() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    block_on(async {
        bench.verify.write(0, &noise(1, 4096), WriteFlags::empty()).await.unwrap();
        bench.verify.write(0, &noise(2, 4096), WriteFlags::empty()).await.unwrap();
        bench.test.tamper(|content| content.write(512, &old(512, 512)));
        bench.verify.read(600, &mut [0; 10]).await.unwrap();
    });
    let seen = bench.seen();
    assert_eq!((seen[0].ranges()[0].start, seen[0].ranges()[0].end), (600, 610));
    assert!(matches!(seen[0].diagnosis(), Some(Diagnosis::Stale { found }) if found.op == 1), "{:?}", seen[0]);
}

#[test]
fn what_the_history_forgot_is_said_to_be_unknown() {
    let options = VerifyOptions::new(OnMismatch::Report);
    let bench = Bench::with(64 * K, options);
    // The bench keeps 1 MiB of history: 30 MiB of writes are more than it holds.
    block_on(async {
        bench.verify.write(0, &noise(1, 512), WriteFlags::empty()).await.unwrap();
        for step in 0..1000 {
            bench.verify.write(4096, &noise(step, 49152), WriteFlags::empty()).await.unwrap();
        }
        bench.test.tamper(|content| content.write(0, &noise(77, 512)));
        bench.verify.read(0, &mut [0; 512]).await.unwrap();
    });
    let seen = bench.seen();
    assert!(seen[0].history_begins_at > 1);
    let text = seen[0].to_string();
    assert!(text.contains("no write to it is known (the history is complete from operation"), "{text}");
    assert_eq!(bench.verify.with_history(|history| history.size()), 1 << 20);
}

#[test]
fn operations_are_dated_by_the_clock_they_are_given() {
    let now = std::rc::Rc::new(std::cell::Cell::new(0));
    let clock = now.clone();
    let bench = Bench::with(K, VerifyOptions::default().clock(move || clock.get()));
    let fio = bench.verify.client("fio");
    block_on(async {
        now.set(1_250_000_000);
        fio.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        now.set(2_000_000_000);
        bench.test.tamper(|content| content.write(0, &[0; 512]));
        bench.verify.read(0, &mut [0; 512]).await.unwrap();
    });
    let text = bench.seen()[0].to_string();
    assert!(text.contains("last written by operation 1 (write) of client 'fio' at 1.250000 s"), "{text}");
    assert!(text.contains("seen by operation 2 at 2.000000 s"), "{text}");
}

/// The whole message, as a user sees it.
#[test]
fn the_story_reads_like_this() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    let text = |fill: u8| {
        let mut sector = vec![b'.'; 512];
        sector[..16].copy_from_slice(b"sector of oper. ");
        sector[15] = fill;
        sector
    };
    block_on(async {
        bench.verify.client("guest").write(4096, &text(b'1'), WriteFlags::empty()).await.unwrap();
        bench.verify.client("guest").write(4096, &text(b'2'), WriteFlags::empty()).await.unwrap();
        bench.test.tamper(|content| content.write(4096, &text(b'1')));
        bench.verify.read(0, &mut vec![0; 65536]).await.unwrap();
    });
    let want = "\
blkverify: read offset=0 bytes=65536 contents mismatch at offset 4111
  seen by operation 3
  1 of 128 sectors differs: 0x1000..0x1200
  sector 8 (0x1000): holds an older version of itself, written by operation 1 (write) of client 'guest'
    last written by operation 2 (write) of client 'guest'
    before that by operation 1 (write) of client 'guest'
    2 bits differ: byte 0x100f bit 0 is 1 not 0; byte 0x100f bit 1 is 0 not 1
    offset       expected from raw                   found in test (differing bytes marked *)
    …            1 equal row
    0x1008       66 20 6f 70 65 72 2e*32 |f oper.2|   66 20 6f 70 65 72 2e*31 |f oper.1|
    …            62 equal rows";
    let got = bench.seen()[0].to_string();
    let squeeze =
        |text: &str| text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    assert_eq!(squeeze(&got), squeeze(want), "\n{got}");
}
