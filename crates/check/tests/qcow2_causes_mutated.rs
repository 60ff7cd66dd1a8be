//! Images with a few fields overwritten at random, spliced and cut: always a verdict, always within the memory asked
//! for, and whatever is damaged has a cause and a next step.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod causes_support;

use blkproof_check::source::MemorySource;
use blkproof_check::watch::Silent;
use blkproof_check::{Format, Options, Verdict, check};
use causes_support::*;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % end.max(1)
    }
}

fn bases() -> Vec<(Vec<u8>, Vec<u64>)> {
    [
        ("cluster_size=4k", "64M"),
        ("cluster_size=512", "1M"),
        ("extended_l2=on,cluster_size=16k", "64M"),
        ("refcount_bits=1,cluster_size=4k", "32M"),
    ]
    .into_iter()
    .map(|(options, size)| {
        let image = Image::create(size, options);
        image.io(&[
            "write -q -P 1 0 100k".to_owned(),
            "write -q -P 2 500k 200k".to_owned(),
            "write -q -z 800k 64k".to_owned(),
        ]);
        if !options.contains("refcount_bits=1") {
            image.img(&["snapshot", "-c", "one"]);
            image.io(&["write -q -P 3 50k 100k".to_owned()]);
        }
        // Places worth damaging.
        let mut places = vec![0, image.l1(), image.refcount_table()];
        places.extend(image.l2s().into_iter().filter(|at| *at != 0));
        places.extend(image.blocks());
        (image.bytes(), places)
    })
    .collect()
}

#[test]
fn always_a_verdict_and_a_cause() {
    let bases = bases();
    let mut random = Random(20_261_121);
    for round in 0..400 {
        let (base, places) = &bases[round % bases.len()];
        let mut bytes = base.clone();
        for _ in 0..=random.below(4) {
            let at = (places[random.below(places.len() as u64) as usize] + random.below(96) * 8) as usize;
            let value: u64 = match random.below(9) {
                0 => 0,
                1 => u64::MAX,
                2 => random.below(u64::MAX),
                3 => COPIED | (random.below(1 << 20) & !511),
                4 => 1 << random.below(64),
                5 => COPIED | places[random.below(places.len() as u64) as usize],
                6 => 0x0001_0001_0001_0001,
                7 => bytes.len() as u64 & !511,
                _ => random.below(1 << 16),
            };
            let len = [8usize, 8, 4, 512, 4096][random.below(5) as usize];
            for chunk in bytes.get_mut(at..).unwrap_or_default().chunks_mut(8).take(len.div_ceil(8)) {
                let word = value.to_be_bytes();
                chunk.copy_from_slice(&word[..chunk.len()]);
            }
        }
        if random.below(8) == 0 {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        let source = MemorySource(bytes);
        for memory in [64 << 20, 1 << 20] {
            let options = Options { format: Some(Format::Qcow2), memory, ..Options::default() };
            let report = check(&source, &options, &Silent);
            if matches!(report.verdict, Verdict::Damaged | Verdict::Leaks) {
                assert!(!report.causes.is_empty(), "round {round}\n{}", story(&report));
                assert!(!report.next.is_empty(), "round {round}\n{}", story(&report));
            }
            if let Some(host) = &report.host {
                let sum: u64 = host.totals.iter().sum();
                assert_eq!(sum, host.len, "round {round}\n{}", story(&report));
            }
            if let Some(guest) = &report.guest {
                let sum: u64 = guest.totals.iter().sum();
                assert_eq!(sum, guest.size, "round {round}\n{}", story(&report));
            }
            for cause in &report.causes {
                assert!(cause.errors > 0 && !cause.codes.is_empty(), "round {round}\n{}", story(&report));
            }
        }
    }
}
