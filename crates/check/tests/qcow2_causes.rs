//! Images that were damaged on purpose: the verdict names what happened, and which ranges of the disk it concerns.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::single_range_in_vec_init)]

mod causes_support;

use blkproof_check::Verdict;
use blkproof_check::code::Severity;
use causes_support::*;

fn has(report: &blkproof_check::Report, code: &str) -> bool {
    report.findings.iter().any(|finding| finding.code.name == code)
}

const WINDOW: u64 = 512 * MIB;

/// As in a report of 2026: 118 of 200 L2 tables held the content of refcount blocks.
#[test]
fn tables_overwritten_by_refcount_blocks() {
    let image = Image::create("8G", "preallocation=metadata");
    let block = image.read(image.blocks()[0], 65536);
    let l2s = image.l2s();
    let hit = [2usize, 3, 4, 7, 8, 9, 10, 13, 14];
    for index in hit {
        image.write(l2s[index], &block);
    }
    assert_eq!(image.qemu_status(), 2);
    let report = image.check();
    expect_cause(
        "blocks",
        &report,
        Verdict::Damaged,
        &["9 of 16 L2 tables were overwritten", "16-bit reference counts", "follow from that"],
    );
    let windows = joined(hit.iter().map(|index| *index as u64 * WINDOW..(*index as u64 + 1) * WINDOW).collect());
    assert_eq!(report.lost.ranges, windows, "{}", story(&report));
    assert_eq!(report.causes[0].guest, windows, "{}", story(&report));
    expect_next("blocks", &report, "do not run 'qemu-img check -r leaks'");
    expect_no_next("blocks", &report, "gives the space back");
    assert_eq!(report.causes.len(), 1, "everything follows from that\n{}", story(&report));
}

/// What overwrote a table is recognised, also where it is only a part of it.
#[test]
fn tables_overwritten_by_data() {
    let image = Image::create("1G", "preallocation=metadata");
    let table = image.l2s()[1];
    let json: Vec<u8> = b"{\"name\": \"value\", \"list\": [1, 2, 3]},\n".iter().copied().cycle().take(65536).collect();
    for (name, bytes, at, len, words) in [
        ("log", log(65536), 0u64, 65536usize, "by text (a log)"),
        ("log in part", log(65536), 8192, 4096, "in part by text (a log)"),
        ("json", json, 0, 65536, "by text (JSON)"),
        ("noise", noise(65536), 0, 65536, "by compressed or encrypted data"),
        ("noise in part", noise(65536), 61440, 4096, "in part by compressed or encrypted data"),
        ("pattern", vec![0xcd; 65536], 0, 65536, "by the byte 0xcd over and over"),
        ("one sector", vec![0x5a; 512], 512, 512, "in part by the byte 0x5a"),
    ] {
        let image = image.copy();
        image.write(table + at, &bytes[..len]);
        assert_eq!(image.qemu_status(), 2, "{name}");
        let report = image.check();
        expect_cause(name, &report, Verdict::Damaged, &["1 of 2 L2 tables was overwritten", words]);
        let guest = WINDOW + at / 8 * 65536..WINDOW + (at + len as u64) / 8 * 65536;
        assert_eq!(report.causes[0].guest, std::slice::from_ref(&guest), "{name}\n{}", story(&report));
        assert!(
            report.lost.ranges.iter().any(|lost| lost.start <= guest.start && lost.end >= guest.end),
            "{name}\n{}",
            story(&report)
        );
        assert_eq!(report.causes.len(), 1, "{name}\n{}", story(&report));
    }
}

#[test]
fn the_l1_table_overwritten() {
    let image = Image::create("64G", "preallocation=metadata");
    image.write(image.l1(), &log(1024));
    let report = image.check();
    expect_cause("L1", &report, Verdict::Damaged, &["the L1 table was overwritten by text (a log)"]);
    assert_eq!(report.lost.ranges, [0..64 * GIB], "{}", story(&report));
    expect_next("L1", &report, "do not run 'qemu-img check -r leaks'");
    assert!(has(&report, "QCOW2-ORPHAN-L2"), "{}", story(&report));
}

/// `qemu-img check` calls this leaks only, and its repair frees the data.
#[test]
fn sectors_of_a_table_zeroed() {
    let image = Image::create("1G", "");
    image.io(&["write -q -P 7 0 64M".to_owned(), "write -q -P 8 600M 8M".to_owned()]);
    let tables = image.l2s();
    // Entries 192..256: guest 12 MiB..16 MiB.
    for (name, at, len, entries, lost) in [
        ("one sector", 3 * 512, 512u64, 64u64, 12 * MIB..16 * MIB),
        ("first sector", 0, 512, 64, 0..4 * MIB),
        ("a page", 4096, 4096, 512, 32 * MIB..64 * MIB),
        // Where in the window the entries were is not known.
        ("the whole table", 0, 65536, 1024, 0..WINDOW),
    ] {
        let image = image.copy();
        image.zero(tables[0] + at..tables[0] + at + len);
        assert_eq!(image.qemu_status(), 3, "{name}: leaks only, says qemu-img");
        let report = image.check();
        let words = format!("zeroes where {entries} entries were");
        expect_cause(name, &report, Verdict::Damaged, &[&words]);
        assert_eq!(report.lost.ranges, [lost], "{name}\n{}", story(&report));
        expect_next(name, &report, "do not run 'qemu-img check -r leaks'");
        assert!(has(&report, "QCOW2-LOST-L2-ENTRIES"), "{name}");
        assert_eq!(report.causes.len(), 1, "{name}\n{}", story(&report));
    }
}

/// After years of random writes no neighbour tells where a cluster lies: as many clusters without an owner as entries
/// in holes that end at sectors are what is left to go by. Holes of another kind are no damage.
#[test]
fn sectors_of_a_shuffled_table_zeroed() {
    let image = Image::create("256M", "preallocation=metadata");
    let table = image.l2s()[0];
    let mut entries: Vec<[u8; 8]> =
        image.read(table, 4096 * 8).chunks_exact(8).map(|one| one.try_into().unwrap()).collect();
    for last in (1..entries.len()).rev() {
        entries.swap(last, (last * 7919 + 13) % (last + 1));
    }
    image.write(table, &entries.concat());
    let sound = image.check();
    assert_eq!(sound.verdict, Verdict::Healthy, "{}", story(&sound));
    for (name, sectors) in
        [("one", vec![5u64]), ("first and others", vec![0, 9, 10, 40]), ("a page", (16..24).collect())]
    {
        let image = image.copy();
        for sector in &sectors {
            image.zero(table + sector * 512..table + (sector + 1) * 512);
        }
        assert_eq!(image.qemu_status(), 3, "{name}: leaks only, says qemu-img");
        let report = image.check();
        let words = format!("zeroes where {} entries were", sectors.len() * 64);
        expect_cause(name, &report, Verdict::Damaged, &[&words]);
        let lost = joined(sectors.iter().map(|sector| sector * 4 * MIB..(sector + 1) * 4 * MIB).collect());
        assert_eq!(report.lost.ranges, lost, "{name}\n{}", story(&report));
        assert_eq!(report.causes.len(), 1, "{name}\n{}", story(&report));
        expect_next(name, &report, "do not run 'qemu-img check -r leaks'");
        expect_no_next(name, &report, "gives the space back");
    }
    // Entries that do not end at a sector: nothing tells them from what was never written.
    let odd = image.copy();
    odd.zero(table + 1000 * 8..table + 1100 * 8);
    let report = odd.check();
    assert!(!has(&report, "QCOW2-LOST-L2-ENTRIES"), "{}", story(&report));
    assert_eq!(report.verdict, Verdict::Leaks);
}

/// The tables are all there, nobody says where.
#[test]
fn l1_entries_zeroed() {
    let image = Image::create("4G", "");
    for index in 0..8 {
        image.io(&[format!("write -q -P 5 {}M 4M", index * 512 + 100)]);
    }
    for (name, entries, words) in [
        ("all", 0..8u64, "the L1 table has no entries left: 8 L2 tables that lost their owner are still in the file"),
        ("two", 3..5, "2 of the 8 L1 entries of the disk are missing: 2 L2 tables that lost their owner are still"),
        ("one", 7..8, "1 of the 8 L1 entries of the disk are missing: 1 L2 table that lost their owner is still"),
    ] {
        let image = image.copy();
        image.zero(image.l1() + entries.start * 8..image.l1() + entries.end * 8);
        assert_eq!(image.qemu_status(), 3, "{name}: leaks only, says qemu-img");
        let report = image.check();
        expect_cause(name, &report, Verdict::Damaged, &[words]);
        let lost: Vec<_> = entries.clone().map(|index| (index * 512 + 100) * MIB..(index * 512 + 104) * MIB).collect();
        assert_eq!(report.lost.ranges, lost, "{name}\n{}", story(&report));
        assert_eq!(
            report.causes[0].guest,
            joined(entries.map(|index| index * WINDOW..(index + 1) * WINDOW).collect()),
            "{name}"
        );
        expect_next(name, &report, "do not run 'qemu-img check -r leaks'");
        expect_no_next(name, &report, "gives the space back");
        assert!(has(&report, "QCOW2-ORPHAN-L2") && has(&report, "QCOW2-LOST-L1-ENTRIES"), "{name}\n{}", story(&report));
    }
}

/// Harmless: the mapping is whole.
#[test]
fn counts_zeroed() {
    let image = Image::create("4G", "");
    image.fill(4 * GIB, 64 * MIB, 2 * MIB);
    let sound = image.copy();
    type Damage = fn(&Image);
    let zero_blocks: Damage = |image| image.blocks().iter().for_each(|at| image.zero(*at..*at + 65536));
    let zero_table: Damage = |image| image.zero(image.refcount_table()..image.refcount_table() + 65536);
    let zero_sector: Damage = |image| image.zero(image.blocks()[0] + 1024..image.blocks()[0] + 1536);
    for (name, damage, words) in [
        ("blocks", zero_blocks, "all reference counts are zero or gone"),
        ("table", zero_table, "all reference counts are zero or gone"),
        ("sector", zero_sector, "512 bytes of reference counts are zeroes"),
    ] {
        let image = image.copy();
        damage(&image);
        assert_eq!(image.qemu_status(), 2, "{name}");
        let report = image.check();
        expect_cause(name, &report, Verdict::Damaged, &[words, "no data is lost"]);
        assert_eq!(report.lost.bytes, 0, "{name}\n{}", story(&report));
        assert_eq!(has(&report, "QCOW2-REFBLOCK-ZEROED"), name != "table", "{name}\n{}", story(&report));
        expect_next(name, &report, "reading needs no counts");
        expect_no_next(name, &report, "both free the clusters");
        assert!(image.same_disk(&sound.path), "{name}: and so it is");
        assert_eq!(report.causes.len(), 1, "{name}\n{}", story(&report));
    }
    image.write(image.blocks()[0], &log(65536));
    let report = image.check();
    expect_cause("text", &report, Verdict::Damaged, &["the only refcount block was overwritten by text (a log)"]);
    assert_eq!(report.lost.bytes, 0, "{}", story(&report));
    assert!(has(&report, "QCOW2-REFBLOCK-OVERWRITTEN"));
    assert_eq!(report.causes.len(), 1, "{}", story(&report));
    expect_next("text", &report, "reading needs no counts");
}

#[test]
fn the_file_cut_off() {
    let image = Image::create("4G", "");
    for index in 0..8 {
        image.io(&[format!("write -q -P 5 {}M 8M", index * 512)]);
    }
    let whole = image.len();
    for (name, len) in
        [("a table and its data", whole - 10 * MIB), ("data", whole - 3 * MIB), ("within a sector", whole - MIB - 100)]
    {
        let image = image.copy();
        image.truncate(len);
        let report = image.check();
        let at = format!("the file was cut off at {len:#x}");
        expect_cause(name, &report, Verdict::Damaged, &[&at]);
        expect_next(name, &report, "fetch the rest");
        assert!(report.lost.bytes >= (whole - len) / 2, "{name}\n{}", story(&report));
        assert_eq!(report.causes.len(), 1, "{name}\n{}", story(&report));
    }
}

/// Counted and not used, as a crash leaves it: harmless, and said to be.
#[test]
fn leaks_of_a_crash() {
    let image = Image::create("1G", "");
    image.io(&["write -q -P 7 0 4M".to_owned()]);
    // Clusters behind the last one, counted.
    let end = image.len() / 65536;
    image.truncate((end + 12) * 65536);
    for cluster in end..end + 12 {
        image.write(image.blocks()[0] + cluster * 2, &[0, 1]);
    }
    assert_eq!(image.qemu_status(), 3);
    let report = image.check();
    expect_cause("leaks", &report, Verdict::Leaks, &["counted and then not used", "interrupted"]);
    expect_next("leaks", &report, "'qemu-img check -r leaks IMAGE' gives the space back");
    assert_eq!(report.lost.bytes, 0);
}

/// The header forgot a snapshot: its clusters are leaks, and nothing of the disk is lost.
#[test]
fn a_snapshot_given_up_half_way() {
    let image = Image::create("4G", "");
    image.io(&["write -q -P 7 0 32M".to_owned(), "write -q -P 7 1G 8M".to_owned()]);
    image.img(&["snapshot", "-c", "first"]);
    image.io(&["write -q -P 9 0 32M".to_owned()]);
    image.write(60, &[0, 0, 0, 0]);
    let report = image.check();
    assert!(
        report.causes.iter().any(|cause| cause.what.contains("the deletion of a snapshot was not finished")),
        "{}",
        story(&report)
    );
    assert!(has(&report, "QCOW2-ORPHAN-L1"), "{}", story(&report));
    assert!(!has(&report, "QCOW2-LOST-L1-ENTRIES"), "{}", story(&report));
    assert_eq!(report.lost.bytes, 0, "{}", story(&report));
}

/// Sound images of many kinds: no cause, no step, no table called lost.
#[test]
fn sound_images_have_no_causes() {
    for options in [
        "",
        "cluster_size=4k",
        "refcount_bits=1",
        "extended_l2=on",
        "compat=0.10",
        "lazy_refcounts=on",
        "cluster_size=2M",
    ] {
        let image = Image::create("2G", options);
        image.fill(2 * GIB, 100 * MIB, 3 * MIB);
        image.io(&["discard -q 0 64M".to_owned(), "write -q -z 300M 10M".to_owned()]);
        let report = image.check();
        assert_eq!(report.verdict, Verdict::Healthy, "{options}\n{}", story(&report));
        assert!(
            report.causes.is_empty() && report.findings.iter().all(|one| one.severity < Severity::Warning),
            "{options}\n{}",
            story(&report)
        );
        assert_eq!(image.qemu_status(), 0, "{options}");
    }
}

/// A single senseless entry of the L1 table: its table is found, and its place is known.
#[test]
fn one_l1_entry_damaged() {
    let image = Image::create("4G", "");
    for index in 0..8 {
        image.io(&[format!("write -q -P 5 {}M 4M", index * 512 + 100)]);
    }
    let table = image.l2s()[3];
    for (name, entry) in
        [("past the end", COPIED | 1 << 45), ("misaligned", COPIED | (table + 512)), ("no table", COPIED)]
    {
        let image = image.copy();
        image.write(image.l1() + 24, &entry.to_be_bytes());
        let report = image.check();
        assert_eq!(report.verdict, Verdict::Damaged, "{name}");
        assert_eq!(report.lost.ranges, [3 * WINDOW..4 * WINDOW], "{name}\n{}", story(&report));
        if name == "misaligned" {
            // It still refers to its cluster: nobody else may have that.
            continue;
        }
        expect_cause(name, &report, Verdict::Damaged, &["1 of the 8 L1 entries of the disk", "1 L2 table that lost"]);
        let orphan = report.findings.iter().find(|one| one.code.name == "QCOW2-ORPHAN-L2").unwrap();
        assert_eq!((orphan.host[0].start, orphan.guest[0].clone()), (table, 3 * WINDOW..4 * WINDOW), "{name}");
        assert!(!has(&report, "QCOW2-LOST-L1-ENTRIES"), "{name}: the entry itself has been told");
        expect_next(name, &report, "do not run 'qemu-img check -r leaks'");
    }
}
