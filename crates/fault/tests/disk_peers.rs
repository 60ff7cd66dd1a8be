//! A qcow2 image over a disk over a file, 200 power cuts at random moments, and QEMU's own check after each.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use blkproof_block::graph::{OpenContext, OpenFlags, Registry};
use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{Choices, Model, hash, stamp};
use blkproof_block::{BlockDevice, Node, WriteFlags, ZeroFlags};
use blkproof_fault::clock::Stopped;
use blkproof_fault::disk::{Disk, DiskDriver, DiskNode, DiskOptions, Extent, Kind, Profile, WriteBack};
use blkproof_fault::lab::{Lab, Part};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, Qcow2Driver, create};
use futures_lite::future::block_on;

const SIZE: u64 = 400 << 10;

/// The test's own host does not lose its power.
const FAST: &str = "cache.no-flush=on";

/// Runs a tool that has to be there; returns exit status and everything it said.
fn run(program: &str, args: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("these tests need {program}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), text)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn registry(lab: &Rc<Lab>) -> Registry {
    let mut registry = Registry::new();
    blkproof_block::nodes::register(&mut registry);
    registry.add(Qcow2Driver);
    registry.add(DiskDriver::new(lab));
    registry
}

fn graph(lab: &Rc<Lab>, options: &str) -> Result<Node, String> {
    let registry = registry(lab);
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    block_on(context.open_image(options, None, true)).map_err(|error| error.to_string())
}

async fn file(path: &Path, how: &str) -> Node {
    let registry = registry(&Lab::new(Rc::new(Stopped)));
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    context.open_image(&format!("driver=file,filename={},{how}", text(path)), None, true).await.unwrap()
}

/// An image that knows flushed content by heart.
struct Run {
    path: PathBuf,
    options: DiskOptions,
    caught: u32,
}

impl Run {
    /// One life: opens the image, works on it, loses power in the middle of something; then QEMU looks at it.
    fn life(&mut self, seed: u64) {
        let mut draws = Choices::new(hash(0x7065_6572, seed));
        block_on(async {
            let options = DiskOptions { seed, ..self.options };
            let node = Rc::new(DiskNode::new(file(&self.path, FAST).await, options));
            let disk = node.handle();
            let cache = OpenOptions { l2_cache_size: 0, refcount_cache_size: 0, ..OpenOptions::default() };
            let image = match Qcow2::open(Rc::clone(&node), cache).await {
                Ok(image) => image,
                Err(error) => return self.broken(seed, &format!("does not open: {error}")),
            };
            let mut content = SparseBytes::new(SIZE);
            let mut bytes = vec![0; SIZE as usize];
            image.read(0, &mut bytes).await.unwrap();
            content.write(0, &bytes);
            let mut model = Model::new(content);
            let count = 3 + draws.below(25);
            for number in 0..count {
                // At the last request the power goes while it is on its way, or just before.
                let last = number + 1 == count;
                work(&image, &mut model, &mut draws, seed * 1000 + number, last).await;
            }
            let report = disk.power_cut(None).await.unwrap();
            assert!(report.betrayed == 0 || self.options.kind == Kind::Liar, "{report:?}");
            let what = format!("seed {seed}, {}", report.state);
            drop(image);
            let (status, said) = run("qemu-img", &["check", "-U", "-f", "qcow2", text(&self.path)]);
            // 3: leaks, which a format may have after a crash.
            if status != 0 && status != 3 {
                return self.broken(seed, &format!("{what}: qemu-img check: {said}"));
            }
            node.close().await.unwrap();
            drop((node, disk));
            let image = Qcow2::open(file(&self.path, FAST).await, OpenOptions::default()).await.unwrap();
            let mut bytes = vec![0; SIZE as usize];
            let found = match image.read(0, &mut bytes).await {
                Ok(()) => model.after_crash(usize::MAX).check(0, &bytes).map_err(|violation| violation.to_string()),
                Err(error) => Err(error.to_string()),
            };
            image.close().await.unwrap();
            if let Err(found) = found {
                self.broken(seed, &format!("{what}: {found}"));
            }
        });
    }

    fn broken(&mut self, seed: u64, why: &str) {
        assert!(self.options.kind == Kind::Liar, "seed {seed}: {why}");
        self.caught += 1;
        block_on(new_image(&self.path));
    }
}

async fn new_image(path: &Path) {
    let _ = std::fs::remove_file(path);
    blkproof_block::nodes::file::create(text(path), 0, blkproof_block::Preallocation::Off, false).unwrap();
    let node = Rc::new(file(path, FAST).await);
    let options = CreateOptions { size: SIZE, cluster_size: 4096, ..CreateOptions::default() };
    create(Rc::clone(&node), None, &options).await.unwrap();
    node.close().await.unwrap();
}

/// One request; the last one is dropped after a few polls.
async fn work(image: &Qcow2<Rc<DiskNode>>, model: &mut Model, draws: &mut Choices, op: u64, last: bool) {
    let at = draws.below(SIZE / 512) * 512;
    let len = ((1 + draws.below(30)) * 512).min(SIZE - at);
    let fua = draws.chance(150);
    let polls = draws.below(6);
    macro_rules! send {
        ($future:expr) => {{
            let mut future = Box::pin($future);
            let mut done = None;
            if last {
                for _ in 0..polls {
                    done = done.or(futures_lite::future::poll_once(&mut future).await);
                    if done.is_some() {
                        break;
                    }
                }
            } else {
                done = Some(future.await);
            }
            done
        }};
    }
    match draws.below(8) {
        0 => {
            let id = model.submit_zeroes(at, len, fua);
            let flags = ZeroFlags::MAY_UNMAP | if fua { ZeroFlags::FUA } else { ZeroFlags::empty() };
            if let Some(done) = send!(image.write_zeroes(at, len, flags)) {
                done.unwrap();
                model.complete(id);
            }
        }
        1 => {
            let id = model.submit_discard(at, len);
            if let Some(done) = send!(image.discard(at, len)) {
                done.unwrap();
                model.complete(id);
            }
        }
        2 | 3 => {
            let id = model.submit_flush();
            if let Some(done) = send!(image.flush()) {
                done.unwrap();
                model.complete_flush(id);
            }
        }
        _ => {
            let data = stamp::bytes(at, len as usize, op + 1);
            let id = model.submit_write(at, &data, fua);
            let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
            if let Some(done) = send!(image.write(at, &data, flags)) {
                done.unwrap();
                model.complete(id);
            }
        }
    }
}

#[test]
fn an_image_survives_200_power_cuts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    block_on(new_image(&path));
    let profiles = [Profile::Ordered, Profile::Request, Profile::Block, Profile::Torn];
    let mut run = Run { path, options: DiskOptions::default(), caught: 0 };
    for seed in 0..200 {
        let mut draws = Choices::new(seed);
        run.options = DiskOptions {
            profile: profiles[draws.index(4)],
            cache_size: [16 << 10, 64 << 20][draws.index(2)],
            write_back: [WriteBack::Fifo, WriteBack::Random][draws.index(2)],
            ..DiskOptions::default()
        };
        run.life(seed);
    }
}

/// The same on a liar: corrupt images, or flushed data that is gone.
#[test]
fn a_liar_breaks_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    block_on(new_image(&path));
    let options = DiskOptions { kind: Kind::Liar, ..DiskOptions::default() };
    let mut run = Run { path, options, caught: 0 };
    (1000..1020).for_each(|seed| run.life(seed));
    assert!(run.caught >= 8, "caught {} times", run.caught);
}

/// Named by a user: options, mistakes, and a state saved as an overlay that QEMU reads.
#[test]
fn as_a_graph() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("a.raw");
    std::fs::write(&raw, [9; 64 << 10]).unwrap();
    let lab = Lab::new(Rc::new(Stopped));
    let name = format!("file.driver=file,file.filename={}", text(&raw));
    for (options, want) in [
        ("kind=honset", "option 'kind' expects one of 'honest', 'liar', got 'honset'"),
        ("block-size=1000", "option 'block-size' expects a power of two from 512 to 64k, got '1000'"),
        ("profle=block", "unknown option 'profle' for driver 'disk'; did you mean 'profile'?"),
    ] {
        assert_eq!(graph(&lab, &format!("driver=disk,{options},{name}")).unwrap_err(), want);
    }
    assert_eq!(graph(&lab, "driver=disk").unwrap_err(), "driver 'disk' needs the option 'file'");
    let all =
        "kind=liar,profile=garbage,flush-error=forget,cache-size=1M,write-back=lifo,seed=7,block-size=4k,stay-off=on";
    let node = graph(&lab, &format!("driver=disk,node-name=d,{all},{name}")).unwrap();
    let Some(Part::Disk(disk)) = lab.get("d") else { panic!("the disk is not listed") };
    assert_eq!((disk.options().cache_size, disk.options().block_size), (1 << 20, 4096));
    drop((node, disk));

    let node = graph(&lab, &format!("driver=disk,{name}")).unwrap();
    let Some(Part::Disk(disk)) = lab.get("disk0") else { panic!("the disk is not listed") };
    block_on(saved_as_overlay(&dir.path().join("overlay.qcow2"), &raw, &node, &disk));
}

async fn saved_as_overlay(overlay: &Path, raw: &Path, node: &Node, disk: &Disk) {
    node.write(5000, &[1; 3000], WriteFlags::empty()).await.unwrap();
    node.write_zeroes(20000, 10000, ZeroFlags::empty()).await.unwrap();
    node.write(60000, &[2; 100], WriteFlags::empty()).await.unwrap();
    let (status, said) = run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(raw), "-F", "raw", text(overlay)]);
    assert_eq!(status, 0, "{said}");
    let backing = file(raw, "read-only=on,force-share=on").await;
    let options = OpenOptions { backing: Some(backing), ..OpenOptions::default() };
    let target = Qcow2::open(file(overlay, FAST).await, options).await.unwrap();
    disk.save_state("drop:2", &target, Extent::Overlay).await.unwrap();
    target.close().await.unwrap();
    drop(target);
    // The disk's own file is still the old one; QEMU sees the state through the overlay.
    assert_eq!(std::fs::read(raw).unwrap(), [9; 64 << 10]);
    let look = |commands: &[&str]| {
        let mut args = vec!["-U", "-r", "-f", "qcow2"];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        args.push(text(overlay));
        run("qemu-io", &args)
    };
    let (status, said) = look(&[
        "read -P 9 0 5000",
        "read -P 1 5000 3000",
        "read -P 9 8000 12000",
        "read -P 0 20000 10000",
        "read -P 9 30000 35536",
    ]);
    assert!(status == 0 && !said.contains("verification failed"), "{said}");
    let (_, said) = look(&["read -P 2 60000 100"]);
    assert!(said.contains("verification failed"), "the check bites: {said}");
    node.close().await.unwrap();
}
