//! Images of qemu-img, damaged byte by byte: the code, the places, the verdict, and what `qemu-img check` says of them.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init
)]

mod qcow2_mapping_support;

use std::collections::BTreeSet;
use std::ops::Range;

use blkproof_check::{Options, Verdict, catalogue};
use qcow2_mapping_support::{Bench, Bytes, COPIED, codes, consistent};

/// Exit status of `qemu-img check` where it differs from ours, with the reason.
enum Peer {
    Agrees,
    Says(i32, &'static str),
}
use Peer::{Agrees, Says};

struct Case {
    name: &'static str,
    base: &'static str,
    damage: fn(&mut Bytes),
    verdict: Verdict,
    /// Code and single errors that have to be among the findings.
    codes: &'static [(&'static str, u64)],
    /// All there is of lost ranges.
    lost: &'static [Range<u64>],
    peer: Peer,
}

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

/// The images that are damaged: 64 KiB clusters, data at 0..1M, 3M..3M+128k, zeroes at 5M..5M+128k, a window at 600M.
const BASES: &[(&str, &[&str])] = &[
    ("v3", &["create 1G", "io write -P 1 0 1M; write -P 2 3M 128k; write -z 5M 128k; write -P 3 600M 1M"]),
    ("v2", &["create -o compat=0.10 1G", "io write -P 1 0 1M; write -P 3 600M 1M"]),
    ("snapshot", &["create 1G", "io write -P 1 0 1M", "snapshot -c old", "io write -P 2 512k 1M; write 600M 1M"]),
    (
        "compressed",
        &["create 64M", "io write -P 1 0 1M; write -P 2 3M 128k", "compress -o cluster_size=64k", "io write 5M 64k"],
    ),
    ("extended", &["create -o extended_l2=on 64M", "io write -P 1 0 128k; write 3M 2k; write -z 5M 64k"]),
    ("external", &["create -o data_file=DIR/data.bin 64M", "io write -P 1 0 1M"]),
    ("lazy", &["create -o lazy_refcounts=on 1G", "io write -P 1 0 1M; write 600M 1M"]),
    ("1-bit", &["create -o refcount_bits=1 64M", "io write -P 1 0 1M"]),
];

fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "L1 entry with reserved bits",
            base: "v3",
            damage: |image| image.set(image.l1(), image.u64(image.l1()) | 1 << 60),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L1-RESERVED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "L1 entry misaligned",
            base: "v3",
            damage: |image| image.set(image.l1(), image.u64(image.l1()) | 0x200),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L1-MISALIGNED", 1), ("QCOW2-CLUSTER-UNCLAIMED", 18)],
            lost: &[0..512 * M],
            peer: Agrees,
        },
        Case {
            name: "L1 entries past the end",
            base: "v3",
            damage: |image| {
                for index in 0..2 {
                    image.set(image.l1() + index * 8, COPIED | 0x40_0000_0000);
                }
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L1-PAST-END", 2), ("QCOW2-CLUSTER-UNCLAIMED", 36)],
            lost: &[0..1024 * M],
            peer: Agrees,
        },
        Case {
            name: "L1 entry with a flag and no table",
            base: "v3",
            damage: |image| image.set(image.l1() + 8, COPIED),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L1-NO-TABLE", 1)],
            lost: &[512 * M..1024 * M],
            peer: Agrees,
        },
        Case {
            name: "L1 entry without COPIED",
            base: "v3",
            damage: |image| image.set(image.l1(), image.u64(image.l1()) & !COPIED),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L1-COPIED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "L1 entry of a shared table with COPIED",
            base: "snapshot",
            damage: |image| {
                // The active table was copied when it was written to; the snapshot's is made the active one again.
                let snapshot_l1 = image.u64(image.u64(64));
                image.set(image.l1(), image.u64(snapshot_l1) | COPIED);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-UNDERCOUNTED", 9), ("QCOW2-CLUSTER-LEAKED", 17)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "L1 entry beyond the disk",
            base: "v3",
            damage: |image| {
                // The disk ends where the second window begins.
                image.set(24, 512 * M);
            },
            verdict: Verdict::Healthy,
            codes: &[("QCOW2-L1-STRAY", 1), ("QCOW2-L2-STRAY", 16)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "L2 entries beyond the disk",
            base: "v3",
            damage: |image| image.set(24, 616 * M - 15 * M - 512 * K),
            verdict: Verdict::Healthy,
            codes: &[("QCOW2-L2-STRAY", 8)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "one L2 table named twice",
            base: "v3",
            damage: |image| image.set(image.l1() + 8, image.u64(image.l1())),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-OVERLAP", 19), ("QCOW2-CLUSTER-UNCLAIMED", 17)],
            lost: &[0..1024 * M],
            peer: Agrees,
        },
        Case {
            name: "L2 table made of text",
            base: "v3",
            damage: |image| {
                let at = image.l2(1) as usize;
                for (byte, text) in
                    image.0[at..at + 65536].iter_mut().zip(b"Nov 21 kernel: usb 1-1: reset\n".iter().cycle())
                {
                    *byte = *text;
                }
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-OVERWRITTEN", 8192), ("QCOW2-CLUSTER-UNCLAIMED", 16)],
            lost: &[512 * M..1024 * M],
            peer: Agrees,
        },
        Case {
            name: "file cut in an L2 table",
            base: "v3",
            damage: |image| {
                // The table of the second window becomes the file's last cluster, and loses its second half.
                let from = image.l2(1) as usize;
                let table = image.0[from..from + 65536].to_vec();
                let to = image.0.len() as u64;
                image.0.extend(table);
                image.0.truncate(to as usize + 32768);
                image.set(image.l1() + 8, to | COPIED);
                image.set_u16(image.count(to), 1);
                image.set_u16(image.count(from as u64), 0);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-CUT", 1)],
            lost: &[768 * M..1024 * M],
            peer: Says(0, "it reads the missing half as zeroes"),
        },
        Case {
            name: "L2 entry with reserved bits",
            base: "v3",
            damage: |image| image.set(image.entry(0), image.u64(image.entry(0)) | 1 << 57),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-RESERVED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "L2 entry misaligned",
            base: "v3",
            damage: |image| image.set(image.entry(64 * K), image.u64(image.entry(64 * K)) | 0x1000),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-MISALIGNED", 1)],
            lost: &[64 * K..128 * K],
            peer: Agrees,
        },
        Case {
            name: "truncated file",
            base: "v3",
            damage: |image| {
                let at = image.data(600 * M + 512 * K);
                image.0.truncate(at as usize);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-PAST-END", 8), ("QCOW2-REFCOUNT-PAST-END", 8)],
            lost: &[600 * M + 512 * K..601 * M],
            peer: Agrees,
        },
        Case {
            name: "a file cut within its last cluster is none",
            base: "v3",
            damage: |image| {
                let len = image.0.len();
                image.0.truncate(len - 60000);
            },
            verdict: Verdict::Healthy,
            codes: &[],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "L2 entries without COPIED",
            base: "v3",
            damage: |image| {
                for index in 0..4 {
                    let entry = image.entry(index * 64 * K);
                    image.set(entry, image.u64(entry) & !COPIED);
                }
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-COPIED", 4)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "L2 entries of shared clusters with COPIED",
            base: "snapshot",
            damage: |image| image.set(image.entry(0), image.u64(image.entry(0)) | COPIED),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-COPIED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "COPIED without an offset",
            base: "v3",
            damage: |image| image.set(image.entry(20 * M), COPIED),
            verdict: Verdict::Healthy,
            codes: &[("QCOW2-L2-COPIED-NOTHING", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "zero flag in version 2",
            base: "v2",
            damage: |image| image.set(image.entry(0), image.u64(image.entry(0)) | 1),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-ZERO-FLAG-V2", 1)],
            lost: &[0..64 * K],
            peer: Says(0, "it gives the flag its meaning of version 3"),
        },
        Case {
            name: "zero flag in an extended entry",
            base: "extended",
            damage: |image| image.set(image.entry(0), image.u64(image.entry(0)) | 1),
            verdict: Verdict::Healthy,
            codes: &[("QCOW2-L2-ZERO-FLAG-EXTENDED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "compressed with COPIED",
            base: "compressed",
            damage: |image| image.set(image.entry(0), image.u64(image.entry(0)) | COPIED),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-COMPRESSED-COPIED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "compressed past the end",
            base: "compressed",
            damage: |image| image.set(image.entry(0), image.u64(image.entry(0)) | 1 << 45),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-COMPRESSED-PAST-END", 1)],
            lost: &[0..64 * K],
            peer: Agrees,
        },
        Case {
            name: "a stream that does not inflate",
            base: "compressed",
            damage: |image| {
                let at = image.u64(image.entry(3 * M)) & ((1 << 54) - 1);
                image.0[at as usize..][..8].fill(0xff);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-STREAM-BROKEN", 1)],
            lost: &[3 * M..3 * M + 64 * K],
            peer: Says(0, "it never inflates"),
        },
        Case {
            name: "compressed data over a table",
            base: "compressed",
            damage: |image| {
                let l2 = image.l2(0);
                let entry = image.entry(0);
                image.set(entry, 1 << 62 | l2 | 0x400);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-OVERLAP", 1)],
            lost: &[0..64 * K],
            peer: Agrees,
        },
        Case {
            name: "compressed with an external data file",
            base: "external",
            damage: |image| image.set(image.entry(0), 1 << 62 | 0x5_0000),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-COMPRESSED-EXTERNAL", 1)],
            lost: &[0..64 * K],
            peer: Agrees,
        },
        Case {
            name: "another place of the external data file",
            base: "external",
            damage: |image| image.set(image.entry(64 * K), COPIED | 0x5_0000),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-EXTERNAL-OFFSET", 1)],
            lost: &[64 * K..128 * K],
            peer: Says(0, "it does not look at the place"),
        },
        Case {
            name: "external data without COPIED",
            base: "external",
            damage: |image| image.set(image.entry(64 * K), image.u64(image.entry(64 * K)) & !COPIED),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-COPIED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "subclusters of a compressed cluster",
            base: "extended",
            damage: |image| {
                let entry = image.entry(8 * M);
                let data = image.data(3 * M);
                image.set(entry, 1 << 62 | data);
                image.set(entry + 8, 1);
                image.set(image.entry(3 * M), 0);
                image.set(image.entry(3 * M) + 8, 0);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-COMPRESSED-BITMAP", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "subclusters both allocated and zero",
            base: "extended",
            damage: |image| {
                let entry = image.entry(3 * M);
                image.set(entry + 8, image.u64(entry + 8) | 1 << 32);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-SUBCLUSTERS-BOTH", 1)],
            lost: &[3 * M..3 * M + 64 * K],
            peer: Agrees,
        },
        Case {
            name: "subclusters without a cluster",
            base: "extended",
            damage: |image| {
                let entry = image.entry(3 * M);
                let data = image.data(3 * M);
                image.set(entry, 0);
                image.set_u16(image.count(data), 0);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-L2-SUBCLUSTERS-NOWHERE", 1)],
            lost: &[3 * M..3 * M + 64 * K],
            peer: Agrees,
        },
        Case {
            name: "refcount table entry with reserved bits",
            base: "v3",
            damage: |image| image.set(image.reftable(), image.u64(image.reftable()) | 2),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-REFTABLE-RESERVED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "refcount table entry misaligned",
            base: "v3",
            damage: |image| image.set(image.reftable(), image.u64(image.reftable()) | 0x800),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-REFTABLE-MISALIGNED", 1)],
            lost: &[],
            peer: Says(1, "it gives up"),
        },
        Case {
            name: "refcount table entry past the end",
            base: "v3",
            damage: |image| image.set(image.reftable(), 0x40_0000_0000),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-REFTABLE-PAST-END", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "refcount block named twice",
            base: "v3",
            damage: |image| image.set(image.reftable() + 8, image.u64(image.reftable())),
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-OVERLAP", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "all counts zero",
            base: "v3",
            damage: |image| {
                let at = image.refblock(0) as usize;
                image.0[at..at + 65536].fill(0);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-FREE-IN-USE", 40)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "counts past the end",
            base: "v3",
            damage: |image| {
                let end = image.0.len() as u64;
                image.set_u16(image.count(end + 64 * K), 1);
            },
            verdict: Verdict::Healthy,
            codes: &[("QCOW2-REFCOUNT-PAST-END", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "guest data on guest data",
            base: "v3",
            damage: |image| {
                let shared = image.data(0);
                image.set(image.entry(3 * M), shared | COPIED);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-OVERLAP", 1), ("QCOW2-CLUSTER-UNCLAIMED", 1)],
            lost: &[0..64 * K, 3 * M..3 * M + 64 * K],
            peer: Agrees,
        },
        Case {
            name: "guest data on guest data, made legal by the count",
            base: "v3",
            damage: |image| {
                let (shared, freed) = (image.data(0), image.data(3 * M));
                for at in [0, 3 * M] {
                    image.set(image.entry(at), shared);
                }
                image.set_u16(image.count(shared), 2);
                image.set_u16(image.count(freed), 0);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-OVERLAP", 1)],
            lost: &[0..64 * K, 3 * M..3 * M + 64 * K],
            peer: Says(0, "it believes counts that agree (image-check.md 4.3, class 3)"),
        },
        Case {
            name: "guest data on the L1 table",
            base: "v3",
            damage: |image| {
                let l1 = image.l1();
                image.set(image.entry(20 * M), l1 | COPIED);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-OVERLAP", 1)],
            lost: &[20 * M..20 * M + 64 * K],
            peer: Agrees,
        },
        Case {
            name: "a snapshot's cluster at another place of the disk",
            base: "snapshot",
            damage: |image| {
                let shared = image.data(0);
                image.set(image.entry(20 * M), shared);
                image.set_u16(image.count(shared), 3);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-OVERLAP", 1)],
            lost: &[0..64 * K, 20 * M..20 * M + 64 * K],
            peer: Says(0, "it believes counts that agree (image-check.md 4.3, class 3)"),
        },
        Case {
            name: "counted too often",
            base: "v3",
            damage: |image| {
                let entry = image.entry(0);
                let at = image.data(0);
                image.set_u16(image.count(at), 2);
                image.set(entry, at);
            },
            verdict: Verdict::Leaks,
            codes: &[("QCOW2-CLUSTER-OVERCOUNTED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "leaked",
            base: "v3",
            damage: |image| {
                for at in [0, 64 * K, 600 * M] {
                    image.set(image.entry(at), 0);
                }
            },
            verdict: Verdict::Leaks,
            codes: &[("QCOW2-CLUSTER-LEAKED", 3)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "a snapshot's data counted once only",
            base: "snapshot",
            damage: |image| {
                let at = image.data(64 * K);
                image.set_u16(image.count(at), 1);
                image.set(image.entry(64 * K), at | COPIED);
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-UNDERCOUNTED", 1)],
            lost: &[],
            peer: Agrees,
        },
        Case {
            name: "stale counts of a dirty image",
            base: "lazy",
            damage: |image| {
                image.set(72, image.u64(72) | 1);
                for at in [0, 64 * K] {
                    let host = image.data(at);
                    image.set_u16(image.count(host), 0);
                }
                image.set(image.entry(128 * K), 0);
            },
            verdict: Verdict::Leaks,
            codes: &[("QCOW2-CLUSTER-FREE-IN-USE", 2), ("QCOW2-CLUSTER-LEAKED", 1)],
            lost: &[],
            peer: Says(2, "it compares counts that the image itself says are stale (Q-F3); the leak it calls one too"),
        },
        Case {
            name: "a free cluster in use, one bit wide",
            base: "1-bit",
            damage: |image| {
                let cluster = image.data(0) / 65536;
                let at = image.refblock(0) + cluster / 8;
                image.0[at as usize] &= !(1 << (cluster % 8));
            },
            verdict: Verdict::Damaged,
            codes: &[("QCOW2-CLUSTER-FREE-IN-USE", 1)],
            lost: &[],
            peer: Agrees,
        },
    ]
}

#[test]
fn damage_is_found_named_and_placed() {
    let bench = Bench::new();
    let bases: Vec<(&str, Bytes)> =
        BASES.iter().map(|(name, steps)| (*name, Bytes::read(&bench.image(name, steps)))).collect();
    let mut raised: BTreeSet<&str> = BTreeSet::new();
    let mut wrong = String::new();
    for case in cases() {
        let name = case.name;
        let mut image = bases.iter().find(|(base, _)| *base == case.base).unwrap().1.clone();
        (case.damage)(&mut image);
        for (memory, threads) in [(64 << 20, 1), (4 << 20, 2)] {
            let options = Options { memory, threads, data: true, ..Options::default() };
            let report = image.check(&options);
            consistent(&report, name);
            let got = codes(&report);
            raised.extend(got.iter().map(|(code, _)| *code));
            let story = || {
                report
                    .findings
                    .iter()
                    .map(|f| format!("{} {}: {}\n", f.severity, f.code.name, f.what))
                    .collect::<String>()
            };
            if report.verdict != case.verdict
                || report.lost.ranges != case.lost
                || case.codes.iter().any(|want| !got.contains(want))
            {
                wrong += &format!(
                    "\n{name}: {:?}, lost {:x?}, {got:?}, {:?}\n{}",
                    report.verdict,
                    report.lost.ranges,
                    report.not_checked,
                    story()
                );
            }
        }
        let status = image.qemu(&bench).status;
        match case.peer {
            Agrees if status != i32::from(case.verdict.exit_status()) => {
                wrong += &format!("\n{name}: qemu-img check says {status}\n");
            }
            Says(want, why) if status != want => {
                wrong += &format!("\n{name}: qemu-img check says {status}, not {want}: {why}\n")
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    // No code of the mapping is there for nothing.
    let ours = ["QCOW2-L1-", "QCOW2-L2-", "QCOW2-REFTABLE-", "QCOW2-REFCOUNT-", "QCOW2-CLUSTER-", "QCOW2-STREAM-"];
    let never: Vec<&str> = catalogue::all()
        .map(|code| code.name)
        .filter(|name| ours.iter().any(|prefix| name.starts_with(prefix)) && !raised.contains(name))
        .collect();
    assert_eq!(never, Vec::<&str>::new(), "codes no case raises");
}
