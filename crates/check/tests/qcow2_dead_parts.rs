//! Images whose header or tables are gone: what can still be found is found, and offered.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::single_range_in_vec_init)]

mod causes_support;

use blkproof_check::{Assume, Format, Options, Report, Verdict};
use causes_support::*;

fn dead(image: &Image) -> Options {
    image.zero(0..512);
    Options { format: Some(Format::Qcow2), ..Options::default() }
}

/// What the report says to assume.
fn offered(report: &Report) -> Option<Assume> {
    let line = report.next.iter().find_map(|line| line.split_once("try --assume "))?.1;
    let words = line.split_once(' ').map_or(line, |(words, _)| words);
    Some(Assume::parse(words).unwrap())
}

/// The header zeroed, the tables where a new image has them or somewhere else: what is offered leads to the data.
#[test]
fn a_dead_header() {
    for (name, size, options, grown) in [
        ("usual", "1G", "", ""),
        ("small clusters", "256M", "cluster_size=4k", ""),
        ("smallest clusters", "64M", "cluster_size=512", ""),
        ("large clusters", "4G", "cluster_size=2M", ""),
        ("wide counts", "1G", "refcount_bits=64", ""),
        ("narrow counts", "1G", "refcount_bits=1", ""),
        ("subclusters", "1G", "extended_l2=on", ""),
        ("grown", "1G", "cluster_size=4k", "64G"),
    ] {
        let image = Image::create(size, options);
        let commands: Vec<String> =
            (0..40).map(|at| format!("write -q -P {} {} 96k", at + 1, at * MIB + 64 * KIB * (at % 3))).collect();
        image.io(&commands);
        if !grown.is_empty() {
            let (status, text) = run("qemu-img", &["resize", "-q", image.name(), grown]);
            assert_eq!(status, 0, "{text}");
            image.io(&["write -q -P 77 50G 1M".to_owned()]);
        }
        let (cluster, order, l1, table) = (image.cluster(), image.u32_at(96), image.l1(), image.refcount_table());
        let sound = image.check();
        let options = dead(&image);
        let report = image.check_with(&options);
        assert_eq!(report.verdict, Verdict::Damaged, "{name}\n{}", story(&report));
        // What the report assumed by itself, and what it offers beyond that.
        let mut known = Assume::default();
        for (_, value) in report.facts.iter().filter(|(fact, _)| *fact == "guessed") {
            for (field, value) in value.split(',').filter_map(|word| word.trim().split_once('=')) {
                known = known.with(field, Assume::parse(&format!("x={value}")).unwrap().value("x").unwrap());
            }
        }
        if let Some(offer) = offered(&report) {
            for field in offer.names() {
                known = known.with(field, offer.value(field).unwrap());
            }
        }
        let value = |field: &str| known.value(field);
        assert_eq!(value("cluster_bits"), Some(u64::from(cluster.trailing_zeros())), "{name}\n{}", story(&report));
        assert_eq!(value("refcount_order"), Some(u64::from(order)), "{name}\n{}", story(&report));
        assert_eq!(value("l1_offset"), Some(l1), "{name}\n{}", story(&report));
        assert_eq!(value("refcount_table_offset"), Some(table), "{name}\n{}", story(&report));
        let helped = image.check_with(&Options { assume: known, ..options });
        assert_eq!(
            helped.numbers.allocated_clusters,
            sound.numbers.allocated_clusters,
            "{name}: all data is found\n{}",
            story(&helped)
        );
    }
}

/// A partition table on the disk says how large it is.
#[test]
fn the_size_out_of_the_partition_table() {
    let image = Image::create("3G", "");
    let raw = tempfile::NamedTempFile::new().unwrap();
    let mut gpt = vec![0u8; 512];
    gpt[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
    gpt[24] = 1;
    gpt[32..40].copy_from_slice(&(3 * GIB / 512 - 1).to_le_bytes());
    std::fs::write(raw.path(), &gpt).unwrap();
    image.io(&[format!("write -q -s {} 512 512", raw.path().display()), "write -q -P 5 1G 10M".to_owned()]);
    let options = dead(&image);
    let report = image.check_with(&options);
    let offer = offered(&report).unwrap_or_else(|| panic!("{}", story(&report)));
    assert_eq!(offer.value("size"), Some(3 * GIB), "{}", story(&report));
}

/// The header names a wrong place for the L1 table.
#[test]
fn a_wrong_l1_offset() {
    let image = Image::create("8G", "");
    image.fill(8 * GIB, 512 * MIB, 4 * MIB);
    let l1 = image.l1();
    for (name, offset) in [("past the end", 1u64 << 40), ("zero", 0), ("misaligned", l1 + 512)] {
        let image = image.copy();
        image.write(40, &offset.to_be_bytes());
        let report = image.check();
        assert_eq!(report.verdict, Verdict::Damaged, "{name}");
        let offer = offered(&report).unwrap_or_else(|| panic!("{name}\n{}", story(&report)));
        assert_eq!(offer.value("l1_offset"), Some(l1), "{name}\n{}", story(&report));
        assert_eq!(offer.names().count(), 1, "{name}: nothing else is wrong\n{}", story(&report));
        expect_next(name, &report, "do not run 'qemu-img check -r leaks'");
    }
}

/// Nothing to find: noise is not taken for an image.
#[test]
fn noise_is_no_image() {
    let image = Image::create("1G", "");
    image.write(0, &noise(image.len() as usize));
    let report = image.check_with(&Options { format: Some(Format::Qcow2), ..Options::default() });
    assert_eq!(report.verdict, Verdict::Damaged);
    assert!(offered(&report).is_none(), "{}", story(&report));
}
