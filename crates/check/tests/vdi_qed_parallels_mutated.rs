//! VDI, QED and Parallels: images changed one field at a time, and spliced. Each gives a verdict, whose maps add up,
//! and where `qemu-img check` says corrupt or leak, so do we.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod edit;

use blkproof_check::{Format, Options};
use edit::*;

/// `hash(seed, index)`: any case can be run alone.
fn random(seed: u64, index: u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03));
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

fn bases() -> Vec<(Format, Vec<u8>)> {
    let writes = ["write -P 7 1M 128k", "write -P 8 3M 64k", "write -P 9 0 100k"];
    vec![
        (Format::Vdi, image("vdi", &[], "4M", &writes)),
        (Format::Qed, image("qed", &["-o", "cluster_size=4k,table_size=2"], "6M", &writes)),
        (Format::Parallels, image("parallels", &["-o", "cluster_size=64k"], "4M", &writes)),
    ]
}

/// Where the tables are: changes elsewhere are changes of data.
fn tables(format: Format, image: &[u8]) -> Vec<std::ops::Range<usize>> {
    match format {
        Format::Vdi => vec![0x40..0x58, 0x154..0x188, 0x1a8..0x1c8, 0x200..0x210],
        Format::Qed => {
            let l1 = usize::try_from(u64_at(image, 0x28)).unwrap();
            let l2 = usize::try_from(u64_at(image, l1)).unwrap();
            vec![0..0x40, l1..l1 + 32, l2..l2 + 0x300, l2 + 0x800..l2 + 0x880]
        }
        _ => vec![0..0x40, 0x40..0x140],
    }
}

/// Values that have broken parsers.
const VALUES: [u64; 14] = [
    0,
    1,
    2,
    0x1ff,
    0x200,
    0x1000,
    0x1_0000,
    0x10_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

fn options() -> Options {
    Options { memory: 1 << 20, max_findings: 50, ..Options::default() }
}

#[test]
fn every_field_with_every_value_gives_a_verdict() {
    for (format, mut image) in bases() {
        for range in tables(format, &image) {
            for at in range.step_by(4) {
                let before = u64_at(&image, at);
                for value in VALUES {
                    if let Ok(value) = u32::try_from(value) {
                        put_u32(&mut image, at, value);
                    } else {
                        put_u64(&mut image, at, value);
                    }
                    check_as(format, &image, options());
                    put_u64(&mut image, at, before);
                }
            }
        }
    }
}

#[test]
fn every_length_gives_a_verdict() {
    for (format, base) in bases() {
        let lengths = (0..600).chain((600..base.len()).step_by(base.len() / 50));
        for len in lengths {
            check_as(format, &base[..len], options());
        }
    }
}

/// Several changes at once, some of them pieces of the image put elsewhere.
fn mutate(format: Format, base: &[u8], seed: u64) -> Vec<u8> {
    let mut image = base.to_vec();
    let tables = tables(format, base);
    for step in 0..=random(seed, 0) % 3 {
        let pick = |index: u64, below: usize| usize::try_from(random(seed, step * 10 + index)).unwrap_or(0) % below;
        let range = &tables[pick(1, tables.len())];
        let at = range.start + pick(2, range.len()) / 4 * 4;
        match pick(3, 5) {
            0 => put_u32(&mut image, at, u32::try_from(VALUES[pick(4, VALUES.len())] & 0xffff_ffff).unwrap()),
            1 => {
                let bit = pick(4, 32);
                let flipped = u32_at(&image, at) ^ (1 << bit);
                put_u32(&mut image, at, flipped);
            }
            2 => {
                let from = &tables[pick(4, tables.len())];
                let from = from.start + pick(5, from.len()) / 4 * 4;
                let piece = image[from..from + 16].to_vec();
                put(&mut image, at, &piece);
            }
            3 => image.truncate(image.len() - pick(4, image.len() / 4)),
            _ => put(&mut image, at, &[0; 32]),
        }
        if image.len() < 0x200 {
            break;
        }
        image.resize(image.len().max(base.len() / 2), 0);
    }
    image
}

#[test]
fn spliced_images_give_a_verdict() {
    for (format, base) in bases() {
        for seed in 1000..1300 {
            check_as(format, &mutate(format, &base, seed), options());
        }
    }
}

/// The number of images is in BLKPROOF_DIFFERENTIAL; each takes QEMU some 20 ms.
#[test]
fn where_qemu_finds_something_so_do_we() {
    let count = std::env::var("BLKPROOF_DIFFERENTIAL").map_or(40, |count| count.parse().unwrap());
    let mut wrong = Vec::new();
    for (format, base) in bases() {
        for seed in 0..count {
            let image = mutate(format, &base, seed);
            let qemu = qemu_check(format.name(), &image);
            let report = check_as(format, &image, options());
            let ours = i32::from(report.verdict.exit_status());
            let agree = match qemu {
                2 => ours == 2,
                3 => ours == 2 || ours == 3,
                // What it calls sound, can not open or aborts on needs a finding, or a sentence, to be called
                // otherwise.
                _ => ours == 0 || !report.findings.is_empty() || !report.not_checked.is_empty(),
            };
            if !agree {
                let shown: Vec<_> = report.findings.iter().map(|finding| finding.what.clone()).collect();
                wrong.push(format!("{} seed {seed}: qemu-img {qemu}, ours {ours}: {shown:#?}", format.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
