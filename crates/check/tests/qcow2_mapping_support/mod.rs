//! Real images made by qemu-img and qemu-io, taken apart and damaged byte by byte.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use blkproof_check::source::{FileSource, MemorySource};
use blkproof_check::watch::Silent;
use blkproof_check::{Options, Report, check};

/// Runs a tool that has to be there and to succeed; gives back what it printed.
pub(crate) fn run(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder for images, and how to make them.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        // In memory where there is such a place: qemu-img waits for the disk at every step.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self { dir: dir.unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an image out of steps: `create OPTIONS SIZE`, `io COMMAND; COMMAND`, `snapshot …`, `bitmap …`, `resize …`,
    /// `compress OPTIONS` (replaces the image by a compressed copy).
    pub(crate) fn image(&self, name: &str, steps: &[&str]) -> PathBuf {
        let path = self.path(name);
        self.image_again(&path, steps);
        path
    }

    /// More steps on an image.
    pub(crate) fn image_again(&self, path: &Path, steps: &[&str]) {
        let file = path.to_str().unwrap();
        for step in steps {
            let (verb, rest) = step.split_once(' ').unwrap();
            let rest = rest.replace("DIR", self.dir.path().to_str().unwrap());
            let words: Vec<&str> = rest.split_whitespace().collect();
            match verb {
                "create" => {
                    let (size, options) = words.split_last().unwrap();
                    run("qemu-img", &[&["create", "-q", "-f", "qcow2"], options, &[file, size]].concat());
                }
                "io" => {
                    let mut ordered: Vec<&str> = Vec::new();
                    for command in rest.split(';') {
                        ordered.extend(["-c", command.trim()]);
                    }
                    ordered.extend(["-t", "unsafe", "-f", "qcow2", file]);
                    run("qemu-io", &ordered);
                }
                "raw" => {
                    run("qemu-img", &["create", "-q", "-f", "raw", self.path(words[0]).to_str().unwrap(), words[1]]);
                }
                "snapshot" => {
                    run("qemu-img", &[&["snapshot", "-q"], &words[..], &[file]].concat());
                }
                "bitmap" => {
                    run(
                        "qemu-img",
                        &[&["bitmap"], &words[..words.len() - 1], &[file, words[words.len() - 1]]].concat(),
                    );
                }
                "resize" => {
                    let (size, options) = words.split_last().unwrap();
                    run("qemu-img", &[&["resize", "-q", "-f", "qcow2"], options, &[file, size]].concat());
                }
                "compress" => {
                    let to = self.path("compressed.new");
                    let to = to.to_str().unwrap();
                    let args =
                        [&["convert", "-q", "-c", "-f", "qcow2", "-O", "qcow2"], &words[..], &[file, to]].concat();
                    run("qemu-img", &args);
                    std::fs::rename(to, path).unwrap();
                }
                "luks" => {
                    let secret = ["--object", "secret,id=s0,data=geheim", "-o"];
                    let options =
                        format!("encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10,{}", words[0]);
                    let args = [&["create", "-q", "-f", "qcow2"], &secret[..], &[&options, file, words[1]]].concat();
                    run("qemu-img", &args);
                }
                _ => panic!("no such step: {step}"),
            }
        }
    }
}

/// What `qemu-img check` says: exit status and figures.
pub(crate) struct Qemu {
    pub(crate) status: i32,
    text: String,
}

impl Qemu {
    pub(crate) fn check(path: &Path) -> Self {
        let output = Command::new("qemu-img")
            .args(["check", "-f", "qcow2", "--output=json"])
            .arg(path)
            .output()
            .expect("qemu-img");
        Self { status: output.status.code().unwrap(), text: String::from_utf8_lossy(&output.stdout).into_owned() }
    }

    /// A figure; 0 where it is left out, as qemu-img does with zeroes.
    pub(crate) fn figure(&self, key: &str) -> u64 {
        let Some((_, rest)) = self.text.split_once(&format!("\"{key}\": ")) else { return 0 };
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    }
}

pub(crate) fn check_file(path: &Path, options: &Options) -> Report {
    check(&FileSource::open(path).unwrap(), options, &Silent)
}

/// The bytes of an image, to be damaged.
#[derive(Clone)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

impl Bytes {
    pub(crate) fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    pub(crate) fn u32(&self, at: u64) -> u64 {
        u64::from(u32::from_be_bytes(self.0[at as usize..][..4].try_into().unwrap()))
    }

    pub(crate) fn u64(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.0[at as usize..][..8].try_into().unwrap())
    }

    pub(crate) fn set(&mut self, at: u64, value: u64) {
        self.0[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn set_u16(&mut self, at: u64, value: u16) {
        self.0[at as usize..][..2].copy_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn cluster(&self) -> u64 {
        1 << self.u32(20)
    }

    pub(crate) fn l1(&self) -> u64 {
        self.u64(40)
    }

    fn entry_len(&self) -> u64 {
        if self.u64(72) & 16 != 0 && self.u32(4) == 3 { 16 } else { 8 }
    }

    /// Where the L2 table of an L1 entry is.
    pub(crate) fn l2(&self, index: u64) -> u64 {
        self.u64(self.l1() + index * 8) & OFFSET
    }

    /// Where the L2 entry of a guest offset is.
    pub(crate) fn entry(&self, guest: u64) -> u64 {
        let entries = self.cluster() / self.entry_len();
        let index = guest / self.cluster();
        self.l2(index / entries) + index % entries * self.entry_len()
    }

    /// Where the data of a guest offset is.
    pub(crate) fn data(&self, guest: u64) -> u64 {
        self.u64(self.entry(guest)) & OFFSET
    }

    pub(crate) fn reftable(&self) -> u64 {
        self.u64(48)
    }

    pub(crate) fn refblock(&self, index: u64) -> u64 {
        self.u64(self.reftable() + index * 8)
    }

    /// Where the 16-bit count of the cluster at a host offset is (in the first refcount block).
    pub(crate) fn count(&self, host: u64) -> u64 {
        self.refblock(0) + host / self.cluster() * 2
    }

    pub(crate) fn check(&self, options: &Options) -> Report {
        check(&MemorySource(self.0.clone()), options, &Silent)
    }

    pub(crate) fn qemu(&self, bench: &Bench) -> Qemu {
        let path = bench.path("damaged.qcow2");
        std::fs::write(&path, &self.0).unwrap();
        Qemu::check(&path)
    }
}

/// Names of the codes of a report, with the number of single errors of each.
pub(crate) fn codes(report: &Report) -> Vec<(&'static str, u64)> {
    report.sums.iter().map(|(name, _, sum)| (*name, sum.errors)).collect()
}

/// What holds of every report, whatever the image.
pub(crate) fn consistent(report: &Report, name: &str) {
    if let Some(map) = &report.host {
        assert_eq!(map.totals.iter().sum::<u64>(), map.len, "{name}: the classes sum to the file's length");
    }
    if let Some(map) = &report.guest {
        assert_eq!(map.totals.iter().sum::<u64>(), map.size, "{name}: the states sum to the disk's size");
    }
    for finding in &report.findings {
        for range in finding.host.iter().chain(&finding.guest) {
            assert!(range.start <= range.end, "{name}: {finding:?}");
        }
    }
}
