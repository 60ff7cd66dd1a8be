//! Images written by either side are read by the other, byte for byte, over a matrix of options.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod qcow2_support;

use std::rc::Rc;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
use futures_lite::future::block_on;
use qcow2_support::*;

/// One row of the matrix.
#[derive(Clone, Copy, Debug)]
struct Row {
    cluster: u64,
    bits: u32,
    v2: bool,
    extended: bool,
    /// Size of the backing file, if there is one.
    backing: Option<u64>,
    preallocation: &'static str,
    lazy: bool,
}

const fn row(cluster: u64, bits: u32) -> Row {
    Row { cluster, bits, v2: false, extended: false, backing: None, preallocation: "off", lazy: false }
}

/// Pairwise, with the corners.
fn matrix() -> Vec<Row> {
    let plain = row(65536, 16);
    vec![
        plain,
        row(512, 1),
        row(512, 64),
        row(1024, 2),
        row(4096, 4),
        row(4096, 8),
        row(65536, 32),
        row(2 << 20, 16),
        row(2 << 20, 1),
        Row { v2: true, ..plain },
        Row { v2: true, ..row(512, 16) },
        Row { v2: true, backing: Some(700_000), ..row(4096, 16) },
        Row { v2: true, backing: Some(3 << 20), ..plain },
        Row { backing: Some(1_000_003), ..plain },
        Row { backing: Some(512), ..row(512, 8) },
        Row { backing: Some(5 << 20), ..row(4096, 64) },
        Row { extended: true, ..plain },
        Row { extended: true, backing: Some(1_234_567), ..plain },
        Row { extended: true, backing: Some(5 << 20), preallocation: "metadata", ..row(16384, 8) },
        Row { extended: true, ..row(2 << 20, 64) },
        Row { preallocation: "metadata", ..plain },
        Row { preallocation: "metadata", ..row(512, 2) },
        Row { preallocation: "falloc", ..row(4096, 16) },
        Row { preallocation: "full", extended: true, ..row(16384, 32) },
        Row { preallocation: "metadata", v2: true, ..row(65536, 16) },
        Row { lazy: true, ..plain },
        Row { lazy: true, backing: Some(900_001), ..row(1024, 16) },
    ]
}

const SIZE: u64 = 2_600_448; // no multiple of most clusters

fn pattern(len: u64, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i % 251) as u8 ^ salt).collect()
}

fn backing_of(row: &Row, dir: &std::path::Path) -> Option<Vec<u8>> {
    let bytes = pattern(row.backing?, 0x77);
    std::fs::write(dir.join("base.raw"), &bytes).unwrap();
    Some(bytes)
}

/// What QEMU reads from a raw file: whole sectors.
fn base_content(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn qemu_options(row: &Row) -> String {
    let mut text = format!("cluster_size={},refcount_bits={}", row.cluster, row.bits);
    text += if row.v2 { ",compat=0.10" } else { ",compat=1.1" };
    if row.extended {
        text += ",extended_l2=on";
    }
    if row.lazy {
        text += ",lazy_refcounts=on";
    }
    text += &format!(",preallocation={}", row.preallocation);
    if row.backing.is_some() {
        text += ",backing_file=base.raw,backing_fmt=raw";
    }
    text
}

fn our_options(row: &Row) -> CreateOptions {
    CreateOptions {
        size: SIZE,
        cluster_size: row.cluster,
        version: if row.v2 { 2 } else { 3 },
        refcount_bits: row.bits,
        lazy_refcounts: row.lazy,
        extended_l2: row.extended,
        backing_file: row.backing.map(|_| "base.raw".into()),
        backing_format: row.backing.map(|_| "raw".into()),
        preallocation: match row.preallocation {
            "metadata" => Preallocation::Metadata,
            "falloc" => Preallocation::Falloc,
            "full" => Preallocation::Full,
            _ => Preallocation::Off,
        },
        ..CreateOptions::default()
    }
}

fn open_options(base: Option<&Vec<u8>>) -> OpenOptions<Rc<Memory>> {
    OpenOptions {
        backing: base.map(|bytes| memory_node(&base_content(bytes))),
        l2_cache_size: 2 << 12,
        ..OpenOptions::default()
    }
}

/// A random sequential workload against `model`; every read is compared at once.
async fn work(disk: &impl BlockDevice, model: &mut [u8], seed: u64, steps: u32) {
    let mut random = Random(seed);
    for step in 0..steps {
        let at = random.below(model.len() as u64);
        let max = if random.one_in(6) { 400_000 } else { 9_000 };
        let mut len = 1 + random.below(max.min(model.len() as u64 - at));
        let mut at = at;
        if random.one_in(3) {
            at = at / 65536 * 65536;
            len = (len.next_multiple_of(65536)).min(model.len() as u64 - at);
        }
        let range = at as usize..(at + len) as usize;
        match random.below(9) {
            0..=3 => {
                let data = pattern(len, step as u8);
                let flags = if random.one_in(5) { WriteFlags::FUA } else { WriteFlags::empty() };
                disk.write(at, &data, flags).await.unwrap();
                model[range].copy_from_slice(&data);
            }
            4 => {
                let flags = if random.one_in(2) { ZeroFlags::MAY_UNMAP } else { ZeroFlags::empty() };
                disk.write_zeroes(at, len, flags).await.unwrap();
                model[range].fill(0);
            }
            5 => {
                disk.discard(at, len).await.unwrap();
                let mut now = vec![0; len as usize];
                disk.read(at, &mut now).await.unwrap();
                for (now, old) in now.iter().zip(&mut model[range]) {
                    assert!(*now == 0 || now == old, "a discard shows foreign bytes, step {step}, {at:#x}+{len:#x}");
                    *old = *now;
                }
            }
            6 => disk.flush().await.unwrap(),
            _ => {
                let mut got = vec![0xcc; len as usize];
                disk.read(at, &mut got).await.unwrap();
                assert_same(&got, &model[range], &format!("seed {seed}, step {step}, read {at:#x}+{len:#x}"));
            }
        }
    }
}

fn start_model(base: Option<&Vec<u8>>) -> Vec<u8> {
    let mut model = base.map(|bytes| base_content(bytes)).unwrap_or_default();
    model.resize(SIZE as usize, 0);
    model
}

#[test]
fn we_read_and_change_what_qemu_wrote() {
    block_on(async {
        for (number, row) in matrix().iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image.qcow2");
            let name = path.to_str().unwrap();
            let base = backing_of(row, dir.path());
            ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &qemu_options(row), name, &SIZE.to_string()]);
            ok(
                "qemu-io",
                &[
                    "-f",
                    "qcow2",
                    "-t",
                    "writeback",
                    "-c",
                    "write -P 17 1000 70000",
                    "-c",
                    "write -P 34 1500000 300000",
                    "-c",
                    "write -z 60000 9000",
                    "-c",
                    "write -z -u 131072 131072",
                    "-c",
                    "discard 1572864 131072",
                    "-c",
                    "write -P 51 2600000 448",
                    name,
                ],
            );
            let want = qemu_content(&path, dir.path());
            let image = Qcow2::open(load(&path), open_options(base.as_ref())).await.unwrap();
            assert_same(&content(&image).await, &want, &format!("{row:?}: first read"));
            let mut model = want;
            work(&image, &mut model, number as u64 + 1, 120).await;
            assert_same(&content(&image).await, &model, &format!("{row:?}: after work"));
            image.close().await.unwrap();
            let file = image.into_file();
            store(&file, &path).await;
            assert_clean(&path, &format!("{row:?}"));
            assert_same(&qemu_content(&path, dir.path()), &model, &format!("{row:?}: read by qemu"));
        }
    });
}

#[test]
fn qemu_reads_and_changes_what_we_wrote() {
    block_on(async {
        for (number, row) in matrix().iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image.qcow2");
            let name = path.to_str().unwrap();
            let base = backing_of(row, dir.path());
            let file = Rc::new(Memory::new(0));
            create(Rc::clone(&file), None, &our_options(row)).await.unwrap();
            store(&file, &path).await;
            assert_clean(&path, &format!("{row:?}: as created"));
            let mut model = start_model(base.as_ref());
            let image = Qcow2::open(file, open_options(base.as_ref())).await.unwrap();
            assert_same(&content(&image).await, &model, &format!("{row:?}: as created"));
            work(&image, &mut model, number as u64 + 100, 120).await;
            image.close().await.unwrap();
            store(&image.into_file(), &path).await;
            assert_clean(&path, &format!("{row:?}: after work"));
            assert_same(&qemu_content(&path, dir.path()), &model, &format!("{row:?}: read by qemu"));
            ok("qemu-io", &["-f", "qcow2", "-c", "write -P 99 777 99999", "-c", "write -z 1000000 200000", name]);
            model[777..777 + 99999].fill(99);
            model[1_000_000..1_200_000].fill(0);
            assert_clean(&path, &format!("{row:?}: changed by qemu"));
            let image = Qcow2::open(load(&path), open_options(base.as_ref())).await.unwrap();
            assert_same(&content(&image).await, &model, &format!("{row:?}: changed by qemu"));
        }
    });
}
