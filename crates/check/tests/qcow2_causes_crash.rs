//! Images QEMU itself damaged: killed in the middle of its work, with some of its writes dropped, or two of them at
//! once.
//!
//! What a power cut leaves is made out of two states of one image: the later one, of which only some blocks reached the
//! disk.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::single_range_in_vec_init)]

mod causes_support;

use blkproof_check::report::Cause;
use blkproof_check::{Report, Verdict};
use causes_support::*;

const BLOCK: usize = 4096;

/// `before`, with those 4 KiB blocks of `after` that differ and are `kept`.
fn cut(before: &Image, after: &Image, kept: impl Fn(u64) -> bool) -> Image {
    let image = before.copy();
    let (old, new) = (before.bytes(), after.bytes());
    image.truncate(new.len() as u64);
    for (index, block) in new.chunks(BLOCK).enumerate() {
        let at = (index * BLOCK) as u64;
        if old.get(index * BLOCK..index * BLOCK + block.len()) != Some(block) && kept(at) {
            image.write(at, block);
        }
    }
    image
}

/// Two states: 64 MiB on the disk, and 64 MiB more.
fn two_states() -> (Image, Image) {
    let image = Image::create("2G", "");
    image.io(&["write -q -P 7 0 64M".to_owned(), "flush".to_owned()]);
    let before = image.copy();
    image.io(&["write -q -P 9 600M 64M".to_owned(), "write -q -P 3 64M 16M".to_owned(), "flush".to_owned()]);
    assert_eq!(image.qemu_status(), 0);
    (before, image)
}

fn within(at: u64, clusters: &[u64]) -> bool {
    clusters.iter().any(|cluster| (*cluster..cluster + 65536).contains(&at))
}

/// The tables reached the disk, the counts did not: nothing is lost yet, and the next write would destroy it.
#[test]
fn counts_dropped() {
    let (before, after) = two_states();
    let blocks = after.blocks();
    let image = cut(&before, &after, |at| !within(at, &blocks));
    assert_eq!(image.qemu_status(), 2);
    let report = image.check();
    expect_cause(
        "counts",
        &report,
        Verdict::Damaged,
        &["counted", "no data is lost"].map(|word| if word == "counted" { "reference counts" } else { word }),
    );
    assert_eq!(report.lost.bytes, 0, "{}", story(&report));
    expect_next("counts", &report, "reading needs no counts");
    assert!(image.same_disk(&after.path));
    assert_eq!(report.causes.len(), 1, "{}", story(&report));
}

/// The counts reached the disk, the tables did not: leaks, and no more.
#[test]
fn tables_dropped() {
    let (before, after) = two_states();
    let blocks = after.blocks();
    let image = cut(&before, &after, |at| within(at, &blocks));
    assert_eq!(image.qemu_status(), 3);
    let report = image.check();
    expect_cause("tables", &report, Verdict::Leaks, &["counted and then not used", "interrupted"]);
    assert_eq!(report.lost.bytes, 0, "{}", story(&report));
    assert!(image.same_disk(&before.path));
}

/// All but the L1 table reached the disk: the new table is there, its owner is not.
#[test]
fn the_l1_table_dropped() {
    let (before, after) = two_states();
    let l1 = after.l1();
    let image = cut(&before, &after, |at| !within(at, &[l1]));
    let report = image.check();
    expect_cause(
        "L1",
        &report,
        Verdict::Damaged,
        &["L1 entries of the disk are missing", "1 L2 table that lost their owner"],
    );
    assert_eq!(report.lost.ranges, [600 * MIB..664 * MIB], "{}", story(&report));
    expect_next("L1", &report, "do not run 'qemu-img check -r leaks'");
}

/// Clusters given out twice look alike, whoever did it: both ways are named, and where to look.
fn says_either(cause: &Cause, report: &Report) {
    for words in [
        "either two programs wrote to the image at the same time",
        "or counts were lost in a crash and the clusters were given out again",
        "The image does not say which: look in the logs",
    ] {
        assert!(cause.what.contains(words), "{words:?}\n{}", story(report));
    }
}

/// Lost counts, and then QEMU goes on writing: it gives the clusters out again.
#[test]
fn clusters_given_out_again() {
    let (before, after) = two_states();
    let blocks = after.blocks();
    let image = cut(&before, &after, |at| !within(at, &blocks));
    image.io(&["write -q -P 1 1200M 20M".to_owned()]);
    assert_eq!(image.qemu_status(), 2);
    let report = image.check();
    assert_eq!(report.verdict, Verdict::Damaged);
    let cause = report
        .causes
        .iter()
        .find(|cause| cause.what.contains("used twice") || cause.what.contains("used by"))
        .unwrap_or_else(|| panic!("{}", story(&report)));
    says_either(cause, &report);
    assert!(!cause.what.contains("speaks for the former"), "{}", story(&report));
    // New data lies in 20 MiB of what was written at 600 MiB (and on its table).
    let lost: u64 = report.lost.bytes;
    assert!(lost >= 20 * MIB, "{}", story(&report));
    for at in [600 * MIB, 1200 * MIB] {
        assert!(cause.guest.iter().any(|guest| guest.contains(&at)), "{at:#x}\n{}", story(&report));
    }
    expect_next("again", &report, "do not run 'qemu-img check -r all'");
}

/// Two hosts with one disk.
#[test]
fn two_qemus_write_at_once() {
    let image = Image::create("2G", "");
    image.io(&["write -q -P 7 0 16M".to_owned()]);
    let mut first = Io::open(&image);
    let mut second = Io::open(&image);
    // FUA: the tables are written at once.
    first.write("-f -P 1 100M 16M");
    second.write("-f -P 2 300M 16M");
    first.write("-P 1 700M 8M");
    second.write("-P 2 1300M 8M");
    first.quit();
    second.quit();
    assert_eq!(image.qemu_status(), 2);
    let report = image.check();
    assert_eq!(report.verdict, Verdict::Damaged, "{}", story(&report));
    let cause = report.causes.first().unwrap();
    says_either(cause, &report);
    // What of one's table the other wrote over depends on who came last.
    let leaks = report.sums.iter().any(|(name, ..)| *name == "QCOW2-CLUSTER-LEAKED");
    assert_eq!(cause.what.contains("speaks for the former"), leaks, "{}", story(&report));
    assert!(report.lost.bytes >= 16 * MIB, "{}", story(&report));
    expect_next("two", &report, "do not run 'qemu-img check -r all'");
}

/// Killed with its writes unflushed: QEMU's own order of writes keeps the image whole but for leaks.
#[test]
fn killed_while_allocating() {
    for lazy in [false, true] {
        let image = Image::create("2G", if lazy { "lazy_refcounts=on" } else { "" });
        image.io(&["write -q -P 7 0 16M".to_owned()]);
        let mut io = Io::open(&image);
        for at in 0..40 {
            io.write(&format!("-P 9 {}M 300k", 30 + at * 37));
        }
        io.kill();
        let report = image.check();
        let qemu = image.qemu_status();
        if lazy {
            // Its counts are stale by design; the image says so, and opening it makes them anew.
            assert!(matches!(report.verdict, Verdict::Healthy | Verdict::Leaks), "{}", story(&report));
        } else {
            assert_eq!(i32::from(report.verdict.exit_status()), qemu, "{}", story(&report));
            assert!(matches!(report.verdict, Verdict::Healthy | Verdict::Leaks), "{}", story(&report));
        }
        assert_eq!(report.lost.bytes, 0, "{}", story(&report));
        for cause in &report.causes {
            assert!(cause.what.contains("interrupted") || cause.what.contains("not closed"), "{}", story(&report));
        }
    }
}

/// Lazy counts after a kill: `qemu-img check` compares them and calls it corrupt. Ours says why it is not, in findings.
#[test]
fn stale_counts_of_a_dirty_image() {
    let image = Image::create("64M", "lazy_refcounts=on");
    let mut io = Io::open(&image);
    io.write("-f -P 1 0 1M");
    io.kill();
    assert_eq!(image.qemu_status(), 2);
    let report = image.check();
    assert_eq!(report.verdict.exit_status(), 0, "{}", story(&report));
    let of = |code: &str| report.findings.iter().filter(|finding| finding.code.name == code).collect::<Vec<_>>();
    assert_eq!(of("QCOW2-FEATURE-DIRTY").len(), 1, "{}", story(&report));
    assert!(of("QCOW2-FEATURE-DIRTY")[0].code.why.contains("'qemu-img check' compares them all the same"));
    let free = of("QCOW2-CLUSTER-FREE-IN-USE");
    assert!(!free.is_empty() && free.iter().all(|one| one.what.contains("expected while the image is marked dirty")));
    assert_eq!(free.iter().map(|one| one.count).sum::<u64>(), 16, "{}", story(&report));

    // An entry that is zeroed besides: its cluster is a leak, which the next opening would free.
    let l2 = image.l2s()[0];
    image.zero(l2 + 8 * 3..l2 + 8 * 4);
    let host = image.u64_at(l2 + 8 * 4) & 0x00ff_ffff_ffff_fe00;
    let count = image.blocks()[0] + (host / image.cluster() - 1) * 2;
    image.write(count, &1u16.to_be_bytes());
    let report = image.check();
    assert_eq!(report.verdict.exit_status(), 3, "{}", story(&report));
    expect_cause("leak", &report, Verdict::Leaks, &["gives them back unasked"]);
    let leak = report.findings.iter().find(|one| one.code.name == "QCOW2-CLUSTER-LEAKED").unwrap();
    assert!(leak.what.contains("freed when it is next opened"), "{}", leak.what);
}

/// Every block that changed is dropped or kept at random: whatever comes of it has causes, and what reads differently
/// from both states is either named as lost or said to be unflushed.
#[test]
fn any_blocks_dropped() {
    let (before, after) = two_states();
    for seed in 0..12u64 {
        let keep = |at: u64| (at / BLOCK as u64 + seed * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33 & 1 == 0;
        let image = cut(&before, &after, keep);
        let report = image.check();
        let qemu = image.qemu_status();
        if qemu != 0 {
            assert_ne!(report.verdict, Verdict::Healthy, "seed {seed}: qemu-img says {qemu}\n{}", story(&report));
            assert!(!report.causes.is_empty() && !report.next.is_empty(), "seed {seed}\n{}", story(&report));
        }
        if qemu == 2 {
            assert_eq!(report.verdict, Verdict::Damaged, "seed {seed}\n{}", story(&report));
        }
    }
}
