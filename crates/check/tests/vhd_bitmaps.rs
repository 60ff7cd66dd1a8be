//! Sector bitmaps of VHD images with very many blocks: listed as long as the images have few blocks in the file, however many
//! they could have; where they are too many, that is said with their number.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod generate;

use blkproof_check::map::Class;
use blkproof_check::{Format, Report, Verdict};
use generate::judge::{judge, options};
use generate::sparse::Sparse;
use generate::{bases, seal};

/// A disk of `entries` blocks of 512 bytes, the first `mapped` of them in the file, one after the other.
fn image(entries: u64, mapped: u64) -> Sparse {
    let base = bases::all().into_iter().find(|base| base.format == Format::Vhd).unwrap();
    let footer = base.image.bytes(0, 512);
    let header = base.image.bytes(512, 1024);
    let table = 1536;
    let data = (table + entries * 4).next_multiple_of(512);
    let mut image = Sparse::new(0);
    image.put(0, &footer);
    image.put(512, &header);
    image.set_len(data + mapped * 1024 + 512);
    image.put(data + mapped * 1024, &footer);
    for at in [0, data + mapped * 1024] {
        image.set_number(at + 40, 8, true, entries * 512);
        image.set_number(at + 48, 8, true, entries * 512);
    }
    image.set_number(512 + 16, 8, true, table);
    image.set_number(512 + 28, 4, true, entries);
    image.set_number(512 + 32, 4, true, 512);
    let places = (0..entries).map(|index| if index < mapped { (data / 512 + index * 2) as u32 } else { u32::MAX });
    let bytes: Vec<u8> = places.flat_map(u32::to_be_bytes).collect();
    image.put(table, &bytes);
    seal::seal(&mut image);
    image
}

fn looked_at(entries: u64, mapped: u64) -> (Report, usize, bool) {
    let options = blkproof_check::Options { data: false, memory: 64 << 20, ..options(Some(Format::Vhd)) };
    let report = judge(&image(entries, mapped), &options);
    assert_eq!(report.numbers.allocated_clusters, Some(mapped));
    let claims = &report.host.as_ref().unwrap().claims;
    let bitmaps = claims.iter().filter(|claim| claim.class == Class::BitmapData).count();
    let said = report.not_checked.iter().any(|line| line.contains("listed one by one"));
    (report, bitmaps, said)
}

#[test]
fn bitmaps_are_listed_by_what_is_in_the_file() {
    for (entries, mapped) in [(1000, 1000), (1 << 20, 5), (1 << 20, 1 << 16)] {
        let (report, bitmaps, said) = looked_at(entries, mapped);
        assert_eq!((bitmaps as u64, said), (mapped, false), "{entries}, {mapped}: {:?}", report.not_checked);
        assert_ne!(report.verdict, Verdict::Damaged, "{:?}", report.findings);
    }
}

#[test]
fn those_that_are_not_listed_are_counted() {
    let (report, bitmaps, _) = looked_at(70_000, 70_000);
    assert_eq!(bitmaps, 1 << 16);
    let want =
        "4464 of the 70000 sector bitmaps are counted in the map, but not listed one by one: a metadump lacks them";
    assert!(report.not_checked.iter().any(|line| line == want), "{:?}", report.not_checked);
    let bytes = report.host.unwrap().bytes(Class::BitmapData);
    assert_eq!(bytes, 70_000 * 512);
}
