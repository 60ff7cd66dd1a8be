//! Real images, made by `qemu-img` and `qemu-io`, and ways to damage them.
#![allow(dead_code)]

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blkproof_check::source::FileSource;
use blkproof_check::watch::Silent;
use blkproof_check::{Options, Report, Verdict, check};
use tempfile::TempDir;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const COPIED: u64 = 1 << 63;
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An image in a directory of its own.
pub struct Image {
    dir: TempDir,
    pub path: PathBuf,
}

/// Runs a program to its end. It has to be there.
pub fn run(program: &str, args: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

impl Image {
    /// `qemu-img create` with these options of the format.
    pub fn create(size: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        let image = Self { dir, path };
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([image.name(), size]);
        let (status, text) = run("qemu-img", &args);
        assert_eq!(status, 0, "{text}");
        image
    }

    pub fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// `qemu-io` with these commands.
    pub fn io(&self, commands: &[String]) {
        let mut args = vec!["-f", "qcow2"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(self.name());
        let (status, text) = run("qemu-io", &args);
        assert!(status == 0 && !text.contains("failed"), "{text}");
    }

    pub fn img(&self, args: &[&str]) {
        let mut all = args.to_vec();
        all.push(self.name());
        let (status, text) = run("qemu-img", &all);
        assert_eq!(status, 0, "{text}");
    }

    /// Writes `len` bytes each `step` bytes from 0 on.
    pub fn fill(&self, size: u64, step: u64, len: u64) -> &Self {
        let commands: Vec<String> =
            (0..size / step).map(|index| format!("write -q -P {} {} {len}", index % 250 + 1, index * step)).collect();
        for some in commands.chunks(400) {
            self.io(some);
        }
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = vec![0; len];
        std::fs::File::open(&self.path).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt as _;
        std::fs::File::options().write(true).open(&self.path).unwrap().write_all_at(bytes, at).unwrap();
    }

    pub fn zero(&self, range: Range<u64>) {
        self.write(range.start, &vec![0; (range.end - range.start) as usize]);
    }

    pub fn truncate(&self, len: u64) {
        std::fs::File::options().write(true).open(&self.path).unwrap().set_len(len).unwrap();
    }

    pub fn len(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().len()
    }

    pub fn u64_at(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.read(at, 8).try_into().unwrap())
    }

    pub fn u32_at(&self, at: u64) -> u32 {
        u32::from_be_bytes(self.read(at, 4).try_into().unwrap())
    }

    pub fn cluster(&self) -> u64 {
        1 << self.u32_at(20)
    }

    pub fn l1(&self) -> u64 {
        self.u64_at(40)
    }

    pub fn refcount_table(&self) -> u64 {
        self.u64_at(48)
    }

    /// Places of the L2 tables, by L1 index.
    pub fn l2s(&self) -> Vec<u64> {
        (0..u64::from(self.u32_at(36))).map(|index| self.u64_at(self.l1() + index * 8) & OFFSET).collect()
    }

    /// Places of the refcount blocks.
    pub fn blocks(&self) -> Vec<u64> {
        let entries = u64::from(self.u32_at(56)) * self.cluster() / 8;
        (0..entries).map(|index| self.u64_at(self.refcount_table() + index * 8)).filter(|at| *at != 0).collect()
    }

    pub fn check(&self) -> Report {
        self.check_with(&Options::default())
    }

    pub fn check_with(&self, options: &Options) -> Report {
        let source = FileSource::open(&self.path).unwrap();
        check(&source, options, &Silent)
    }

    /// What `qemu-img check` exits with.
    pub fn qemu_status(&self) -> i32 {
        run("qemu-img", &["check", "-f", "qcow2", self.name()]).0
    }

    /// Whether the disk reads as this file, to `qemu-img compare`.
    pub fn same_disk(&self, other: &Path) -> bool {
        run("qemu-img", &["compare", "-f", "qcow2", "-F", "qcow2", "-U", self.name(), other.to_str().unwrap()]).0 == 0
    }

    pub fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        std::fs::copy(&self.path, &path).unwrap();
        Self { dir, path }
    }
}

/// A `qemu-io` that is told what to do step by step.
pub struct Io {
    child: std::process::Child,
    out: std::io::BufReader<std::process::ChildStdout>,
}

impl Io {
    /// Opens the image without locks, as two hosts that share a disk do.
    pub fn open(image: &Image) -> Self {
        let options = format!("driver=qcow2,file.driver=file,file.locking=off,file.filename={}", image.name());
        let mut child = Command::new("qemu-io")
            .args(["--image-opts", &options])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-io: {error}"));
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// A command that says `wrote …` when it is done.
    pub fn write(&mut self, command: &str) {
        use std::io::BufRead as _;
        // One at a time: what is read ahead with a line is not looked at before more comes.
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "write {command}").unwrap();
        input.flush().unwrap();
        let mut line = String::new();
        while !line.contains("wrote ") {
            line.clear();
            assert_ne!(self.out.read_line(&mut line).unwrap(), 0, "qemu-io ended");
        }
    }

    pub fn quit(mut self) {
        writeln!(self.child.stdin.as_mut().unwrap(), "quit").unwrap();
        self.child.wait().unwrap();
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What is printed when something is not as it should be.
pub fn story(report: &Report) -> String {
    let mut text =
        format!("verdict {:?}, lost {:x?} ({} bytes)\n", report.verdict, report.lost.ranges, report.lost.bytes);
    for cause in &report.causes {
        text += &format!("cause ({}, {} errors): {}\n", cause.confidence, cause.errors, cause.what);
        text += &format!("   codes {:?} host {:x?} guest {:x?}\n", cause.codes, cause.host, cause.guest);
    }
    for finding in report.findings.iter().take(30) {
        text += &format!("{} {} x{}: {}\n", finding.severity, finding.code.name, finding.count, finding.what);
        text += &format!("   host {:x?} guest {:x?}\n", finding.host, finding.guest);
    }
    for line in &report.not_checked {
        text += &format!("not checked: {line}\n");
    }
    for line in &report.next {
        text += &format!("next: {line}\n");
    }
    text
}

/// The first cause says all of this.
pub fn expect_cause(name: &str, report: &Report, verdict: Verdict, words: &[&str]) {
    assert_eq!(report.verdict, verdict, "{name}\n{}", story(report));
    let first = report.causes.first().unwrap_or_else(|| panic!("{name}: no cause\n{}", story(report)));
    for word in words {
        assert!(first.what.contains(word), "{name}: '{word}' is missing\n{}", story(report));
    }
}

pub fn expect_next(name: &str, report: &Report, words: &str) {
    assert!(report.next.iter().any(|line| line.contains(words)), "{name}: no step says '{words}'\n{}", story(report));
}

pub fn expect_no_next(name: &str, report: &Report, words: &str) {
    assert!(!report.next.iter().any(|line| line.contains(words)), "{name}: a step says '{words}'\n{}", story(report));
}

/// Ranges that together are the bytes of both, nothing more.
pub fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// Bytes that look random.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def0u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

pub fn log(len: usize) -> Vec<u8> {
    let mut text = String::new();
    for index in 0.. {
        text += &format!("Nov 21 17:{:02}:{:02} host kernel: [{index}] link is up\n", index / 60 % 60, index % 60);
        if text.len() >= len {
            break;
        }
    }
    text.into_bytes()[..len].to_vec()
}
