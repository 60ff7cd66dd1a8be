//! Images with damaged headers and tables: opening, reading and writing them ends in an answer or in an error, never in
//! a panic, a hang, or a file that grows without bound.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod qcow2_support;

use std::rc::Rc;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::testing::block_on;
use blkproof_block::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
use qcow2_support::{Random, content, ok};

/// Sound images of different kinds, and where their metadata lies.
fn images() -> Vec<Vec<u8>> {
    let kinds = [
        (512, 16, false, false, false),
        (512, 1, false, true, false),
        (4096, 64, false, true, false),
        (16384, 16, true, false, true),
        (65536, 16, false, false, true),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    kinds
        .map(|(cluster_size, refcount_bits, extended_l2, lazy_refcounts, snapshot)| {
            let options = CreateOptions {
                size: 200_192,
                cluster_size,
                refcount_bits,
                extended_l2,
                lazy_refcounts,
                ..CreateOptions::default()
            };
            block_on(async {
                let disk = Rc::new(Memory::new(0));
                create(Rc::clone(&disk), None, &options).await.unwrap();
                let image = Qcow2::open(Rc::clone(&disk), OpenOptions::default()).await.unwrap();
                image.write(1000, &[7; 30_000], WriteFlags::empty()).await.unwrap();
                let packed = vec![9; cluster_size as usize];
                image.write(cluster_size * 2, &packed, WriteFlags::COMPRESSED).await.unwrap();
                image.write_zeroes(70_000, 60_000, ZeroFlags::MAY_UNMAP).await.unwrap();
                image.close().await.unwrap();
                std::fs::write(&path, content(&*disk).await).unwrap();
            });
            if snapshot {
                ok("qemu-img", &["snapshot", "-c", "one", path.to_str().unwrap()]);
                ok("qemu-img", &["bitmap", "-f", "qcow2", "--add", path.to_str().unwrap(), "b"]);
            }
            std::fs::read(&path).unwrap()
        })
        .to_vec()
}

/// Places worth a hit: the header's fields, then the tables that it names.
fn mutate(bytes: &mut [u8], random: &mut Random) {
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 8).map_or(0, |word| u64::from_be_bytes(word.try_into().unwrap()) & 0x00ff_ffff_ffff_fe00)
    };
    for _ in 0..1 + random.below(3) {
        let l1 = word(bytes, 40) as usize;
        let reftable = word(bytes, 48) as usize;
        let base = match random.below(8) {
            0 | 1 => random.below(112) as usize,
            2 => random.below(400) as usize,
            3 => l1 + random.below(64) as usize,
            4 => word(bytes, l1) as usize + random.below(512) as usize,
            5 => reftable + random.below(32) as usize,
            6 => word(bytes, reftable) as usize + random.below(512) as usize,
            _ => random.below(bytes.len() as u64) as usize,
        };
        let value = match random.below(5) {
            0 => vec![0xff; 1 + random.below(8) as usize],
            1 => vec![0; 1 + random.below(8) as usize],
            2 => (random.next() & 0xffff_fe00).to_be_bytes().to_vec(),
            3 => vec![1 << random.below(8)],
            _ => random.next().to_be_bytes()[..1 + random.below(8) as usize].to_vec(),
        };
        let base = if random.one_in(2) { base / 8 * 8 } else { base };
        for (i, byte) in value.iter().enumerate() {
            if let Some(place) = bytes.get_mut(base + i) {
                *place = if random.one_in(6) { *place ^ byte } else { *byte };
            }
        }
    }
    if random.one_in(3) {
        // Half of the magic numbers are not worth a test.
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    }
}

/// Uses an image as far as it lets us; says whether it opened for reading and for writing.
async fn use_image(bytes: &[u8], random: &mut Random) -> (bool, bool) {
    let disk = Rc::new(Memory::with_content(bytes));
    let mut opened = (false, false);
    for read_only in [true, false] {
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let Ok(image) = Qcow2::open(Rc::clone(&disk), options).await else { continue };
        if read_only {
            opened.0 = true
        } else {
            opened.1 = true
        }
        let size = image.info().size;
        let mut buf = vec![0; 70_000];
        for at in [0, 512, 70_000, 131_072, size / 2, size.saturating_sub(70_000)] {
            let len = size.saturating_sub(at).min(70_000);
            let _ = image.read(at, &mut buf[..len as usize]).await;
            if len > 0 {
                let _ = image.block_status(at, len).await;
            }
            if !read_only && len > 0 {
                let len = 1 + random.below(len);
                match random.below(5) {
                    0 => drop(image.write_zeroes(at, len, ZeroFlags::MAY_UNMAP).await),
                    1 => drop(image.discard(at, len).await),
                    2 => drop(image.flush().await),
                    _ => drop(image.write(at, &buf[..len as usize], WriteFlags::empty()).await),
                }
            }
        }
        if !read_only && random.one_in(4) {
            let _ = image.resize(random.below(4 << 20), Preallocation::Off).await;
        }
        let _ = image.close().await;
    }
    opened
}

fn fuzz(seeds: std::ops::Range<u64>) {
    let images = images();
    let mut opened = [0, 0];
    for seed in seeds.clone() {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = images[random.below(images.len() as u64) as usize].clone();
        mutate(&mut bytes, &mut random);
        let used = std::panic::AssertUnwindSafe(|| block_on(use_image(&bytes, &mut random)));
        let used = std::panic::catch_unwind(used).unwrap_or_else(|_| panic!("seed {seed} panicked"));
        opened[0] += u64::from(used.0);
        opened[1] += u64::from(used.1);
    }
    let total = seeds.end - seeds.start;
    assert!(opened.iter().all(|&n| n > total / 10 && n < total), "the set-up bites: {opened:?} of {total} open");
}

/// More seeds by hand: `SEEDS=0..100000 cargo test -p blkproof-formats --test qcow2_fuzz`.
#[test]
fn damaged_images_end_in_an_error() {
    let range = std::env::var("SEEDS").unwrap_or_else(|_| "0..1500".into());
    let (first, last) = range.split_once("..").expect("SEEDS is FIRST..LAST");
    fuzz(first.parse().unwrap()..last.parse().unwrap());
}
