//! Persistent dirty bitmaps, which this driver keeps and does not maintain: whoever writes to the image without them
//! has to say so by clearing the autoclear bit, or a backup would leave out what was written (specification, "Header",
//! autoclear features).
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod qcow2_support;

use blkproof_block::testing::block_on;
use blkproof_block::{BlockDevice, Preallocation, WriteFlags};
use blkproof_formats::qcow2::{OpenOptions, Qcow2};
use qcow2_support::{content, load, ok, qemu_content, run, store};

fn bitmap_names(path: &str) -> Vec<&'static str> {
    let info = ok("qemu-img", &["info", "-f", "qcow2", "--output", "json", path]);
    ["alpha", "beta"].into_iter().filter(|name| info.contains(&format!("\"name\": \"{name}\""))).collect()
}

#[test]
fn a_writable_open_declares_bitmaps_stale_and_a_read_only_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", name, "2M"]);
    ok("qemu-img", &["bitmap", "-f", "qcow2", "--add", "-g", "4096", name, "alpha"]);
    ok("qemu-img", &["bitmap", "-f", "qcow2", "--add", name, "beta"]);
    // Marks bits in both, so that they have clusters of their own.
    ok("qemu-io", &["-f", "qcow2", "-c", "write -P 5 0 1M", name]);
    assert_eq!(bitmap_names(name), ["alpha", "beta"], "the set-up bites");

    block_on(async {
        let disk = load(&path);
        let before = content(&*disk).await;
        let image = Qcow2::open(disk.clone(), OpenOptions { read_only: true, ..OpenOptions::default() }).await.unwrap();
        content(&image).await;
        image.close().await.unwrap();
        assert!(content(&*disk).await == before, "a read-only open changed the image");

        let image = Qcow2::open(disk.clone(), OpenOptions::default()).await.unwrap();
        let error = image.resize(4 << 20, Preallocation::Off).await.unwrap_err();
        assert!(error.to_string().contains("bitmaps"), "{error}");
        // Allocates, frees and allocates again: whatever counts as free must not be a bitmap's.
        for round in 0..4u8 {
            image.write(900_000, &vec![round + 1; 700_000], WriteFlags::empty()).await.unwrap();
            image.flush().await.unwrap();
            image.discard(900_000, 700_000).await.unwrap();
            image.flush().await.unwrap();
        }
        image.write(1 << 20, &[0x66; 500_000], WriteFlags::empty()).await.unwrap();
        let want = content(&image).await;
        image.close().await.unwrap();
        store(&*disk, &path).await;
        assert!(qemu_content(&path, dir.path()) == want);
    });
    assert_eq!(bitmap_names(name), Vec::<&str>::new(), "stale bitmaps are not offered");
    // What they occupied is a leak at worst, which QEMU gives back; nothing is damaged.
    let (status, text) = run("qemu-img", &["check", "-f", "qcow2", name]);
    assert!(status == 0 || status == 3, "{status}: {text}");
    ok("qemu-img", &["check", "-q", "-f", "qcow2", "-r", "leaks", name]);
    // New ones can be added.
    ok("qemu-img", &["bitmap", "-f", "qcow2", "--add", name, "alpha"]);
    assert_eq!(bitmap_names(name), ["alpha"]);
}
