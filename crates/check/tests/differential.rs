//! `qemu-img check` and we, over thousands of generated images: where it says corrupt or leak, so do we; where it
//! refuses, we do not say healthy; where it says clean and we do not, a finding of a known kind explains it
//! (image-check.md 4.3).
//!
//! `BLKPROOF_DIFFERENTIAL` is the number of qcow2 images, `BLKPROOF_SEED` the first seed (one image can be run alone),
//! `BLKPROOF_KEEP` the folder for images that fail.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod generate;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use blkproof_check::code::Severity;
use blkproof_check::{Format, Options, Report, Verdict};
use generate::dice::Dice;
use generate::judge::judge;
use generate::peer::{Bench, Opinion};
use generate::sparse::Sparse;
use generate::{bases, keep, mutate, qcow2, seal};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn options(format: Format) -> Options {
    Options { format: Some(format), memory: 4 << 20, max_findings: 200, cells: 16, ..Options::default() }
}

/// Codes of errors that `qemu-img check` does not have, by what they stand for. A code that is not here is a new kind
/// of disagreement: to be understood, then either ours to put right or to be added here.
const QEMU_CALLS_CLEAN: &[(&str, &[&str])] = &[
    ("what the header says of itself (4.3, 1)", &["QCOW2-FEATURE-CORRUPT", "QCOW2-HEADER-COMPRESSION"]),
    ("sharing that the counts agree with (4.3, 3)", &["QCOW2-CLUSTER-OVERLAP"]),
    (
        "bits whose meaning depends on version or feature (4.3, 4)",
        &["QCOW2-L2-ZERO-FLAG-V2", "QCOW2-L2-COPIED", "QCOW2-L1-NO-TABLE"],
    ),
    ("the place of external data (4.3, 5)", &["QCOW2-L2-EXTERNAL-OFFSET"]),
    (
        "what snapshots and bitmaps mean (4.3, 6)",
        &[
            "QCOW2-SNAPSHOT-L1",
            "QCOW2-SNAPSHOT-L1-SHORT",
            "QCOW2-SNAPSHOT-EXTRA",
            "QCOW2-BITMAP-ENTRY",
            "QCOW2-BITMAP-NAME",
            "QCOW2-BITMAP-TABLE",
            "QCOW2-BITMAP-POINTER",
            "QCOW2-BITMAP-DIRECTORY",
            "QCOW2-BITMAP-EXTENSION",
        ],
    ),
    (
        "tables that the end of the file cuts off: QEMU reads zeroes, so what they mapped is silently gone",
        &["QCOW2-L2-CUT", "QCOW2-HEADER-L1-END", "QCOW2-HEADER-REFTABLE-END", "QCOW2-L2-OVERWRITTEN"],
    ),
    (
        "VDI: blocks past the end of the file or of what is allocated ; a type nobody knows (4.3, 7)",
        &["VDI-MAP-PAST-END", "VDI-BLOCK-ON-METADATA", "VDI-MAP-CUT", "VDI-HEADER-TYPE", "VDI-HEADER-OFFSETS"],
    ),
    (
        "VMDK: shared grains, metadata as data, differing copies, what no table leads to (4.3, 7)",
        &[
            "VMDK-GRAIN-SHARED",
            "VMDK-GTE-METADATA",
            "VMDK-GTE-CUT",
            "VMDK-GTE-TYPE",
            "VMDK-GTE-PAST-END",
            "VMDK-GD-OUTSIDE",
            "VMDK-GD-ENTRY",
            "VMDK-GT-DESTROYED",
            "VMDK-COPY-HAS-GRAIN",
            "VMDK-COPY-DIFFERS",
            "VMDK-COPY-DIRECTORY",
            "VMDK-LAYOUT-OVERLAP",
            "VMDK-GRAIN-UNREFERENCED",
        ],
    ),
    (
        "VMDK: streams and grains that QEMU looks at only when it reads them; header fields it does not use",
        &[
            "VMDK-GRAIN-LBA",
            "VMDK-GRAIN-LENGTH",
            "VMDK-GRAIN-INFLATE",
            "VMDK-FOOTER-MISSING",
            "VMDK-HEADER-TEXT-MODE",
            "VMDK-HEADER-OVERHEAD",
            "VMDK-HEADER-COMPRESSION",
            "VMDK-HEADER-CAPACITY",
            "VMDK-HEADER-VERSION",
            "VMDK-DESCRIPTOR-AREA",
            "VMDK-DESCRIPTOR-EXTENTS",
            "VMDK-DESCRIPTOR-SIZE",
            "VMDK-EXTENT-KIND",
            "VMDK-PARENT-CID",
        ],
    ),
    (
        "VHDX: second copies, reserved bits, blocks used twice (4.3, 7)",
        &[
            "VHDX-BAT-OVERLAP",
            "VHDX-BAT-STATE",
            "VHDX-BAT-PAST-END",
            "VHDX-REGION-COPY",
            "VHDX-REGION-DIFFERS",
            "VHDX-REGION-OVERLAP",
            "VHDX-META-VALUE",
            "VHDX-META-TABLE",
            "VHDX-META-ITEM",
            "VHDX-META-MISSING",
            "VHDX-IDENT",
            "VHDX-LOG-ENTRY",
            "VHDX-LOG-PLACE",
            "VHDX-LOG-GAP",
            "VHDX-LOG-TRUNCATED",
        ],
    ),
    (
        "Parallels: clusters on metadata or named twice, an unclean mark, a damaged extension (PRL-2, -4, -5)",
        &[
            "PRL-HEADER-IN-USE",
            "PRL-HEADER-SIZE",
            "PRL-CLUSTER-TWICE",
            "PRL-CLUSTER-ON-METADATA",
            "PRL-BAT-BEFORE-DATA",
            "PRL-BAT-PAST-END",
            "PRL-HEADER-DATA-OFFSET",
            "PRL-EXT-PLACE",
            "PRL-EXT-MAGIC",
            "PRL-EXT-CHECKSUM",
        ],
    ),
    ("QED: what it counts but does not judge", &["QED-CLUSTER-TWICE", "QED-TABLE-TWICE"]),
];

/// What `qemu-img check` says when it can not answer (4.4) for a reason that does not make the image a damaged one.
const NO_ANSWER: &[(&str, &[&str])] = &[
    (
        "another file that the image names is not there, or is none",
        &["No such file", "Unknown driver", "requires a file name", "File name too long", "'data-file' is required"],
    ),
    ("the key is not there", &["encrypt.key-secret"]),
    (
        "the place of a snapshot table, of an image without snapshots (Q-H9: ignored)",
        &["snapshot table offset invalid"],
    ),
    ("a bitmap of a disk whose size is no multiple of a sector, which is warned of", &["Could not read bitmap"]),
];

fn no_answer(qemu: &Opinion) -> bool {
    NO_ANSWER.iter().flat_map(|(_, words)| *words).any(|words| qemu.words.contains(words))
}

fn known(code: &str) -> bool {
    QEMU_CALLS_CLEAN.iter().any(|(_, codes)| codes.contains(&code))
}

/// Why the two opinions may not stand side by side; `None` if they may.
fn objection(report: &Report, qemu: &Opinion) -> Option<String> {
    let ours = report.verdict.exit_status();
    let wrong = |why: &str| Some(format!("{why}: qemu-img {}, ours {ours}", qemu.status));
    let unknown = |least: Severity| {
        let codes: Vec<_> = report
            .sums
            .iter()
            .filter(|(name, severity, _)| *severity >= least && !known(name))
            .map(|(name, ..)| *name)
            .collect();
        codes.join(" ")
    };
    match (qemu.status, ours) {
        (2, 2) | (3, 2 | 3) | (0, 0) => {}
        // Counts of a dirty image are rebuilt when it is next opened: that they are too low is no damage (Q-F3), and is
        // said.
        (2, 0 | 3) if report.sums.iter().any(|(name, ..)| *name == "QCOW2-FEATURE-DIRTY") => {}
        (2, _) => return wrong("it says corrupt"),
        (3, _) => return wrong("it says leaks"),
        (0, 1) if report.not_checked.is_empty() => return wrong("undecided without a reason"),
        (1, 0) if no_answer(qemu) => {}
        // An extent of a disk of several files has no descriptor; QEMU does not open it alone.
        (1, 0) if report.not_checked.iter().any(|line| line.contains("none of its own")) => {}
        (1 | ..0, 0) => return wrong("it refuses or dies"),
        _ => {}
    }
    if qemu.status == 0 && matches!(ours, 2 | 3) {
        let all_known = report.sums.iter().any(|(name, severity, _)| *severity >= Severity::Leak && known(name));
        if !all_known {
            return Some(format!("it says clean: a new kind of disagreement: {}", unknown(Severity::Leak)));
        }
    }
    None
}

/// Runs `count` images, two at a time; `make` gives the image of a seed and says what it is.
fn compare(format: Format, count: u64, sound: bool, make: impl Fn(u64) -> (Sparse, String) + Sync) -> Vec<String> {
    let first = number("BLKPROOF_SEED", 0);
    println!("{}: seeds {first}..{}; one alone: BLKPROOF_SEED=n BLKPROOF_DIFFERENTIAL=1", format.name(), first + count);
    let next = AtomicU64::new(first);
    let wrong = Mutex::new(Vec::new());
    let table = Mutex::new(BTreeMap::new());
    let work = || {
        let bench = Bench::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                break;
            }
            let (image, what) = make(seed);
            let qemu = bench.check(format.name(), &image);
            let judged = std::panic::catch_unwind(|| judge(&image, &options(format)));
            let (found, report) = match judged {
                Ok(report) => {
                    *table.lock().unwrap().entry((qemu.status, report.verdict.exit_status())).or_insert(0) += 1;
                    let clean = qemu.status == 0 && report.verdict == Verdict::Healthy;
                    let unsound = (sound && !clean).then(|| format!("not clean: {}", qemu.status));
                    (unsound.or_else(|| objection(&report, &qemu)), Some(report))
                }
                Err(_) => (Some("a panic".to_owned()), None),
            };
            if let Some(why) = found {
                let findings: Vec<_> = report
                    .iter()
                    .flat_map(|report| &report.findings)
                    .take(12)
                    .map(|one| format!("\n    {} {}", one.code.name, one.what))
                    .collect();
                let kept = keep(&format!("{}-{seed}", format.name()), &image);
                wrong.lock().unwrap().push(format!(
                    "seed {seed}: {why}\n  {what}\n  qemu-img: {}\n  findings:{}\n  {kept}",
                    qemu.words.trim(),
                    findings.concat()
                ));
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let wrong = wrong.into_inner().unwrap();
    println!("{}: (qemu-img, ours) -> images: {:?}", format.name(), table.into_inner().unwrap());
    wrong
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} disagree:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}

/// A generated image, changed; every tenth one is as it was made.
fn qcow2_of(seed: u64) -> (Sparse, String) {
    let base = qcow2::generate(seed);
    let mut dice = Dice::new(!seed);
    let (image, what) = mutate::mutate(&base, &qcow2::generate(seed ^ 1), &mut dice);
    (image, format!("{what}\n  {}", base.name))
}

#[test]
fn sound_qcow2_images_are_clean_for_both() {
    none(&compare(Format::Qcow2, number("BLKPROOF_DIFFERENTIAL", 600), true, |seed| {
        let base = qcow2::generate(seed);
        (base.image, base.name)
    }));
}

#[test]
fn changed_qcow2_images() {
    none(&compare(Format::Qcow2, number("BLKPROOF_DIFFERENTIAL", 10_000), false, qcow2_of));
}

#[test]
fn changed_images_of_other_formats() {
    let bases = bases::all();
    let mut wrong = Vec::new();
    for base in &bases {
        // No peer checks VHD.
        if base.format == Format::Vhd {
            continue;
        }
        wrong.extend(compare(base.format, number("BLKPROOF_DIFFERENTIAL", 2000) / 5, false, |seed| {
            let mut dice = Dice::new(seed);
            let other = dice.of(&bases);
            let (mut image, what) = mutate::mutate(base, other, &mut dice);
            if dice.percent(80) {
                seal::seal(&mut image);
            }
            (image, format!("{what}\n  {}", base.name))
        }));
    }
    none(&wrong);
}
