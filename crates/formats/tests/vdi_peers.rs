//! VDI images made, written and checked by QEMU's tools and by us, each by both.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::path::{Path, PathBuf};
use std::process::Command;

use blkproof_block::graph::{OpenContext, OpenError, OpenFlags, Options, Registry};
use blkproof_block::testing::{Choices, stamp};
use blkproof_block::{BlockDevice, Node, Preallocation, WriteFlags, ZeroFlags};
use blkproof_formats::vdi::VdiDriver;
use futures_lite::future::block_on;

const MIB: u64 = 1 << 20;

fn registry() -> Registry {
    let mut registry = Registry::new();
    blkproof_block::nodes::register(&mut registry);
    registry.add(VdiDriver);
    registry
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a tool that has to be there; returns exit status and everything it said.
fn run(program: &str, args: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("these tests need {program}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), text)
}

/// Runs a tool that has to succeed.
fn ok(program: &str, args: &[&str]) -> String {
    let (status, text) = run(program, args);
    assert_eq!(status, 0, "{program} {args:?}: {text}");
    text
}

fn assert_clean(path: &Path, what: &str) {
    let (status, said) = run("qemu-img", &["check", "-f", "vdi", text(path)]);
    assert_eq!(status, 0, "{what}: {said}");
}

async fn open(path: &Path, read_only: bool) -> Result<Node, OpenError> {
    let registry = registry();
    let flags = OpenFlags { read_only, ..OpenFlags::default() };
    OpenContext { registry: &registry, flags }.open_image(text(path), Some("vdi"), false).await
}

async fn create(path: &Path, size: u64, options: Options) -> Result<String, OpenError> {
    let registry = registry();
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    registry.driver("vdi").unwrap().create(text(path), Some(size), options, &context).await
}

async fn content(node: &Node) -> Vec<u8> {
    let mut bytes = vec![0; node.info().size as usize];
    let mut at = 0;
    let mut step = 1_000_003;
    while at < bytes.len() {
        let end = (at + step).min(bytes.len());
        node.read(at as u64, &mut bytes[at..end]).await.unwrap();
        at = end;
        step = step * 7 % 3_000_017 + 1;
    }
    bytes
}

fn assert_same(got: &[u8], want: &[u8], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: size");
    if got != want {
        let first = (0..got.len()).find(|&at| got[at] != want[at]);
        panic!("{what}: first difference at {first:?}");
    }
}

/// What the disk should hold, kept as a raw file beside the image.
struct Twin {
    image: PathBuf,
    raw: PathBuf,
    bytes: Vec<u8>,
}

impl Twin {
    fn new(dir: &Path, name: &str, size: u64) -> Self {
        Self {
            image: dir.join(format!("{name}.vdi")),
            raw: dir.join(format!("{name}.raw")),
            bytes: vec![0; size.next_multiple_of(512) as usize],
        }
    }

    /// QEMU finds the image clean and equal to what it should hold; we read the same; the map says zero only of zeroes.
    fn check(&self, what: &str) {
        assert_clean(&self.image, what);
        std::fs::write(&self.raw, &self.bytes).unwrap();
        let (status, said) =
            run("qemu-img", &["compare", "-f", "vdi", "-F", "raw", text(&self.image), text(&self.raw)]);
        assert_eq!(status, 0, "{what}: {said}");
        block_on(async {
            let node = open(&self.image, true).await.unwrap();
            assert_same(&content(&node).await, &self.bytes, what);
            let size = node.info().size;
            let mut at = 0;
            while at < size {
                let status = node.block_status(at, size - at).await.unwrap();
                assert!(status.len > 0, "{what}: an empty extent at {at:#x}");
                let zeroes = vec![0; status.len as usize];
                assert!(
                    !status.zero || self.bytes[at as usize..][..zeroes.len()] == zeroes,
                    "{what}: {status:?} at {at:#x} is not zero"
                );
                at += status.len;
            }
            node.close().await.unwrap();
        });
    }

    /// Random requests of ours, many at once, disjoint or not overlapping in time.
    fn write_by_us(&mut self, choices: &mut Choices, round: u64) {
        block_on(async {
            let node = open(&self.image, false).await.unwrap();
            let size = self.bytes.len() as u64;
            for batch in 0..6 {
                // A batch goes to disjoint quarters of a stretch that crosses block borders.
                let base = choices.below(size) / 512 * 512;
                let mut pieces = Vec::new();
                for quarter in 0..4u64 {
                    let at = base + quarter * 300_001;
                    let len = (1 + choices.below(300_000)).min(size.saturating_sub(at));
                    if len > 0 {
                        pieces.push((at, len, choices.below(10), round * 100 + batch * 10 + quarter));
                    }
                }
                let node = &node;
                let writes = pieces.iter().map(|&(at, len, kind, op)| async move {
                    match kind {
                        0 => node.write_zeroes(at, len, ZeroFlags::MAY_UNMAP).await.unwrap(),
                        1 => node.write_zeroes(at, len, ZeroFlags::FUA).await.unwrap(),
                        _ => {
                            let flags = if kind == 2 { WriteFlags::FUA } else { WriteFlags::empty() };
                            node.write(at, &stamp::bytes(at, len as usize, op), flags).await.unwrap();
                        }
                    }
                });
                let mut writes: Vec<_> = writes.map(Box::pin).collect();
                std::future::poll_fn(|cx| {
                    writes.retain_mut(|write| write.as_mut().poll(cx).is_pending());
                    if writes.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
                })
                .await;
                for (at, len, kind, op) in pieces {
                    let place = &mut self.bytes[at as usize..(at + len) as usize];
                    if kind < 2 { place.fill(0) } else { stamp::fill(place, at, op) }
                }
            }
            node.flush().await.unwrap();
            node.close().await.unwrap();
        });
    }

    fn write_by_qemu(&mut self, choices: &mut Choices, round: u64) {
        let size = self.bytes.len() as u64;
        let mut commands = Vec::new();
        for index in 0..6 {
            let at = choices.below(size) / 512 * 512;
            let len = (512 + choices.below(700_000) / 512 * 512).min(size - at);
            let byte = (1 + (round * 6 + index) % 254) as u8;
            if choices.chance(150) {
                commands.push(format!("write -z {at} {len}"));
                self.bytes[at as usize..(at + len) as usize].fill(0);
            } else {
                commands.push(format!("write -P {byte} {at} {len}"));
                self.bytes[at as usize..(at + len) as usize].fill(byte);
            }
        }
        let mut args = vec!["-f", "vdi"];
        commands.iter().for_each(|command| args.extend(["-c", command.as_str()]));
        args.push(text(&self.image));
        let said = ok("qemu-io", &args);
        assert!(!said.contains("failed"), "{said}");
    }
}

#[test]
fn images_of_both_makers_are_written_by_both_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [512, MIB - 512, MIB, 3 * MIB + 512, 5_000_000, 9 * MIB + 300 * 1024];
    for (index, size) in (0u64..).zip(sizes) {
        for (by_us, word) in [(true, "off"), (false, "off"), (true, "on"), (false, "on")] {
            let what = format!("{size} bytes, made by {}, static={word}", if by_us { "us" } else { "qemu-img" });
            let mut twin = Twin::new(dir.path(), &format!("{size}-{by_us}-{word}"), size);
            if by_us {
                let described = block_on(create(&twin.image, size, Options::new().with("static", word))).unwrap();
                assert_eq!(described, format!("size={size} static={word}"));
            } else {
                ok(
                    "qemu-img",
                    &[
                        "create",
                        "-q",
                        "-f",
                        "vdi",
                        "-o",
                        &format!("static={word}"),
                        text(&twin.image),
                        &size.to_string(),
                    ],
                );
            }
            twin.check(&what);
            let mut choices = Choices::new(index * 4 + u64::from(by_us) * 2 + u64::from(word == "on"));
            for round in 0..2 {
                if (round == 0) == by_us {
                    twin.write_by_qemu(&mut choices, round);
                    twin.check(&format!("{what}, round {round}, after qemu-io"));
                    twin.write_by_us(&mut choices, round);
                } else {
                    twin.write_by_us(&mut choices, round);
                    twin.check(&format!("{what}, round {round}, after us"));
                    twin.write_by_qemu(&mut choices, round);
                }
            }
            twin.check(&what);
            std::fs::remove_file(&twin.image).unwrap();
        }
    }
}

#[test]
fn what_qemu_says_of_our_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vdi");
    let empty = Options::new;
    let described = block_on(create(&path, 10_000_001, empty().with("preallocation", "metadata"))).unwrap();
    assert_eq!(described, "size=10000001 static=off preallocation=metadata");
    assert_clean(&path, "metadata");
    let info = ok("qemu-img", &["info", "-f", "vdi", text(&path)]);
    assert!(info.contains("virtual size: 9.54 MiB (10000384 bytes)"), "{info}");
    assert!(info.contains("cluster_size: 1048576"), "{info}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1024 + 10 * MIB);

    // Created over an older, longer image: nothing of it is left.
    block_on(create(&path, 0, empty())).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 512);
    assert_clean(&path, "no bytes at all");

    for (size, options, message) in [
        (1, empty().with("block_size", "2M"), "a VDI image has blocks of 1048576 bytes, not of 2097152"),
        (
            0x1_ffff_f800_0001,
            empty(),
            "Unsupported VDI image size (size is 0x1fffff8000001, max supported is 0x1fffff8000000)",
        ),
        (1, empty().with("static", "maybe"), "option 'static' expects 'on' or 'off', got 'maybe'"),
        (1, empty().with("statik", "on"), "unknown option 'statik' for driver 'vdi'; did you mean 'static'?"),
        (1, empty().with("uuid", "1"), "'1' is not a UUID of 32 hexadecimal digits"),
    ] {
        let error = block_on(create(&path, size, options)).unwrap_err().to_string();
        assert_eq!(error, message);
    }
}

#[test]
fn both_refuse_what_is_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vdi");
    // Offset, bytes, and the words both use.
    let table: &[(usize, &[u8], &str)] = &[
        (0x40, &[0], "Image not in VDI format (bad signature"),
        (0x44, &[0, 0, 1, 0], "unsupported VDI image (version 1.0"),
        (0x154, &[1], "unsupported VDI image (unaligned block map offset 0x201"),
        (0x158, &[1], "unsupported VDI image (unaligned data offset 0x401"),
        (0x168, &[0, 4], "unsupported VDI image (sector size 1024 is not 512"),
        (0x178, &[0, 0, 3], "unsupported VDI image (block size 196608 is not 1048576"),
        (0x180, &[1], "unsupported VDI image (disk size 5000192, image bitmap has room for 1048576)"),
        (0x1a8, &[1], "unsupported VDI image (non-NULL link UUID"),
        (0x1b8, &[1], "unsupported VDI image (non-NULL parent UUID"),
    ];
    for (offset, bytes, words) in table {
        ok("qemu-img", &["create", "-q", "-f", "vdi", text(&path), "5000000"]);
        let mut image = std::fs::read(&path).unwrap();
        image[*offset..offset + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, image).unwrap();
        let ours = block_on(open(&path, true)).unwrap_err().to_string();
        assert!(ours.contains(words), "{ours}");
        let (status, theirs) = run("qemu-img", &["info", "-f", "vdi", text(&path)]);
        assert!(status != 0 && theirs.contains(words), "{theirs}");
    }
}

#[test]
fn resized_images_are_still_images() {
    let dir = tempfile::tempdir().unwrap();
    let mut twin = Twin::new(dir.path(), "resized", 3 * MIB);
    block_on(create(&twin.image, 3 * MIB, Options::new())).unwrap();
    let mut choices = Choices::new(5);
    // A map of one sector has room for 128 MiB: the fourth size makes the first block move.
    for (round, size) in (0..).zip([7 * MIB + 512, 2 * MIB + 1024, 20 * MIB, 150 * MIB, 1000, 4 * MIB]) {
        twin.write_by_us(&mut choices, round);
        block_on(async {
            let node = open(&twin.image, false).await.unwrap();
            node.resize(size, Preallocation::Off).await.unwrap();
            node.close().await.unwrap();
        });
        twin.bytes.resize(size.next_multiple_of(512) as usize, 0);
        twin.check(&format!("resized to {size}"));
        twin.write_by_qemu(&mut choices, round);
        twin.check(&format!("resized to {size}, then written by qemu-io"));
    }
}

#[test]
fn probing_finds_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    ok("qemu-img", &["create", "-q", "-f", "vdi", text(&path), "1M"]);
    let registry = registry();
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let node = block_on(context.open_image(text(&path), None, false)).unwrap();
    assert_eq!((node.info().driver, node.info().cluster_size), ("vdi", 1 << 20));
    let options = format!("driver=vdi,file.filename={},bogus=1", text(&path));
    let error = block_on(context.open_image(&options, None, true)).unwrap_err().to_string();
    assert!(error.contains("unknown option 'bogus' for driver 'vdi'"), "{error}");
}
