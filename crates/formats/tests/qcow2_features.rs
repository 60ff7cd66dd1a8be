//! Snapshots, compressed clusters, dirty images, external data files, resizing, and what is refused; against QEMU's
//! tools.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod qcow2_support;

use std::path::Path;
use std::rc::Rc;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
use futures_lite::future::block_on;
use qcow2_support::*;

type Image = Qcow2<Rc<Memory>>;

async fn open(path: &Path) -> Image {
    Qcow2::open(load(path), OpenOptions::default()).await.unwrap()
}

async fn close(image: Image, path: &Path) {
    image.close().await.unwrap();
    store(&image.into_file(), path).await;
}

/// Writes and zeroes at random, in `model` too.
async fn change(image: &Image, model: &mut [u8], seed: u64, steps: u32) {
    let mut random = Random(seed);
    for step in 0..steps {
        let at = random.below(model.len() as u64);
        let len = 1 + random.below(100_000.min(model.len() as u64 - at));
        let range = at as usize..(at + len) as usize;
        if random.one_in(4) {
            image.write_zeroes(at, len, ZeroFlags::MAY_UNMAP).await.unwrap();
            model[range].fill(0);
        } else {
            let data: Vec<u8> = (0..len).map(|i| (i % 253) as u8 ^ step as u8).collect();
            image.write(at, &data, WriteFlags::empty()).await.unwrap();
            model[range].copy_from_slice(&data);
        }
    }
}

#[test]
fn snapshots_keep_their_content() {
    for options in [
        "compat=0.10,cluster_size=4096",
        "cluster_size=65536",
        "cluster_size=512,refcount_bits=2",
        "cluster_size=16384,extended_l2=on,refcount_bits=64",
    ] {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image.qcow2");
            let name = path.to_str().unwrap();
            ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "3M"]);
            ok("qemu-io", &["-c", "write -P 1 0 1500000", "-c", "write -z 100000 70000", name]);
            ok("qemu-img", &["snapshot", "-c", "first", name]);
            let first = qemu_content(&path, dir.path());
            ok("qemu-io", &["-c", "write -P 2 400000 2000000", name]);
            ok("qemu-img", &["snapshot", "-c", "second", name]);
            let second = qemu_content(&path, dir.path());

            let image = open(&path).await;
            let mut model = content(&image).await;
            assert_same(&model, &second, options);
            change(&image, &mut model, 5, 60).await;
            close(image, &path).await;
            assert_clean(&path, options);
            assert_same(&qemu_content(&path, dir.path()), &model, &format!("{options}: active"));
            for (snapshot, want) in [("first", &first), ("second", &second)] {
                let raw = dir.path().join("snapshot.raw");
                let raw = raw.to_str().unwrap();
                let which = format!("snapshot.name={snapshot}");
                ok("qemu-img", &["convert", "-f", "qcow2", "-l", &which, "-O", "raw", name, raw]);
                assert_same(&std::fs::read(raw).unwrap(), want, &format!("{options}: snapshot {snapshot}"));
            }
            // Deleting them afterwards finds every count right.
            ok("qemu-img", &["snapshot", "-d", "first", name]);
            ok("qemu-img", &["snapshot", "-d", "second", name]);
            assert_clean(&path, options);
        });
    }
}

#[test]
fn compressed_clusters_are_read_and_replaced() {
    for options in [
        "compression_type=zlib",
        "compression_type=zstd,cluster_size=4096",
        "compat=0.10,cluster_size=2M",
        "extended_l2=on",
    ] {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (plain, path) = (dir.path().join("plain.raw"), dir.path().join("image.qcow2"));
            let name = path.to_str().unwrap();
            let mut bytes: Vec<u8> = (0..3_000_320u32).map(|i| (i / 1000 % 256) as u8).collect();
            let mut random = Random(1);
            bytes[700_000..900_000].fill_with(|| random.next() as u8); // does not compress
            std::fs::write(&plain, &bytes).unwrap();
            let from = plain.to_str().unwrap();
            ok("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, from, name]);
            let image = open(&path).await;
            assert_same(&content(&image).await, &bytes, options);
            change(&image, &mut bytes, 9, 40).await;
            assert_same(&content(&image).await, &bytes, &format!("{options}: changed"));
            close(image, &path).await;
            assert_clean(&path, options);
            assert_same(&qemu_content(&path, dir.path()), &bytes, options);
        });
    }
}

#[test]
fn what_we_compress_qemu_inflates() {
    for (zstd, extended_l2, cluster_size, refcount_bits) in
        [(false, false, 65536, 16), (true, false, 65536, 16), (false, true, 16384, 8), (false, false, 512, 1)]
    {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image.qcow2");
            let size = 20 * 65536 + 512;
            let options =
                CreateOptions { size, zstd, extended_l2, cluster_size, refcount_bits, ..CreateOptions::default() };
            let file = Rc::new(Memory::new(0));
            create(Rc::clone(&file), None, &options).await.unwrap();
            let image = Qcow2::open(file, OpenOptions::default()).await.unwrap();
            let mut model = vec![0u8; size as usize];
            let mut random = Random(3);
            for step in 0..60u64 {
                let at = random.below(20) * 65536;
                let len = (65536 * (1 + random.below(3))).min(size - at);
                let data: Vec<u8> = (0..len).map(|i| ((i + step) / (17 + step) % 256) as u8).collect();
                image.write(at, &data, WriteFlags::COMPRESSED).await.unwrap();
                model[at as usize..(at + len) as usize].copy_from_slice(&data);
                if step % 7 == 0 {
                    image.discard(at, 65536).await.unwrap();
                    model[at as usize..at as usize + 65536].fill(0);
                    image.flush().await.unwrap();
                }
            }
            let status = image.block_status(size - 512, 512).await.unwrap();
            assert!(status.len <= 512);
            assert_same(&content(&image).await, &model, &format!("{options:?}"));
            close(image, &path).await;
            assert_clean(&path, &format!("{options:?}"));
            assert_same(&qemu_content(&path, dir.path()), &model, &format!("{options:?}"));
        });
    }
}

#[test]
fn a_dirty_image_is_rebuilt_by_a_writable_open_and_left_alone_by_a_read_only_one() {
    for options in
        ["lazy_refcounts=on", "lazy_refcounts=on,cluster_size=512", "lazy_refcounts=on,refcount_bits=1,extended_l2=on"]
    {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image.qcow2");
            let name = path.to_str().unwrap();
            ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "4M"]);
            // Without -t writeback every write is flushed: the tables are on disk, the counts are not.
            let (status, _) =
                run("qemu-io", &["-c", "write -P 7 0 1M", "-c", "write -P 8 2M 100k", "-c", "abort", name]);
            assert_ne!(status, 0, "abort is no clean exit");
            let before = std::fs::read(&path).unwrap();
            assert_eq!(before[79] & 1, 1, "{options}: the dirty bit is set");
            let mut want = vec![0u8; 4 << 20];
            want[..1 << 20].fill(7);
            want[2 << 20..(2 << 20) + 102_400].fill(8);

            let file = load(&path);
            let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
            let image = Qcow2::open(Rc::clone(&file), read_only).await.unwrap();
            assert_same(&content(&image).await, &want, options);
            image.close().await.unwrap();
            store(&file, &path).await;
            assert_eq!(std::fs::read(&path).unwrap(), before, "{options}: a read-only open changed the image");

            let image = Qcow2::open(Rc::clone(&file), OpenOptions::default()).await.unwrap();
            store(&file, &path).await;
            assert_clean(&path, &format!("{options}: as rebuilt"));
            assert_eq!(std::fs::read(&path).unwrap()[79] & 1, 0, "{options}: the dirty bit is clear");
            assert_same(&content(&image).await, &want, options);
            change(&image, &mut want, 11, 20).await;
            image.flush().await.unwrap();
            store(&file, &path).await;
            assert_eq!(std::fs::read(&path).unwrap()[79] & 1, 1, "{options}: lazy again while in use");
            close(image, &path).await;
            assert_clean(&path, options);
            assert_same(&qemu_content(&path, dir.path()), &want, options);
        });
    }
}

#[test]
fn external_data_files() {
    for raw in [false, true] {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (path, data_path) = (dir.path().join("image.qcow2"), dir.path().join("image.data"));
            let name = path.to_str().unwrap();
            let data_name = data_path.to_str().unwrap();
            let flag = if raw { "on" } else { "off" };
            let options = format!("data_file={data_name},data_file_raw={flag}");
            ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, name, "2M"]);
            ok("qemu-io", &["-c", "write -P 3 0 300000", "-c", "write -z 1M 128k", name]);
            let mut model = qemu_content(&path, dir.path());
            let data = load(&data_path);
            assert!(Qcow2::open(load(&path), OpenOptions::default()).await.is_err(), "the data file is missing");
            let with_data = OpenOptions { data_file: Some(Rc::clone(&data)), ..OpenOptions::default() };
            let image = Qcow2::open(load(&path), with_data).await.unwrap();
            assert_same(&content(&image).await, &model, &options);
            change(&image, &mut model, 21, 40).await;
            image.discard(0, 131_072).await.unwrap();
            model[..131_072].fill(0);
            assert_same(&content(&image).await, &model, &options);
            close(image, &path).await;
            store(&data, &data_path).await;
            assert_clean(&path, &options);
            assert_same(&qemu_content(&path, dir.path()), &model, &options);
            if raw {
                assert_same(&std::fs::read(&data_path).unwrap(), &model, "the raw file by itself");
            }
        });
    }
}

#[test]
fn we_create_external_data_files_that_qemu_accepts() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (path, data_path) = (dir.path().join("image.qcow2"), dir.path().join("image.data"));
        for raw in [false, true] {
            let options = CreateOptions {
                size: 1_000_448,
                data_file: Some(data_path.to_str().unwrap().into()),
                data_file_raw: raw,
                ..CreateOptions::default()
            };
            let (file, data) = (Rc::new(Memory::new(0)), Rc::new(Memory::new(0)));
            create(Rc::clone(&file), Some(Rc::clone(&data)), &options).await.unwrap();
            store(&file, &path).await;
            store(&data, &data_path).await;
            assert_clean(&path, "as created");
            ok("qemu-io", &["-c", "write -P 5 10000 500000", path.to_str().unwrap()]);
            let want = qemu_content(&path, dir.path());
            let with_data = OpenOptions { data_file: Some(load(&data_path)), ..OpenOptions::default() };
            let image = Qcow2::open(load(&path), with_data).await.unwrap();
            assert_same(&content(&image).await, &want, &format!("raw={raw}"));
        }
    });
}

#[test]
fn growing_shows_zeroes_and_shrinking_forgets() {
    for (cluster_size, version, extended_l2) in [(65536, 3, false), (512, 3, false), (4096, 2, false), (16384, 3, true)]
    {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image.qcow2");
            let base: Vec<u8> = vec![0xbb; 3_000_320]; // longer than the overlay
            std::fs::write(dir.path().join("base.raw"), &base).unwrap();
            let options = CreateOptions {
                size: 1_000_960,
                cluster_size,
                version,
                extended_l2,
                backing_file: Some("base.raw".into()),
                backing_format: Some("raw".into()),
                ..CreateOptions::default()
            };
            let file = Rc::new(Memory::new(0));
            create(Rc::clone(&file), None, &options).await.unwrap();
            let with_backing = OpenOptions { backing: Some(memory_node(&base)), ..OpenOptions::default() };
            let image = Qcow2::open(file, with_backing).await.unwrap();
            let mut model = base[..1_000_960].to_vec();
            let mut random = Random(17);
            for size in [1_500_160u64, 3_000_320, 700_416, 2_000_384, 512, 5_000_192, 4_999_680] {
                image.resize(size, Preallocation::Off).await.unwrap();
                model.resize(size as usize, 0);
                assert_same(&content(&image).await, &model, &format!("{options:?} at size {size}"));
                for _ in 0..6 {
                    let at = random.below(size);
                    let len = 1 + random.below(50_000.min(size - at));
                    image.write(at, &vec![at as u8 | 1; len as usize], WriteFlags::empty()).await.unwrap();
                    model[at as usize..(at + len) as usize].fill(at as u8 | 1);
                }
                // The last byte, so that something lies at the very end when it moves.
                image.write(size - 1, &[0x99], WriteFlags::empty()).await.unwrap();
                model[size as usize - 1] = 0x99;
            }
            assert_same(&content(&image).await, &model, &format!("{options:?}"));
            close(image, &path).await;
            assert_clean(&path, &format!("{options:?}"));
            assert_same(&qemu_content(&path, dir.path()), &model, &format!("{options:?}"));
        });
    }
}

#[test]
fn growing_with_preallocation() {
    for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image.qcow2");
            let file = Rc::new(Memory::new(0));
            let options = CreateOptions { size: 100_352, cluster_size: 4096, ..CreateOptions::default() };
            create(Rc::clone(&file), None, &options).await.unwrap();
            let image = Qcow2::open(file, OpenOptions::default()).await.unwrap();
            image.write(0, &[1; 100_352], WriteFlags::empty()).await.unwrap();
            image.discard(0, 40_960).await.unwrap();
            image.flush().await.unwrap(); // freed clusters hold old bytes, and are given out again below
            image.resize(1_000_448, preallocation).await.unwrap();
            let mut model = vec![0u8; 1_000_448];
            model[40_960..100_352].fill(1);
            assert_same(&content(&image).await, &model, &format!("{preallocation:?}"));
            let status = image.block_status(200_000, 1000).await.unwrap();
            assert!(status.data && status.host_offset.is_some(), "{preallocation:?}: {status:?}");
            close(image, &path).await;
            assert_clean(&path, &format!("{preallocation:?}"));
            assert_same(&qemu_content(&path, dir.path()), &model, &format!("{preallocation:?}"));
        });
    }
}

#[test]
fn refusals_name_what_is_wrong() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.qcow2");
        let name = path.to_str().unwrap();
        ok("qemu-img", &["create", "-q", "-f", "qcow2", name, "1M"]);
        let good = std::fs::read(&path).unwrap();
        let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            Rc::new(Memory::with_content(&bytes))
        };
        type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
        let table: [(Change<'_>, &str); 14] = [
            (&|b| b[0] = 0, "not in qcow2 format"),
            (&|b| b[7] = 1, "unsupported qcow2 version 1"),
            (&|b| b[7] = 4, "unsupported qcow2 version 4"),
            (&|b| b[23] = 8, "unsupported cluster size: 2^8"),
            (&|b| b[23] = 32, "unsupported cluster size: 2^32"),
            (&|b| b[35] = 1, "encryption method: AES"),
            (&|b| b[72] = 0x80, "unknown incompatible feature, bit 63"),
            (&|b| b[79] = 2, "image is corrupt; cannot be opened read/write"),
            (&|b| b[79] = 8, "unsupported qcow2 compression type 0"),
            (&|b| b[36] = 0xff, "active L1 table too large"),
            (&|b| b[47] = 1, "invalid active L1 table offset"),
            (&|b| b[59] = 0, "does not contain a reference count table"),
            (&|b| b[99] = 7, "reference count entry width too large"),
            (&|b| b[24] = 0x7f, "L1 table is too small"),
        ];
        for (change, words) in table {
            let error = Qcow2::open(damaged(change), OpenOptions::default()).await.unwrap_err().to_string();
            assert!(error.contains(words), "got {error:?}, want {words:?}");
        }
        // A name from the feature name table: bit 63 is what the entry of bit 0 ("dirty bit") is renamed to.
        let at = good.windows(9).position(|w| w == b"dirty bit").unwrap();
        let renamed = damaged(&|b| {
            b[at - 1] = 63;
            b[72] = 0x80;
        });
        let error = Qcow2::open(renamed, OpenOptions::default()).await.unwrap_err().to_string();
        assert!(error.contains("unsupported qcow2 feature(s): dirty bit"), "{error}");
        // Corrupt and read-only is allowed.
        let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
        Qcow2::open(damaged(&|b| b[79] = 2), read_only).await.unwrap();
    });
}

#[test]
fn a_damaged_map_is_an_error_with_a_place_and_marks_the_image() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.qcow2");
        let name = path.to_str().unwrap();
        ok("qemu-img", &["create", "-q", "-f", "qcow2", name, "1M"]);
        ok("qemu-io", &["-c", "write -P 1 0 192k", name]);
        let good = std::fs::read(&path).unwrap();
        let l2 = 0x40000; // header, refcount table, refcount block, L1, L2
        assert_ne!(good[l2..l2 + 8], [0; 8], "the L2 table lies where qemu-img puts it");
        for (raw, words) in [
            (
                0x8000_0000_0005_2a00u64,
                "cluster allocation offset 0x52a00 unaligned (L2 offset: 0x40000, L2 index: 0x0)",
            ),
            (0x8000_0000_0004_0000, "overlaps with active L2 table"),
            (0x8000_0000_0000_0000 | 0x30000, "overlaps with active L1 table"),
        ] {
            let mut bytes = good.clone();
            bytes[l2..l2 + 8].copy_from_slice(&raw.to_be_bytes());
            let file = Rc::new(Memory::with_content(&bytes));
            let image = Qcow2::open(Rc::clone(&file), OpenOptions::default()).await.unwrap();
            let error = image.write(100, &[1; 10], WriteFlags::empty()).await.unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.first_bad.map(|at| at.0), Some(100));
            let error = image.read(0, &mut [0; 1]).await.unwrap_err();
            assert_eq!(error.errno, blkproof_block::Errno::NOMEDIUM, "nothing is served any more");
            let mut header = [0; 80];
            file.read(0, &mut header).await.unwrap();
            assert_eq!(header[79] & 2, 2, "the corrupt bit is set");
        }
    });
}

#[test]
fn an_entry_past_the_end_of_the_file_is_neither_read_nor_written() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.qcow2");
        let name = path.to_str().unwrap();
        ok("qemu-img", &["create", "-q", "-f", "qcow2", name, "1M"]);
        ok("qemu-io", &["-c", "write -P 1 0 192k", name]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0x40000..0x40008].copy_from_slice(&0x8070_0000_0000_0000u64.to_be_bytes());
        let file = Rc::new(Memory::with_content(&bytes));
        let image = Qcow2::open(Rc::clone(&file), OpenOptions::default()).await.unwrap();
        for error in [
            image.read(100, &mut [0; 8]).await.unwrap_err(),
            image.write(100, &[1; 8], WriteFlags::empty()).await.unwrap_err(),
        ] {
            assert!(error.to_string().contains("lies past end of file"), "{error}");
            assert_eq!(error.first_bad.map(|at| at.0), Some(100), "{error}");
        }
        assert_eq!(file.info().size, bytes.len() as u64);
        image.read(65536, &mut [0; 65536]).await.unwrap();
    });
}

#[test]
fn random_damage_never_panics() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        for (number, options) in
            ["cluster_size=512", "extended_l2=on,cluster_size=16k", "lazy_refcounts=on"].iter().enumerate()
        {
            let path = dir.path().join("image.qcow2");
            let name = path.to_str().unwrap();
            ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "1M"]);
            ok("qemu-io", &["-c", "write -P 1 0 64k", name]);
            ok("qemu-img", &["snapshot", "-c", "one", name]);
            ok("qemu-io", &["-c", "write -P 2 30k 90k", "-c", "write -c -P 3 512k 64k", name]);
            let good = std::fs::read(&path).unwrap();
            let metadata: Vec<usize> =
                (0..good.len()).filter(|&i| good[i] != 0 && !(1..4).contains(&good[i])).collect();
            let mut random = Random(number as u64);
            for _ in 0..400 {
                let mut bytes = good.clone();
                for _ in 0..1 + random.below(4) {
                    let at = if random.one_in(3) {
                        random.below(120) as usize
                    } else {
                        metadata[random.below(metadata.len() as u64) as usize]
                    };
                    bytes[at] = if random.one_in(2) { random.next() as u8 } else { bytes[at] ^ (1 << random.below(8)) };
                }
                let file = Rc::new(Memory::with_content(&bytes));
                let read_only = random.one_in(3);
                let options = OpenOptions { read_only, ..OpenOptions::default() };
                let Ok(image) = Qcow2::open(file, options).await else { continue };
                let size = image.info().size.min(1 << 20);
                let mut buf = vec![0; size as usize];
                let _ = image.read(0, &mut buf).await;
                let _ = image.block_status(0, size.max(1)).await;
                let _ = image.write(size / 3, &buf[..(size / 4) as usize], WriteFlags::empty()).await;
                let _ = image.write_zeroes(0, size / 2, ZeroFlags::MAY_UNMAP).await;
                let _ = image.discard(size / 2, size / 4).await;
                let _ = image.flush().await;
                let _ = image.resize(size + 70_000, Preallocation::Off).await;
                let _ = image.close().await;
            }
        }
    });
}
