//! Long seeded workloads through qemu-io and through us: every line printed, and the disk left behind, have to be the
//! same. Each read carries its pattern, so most of the disk's content is checked on the way as well.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

const SIZE: u64 = 1 << 20;
const COMMANDS: usize = 150;

/// A stream of numbers that is the same for ever.
struct Stream(u64);

impl Stream {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }

    /// A range inside the disk: mostly small, sometimes whole sectors, sometimes at the end.
    fn range(&mut self) -> (u64, u64) {
        let unit = [1, 512, 4096, 65536][usize::try_from(self.below(4)).unwrap()];
        let at = self.below(SIZE / unit) * unit;
        let len = (1 + self.below(20)) * unit;
        if self.below(10) == 0 { (SIZE - len.min(SIZE), len.min(SIZE)) } else { (at, len.min(SIZE - at)) }
    }
}

fn commands(seed: u64) -> Vec<String> {
    let mut stream = Stream(seed);
    let mut model = vec![0u8; usize::try_from(SIZE).unwrap()];
    let mut commands = Vec::new();
    while commands.len() < COMMANDS {
        let (at, len) = stream.range();
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        let byte = u8::try_from(1 + stream.below(255)).unwrap();
        commands.push(match stream.below(12) {
            0..=3 => {
                model[range].fill(byte);
                let flags = ["", "-f ", "-q ", "-C "][usize::try_from(stream.below(4)).unwrap()];
                format!("write {flags}-P {byte} {at} {len}")
            }
            4 => {
                model[range].fill(byte);
                format!("writev -P {byte} {at} {} {}", len / 2, len - len / 2)
            }
            5 | 6 => {
                model[range].fill(0);
                let flags = ["-z", "-zu", "-zf"][usize::try_from(stream.below(3)).unwrap()];
                format!("write {flags} {at} {len}")
            }
            7 => "flush".to_owned(),
            8 => format!("read -v {at} {}", len.min(64)),
            // A run of equal bytes is read with its pattern: both have to agree that it is right, and one byte more
            // that it is not.
            _ => {
                let first = model[range.start];
                let run = model[range.start..].iter().take_while(|byte| **byte == first).count().min(1 << 17);
                let more = u64::from(at + run as u64 == SIZE);
                format!("read -P {first} {at} {}", run as u64 + stream.below(2) * (1 - more))
            }
        });
    }
    commands
}

/// Standard output without times, and exit status.
fn run(program: &str, dir: &Path, format: &str, commands: &[String]) -> (Option<i32>, Vec<String>, String) {
    let mut command = Command::new(program);
    command.arg0("qemu-io").args(["-f", format, "disk"]).current_dir(dir);
    for line in commands {
        command.args(["-c", line]);
    }
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let lines = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| match line.split_once(" ops; ") {
            Some((figures, _)) => figures.to_owned(),
            None if line.contains(",1,0:") => line.split(',').next().unwrap_or_default().to_owned(),
            None => line.to_owned(),
        })
        .collect();
    (output.status.code(), lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn agree(format: &str, options: &[&str], seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let commands = commands(seed);
        let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut seen = Vec::new();
        for (program, dir) in [("qemu-io", &theirs), (env!("CARGO_BIN_EXE_blkproof"), &ours)] {
            let mut made = Command::new("qemu-img");
            made.args(["create", "-q", "-f", format]).args(options).args(["disk", &SIZE.to_string()]);
            let status = made.current_dir(dir.path()).status();
            assert!(status.expect("qemu-img can be run").success());
            seen.push(run(program, dir.path(), format, &commands));
        }
        for (index, (their, our)) in seen[0].1.iter().zip(&seen[1].1).enumerate() {
            assert_eq!(their, our, "{format}, seed {seed}, line {index} of the output");
        }
        assert_eq!(seen[0], seen[1], "{format}, seed {seed}");
        let disks = [&theirs, &ours].map(|dir| dir.path().join("disk"));
        let compared = Command::new("qemu-img").args(["compare", "-f", format, "-F", format]).args(&disks).output();
        let compared = compared.unwrap();
        assert!(compared.status.success(), "{format}, seed {seed}: {}", String::from_utf8_lossy(&compared.stdout));
        if format != "raw" {
            let checked = Command::new("qemu-img").args(["check", "-q", "-f", format]).arg(&disks[1]).output().unwrap();
            assert!(checked.status.success(), "{format}, seed {seed}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}

#[test]
fn raw() {
    agree("raw", &[], 0..6);
}

#[test]
fn qcow2() {
    agree("qcow2", &[], 0..4);
    agree("qcow2", &["-o", "cluster_size=512"], 4..6);
    agree("qcow2", &["-o", "extended_l2=on"], 6..8);
}

#[test]
fn vdi() {
    agree("vdi", &[], 0..3);
}

/// Many requests in flight at once. Each has a range of its own, so the disk left behind does not depend on their
/// order.
#[test]
fn in_flight_together() {
    for (seed, format) in [(0, "raw"), (1, "qcow2"), (2, "vdi")] {
        let mut stream = Stream(seed);
        let mut commands = Vec::new();
        let mut checks = Vec::new();
        // Ranges of odd length, side by side: neighbours share sectors and clusters.
        let mut at = 0;
        while at < SIZE - 40_000 {
            let len = 1 + stream.below(30_000);
            let byte = 1 + stream.below(255);
            match stream.below(4) {
                0 => commands.push(format!("aio_write -zq {at} {len}")),
                _ => commands.push(format!("aio_write -q -P {byte} {at} {len}")),
            }
            let left = if commands.last().unwrap().contains("-zq") { 0 } else { byte };
            checks.push(format!("read -q -P {left} {at} {len}"));
            at += len;
        }
        for index in (1..commands.len()).rev() {
            let other = usize::try_from(stream.below(index as u64 + 1)).unwrap();
            commands.swap(index, other);
        }
        commands.push("aio_flush".into());
        commands.append(&mut checks);
        let dir = tempfile::tempdir().unwrap();
        let mut made = Command::new("qemu-img");
        made.args(["create", "-q", "-f", format, "disk", &SIZE.to_string()]).current_dir(dir.path());
        assert!(made.status().expect("qemu-img can be run").success());
        let ours = run(env!("CARGO_BIN_EXE_blkproof"), dir.path(), format, &commands);
        assert_eq!(ours, (Some(0), Vec::new(), String::new()), "{format}");
        // qemu-io reads what we wrote; the writes are not repeated.
        let checks: Vec<String> = commands.into_iter().filter(|line| line.starts_with("read")).collect();
        assert_eq!(run("qemu-io", dir.path(), format, &checks), (Some(0), Vec::new(), String::new()), "{format}");
    }
}

/// The workloads do what they are for: they read what they wrote, and go wrong where they mean to.
#[test]
fn the_workloads_bite() {
    let all: Vec<String> = (0..6).flat_map(commands).collect();
    assert_eq!(all.len(), 6 * COMMANDS);
    for beginning in ["write -P", "write -z", "write -zu", "writev", "read -P", "read -v", "flush"] {
        assert!(all.iter().any(|line| line.starts_with(beginning)), "no {beginning}");
    }
}
