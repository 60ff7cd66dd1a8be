//! The kept corpus, through the entry point of the fuzz targets: every file as it is, and thousands of changes of them.
//!
//! `corpus/<format>/` holds images of our own making in the form of `generate/sparse.rs`; what a fuzzer once broke a
//! parser with is kept as `crash-*`. `BLKPROOF_SEED` is the first seed, `BLKPROOF_MUTATIONS` the number of changes for
//! each format. `BLKPROOF_WRITE_CORPUS=FOLDER cargo test --test corpus` writes the seeds again, for a
//! fuzzer to begin with.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod generate;

use std::path::{Path, PathBuf};

use blkproof_check::Format;
use generate::dice::Dice;
use generate::{bases, judge, mutate, qcow2};

const FORMATS: [Format; 7] =
    [Format::Qcow2, Format::Vdi, Format::Vmdk, Format::Vhd, Format::Vhdx, Format::Parallels, Format::Qed];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Files of a format's corpus, in the order of their names.
fn files(format: Format) -> Vec<(String, Vec<u8>)> {
    let folder = folder().join(format.name());
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut all: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
        })
        .collect();
    all.sort();
    assert!(!all.is_empty(), "{} is empty", folder.display());
    all
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
fn every_kept_file_gives_a_verdict() {
    for format in FORMATS {
        for (name, bytes) in files(format) {
            println!("{}/{name}", format.name());
            judge::fuzz(format, &bytes);
        }
    }
}

#[test]
fn the_corpus_is_small() {
    let total: usize = FORMATS.into_iter().flat_map(files).map(|(_, bytes)| bytes.len()).sum();
    assert!(total <= 300 << 10, "{total} bytes");
}

/// What a fuzzer does, without one: bits, bytes, numbers, blocks moved, pieces of other files.
fn change(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..1 + dice.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = dice.index(bytes.len());
        match dice.below(8) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.next().to_le_bytes()[0],
            2 | 3 => {
                let value = *dice.of(&[0, 1, u64::MAX, 1 << 63, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 0x200, 0x1_0000]);
                let width = *dice.of(&[2usize, 4, 8]);
                let number = if dice.percent(50) { value.to_be_bytes() } else { value.to_le_bytes() };
                for (to, from) in bytes[at..]
                    .iter_mut()
                    .zip(number.iter().skip(if dice.percent(50) { 8 - width } else { 0 }).take(width))
                {
                    *to = *from;
                }
            }
            4 => bytes.truncate(at),
            5 => {
                let from = dice.index(bytes.len());
                let piece: Vec<u8> = bytes[from..].iter().take(1 + dice.index(32)).copied().collect();
                for (to, from) in bytes[at..].iter_mut().zip(piece) {
                    *to = from;
                }
            }
            6 if !other.is_empty() => {
                let from = dice.index(other.len());
                let piece: Vec<u8> = other[from..].iter().take(1 + dice.index(64)).copied().collect();
                for (to, from) in bytes[at..].iter_mut().zip(piece) {
                    *to = from;
                }
            }
            _ => {
                let old = bytes[at];
                bytes[at] = if dice.percent(50) { old.wrapping_add(1) } else { old.wrapping_sub(1) };
            }
        }
    }
}

#[test]
fn changed_files_give_a_verdict() {
    let first = number("BLKPROOF_SEED", 0);
    let count = number("BLKPROOF_MUTATIONS", 300);
    for format in FORMATS {
        let files = files(format);
        println!(
            "{}: seeds {first}..{}; one alone: BLKPROOF_SEED=n BLKPROOF_MUTATIONS=1",
            format.name(),
            first + count
        );
        for seed in first..first + count {
            let mut dice = Dice::new(seed);
            let mut bytes = dice.of(&files).1.clone();
            let other = &dice.of(&files).1;
            change(&mut bytes, other, &mut dice);
            let judged = std::panic::catch_unwind(|| judge::fuzz(format, &bytes));
            if judged.is_err() {
                let image = generate::sparse::Sparse::decode(&bytes).0;
                let kept = generate::keep(&format!("{}-corpus-{seed}", format.name()), &image);
                panic!("{} seed {seed}: {kept}", format.name());
            }
        }
    }
}

/// The seeds of a fuzzer, from what the generator makes: for every format, and into `BLKPROOF_WRITE_CORPUS` if that names
/// a folder.
#[test]
fn every_format_has_seeds_to_begin_a_corpus_with() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("BLKPROOF_WRITE_CORPUS").map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    let write = |format: Format, name: &str, image: &generate::sparse::Sparse| {
        let folder = folder.join(format.name());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), image.encode(true)).unwrap();
    };
    let small =
        (0..).map(|seed| (seed, qcow2::generate(seed))).filter(|(_, base)| base.image.encode(true).len() < 3000);
    for (seed, base) in small.take(40) {
        write(Format::Qcow2, &format!("seed-{seed}"), &base.image);
    }
    let bases = bases::all();
    for base in &bases {
        let name = base.name.replace([' ', ',', '='], "-");
        let plain = base.without_data();
        write(base.format, name.trim_end_matches('-'), &plain.image);
        for seed in 0..4 {
            let (image, _) = mutate::mutate(&plain, &plain, &mut Dice::new(seed));
            if image.encode(true).len() < 6000 {
                write(base.format, &format!("{}-changed-{seed}", name.trim_end_matches('-')), &image);
            }
        }
    }
    for format in FORMATS {
        let seeds = std::fs::read_dir(folder.join(format.name())).map_or(0, Iterator::count);
        assert!(seeds >= 4, "{}: {seeds} seeds", format.name());
    }
}
