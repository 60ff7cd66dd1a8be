//! Sound images of every kind qemu-img makes are healthy, and the figures are those of `qemu-img check`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init
)]

mod qcow2_mapping_support;

use blkproof_check::map::{Class, GuestState};
use blkproof_check::{Options, Verdict};
use qcow2_mapping_support::{Bench, Qemu, check_file, codes, consistent};

const WRITES: &str = "io write -P 1 0 1M; write -P 2 3M 70k; write -z 5M 200k; write -P 3 7M 64k; discard 7M 64k; \
                      write -P 4 9M 3k; write -P 5 2M 64k";

#[test]
fn images_of_qemu_img_are_healthy() {
    let options: &[(&str, &[&str])] = &[
        ("plain", &["create 64M", WRITES]),
        ("empty", &["create 64M"]),
        ("nothing", &["create 0"]),
        ("odd-size", &["create 1000000", "io write 0 1000000"]),
        ("v2", &["create -o compat=0.10 64M", "io write -P 1 0 1M; write -P 2 3M 70k; discard 3M 64k"]),
        ("512", &["create -o cluster_size=512 64M", WRITES]),
        ("4k", &["create -o cluster_size=4k 64M", WRITES]),
        ("2m", &["create -o cluster_size=2M 640M", WRITES, "io write 600M 3M"]),
        ("refcount-1", &["create -o refcount_bits=1 64M", WRITES]),
        ("refcount-2", &["create -o refcount_bits=2,cluster_size=4k 64M", WRITES, "snapshot -c a", WRITES]),
        ("refcount-4", &["create -o refcount_bits=4,cluster_size=1k 64M", WRITES, "snapshot -c a", WRITES]),
        ("refcount-8", &["create -o refcount_bits=8 64M", WRITES, "snapshot -c a", WRITES]),
        ("refcount-32", &["create -o refcount_bits=32,cluster_size=512 64M", WRITES, "snapshot -c a", WRITES]),
        ("refcount-64", &["create -o refcount_bits=64 64M", WRITES, "snapshot -c a", WRITES]),
        ("lazy", &["create -o lazy_refcounts=on 64M", WRITES]),
        ("extended", &["create -o extended_l2=on 64M", WRITES, "io write -z 1k 2k; write 20M 2k; discard 20M 2k"]),
        ("extended-16k", &["create -o extended_l2=on,cluster_size=16k 64M", WRITES, "snapshot -c a", WRITES]),
        ("extended-compressed", &["create 64M", WRITES, "compress -o extended_l2=on", "io write 100k 2k"]),
        ("metadata", &["create -o preallocation=metadata 4G", WRITES]),
        ("metadata-4k", &["create -o preallocation=metadata,cluster_size=4k 300M", WRITES]),
        ("metadata-extended", &["create -o preallocation=metadata,extended_l2=on 300M", WRITES]),
        ("falloc", &["create -o preallocation=falloc 16M", WRITES]),
        ("full", &["create -o preallocation=full 16M", WRITES]),
        ("compressed", &["create 64M", WRITES, "compress -o cluster_size=64k", "io write 0 10k; write 3M 1M"]),
        ("compressed-zstd", &["create 64M", WRITES, "compress -o compression_type=zstd", "io write 0 10k"]),
        ("compressed-512", &["create 64M", WRITES, "compress -o cluster_size=512"]),
        ("compressed-2m", &["create 64M", WRITES, "compress -o cluster_size=2M"]),
        ("compressed-snapshots", &["create 64M", WRITES, "compress -o cluster_size=4k", "snapshot -c a", WRITES]),
        (
            "snapshots",
            &["create 64M", WRITES, "snapshot -c a", WRITES, "snapshot -c b", "io write 0 64k", "snapshot -d a"],
        ),
        ("reverted", &["create 64M", WRITES, "snapshot -c a", WRITES, "snapshot -a a", "io write 20M 1M"]),
        (
            "snapshot-resized",
            &["create 64M", WRITES, "snapshot -c a", "resize 1G", "io write 900M 1M", "snapshot -c b"],
        ),
        (
            "many-snapshots",
            &[
                "create -o cluster_size=512 1M",
                "io write 0 100k",
                "snapshot -c a",
                "snapshot -c b",
                "snapshot -c c",
                "snapshot -c d",
                "io write 1k 1k",
            ],
        ),
        ("data-file", &["create -o data_file=DIR/data.bin 64M", WRITES]),
        ("data-file-raw", &["create -o data_file=DIR/data.raw,data_file_raw=on 64M", WRITES]),
        ("data-file-extended", &["create -o data_file=DIR/data.ext,extended_l2=on 64M", WRITES]),
        ("luks", &["luks cluster_size=64k 64M"]),
        ("luks-4k", &["luks cluster_size=4k 64M"]),
        ("bitmaps", &["create 64M", WRITES, "bitmap --add a", "bitmap --add -g 512 b", WRITES, "bitmap --remove a"]),
        ("grown", &["create -o cluster_size=512 64k", "io write 0 64k", "resize 100M", "io write 99M 1M"]),
        ("shrunk", &["create 640M", "io write 0 1M; write 600M 1M", "resize --shrink 64M"]),
        ("backing", &["raw base.raw 64M", "create -b base.raw -F raw 64M", WRITES]),
        ("big-l1", &["create -o cluster_size=512 3G", "io write 0 1k; write 2G 100k"]),
    ];
    let bench = Bench::new();
    for (name, steps) in options {
        let path = bench.image(name, steps);
        let qemu = Qemu::check(&path);
        let luks = name.starts_with("luks");
        assert!(qemu.status == 0 || luks, "{name}: qemu-img check: {}", qemu.status);
        for (memory, threads, cells) in [(64 << 20, 1, 0), (4 << 20, 3, 5000)] {
            let asked = Options { memory, threads, cells, data: true, ..Options::default() };
            let report = check_file(&path, &asked);
            consistent(&report, name);
            assert_eq!(report.verdict, Verdict::Healthy, "{name}: {:#?} {:?}", report.findings, report.not_checked);
            assert!(
                report.findings.iter().all(|finding| finding.severity < blkproof_check::code::Severity::Warning),
                "{name}: {:?}",
                codes(&report)
            );
            assert_eq!(report.lost.bytes, 0, "{name}");
            if luks {
                continue;
            }
            let numbers = report.numbers;
            for (key, ours) in [
                ("image-end-offset", numbers.image_end_offset),
                ("total-clusters", numbers.total_clusters),
                ("allocated-clusters", numbers.allocated_clusters),
                ("fragmented-clusters", numbers.fragmented_clusters),
                ("compressed-clusters", numbers.compressed_clusters),
            ] {
                assert_eq!(ours.unwrap_or(0), qemu.figure(key), "{name}: {key}");
            }
            if let (Some(grid), Some(map)) = (report.guest.as_ref().and_then(|map| map.grid.as_ref()), &report.guest) {
                for state in GuestState::ALL {
                    let drawn: u64 = grid.cells.iter().map(|cell| cell[*state as usize]).sum();
                    assert_eq!(drawn, map.bytes(*state), "{name}: {state}");
                }
            }
            if let (Some(grid), Some(map)) = (report.host.as_ref().and_then(|map| map.grid.as_ref()), &report.host) {
                for class in Class::ALL {
                    let drawn: u64 = grid.cells.iter().map(|cell| cell[*class as usize]).sum();
                    assert_eq!(drawn, map.bytes(*class), "{name}: {class}");
                }
            }
        }
    }
}

/// The guest's disk by state agrees with what `qemu-img map` says of it.
#[test]
fn states_of_the_disk_are_those_of_qemu_img_map() {
    let bench = Bench::new();
    for (name, steps) in [
        ("plain", &["create 64M", WRITES][..]),
        ("extended", &["create -o extended_l2=on 64M", WRITES, "io write -z 1k 2k; write 20M 2k"]),
        ("compressed", &["create 64M", WRITES, "compress -o cluster_size=64k", "io write 0 10k"]),
        ("small", &["create -o cluster_size=512 8M", "io write 0 100k; write -z 1M 100k; write 3M 1k"]),
    ] {
        let path = bench.image(name, steps);
        let map =
            qcow2_mapping_support::run("qemu-img", &["map", "-f", "qcow2", "--output=json", path.to_str().unwrap()]);
        let (mut data, mut zero) = (0, 0);
        for line in map.lines() {
            let length = line
                .split_once("\"length\": ")
                .map_or(0, |(_, rest)| rest.split(',').next().unwrap().trim().parse::<u64>().unwrap());
            if line.contains("\"data\": true") {
                data += length;
            } else if line.contains("\"present\": true") {
                zero += length;
            }
        }
        let report = check_file(&path, &Options::default());
        let guest = report.guest.unwrap();
        assert_eq!(guest.bytes(GuestState::Data) + guest.bytes(GuestState::Compressed), data, "{name}: {map}");
        assert_eq!(guest.bytes(GuestState::Zero), zero, "{name}: {map}");
    }
}
