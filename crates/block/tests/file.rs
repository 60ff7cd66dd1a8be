//! The `file` node against a model, the kernel's own view of the file, and QEMU's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use blkproof_block::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
use blkproof_block::graph::{CacheMode, OpenContext, OpenFlags, Options, Registry};
use blkproof_block::nodes::{self, File, FileOptions, Memory};
use blkproof_block::units::ByteOffset;
use blkproof_block::{BlockStatus, Capabilities, DeviceInfo, Errno, Node, Result};
use futures_lite::future::{block_on, poll_once};

fn open(path: &Path) -> File {
    File::open(path, FileOptions::default()).unwrap()
}

fn with_cache(name: &str) -> FileOptions {
    FileOptions { cache: CacheMode::from_name(name).unwrap(), ..FileOptions::default() }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Something mounted or attached for one test, undone at its end even if it fails.
struct Undo(Vec<(&'static str, PathBuf)>);

impl Drop for Undo {
    fn drop(&mut self) {
        for (program, argument) in self.0.iter().rev() {
            let mut command = Command::new(program);
            if *program == "losetup" {
                command.arg("-d");
            }
            let _ = command.arg(argument).status();
        }
    }
}

/// A file system of one MiB.
fn small_tmpfs(directory: &Path) -> Undo {
    let place = directory.display().to_string();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "blkproof-test", &place]).output();
    let mounted = mounted.expect("mount is needed by this test");
    assert!(
        mounted.status.success(),
        "this test needs a full disk and could not mount a small tmpfs at {place} (run it as root): {}",
        String::from_utf8_lossy(&mounted.stderr)
    );
    Undo(vec![("umount", directory.to_owned())])
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Random requests on `device` and on plain bytes; both must agree, with every answer that claims zeroes.
async fn agree_with_model(device: &impl BlockDevice, seed: u64, steps: u32, unit: u64) {
    const SIZE_MAX: u64 = 600_000;
    let grows = device.info().capabilities.contains(Capabilities::GROWS);
    let mut random = Random(seed);
    let mut model = vec![0; usize::try_from(device.info().size).unwrap()];
    for step in 0..steps {
        let reach = if grows { SIZE_MAX } else { model.len() as u64 };
        let at = random.below(reach / unit + 1) * unit;
        let len = random.below((reach - at) / unit + 1).min(random.below(200_000) / unit + 1) * unit;
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        let place = format!("seed {seed}, step {step}: {len} bytes at {at}");
        let inside = range.end <= model.len();
        let fill = u8::try_from(1 + step % 255).unwrap();
        let mut grow = |content: u8| {
            if model.len() < range.end {
                model.resize(range.end, 0);
            }
            model[range.clone()].fill(content);
        };
        match random.below(9) {
            0..=2 if len > 0 => {
                let flags = if random.below(8) == 0 { WriteFlags::FUA } else { WriteFlags::empty() };
                device.write(at, &vec![fill; range.len()], flags).await.expect(&place);
                grow(fill);
            }
            3 | 4 if len > 0 => {
                let flags = ZeroFlags::from_bits_truncate(u32::try_from(random.below(8)).unwrap());
                match device.write_zeroes(at, len, flags).await {
                    Ok(()) => grow(0),
                    Err(error) => {
                        let refused = error.errno == Errno::NOTSUP && flags.contains(ZeroFlags::NO_FALLBACK);
                        assert!(refused, "{place}: {error}");
                    }
                }
            }
            5 if inside => {
                device.discard(at, len).await.expect(&place);
                let mut now = vec![0xee; range.len()];
                device.read(at, &mut now).await.expect(&place);
                for (index, byte) in now.iter().enumerate() {
                    let old = &mut model[range.start + index];
                    assert!(*byte == 0 || byte == old, "{place}: discarded byte {index} became {byte}");
                    *old = *byte;
                }
            }
            6 if random.below(4) == 0 => {
                device.resize(at, Preallocation::Off).await.expect(&place);
                model.resize(range.start, 0);
            }
            7 if random.below(10) == 0 => device.flush().await.expect(&place),
            _ if inside => {
                let mut got = vec![0xaa; range.len()];
                device.read(at, &mut got).await.expect(&place);
                assert!(got == model[range.clone()], "{place}: content");
                if device.read_now(at, &mut got) {
                    assert!(got == model[range.clone()], "{place}: content read at once");
                }
            }
            _ => {
                let end = model.len() as u64;
                assert!(device.read(end, &mut [0]).await.is_err(), "{place}: a read past the end");
            }
        }
        assert_eq!(device.info().size, model.len() as u64, "{place}: size");
        let mut from = 0;
        while from < model.len() as u64 {
            let left = model.len() as u64 - from;
            let status = device.block_status(from, left).await.expect(&place);
            assert!((1..=left).contains(&status.len), "{place}: extent of {} bytes at {from}", status.len);
            let extent = usize::try_from(from).unwrap()..usize::try_from(from + status.len).unwrap();
            assert!(!status.zero || model[extent].iter().all(|&b| b == 0), "{place}: a hole over data at {from}");
            from += status.len;
        }
    }
    let mut all = vec![0; model.len()];
    device.read(0, &mut all).await.unwrap();
    assert!(all == model, "seed {seed}: content at the end");
}

/// A disk with a planted fault.
struct Liar {
    below: Memory,
    lie: Lie,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Lie {
    None,
    HoleOverData,
    ShortWrite,
    StaleZeroes,
    ForeignDiscard,
    SizeAfterResize,
}

impl BlockDevice for Liar {
    fn info(&self) -> DeviceInfo {
        let info = self.below.info();
        let size = if self.lie == Lie::SizeAfterResize && info.size > 1 { info.size - 1 } else { info.size };
        DeviceInfo { size, ..info }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(at, buf).await
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let cut = usize::from(self.lie == Lie::ShortWrite);
        self.below.write(at, &data[..data.len() - cut], flags).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let cut = u64::from(self.lie == Lie::StaleZeroes);
        self.below.write_zeroes(at, len - cut, flags).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        if self.lie == Lie::ForeignDiscard && len > 0 {
            return self.below.write(at, &[0xdd], WriteFlags::empty()).await;
        }
        self.below.discard(at, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        match self.lie {
            Lie::HoleOverData => Ok(BlockStatus::zero(len)),
            _ => self.below.block_status(at, len).await,
        }
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.below.resize(size, preallocation).await
    }

    async fn drain(&self) -> Result<()> {
        self.below.drain().await
    }
}

#[test]
fn the_model_finds_planted_faults() {
    use Lie::{ForeignDiscard, HoleOverData, None, ShortWrite, SizeAfterResize, StaleZeroes};
    for lie in [None, HoleOverData, ShortWrite, StaleZeroes, ForeignDiscard, SizeAfterResize] {
        let judged = std::panic::catch_unwind(|| {
            block_on(agree_with_model(&Liar { below: Memory::new(400_000), lie }, 3, 200, 1));
        });
        assert_eq!(judged.is_ok(), lie == None, "{lie:?}");
    }
}

#[test]
fn requests_agree_with_a_model() {
    for directory in ["/dev/shm", ""] {
        for (seed, cache) in (0..8).zip(["writeback", "unsafe", "writethrough", "writeback"].iter().cycle()) {
            let file = match directory {
                "" => tempfile::NamedTempFile::new().unwrap(),
                directory => tempfile::NamedTempFile::new_in(directory).unwrap(),
            };
            let options = FileOptions { unmap: seed % 3 != 0, ..with_cache(cache) };
            let device = File::open(file.path(), options).unwrap();
            block_on(agree_with_model(&device, seed, 250, 1));
            block_on(device.close()).unwrap();
        }
    }
}

#[test]
fn direct_requests_agree_with_a_model() {
    for cache in ["none", "directsync"] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let device = File::open(file.path(), with_cache(cache)).unwrap();
        let alignment = u64::from(device.info().limits.alignment);
        assert!(alignment >= 512, "direct I/O has an alignment");
        block_on(agree_with_model(&device, 77, 200, alignment));
    }
}

#[test]
fn the_odd_end_of_a_direct_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![5; 10_001]).unwrap();
    let device = File::open(file.path(), with_cache("none")).unwrap();
    block_on(async {
        let mut all = vec![0; 10_001];
        device.read(0, &mut all).await.unwrap();
        assert!(all.iter().all(|&b| b == 5));
        device.write(8192, &[6; 1809], WriteFlags::empty()).await.unwrap();
        device.write(4096, &[7; 4096], WriteFlags::empty()).await.unwrap();
        device.write_zeroes(0, 10, ZeroFlags::empty()).await.unwrap();
    });
    let mut want = vec![5; 10_001];
    want[..10].fill(0);
    want[4096..8192].fill(7);
    want[8192..].fill(6);
    assert!(std::fs::read(file.path()).unwrap() == want);
}

#[test]
fn an_aligned_graph_over_direct_io_takes_any_request() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0; 300_000]).unwrap();
    let mut registry = Registry::new();
    nodes::register(&mut registry);
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let name = format!("driver=raw,file.driver=file,file.cache.direct=on,file.filename={}", file.path().display());
    let device: Node = block_on(context.open(Options::from_image_opts(&name).unwrap())).unwrap();
    block_on(agree_with_model(&device, 5, 150, 1));
}

#[test]
fn space_is_given_back_when_allowed_and_kept_otherwise() {
    const MIB: u64 = 1 << 20;
    let (off, unmap) = (ZeroFlags::empty(), ZeroFlags::MAY_UNMAP);
    // (may give back, zero flags or discard, MiB that stay)
    let table =
        [(true, Some(off), 4), (true, Some(unmap), 2), (true, None, 2), (false, Some(unmap), 4), (false, None, 4)];
    for directory in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        for (may, zero, mib) in table {
            let file = tempfile::NamedTempFile::new_in(&directory).unwrap();
            let device = File::open(file.path(), FileOptions { unmap: may, ..FileOptions::default() }).unwrap();
            block_on(async {
                device.write(0, &vec![1; 4 << 20], WriteFlags::FUA).await.unwrap();
                match zero {
                    Some(flags) => device.write_zeroes(MIB, 2 * MIB, flags).await.unwrap(),
                    None => device.discard(MIB, 2 * MIB).await.unwrap(),
                }
                device.flush().await.unwrap();
                let mut inside = [9];
                device.read(2 * MIB, &mut inside).await.unwrap();
                assert_eq!(inside[0] == 0, zero.is_some() || may, "{directory:?} {may} {zero:?}");
            });
            let blocks = std::fs::metadata(file.path()).unwrap().blocks() * 512 / MIB;
            assert_eq!(blocks, mib, "MiB that stay: {directory:?}, may give back {may}, {zero:?}");
            assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 4 * MIB);
        }
    }
}

#[test]
fn zeroes_change_the_size_only_upwards() {
    for directory in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        for flags in [ZeroFlags::empty(), ZeroFlags::MAY_UNMAP, ZeroFlags::FUA] {
            let file = tempfile::NamedTempFile::new_in(&directory).unwrap();
            let device = open(file.path());
            block_on(async {
                device.write(0, &[1; 1000], WriteFlags::empty()).await.unwrap();
                for (at, len, size) in [(0, 10, 1000), (990, 10, 1000), (990, 11, 1001), (5000, 77, 5077)] {
                    device.write_zeroes(at, len, flags).await.unwrap();
                    assert_eq!(device.info().size, size, "{len} zeroes at {at}, {flags:?}, {directory:?}");
                    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), size);
                }
            });
        }
    }
}

#[test]
fn growing_writes_beside_zeroes_lose_nothing() {
    // G23: zeroes computed with an older size must not cut off a write that grew the file meanwhile.
    for round in 0..30_u64 {
        let file = tempfile::NamedTempFile::new().unwrap();
        let device = open(file.path());
        let big = vec![7; 300_000];
        block_on(async {
            device.write(0, &[1; 4096], WriteFlags::empty()).await.unwrap();
            let write = device.write(100_000, &big, WriteFlags::empty());
            let zero = device.write_zeroes(2048, 60_000, ZeroFlags::empty());
            let (write, zero) = match round % 2 {
                0 => futures_lite::future::zip(write, zero).await,
                _ => {
                    let (zero, write) = futures_lite::future::zip(zero, write).await;
                    (write, zero)
                }
            };
            write.unwrap();
            zero.unwrap();
        });
        assert_eq!(device.info().size, 400_000);
        let content = std::fs::read(file.path()).unwrap();
        assert!(content.len() == 400_000 && content[100_000..] == big, "round {round}");
        assert!(content[2048..62_048].iter().all(|&b| b == 0));
    }
}

#[test]
fn far_offsets() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let device = open(file.path());
    let far = [(1 << 31) - 2, (1 << 32) - 2, 5 << 40, (1 << 43) + 12_345];
    block_on(async {
        for (index, at) in far.into_iter().enumerate() {
            device.write(at, &[u8::try_from(index + 1).unwrap(); 5], WriteFlags::empty()).await.unwrap();
        }
        for (index, at) in far.into_iter().enumerate() {
            let mut buf = [9; 7];
            let end = at + 6 <= device.info().size;
            let buf = if end { &mut buf[..] } else { &mut buf[..6] };
            device.read(at - 1, buf).await.unwrap();
            let fill = u8::try_from(index + 1).unwrap();
            assert_eq!(buf[..6], [0, fill, fill, fill, fill, fill], "at {at:#x}");
        }
        let gap = device.block_status(1 << 33, 1 << 42).await.unwrap();
        assert!(gap.zero && gap.len > 1 << 41, "{gap:?}");
        // Further than a file can reach.
        for (at, len) in [(u64::MAX, 1_usize), (i64::MAX as u64, 1), (i64::MAX as u64 - 4, 5)] {
            let error = device.write(at, &vec![0; len], WriteFlags::empty()).await.unwrap_err();
            assert_eq!(error.errno, Errno::FBIG, "{len} bytes at {at:#x}: {error}");
            assert_eq!(device.info().size, (1 << 43) + 12_350);
        }
        assert_eq!(device.resize(u64::MAX, Preallocation::Off).await.unwrap_err().errno, Errno::FBIG);
    });
}

#[test]
fn a_full_disk_fails_at_the_byte_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let _mounted = small_tmpfs(directory.path());
    let path = directory.path().join("disk");
    std::fs::write(&path, [1; 4096]).unwrap();
    let device = open(&path);
    block_on(async {
        for flags in [WriteFlags::empty(), WriteFlags::FUA] {
            let error = device.write(4096, &vec![2; 2 << 20], flags).await.unwrap_err();
            assert_eq!(error.errno, Errno::NOSPC);
            assert_eq!(error.first_bad, Some(ByteOffset(4096 + error.transferred)));
            let done = error.transferred;
            assert!(done > 0 && done < 1 << 20, "{done} bytes went in");
            assert_eq!(device.info().size, 4096 + done, "the size says what is there");
            let mut content = vec![0; usize::try_from(4096 + done).unwrap()];
            device.read(0, &mut content).await.unwrap();
            assert!(content[..4096].iter().all(|&b| b == 1) && content[4096..].iter().all(|&b| b == 2));
            // A disk that is full is not a flush that failed.
            device.flush().await.expect("what went in is safe");
            device.resize(4096, Preallocation::Off).await.unwrap();
        }
        for how in [Preallocation::Falloc, Preallocation::Full] {
            let error = device.resize(4 << 20, how).await.unwrap_err();
            assert_eq!(error.errno, Errno::NOSPC, "{how:?}");
            assert_eq!((device.info().size, std::fs::metadata(&path).unwrap().len()), (4096, 4096), "{how:?}");
        }
        let error = device.write_zeroes(0, 4 << 20, ZeroFlags::empty()).await.unwrap_err();
        assert_eq!(error.errno, Errno::NOSPC, "zeroes that keep their space need it");
        device.resize(4096, Preallocation::Off).await.unwrap();
        device.write_zeroes(0, 4 << 20, ZeroFlags::MAY_UNMAP).await.expect("zeroes without space need none");
        device.write(0, &[3; 8192], WriteFlags::FUA).await.expect("there is room again");
    });
}

#[test]
fn after_a_failed_flush_every_later_one_fails() {
    // A block device whose bytes live on a disk that is full: writes go into the page cache, flushing them fails.
    let directory = tempfile::tempdir().unwrap();
    let mut undo = small_tmpfs(directory.path());
    let backing = directory.path().join("backing");
    std::fs::File::create(&backing).unwrap().set_len(16 << 20).unwrap();
    let device = run("losetup", &["-f", "--show", backing.to_str().unwrap()]);
    let device = PathBuf::from(device.trim());
    undo.0.push(("losetup", device.clone()));
    let data = vec![1; 4 << 20];
    // The trap: the kernel tells once.
    let plain = std::fs::OpenOptions::new().write(true).open(&device).unwrap();
    plain.write_all_at(&data, 8 << 20).unwrap();
    assert!(plain.sync_data().is_err() && plain.sync_data().is_ok(), "the second flush forgets what the first lost");
    drop(plain);
    for way in ["flush", "fua", "dropped flush"] {
        let disk = open(&device);
        block_on(async {
            assert_eq!(disk.info().size, 16 << 20);
            assert!(!disk.info().capabilities.contains(Capabilities::GROWS));
            assert!(disk.write(16 << 20, &[1], WriteFlags::empty()).await.is_err(), "a device does not grow");
            disk.write(8 << 20, &data, WriteFlags::empty()).await.unwrap();
            match way {
                "flush" => assert!(disk.flush().await.is_err(), "{way}"),
                "fua" => assert!(disk.write(8 << 20, &data, WriteFlags::FUA).await.is_err(), "{way}"),
                // Nobody hears the answer; it counts all the same.
                _ => {
                    drop(poll_once(disk.flush()).await);
                    disk.drain().await.unwrap();
                    // Dropped before it began, it has seen nothing, and this one does.
                    let _ = disk.flush().await;
                }
            }
            for later in 0..3 {
                let error = disk.flush().await.expect_err("success over lost data");
                assert!(error.detail.unwrap().contains("an earlier flush"), "{way}, flush {later}");
            }
            assert!(disk.close().await.is_err());
        });
    }
}

#[test]
fn the_map_is_qemu_imgs() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let device = open(file.path());
    block_on(async {
        device.resize(64 << 20, Preallocation::Off).await.unwrap();
        for at in [0, 1 << 20, 40 << 20, (64 << 20) - 65_536] {
            device.write(at, &[1; 65_536], WriteFlags::empty()).await.unwrap();
        }
        device.write(10 << 20, &vec![2; 3 << 20], WriteFlags::empty()).await.unwrap();
        device.write_zeroes(11 << 20, 1 << 20, ZeroFlags::MAY_UNMAP).await.unwrap();
    });
    let mut ours = Vec::<(u64, BlockStatus)>::new();
    let mut at = 0;
    while at < device.info().size {
        let status = block_on(device.block_status(at, device.info().size - at)).unwrap();
        match ours.last_mut() {
            Some((_, last)) if last.continues_as(&status) => last.len += status.len,
            _ => ours.push((at, status)),
        }
        at += status.len;
    }
    let ours: Vec<_> = ours.iter().map(|(at, status)| (*at, status.len, status.data, status.zero)).collect();
    let map: serde_json::Value =
        serde_json::from_str(&run("qemu-img", &["map", "-f", "raw", "--output", "json", &path])).unwrap();
    let theirs = map.as_array().unwrap().iter().map(|extent| {
        let number = |key: &str| extent[key].as_u64().unwrap();
        (number("start"), number("length"), extent["data"].as_bool().unwrap(), extent["zero"].as_bool().unwrap())
    });
    assert_eq!(ours, theirs.collect::<Vec<_>>());
    assert!(ours.len() > 8, "there is something to compare: {ours:?}");
}

#[test]
fn a_hole_is_never_remembered_over_a_write() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let device = open(file.path());
    block_on(async {
        device.resize(8 << 20, Preallocation::Off).await.unwrap();
        for step in 0..64_u64 {
            let at = step * 131_072 % (8 << 20);
            assert!(device.block_status(at, 4096).await.unwrap().zero);
            device.write(at, &[1; 4096], WriteFlags::empty()).await.unwrap();
            assert!(!device.block_status(at, 4096).await.unwrap().zero, "dirty data at {at} is no hole");
            device.write_zeroes(at, 4096, ZeroFlags::MAY_UNMAP).await.unwrap();
            assert!(device.block_status(at, 4096).await.unwrap().zero, "the space at {at} was given back");
        }
    });
}

#[test]
fn qemu_io_and_we_read_each_other() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let device = open(file.path());
    block_on(device.write(0, &vec![0x5a; 100_352], WriteFlags::empty())).unwrap();
    block_on(device.close()).unwrap();
    drop(device);
    run("qemu-io", &["-f", "raw", "-c", "read -P 0x5a 0 100352", "-c", "write -P 0x33 512 97k", &path]);
    let device = open(file.path());
    let mut content = vec![0; 100_352];
    block_on(device.read(0, &mut content)).unwrap();
    let theirs = 512..512 + 97 * 1024;
    for (at, byte) in content.iter().enumerate() {
        assert_eq!(*byte, if theirs.contains(&at) { 0x33 } else { 0x5a }, "byte {at}");
    }
}

#[test]
fn a_file_that_somebody_truncates_is_an_error_with_a_place() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![4; 100_000]).unwrap();
    for cache in ["writeback", "none"] {
        file.as_file().set_len(100_000).unwrap();
        file.as_file().write_all_at(&[4; 50_000], 0).unwrap();
        let device = File::open(file.path(), with_cache(cache)).unwrap();
        file.as_file().set_len(50_000).unwrap();
        let mut buf = vec![0; 4096 * 20];
        let error = block_on(device.read(8192, &mut buf)).unwrap_err();
        assert_eq!(error.errno, Errno::IO);
        assert_eq!((error.first_bad, error.transferred), (Some(ByteOffset(50_000)), 50_000 - 8192), "{cache}");
        assert!(error.to_string().contains("another program has truncated it"), "{error}");
        assert!(buf[..50_000 - 8192].iter().all(|&b| b == 4), "what was read before is valid");
        assert!(!device.read_now(49_999, &mut [0; 2]));
    }
}

#[test]
fn a_dropped_write_has_landed_or_never_will_once_drain_returns() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let device = open(file.path());
    let size = 1 << 20;
    block_on(device.write(0, &vec![1; size], WriteFlags::empty())).unwrap();
    for round in 0..40 {
        block_on(async {
            let late = vec![2; size];
            // Dropped before, while or after it runs.
            drop(poll_once(device.write(0, &late, WriteFlags::empty())).await);
            if round % 2 == 0 {
                std::thread::yield_now();
            }
            device.drain().await.unwrap();
            device.write(0, &vec![3; size], WriteFlags::empty()).await.unwrap();
            assert!(std::fs::read(file.path()).unwrap().iter().all(|&b| b == 3), "round {round}");
        });
    }
    // Nothing was left locked either.
    block_on(device.resize(10, Preallocation::Off)).unwrap();
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 10);
}

#[test]
fn what_is_no_file_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    run("mkfifo", &[path("fifo").to_str().unwrap()]);
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let table = [
        (directory.path().to_owned(), "is a directory"),
        (path("fifo"), "is a FIFO"),
        (path("socket"), "is a socket"),
        (PathBuf::from("/dev/zero"), "is a character device"),
        (path("missing"), "No such file or directory"),
    ];
    for (path, want) in table {
        for read_only in [false, true] {
            let error = File::open(&path, FileOptions { read_only, ..FileOptions::default() }).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(want) && text.contains(path.to_str().unwrap()), "{text}");
        }
    }
}

#[test]
fn a_read_only_file_stays_as_it_is() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [8; 5000]).unwrap();
    let device = File::open(file.path(), FileOptions { read_only: true, ..FileOptions::default() }).unwrap();
    assert!(device.info().read_only);
    block_on(async {
        let refused = [
            device.write(0, &[1], WriteFlags::empty()).await,
            device.write_zeroes(0, 1, ZeroFlags::empty()).await,
            device.discard(0, 1).await,
            device.resize(1, Preallocation::Off).await,
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().errno, Errno::PERM);
        }
        device.flush().await.unwrap();
        device.close().await.unwrap();
    });
    assert_eq!(std::fs::read(file.path()).unwrap(), [8; 5000]);
}

#[test]
fn resizes() {
    use Preallocation::{Falloc, Full, Metadata, Off};
    let file = tempfile::NamedTempFile::new().unwrap();
    let device = open(file.path());
    // (from, to, how, error, allocated afterwards)
    let table = [
        (0, 1 << 20, Off, None, false),
        (0, 1 << 20, Falloc, None, true),
        (0, 1 << 20, Full, None, true),
        (0, 1 << 20, Metadata, Some("Unsupported preallocation mode 'metadata'"), false),
        (1 << 20, 1000, Falloc, Some("Preallocation can't be used for shrinking files"), false),
        (1 << 20, 1001, Off, None, false),
        (1000, 1000, Full, None, false),
    ];
    for (from, to, how, want, allocated) in table {
        block_on(async {
            device.resize(0, Off).await.unwrap();
            device.resize(from, Off).await.unwrap();
            let got = device.resize(to, how).await;
            assert_eq!(got.err().and_then(|error| error.detail).as_deref(), want, "{from} to {to}, {how:?}");
        });
        let meta = std::fs::metadata(file.path()).unwrap();
        let size = if want.is_some() { from } else { to };
        assert_eq!((device.info().size, meta.len()), (size, size), "{from} to {to}, {how:?}");
        assert_eq!(meta.blocks() * 512 >= 1 << 20, allocated, "{from} to {to}, {how:?}");
    }
    block_on(async {
        device.resize(0, Off).await.unwrap();
        device.write(0, &[1; 9000], WriteFlags::empty()).await.unwrap();
        device.resize(100, Off).await.unwrap();
        device.resize(9000, Off).await.unwrap();
        let mut tail = [9; 8900];
        device.read(100, &mut tail).await.unwrap();
        assert_eq!(tail, [0; 8900], "what was cut off does not come back");
    });
}

#[test]
fn empty_requests_do_nothing_anywhere() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let device = open(file.path());
    for at in [0, 1, u64::MAX] {
        block_on(async {
            device.read(at, &mut []).await.unwrap();
            device.write(at, &[], WriteFlags::FUA).await.unwrap();
            device.write_zeroes(at, 0, ZeroFlags::empty()).await.unwrap();
            device.discard(at, 0).await.unwrap();
        });
        assert_eq!(device.info().size, 0, "at {at}");
    }
}
