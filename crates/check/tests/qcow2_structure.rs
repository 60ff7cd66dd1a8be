//! Header, extensions, features, snapshot table, bitmaps, encryption and names of a qcow2 image: each rule broken in an
//! image that qemu-img made, and what qemu-img says of the same bytes.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, clippy::no_effect)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use blkproof_check::source::MemorySource;
use blkproof_check::watch::Silent;
use blkproof_check::{Assume, Format, Options, Report, Verdict, catalogue, check};

const SECRET: &str = "secret,id=s,data=blkproof";
const CLUSTER: usize = 1 << 16;

fn run(folder: &Path, program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(folder).output();
    output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"))
}

fn tool(folder: &Path, program: &str, args: &[&str]) {
    let output = run(folder, program, args);
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The images all cases start from, made by qemu-img, once; and the files they need beside them.
struct Bases {
    images: BTreeMap<&'static str, Vec<u8>>,
    beside: Vec<(&'static str, Vec<u8>)>,
}

/// Name, options of `qemu-img create`, size, further commands (`@` is the image).
const BASES: &[(&str, &str, &str, &[&str])] = &[
    ("plain", "", "64M", &["qemu-io -c write,64k,1M @"]),
    ("v2", "compat=0.10", "64M", &["qemu-io -c write,0,1M @", "qemu-img snapshot -c old @"]),
    ("lazy", "lazy_refcounts=on", "64M", &["qemu-io -c write,0,1M @"]),
    ("narrow", "refcount_bits=1,cluster_size=4k", "64M", &["qemu-io -c write,0,1M @"]),
    ("wide", "refcount_bits=64,cluster_size=512", "8M", &["qemu-io -c write,0,1M @"]),
    ("big", "cluster_size=2M", "1G", &["qemu-io -c write,0,1M @"]),
    ("subclusters", "extended_l2=on", "64M", &["qemu-io -c write,0,1M @"]),
    ("empty", "", "0", &[]),
    ("zstd", "compression_type=zstd", "64M", &["qemu-io -c write,-c,0,64k @"]),
    (
        "snapshots",
        "",
        "64M",
        &[
            "qemu-io -c write,0,1M @",
            "qemu-img snapshot -c one @",
            "qemu-io -c write,64k,1M @",
            "qemu-img snapshot -c two @",
            "qemu-img snapshot -c three @",
        ],
    ),
    (
        "bitmaps",
        "",
        "64M",
        &["qemu-img bitmap --add -g 64k @ nightly", "qemu-img bitmap --add -g 512 @ fine", "qemu-io -c write,0,1M @"],
    ),
    ("overlay", "backing_file=base.raw,backing_fmt=raw", "64M", &["qemu-io -c write,0,64k @"]),
    ("luks", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "1M", &[]),
    ("aes", "encrypt.format=aes,encrypt.key-secret=s", "1M", &[]),
    ("data", "data_file=data.bin", "1M", &["qemu-io -c write,0,64k @"]),
    ("raw-data", "data_file=raw.bin,data_file_raw=on", "1M", &["qemu-io -c write,0,64k @"]),
];

impl Bases {
    fn make() -> &'static Self {
        static MADE: OnceLock<Bases> = OnceLock::new();
        MADE.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("base.raw"), vec![7; 1 << 20]).unwrap();
            let images = BASES.iter().map(|base| (base.0, Self::create(dir.path(), base))).collect();
            let file = |name| (name, std::fs::read(dir.path().join(name)).unwrap());
            Self { images, beside: ["base.raw", "data.bin", "raw.bin"].map(file).to_vec() }
        })
    }

    fn create(dir: &Path, (name, options, size, commands): &(&str, &str, &str, &[&str])) -> Vec<u8> {
        let file = format!("{name}.qcow2");
        let mut args = vec!["create", "-q", "-f", "qcow2", "--object", SECRET, &file, size];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        tool(dir, "qemu-img", &args);
        for command in *commands {
            // A comma stands for a space within an argument.
            let word = |word: &str| if word == "@" { file.clone() } else { word.replace(',', " ") };
            let words: Vec<String> = command.split(' ').map(word).collect();
            tool(dir, &words[0], &words[1..].iter().map(String::as_str).collect::<Vec<_>>());
        }
        std::fs::read(dir.join(file)).unwrap()
    }

    /// A folder with the files the images need; the case is to be written into it.
    fn folder(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &self.beside {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }
}

fn qemu_check(folder: &Path, bytes: &[u8], base: &str) -> i32 {
    let path = folder.join("case.qcow2");
    std::fs::write(&path, bytes).unwrap();
    let path = path.display();
    let output = match base {
        "luks" | "aes" => {
            let options = format!("driver=qcow2,file.filename={path},encrypt.format={base},encrypt.key-secret=s");
            run(folder, "qemu-img", &["check", "--object", SECRET, "--image-opts", &options])
        }
        _ => run(folder, "qemu-img", &["check", "-f", "qcow2", &path.to_string()]),
    };
    output.status.code().unwrap_or(-1)
}

fn judge(bytes: &[u8], options: &Options) -> Report {
    let options = Options { format: Some(Format::Qcow2), ..options.clone() };
    check(&MemorySource(bytes.to_vec()), &options, &Silent)
}

fn codes(report: &Report) -> BTreeSet<&'static str> {
    report.sums.iter().map(|(name, _, _)| *name).collect()
}

/// What a report says, for messages.
fn story(report: &Report) -> String {
    let mut text = format!("{:?}\n", report.verdict);
    for finding in &report.findings {
        text += &format!("  {} ({}): {} {:x?}\n", finding.code.name, finding.severity, finding.what, finding.host);
    }
    for line in &report.not_checked {
        text += &format!("  not checked: {line}\n");
    }
    for (name, value) in &report.facts {
        text += &format!("  {name}: {value}\n");
    }
    text
}

fn be32(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn be64(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn put(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    if bytes.len() < at + what.len() {
        bytes.resize(at + what.len(), 0);
    }
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn put16(bytes: &mut Vec<u8>, at: usize, value: u16) {
    put(bytes, at, &value.to_be_bytes());
}

fn put32(bytes: &mut Vec<u8>, at: usize, value: u32) {
    put(bytes, at, &value.to_be_bytes());
}

fn put64(bytes: &mut Vec<u8>, at: usize, value: u64) {
    put(bytes, at, &value.to_be_bytes());
}

const BACKING_FORMAT: usize = 0xe279_2aca;
const DATA_FILE: usize = 0x4441_5441;
const FEATURE_NAMES: usize = 0x6803_f857;
const ENCRYPTION: usize = 0x0537_be77;
const BITMAPS: usize = 0x2385_2875;

/// Where an extension's data begins; of type 0 where the list ends.
fn extension(bytes: &[u8], kind: usize) -> usize {
    let mut at = be32(bytes, 100);
    loop {
        let (is, len) = (be32(bytes, at), be32(bytes, at + 4));
        if is == kind {
            return at + 8;
        }
        assert_ne!(is, 0, "there is no extension {kind:#x}");
        at += 8 + len.next_multiple_of(8);
    }
}

/// Adds an extension at the end of the list.
fn add_extension(bytes: &mut Vec<u8>, kind: usize, data: &[u8]) {
    let at = extension(bytes, 0) - 8;
    put32(bytes, at, kind as u32);
    put32(bytes, at + 4, data.len() as u32);
    put(bytes, at + 8, data);
}

/// Where entry `index` of the snapshot table begins.
fn snapshot(bytes: &[u8], index: usize) -> usize {
    let mut at = be64(bytes, 64);
    for _ in 0..index {
        let names = be32(bytes, at + 12);
        at += (40 + be32(bytes, at + 36) + (names >> 16) + (names & 0xffff)).next_multiple_of(8);
    }
    at
}

/// Where entry `index` of the bitmap directory begins.
fn bitmap(bytes: &[u8], index: usize) -> usize {
    let mut at = be64(bytes, extension(bytes, BITMAPS) + 16);
    for _ in 0..index {
        at += (24 + (be32(bytes, at + 16) & 0xffff) + be32(bytes, at + 20)).next_multiple_of(8);
    }
    at
}

/// The LUKS header.
fn luks(bytes: &[u8]) -> usize {
    be64(bytes, extension(bytes, ENCRYPTION))
}

/// One damage: its name, the base it is done to, the damage, codes of this half that are found, the verdict's exit
/// status, qemu-img's exit status, and why they differ where they do.
struct Case {
    name: &'static str,
    base: &'static str,
    damage: fn(&mut Vec<u8>),
    codes: &'static [&'static str],
    ours: u8,
    qemu: i32,
    why: &'static str,
}

/// Refused by qemu-img before it checks anything: exit 1 there, named and judged here.
const REFUSED: &str = "qemu-img can not open it and checks nothing";
/// image-check.md 4.3.
const BLIND: &str = "qemu-img does not look at this";

macro_rules! cases {
    ($($name:literal $base:literal [$($code:literal)*] $ours:literal $qemu:literal $why:expr, |$bytes:ident| $damage:expr;)*) => {
        &[$(Case { name: $name, base: $base, damage: |$bytes| { $damage; }, codes: &[$($code),*], ours: $ours, qemu: $qemu, why: $why }),*]
    };
}

#[rustfmt::skip]
const CASES: &[Case] = cases! {
    "cut at 60" "plain" ["QCOW2-HEADER-TRUNCATED"] 2 1 REFUSED, |b| b.truncate(60);
    "empty file" "plain" ["QCOW2-HEADER-TRUNCATED"] 2 1 REFUSED, |b| b.clear();
    "magic" "plain" ["QCOW2-HEADER-MAGIC"] 2 1 REFUSED, |b| put32(b, 0, 0);
    "zeroed cluster" "plain" ["QCOW2-HEADER-OVERWRITTEN"] 2 1 REFUSED, |b| b[..CLUSTER].fill(0);
    "boot sector" "plain" ["QCOW2-HEADER-OVERWRITTEN"] 2 1 REFUSED, |b| { b[..512].fill(0x90); put16(b, 510, 0x55aa) };
    "text" "plain" ["QCOW2-HEADER-OVERWRITTEN"] 2 1 REFUSED, |b| b[..512].fill(b'x');
    "version 4" "plain" ["QCOW2-HEADER-VERSION"] 2 1 REFUSED, |b| put32(b, 4, 4);
    "header length 96" "plain" ["QCOW2-HEADER-LENGTH"] 2 1 REFUSED, |b| put32(b, 100, 96);
    "header length past the cluster" "plain" ["QCOW2-HEADER-LENGTH"] 2 1 REFUSED, |b| put32(b, 100, 0x10008);
    "cluster bits 8" "plain" ["QCOW2-HEADER-CLUSTER-BITS"] 2 1 REFUSED, |b| put32(b, 20, 8);
    "cluster bits 0" "plain" ["QCOW2-HEADER-CLUSTER-BITS"] 2 1 REFUSED, |b| put32(b, 20, 0);
    "cluster bits 64" "plain" ["QCOW2-HEADER-CLUSTER-BITS"] 2 1 REFUSED, |b| put32(b, 20, 64);
    "cluster bits 2^32-1" "plain" ["QCOW2-HEADER-CLUSTER-BITS"] 2 1 REFUSED, |b| put32(b, 20, u32::MAX);
    "extended L2 with 4 KiB" "narrow" ["QCOW2-HEADER-CLUSTER-BITS"] 2 1 REFUSED, |b| b[79] |= 16;
    "refcount order 7" "plain" ["QCOW2-HEADER-REFCOUNT-ORDER"] 2 1 REFUSED, |b| put32(b, 96, 7);
    "odd size" "plain" ["QCOW2-HEADER-SIZE"] 0 0 "", |b| put64(b, 24, (64 << 20) - 100);
    "L1 misaligned" "plain" ["QCOW2-HEADER-L1"] 2 1 REFUSED, |b| put64(b, 40, 0x30200);
    "L1 at 0" "plain" ["QCOW2-HEADER-L1"] 2 2 "", |b| put64(b, 40, 0);
    "L1 past the end" "plain" ["QCOW2-HEADER-L1"] 2 2 "", |b| put64(b, 40, 1 << 40);
    "L1 past 2^63" "plain" ["QCOW2-HEADER-L1"] 2 1 REFUSED, |b| put64(b, 40, u64::MAX << 16);
    "L1 too short" "plain" ["QCOW2-HEADER-L1-SHORT"] 2 1 REFUSED, |b| put64(b, 24, 1 << 40);
    "L1 reaches past the end" "plain" ["QCOW2-HEADER-L1-END"] 2 2 "", |b| put32(b, 36, 1 << 21);
    "L1 too large" "plain" ["QCOW2-HEADER-L1-END" "QCOW2-HEADER-TOO-LARGE"] 2 1 REFUSED, |b| put32(b, 36, u32::MAX);
    "refcount table misaligned" "plain" ["QCOW2-HEADER-REFTABLE"] 2 1 REFUSED, |b| put64(b, 48, 0x10008);
    "refcount table at 0" "plain" ["QCOW2-HEADER-REFTABLE"] 2 2 "", |b| put64(b, 48, 0);
    "refcount table of no clusters" "plain" ["QCOW2-HEADER-REFTABLE"] 2 2 "", |b| put32(b, 56, 0);
    "refcount table past the end" "plain" ["QCOW2-HEADER-REFTABLE"] 2 2 "", |b| put64(b, 48, 1 << 40);
    "refcount table reaches past the end" "plain" ["QCOW2-HEADER-REFTABLE-END"] 2 2 "", |b| put32(b, 56, 100);
    "refcount table too large" "plain" ["QCOW2-HEADER-REFTABLE-END" "QCOW2-HEADER-TOO-LARGE"] 2 1 REFUSED, |b| put32(b, 56, u32::MAX);
    "zstd without its bit" "plain" ["QCOW2-HEADER-COMPRESSION"] 2 1 REFUSED, |b| b[104] = 1;
    "zstd bit without type" "plain" ["QCOW2-HEADER-COMPRESSION"] 2 1 REFUSED, |b| b[79] |= 8;
    "compression type 2" "plain" ["QCOW2-HEADER-COMPRESSION"] 2 1 REFUSED, |b| b[104] = 2;
    "padding" "plain" ["QCOW2-HEADER-PADDING"] 0 0 "", |b| b[107] = 1;
    "bytes behind the extensions" "plain" ["QCOW2-HEADER-STRAY-BYTES"] 0 0 "", |b| put(b, 0x8000, b"hello");
    "backing name past the cluster" "overlay" ["QCOW2-HEADER-BACKING-NAME" "QCOW2-HEADER-STRAY-BYTES"] 2 1 REFUSED, |b| put64(b, 8, 0x10000);
    "backing name too long" "overlay" ["QCOW2-HEADER-BACKING-NAME"] 2 1 REFUSED, |b| put32(b, 16, 1024);
    "backing name on the header" "overlay" ["QCOW2-HEADER-BACKING-OVERLAP" "QCOW2-HEADER-STRAY-BYTES"] 2 0 BLIND, |b| put64(b, 8, 96);
    "backing name of 0 bytes" "overlay" ["QCOW2-BACKING-UNUSED" "QCOW2-HEADER-STRAY-BYTES"] 0 0 "", |b| put32(b, 16, 0);
    "backing format not stated" "overlay" ["QCOW2-BACKING-PROBED" "QCOW2-EXTENSION-UNKNOWN"] 0 0 "", |b| { let at = extension(b, BACKING_FORMAT); put32(b, at - 8, 0x1234) };
    "crypt method 3" "plain" ["QCOW2-HEADER-CRYPT-METHOD"] 2 1 REFUSED, |b| put32(b, 32, 3);
    "AES" "aes" ["QCOW2-HEADER-AES"] 0 0 "", |_b| ();

    "unnamed incompatible bit" "plain" ["QCOW2-FEATURE-UNKNOWN"] 2 1 REFUSED, |b| b[72] |= 0x80;
    "named incompatible bit" "plain" ["QCOW2-FEATURE-NEWER"] 1 1 "", |b| { let at = extension(b, FEATURE_NAMES); b[at + 1] = 9; b[78] |= 2 };
    "unknown compatible bit" "plain" ["QCOW2-FEATURE-OPTIONAL"] 0 0 "", |b| b[80] |= 1;
    "unknown autoclear bit" "plain" ["QCOW2-FEATURE-OPTIONAL"] 0 0 "", |b| b[88] |= 1;
    "dirty" "plain" ["QCOW2-FEATURE-DIRTY"] 0 0 "", |b| b[79] |= 1;
    "dirty and lazy" "lazy" ["QCOW2-FEATURE-DIRTY"] 0 0 "", |b| b[79] |= 1;
    "corrupt" "plain" ["QCOW2-FEATURE-CORRUPT"] 2 0 BLIND, |b| b[79] |= 2;
    "raw bit without data file" "plain" ["QCOW2-FEATURE-RAW-DATA"] 2 1 REFUSED, |b| b[95] |= 2;

    "extension too long" "plain" ["QCOW2-EXTENSION-LENGTH"] 2 1 REFUSED, |b| { let at = extension(b, FEATURE_NAMES); put32(b, at - 4, 0x7fff_fff0) };
    "extension of 2^32-1 bytes" "plain" ["QCOW2-EXTENSION-LENGTH"] 2 1 REFUSED, |b| { let at = extension(b, FEATURE_NAMES); put32(b, at - 4, u32::MAX) };
    "feature names twice" "plain" ["QCOW2-EXTENSION-TWICE"] 0 0 "", |b| add_extension(b, FEATURE_NAMES, &[0; 48]);
    "long format name" "overlay" ["QCOW2-EXTENSION-SIZE" "QCOW2-EXTENSION-TWICE"] 2 1 REFUSED, |b| {
        // The first one counts here; qemu-img takes the last one.
        let at = extension(b, BACKING_FORMAT);
        b.copy_within(at + 8..CLUSTER - 24, at + 24);
        put32(b, at - 4, 24);
        b[at..at + 24].fill(b'x');
        let name = be64(b, 8) + 16;
        put64(b, 8, name as u64);
        add_extension_before_name(b);
    };
    "unknown extension" "plain" ["QCOW2-EXTENSION-UNKNOWN"] 0 0 "", |b| add_extension(b, 0xbad_cafe, b"who knows");
    "unknown extensions in a row" "plain" ["QCOW2-EXTENSION-UNKNOWN"] 0 0 "", |b| for kind in 1..9 { add_extension(b, kind, &[1; 8]) };
    "extension padding" "plain" ["QCOW2-EXTENSION-UNKNOWN" "QCOW2-HEADER-STRAY-BYTES"] 0 0 "", |b| { add_extension(b, 0xbad_cafe, b"who"); let at = extension(b, 0xbad_cafe); b[at + 5] = 1 };
    "feature name of word 7" "plain" ["QCOW2-EXTENSION-NAMES"] 0 0 "", |b| { let at = extension(b, FEATURE_NAMES); b[at] = 7 };
    "encryption extension of 8 bytes" "luks" ["QCOW2-EXTENSION-SIZE" "QCOW2-ENCRYPTION-MISSING" "QCOW2-EXTENSION-UNKNOWN"] 2 1 REFUSED, |b| {
        let at = extension(b, ENCRYPTION);
        put32(b, at - 4, 8);
        // What was its second half is an extension of its own now.
        put64(b, at + 8, 0x7777_0000_0000);
    };

    "data file not named" "data" ["QCOW2-DATA-FILE-UNNAMED" "QCOW2-EXTENSION-UNKNOWN"] 0 1 REFUSED, |b| { let at = extension(b, DATA_FILE); put32(b, at - 8, 0x1234) };
    "data file not used" "plain" ["QCOW2-DATA-FILE-UNUSED"] 0 0 "", |b| add_extension(b, DATA_FILE, b"other.bin");
    "data file and snapshots" "data" ["QCOW2-DATA-FILE-SNAPSHOTS" "QCOW2-SNAPSHOT-TABLE"] 2 2 "", |b| put32(b, 60, 1);
    "raw data file and backing file" "raw-data" ["QCOW2-FEATURE-RAW-DATA" "QCOW2-BACKING-PROBED"] 0 0 "", |b| { put(b, 0x8000, b"base.raw"); put64(b, 8, 0x8000); put32(b, 16, 8) };

    "LUKS without extension" "luks" ["QCOW2-ENCRYPTION-MISSING" "QCOW2-EXTENSION-UNKNOWN"] 2 1 REFUSED, |b| { let at = extension(b, ENCRYPTION); put32(b, at - 8, 0x1234) };
    "LUKS extension without LUKS" "luks" ["QCOW2-ENCRYPTION-UNEXPECTED"] 2 1 REFUSED, |b| put32(b, 32, 0);
    "LUKS header misaligned" "luks" ["QCOW2-ENCRYPTION-PLACE"] 2 1 REFUSED, |b| { let at = extension(b, ENCRYPTION); b[at + 7] = 8 };
    "LUKS header past the end" "luks" ["QCOW2-ENCRYPTION-PLACE"] 2 1 REFUSED, |b| { let at = extension(b, ENCRYPTION); b[at + 1] = 8 };
    "LUKS magic" "luks" ["QCOW2-ENCRYPTION-HEADER"] 2 1 REFUSED, |b| { let at = luks(b); b[at] = 0 };
    "LUKS version" "luks" ["QCOW2-ENCRYPTION-HEADER"] 2 1 REFUSED, |b| { let at = luks(b); b[at + 7] = 9 };
    "LUKS cipher" "luks" ["QCOW2-ENCRYPTION-HEADER"] 2 1 REFUSED, |b| { let at = luks(b); b[at + 8..at + 40].fill(0) };
    "LUKS key length" "luks" ["QCOW2-ENCRYPTION-HEADER"] 2 1 REFUSED, |b| { let at = luks(b); put32(b, at + 108, 0) };
    "LUKS digest" "luks" ["QCOW2-ENCRYPTION-HEADER"] 2 1 REFUSED, |b| { let at = luks(b); b[at + 112..at + 132].fill(0) };
    "LUKS without active slot" "luks" ["QCOW2-ENCRYPTION-HEADER"] 2 1 REFUSED, |b| { let at = luks(b); put32(b, at + 208, 0xdead) };
    "LUKS slot outside" "luks" ["QCOW2-ENCRYPTION-HEADER"] 2 1 REFUSED, |b| { let at = luks(b); put32(b, at + 208 + 40, 0x7fff_ffff) };
    "LUKS key material zeroed" "luks" ["QCOW2-ENCRYPTION-HEADER"] 2 1 REFUSED, |b| { let at = luks(b) + 512 * { let at = luks(b); be32(b, at + 208 + 40) }; b[at + 1024..at + 2048].fill(0) };
    "LUKS second slot broken" "luks" ["QCOW2-ENCRYPTION-KEY-SLOT"] 0 1 REFUSED, |b| { let at = luks(b); put32(b, at + 256, 0x1234) };
    "LUKS second slot zeroed" "luks" ["QCOW2-ENCRYPTION-KEY-SLOT"] 0 0 "", |b| { let at = luks(b); put32(b, at + 256, 0x00ac_71f3); put32(b, at + 260, 1000) };

    "snapshot table misaligned" "snapshots" ["QCOW2-SNAPSHOT-TABLE"] 2 1 REFUSED, |b| { let at = be64(b, 64); put64(b, 64, at as u64 + 8) };
    "snapshot table past the end" "snapshots" ["QCOW2-SNAPSHOT-TABLE"] 2 2 "", |b| put64(b, 64, 1 << 40);
    "too many snapshots" "snapshots" ["QCOW2-SNAPSHOT-CUT"] 2 2 "", |b| put32(b, 60, 9);
    "far too many snapshots" "snapshots" ["QCOW2-SNAPSHOT-CUT" "QCOW2-HEADER-TOO-LARGE"] 2 1 REFUSED, |b| put32(b, 60, u32::MAX);
    "snapshot with a name past the end" "snapshots" ["QCOW2-SNAPSHOT-CUT"] 2 1 REFUSED, |b| { let at = snapshot(b, 1); put32(b, at + 36, 0x7fff_ffff) };
    "snapshot L1 misaligned" "snapshots" ["QCOW2-SNAPSHOT-L1"] 2 2 "", |b| { let at = snapshot(b, 1); b[at + 7] = 1 };
    "snapshot L1 past the end" "snapshots" ["QCOW2-SNAPSHOT-L1"] 2 2 "", |b| { let at = snapshot(b, 1); b[at + 1] = 1 };
    "snapshot L1 too large" "snapshots" ["QCOW2-SNAPSHOT-L1"] 2 2 "", |b| { let at = snapshot(b, 1); put32(b, at + 8, u32::MAX) };
    "snapshot L1 too short" "snapshots" ["QCOW2-SNAPSHOT-L1-SHORT"] 2 0 BLIND, |b| { let at = snapshot(b, 1); put64(b, at + 48, 1 << 40) };
    "snapshot L1 too short for its VM state" "snapshots" ["QCOW2-SNAPSHOT-L1-SHORT"] 2 0 BLIND, |b| { let at = snapshot(b, 1); put64(b, at + 40, 1) };
    "snapshots without extra data" "v2" ["QCOW2-SNAPSHOT-EXTRA"] 2 2 "", |b| { put32(b, 4, 3); put32(b, 96, 4); put32(b, 100, 104); b[72..96].fill(0); b[104..112].fill(0); let at = snapshot(b, 0); shorten_extra(b, at) };
    "snapshot ids equal" "snapshots" ["QCOW2-SNAPSHOT-ID"] 0 0 "", |b| { let at = snapshot(b, 1); let extra = be32(b, at + 36); b[at + 40 + extra] = b'1' };
    "snapshot names equal" "snapshots" ["QCOW2-SNAPSHOT-NAME"] 0 0 "", |b| { let at = snapshot(b, 1); let extra = be32(b, at + 36); put(b, at + 41 + extra, b"one") };
    "snapshot nanoseconds" "snapshots" ["QCOW2-SNAPSHOT-FIELDS"] 0 0 "", |b| { let at = snapshot(b, 1); put32(b, at + 20, 1_000_000_000) };
    "snapshot VM state sizes" "snapshots" ["QCOW2-SNAPSHOT-FIELDS"] 0 0 "", |b| { let at = snapshot(b, 1); put32(b, at + 32, 77) };

    "stale bitmaps" "bitmaps" ["QCOW2-BITMAP-STALE"] 3 3 "", |b| b[95] &= !1;
    "bitmaps bit alone" "plain" ["QCOW2-BITMAP-MISSING"] 0 0 "", |b| b[95] |= 1;
    "0 bitmaps" "bitmaps" ["QCOW2-BITMAP-EXTENSION" "QCOW2-BITMAP-DIRECTORY"] 2 1 REFUSED, |b| { let at = extension(b, BITMAPS); put32(b, at, 0) };
    "too many bitmaps" "bitmaps" ["QCOW2-BITMAP-EXTENSION" "QCOW2-BITMAP-DIRECTORY"] 2 1 REFUSED, |b| { let at = extension(b, BITMAPS); put32(b, at, u32::MAX) };
    "reserved of bitmaps" "bitmaps" ["QCOW2-BITMAP-EXTENSION"] 2 1 REFUSED, |b| { let at = extension(b, BITMAPS); put32(b, at + 4, 1) };
    "bitmap directory too large" "bitmaps" ["QCOW2-BITMAP-EXTENSION" "QCOW2-BITMAP-DIRECTORY"] 2 1 REFUSED, |b| { let at = extension(b, BITMAPS); put64(b, at + 8, u64::MAX) };
    "bitmap directory misaligned" "bitmaps" ["QCOW2-BITMAP-DIRECTORY"] 2 1 REFUSED, |b| { let at = extension(b, BITMAPS); b[at + 23] = 8 };
    "bitmap directory past the end" "bitmaps" ["QCOW2-BITMAP-DIRECTORY"] 2 1 REFUSED, |b| { let at = extension(b, BITMAPS); b[at + 17] = 8 };
    "bitmap directory with more bytes" "bitmaps" ["QCOW2-BITMAP-DIRECTORY"] 2 1 REFUSED, |b| { let at = extension(b, BITMAPS); let len = be64(b, at + 8); put64(b, at + 8, len as u64 + 8); let end = be64(b, at + 16) + len + 8; if b.len() < end { b.resize(end, 0) } };
    "one bitmap more" "bitmaps" ["QCOW2-BITMAP-DIRECTORY"] 2 1 REFUSED, |b| { let at = extension(b, BITMAPS); put32(b, at, 3) };
    "bitmap flags" "bitmaps" ["QCOW2-BITMAP-ENTRY"] 2 1 REFUSED, |b| { let at = bitmap(b, 0); b[at + 14] = 1 };
    "bitmap type" "bitmaps" ["QCOW2-BITMAP-ENTRY"] 2 1 REFUSED, |b| { let at = bitmap(b, 1); b[at + 16] = 2 };
    "bitmap granularity" "bitmaps" ["QCOW2-BITMAP-ENTRY"] 2 1 REFUSED, |b| { let at = bitmap(b, 0); b[at + 17] = 70 };
    "bitmap names equal" "bitmaps" ["QCOW2-BITMAP-NAME"] 2 1 REFUSED, |b| { let (one, two) = (bitmap(b, 0), bitmap(b, 1)); let len = b[two + 19]; b[one + 19] = len; b.copy_within(two + 24..two + 24 + usize::from(len), one + 24); b[one + 24 + usize::from(len)..two].fill(0) };
    "bitmap table of no entries" "bitmaps" ["QCOW2-BITMAP-TABLE"] 2 1 REFUSED, |b| { let at = bitmap(b, 0); put32(b, at + 8, 0) };
    "bitmap table too long" "bitmaps" ["QCOW2-BITMAP-TABLE"] 2 1 REFUSED, |b| { let at = bitmap(b, 0); put32(b, at + 8, 2) };
    "bitmap table misaligned" "bitmaps" ["QCOW2-BITMAP-TABLE"] 2 1 REFUSED, |b| { let at = bitmap(b, 0); b[at + 7] = 8 };
    "bitmap table past the end" "bitmaps" ["QCOW2-BITMAP-TABLE"] 2 2 "", |b| { let at = bitmap(b, 0); b[at + 1] = 8 };
    "bitmap tables shared" "bitmaps" ["QCOW2-BITMAP-TABLE" "QCOW2-BITMAP-TAIL"] 2 2 "", |b| { let (one, two) = (bitmap(b, 0), bitmap(b, 1)); b.copy_within(two..two + 8, one) };
    "bitmap pointer with reserved bits" "bitmaps" ["QCOW2-BITMAP-POINTER"] 2 1 REFUSED, |b| { let at = bitmap(b, 0); let at = be64(b, at); b[at] = 1 };
    "bitmap pointer misaligned" "bitmaps" ["QCOW2-BITMAP-POINTER"] 2 1 REFUSED, |b| { let at = bitmap(b, 0); let at = be64(b, at); b[at + 6] |= 2 };
    "bitmap pointer past the end" "bitmaps" ["QCOW2-BITMAP-POINTER"] 2 2 "", |b| { let at = bitmap(b, 0); let at = be64(b, at); b[at + 2] = 2 };
    "bitmap pointer and all ones" "bitmaps" ["QCOW2-BITMAP-POINTER"] 2 1 REFUSED, |b| { let at = bitmap(b, 0); let at = be64(b, at); assert_ne!(be64(b, at), 0); b[at + 7] |= 1 };
    "bitmap in use" "bitmaps" ["QCOW2-BITMAP-IN-USE"] 0 0 "", |b| { let at = bitmap(b, 0); b[at + 15] |= 1 };
    "bitmap tail" "bitmaps" ["QCOW2-BITMAP-TAIL"] 0 0 "", |b| { let at = bitmap(b, 0); let at = be64(b, at); let bits = be64(b, at); b[bits + 1024 / 8] |= 1 };
};

/// An extension of an unknown type in front of the backing file's name; its list ended there.
fn add_extension_before_name(bytes: &mut Vec<u8>) {
    let name = be64(bytes, 8);
    bytes.copy_within(name..name + 64, name + 32);
    put64(bytes, 8, name as u64 + 32);
    let at = extension(bytes, 0) - 8;
    put32(bytes, at, BACKING_FORMAT as u32);
    put32(bytes, at + 4, 3);
    put64(bytes, at + 8, u64::from_be_bytes(*b"raw\0\0\0\0\0"));
    put64(bytes, at + 16, 0);
}

/// Takes an entry's extra data away.
fn shorten_extra(bytes: &mut [u8], at: usize) {
    let (names, extra) = (be32(bytes, at + 12), be32(bytes, at + 36));
    let len = (names >> 16) + (names & 0xffff);
    assert!(extra >= 16, "there is some");
    bytes.copy_within(at + 40 + extra..at + 40 + extra + len, at + 40);
    bytes[at + 40 + len..at + 40 + extra + len].fill(0);
    bytes[at + 36..at + 40].fill(0);
}

#[test]
fn each_damage_is_found() {
    let bases = Bases::make();
    let mut wrong = String::new();
    let folder = bases.folder();
    let mine: BTreeSet<&str> = structure().collect();
    for case in CASES {
        let mut bytes = bases.images[case.base].clone();
        (case.damage)(&mut bytes);
        let report = judge(&bytes, &Options { untrusted: false, ..Options::default() });
        let got: BTreeSet<&str> = codes(&report).into_iter().filter(|name| mine.contains(name)).collect();
        let want: BTreeSet<&str> = case.codes.iter().copied().collect();
        let qemu = qemu_check(folder.path(), &bytes, case.base);
        let ours = report.verdict.exit_status();
        if got != want || ours != case.ours || qemu != case.qemu {
            wrong += &format!(
                "{} ({}): exit {ours} instead of {}, qemu-img {qemu} instead of {}, codes {got:?} instead of {want:?}\n{}",
                case.name,
                case.base,
                case.ours,
                case.qemu,
                story(&report)
            );
        }
        assert_eq!(
            case.why.is_empty(),
            i32::from(case.ours) == case.qemu,
            "{}: a difference needs a reason",
            case.name
        );
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Codes of the header and the side structures.
fn structure() -> impl Iterator<Item = &'static str> {
    const PARTS: &[&str] =
        &["HEADER", "FEATURE", "EXTENSION", "DATA-FILE", "ENCRYPTION", "SNAPSHOT", "BITMAP", "BACKING", "POLICY"];
    let part = |name: &str| {
        name.strip_prefix("QCOW2-").is_some_and(|rest| PARTS.iter().any(|part| rest.starts_with(&format!("{part}-"))))
    };
    catalogue::all().map(|code| code.name).filter(move |name| part(name) && *name != "QCOW2-SNAPSHOT-ONLY")
}

#[test]
fn every_code_is_raised_somewhere() {
    let mut raised: BTreeSet<&str> = CASES.iter().flat_map(|case| case.codes).copied().collect();
    // Raised in tests of their own, below.
    raised.extend(["QCOW2-POLICY-REFERENCE", "QCOW2-DATA-FILE-SHORT", "QCOW2-HEADER-UNKNOWN-FIELDS"]);
    let dead: Vec<&str> = structure().filter(|name| !raised.contains(name)).collect();
    assert!(dead.is_empty(), "no case raises {dead:?}");
}

#[test]
fn sound_images_are_healthy() {
    let bases = Bases::make();
    for (name, bytes) in &bases.images {
        let report = judge(bytes, &Options::default());
        assert_eq!(report.verdict, Verdict::Healthy, "{name}: {}", story(&report));
        let warned: Vec<_> = codes(&report).into_iter().filter(|code| *code != "QCOW2-HEADER-AES").collect();
        assert!(warned.is_empty(), "{name}: {}", story(&report));
    }
}

fn fact<'r>(report: &'r Report, name: &str) -> &'r str {
    report.facts.iter().find(|(of, _)| *of == name).map_or("", |(_, value)| value)
}

#[test]
fn facts_are_those_of_qemu_img_info() {
    let bases = Bases::make();
    for (base, name, words) in [
        ("plain", "version", "3"),
        ("v2", "version", "2"),
        ("plain", "virtual size", "64 MiB (67108864 bytes)"),
        ("plain", "cluster size", "64 KiB"),
        ("big", "cluster size", "2 MiB"),
        ("narrow", "refcount bits", "1"),
        ("wide", "refcount bits", "64"),
        ("plain", "compression type", "deflate"),
        ("zstd", "compression type", "zstd"),
        ("plain", "features", "none"),
        ("lazy", "features", "lazy refcounts"),
        ("subclusters", "features", "extended L2 entries"),
        ("bitmaps", "features", "bitmaps"),
        ("raw-data", "features", "external data file, raw external data"),
        ("overlay", "backing file", "base.raw (raw)"),
        ("plain", "backing file", "none"),
        ("data", "data file", "data.bin"),
        ("luks", "encryption", "LUKS (aes-xts-plain64, 512 bit key, sha256)"),
        ("aes", "encryption", "AES (legacy)"),
        ("snapshots", "snapshots", "3: 'one' (id 1, 20"),
        ("snapshots", "snapshots", "'three' (id 3"),
        (
            "bitmaps",
            "bitmaps",
            "2: 'nightly' (granularity 64 KiB (65536 bytes), auto), 'fine' (granularity 512 bytes, auto)",
        ),
    ] {
        let report = judge(&bases.images[base], &Options::default());
        assert!(fact(&report, name).contains(words), "{base}: {name}: {}", fact(&report, name));
    }
    let report = judge(&bases.images["plain"], &Options::default());
    let order: Vec<&str> = report.facts.iter().map(|(name, _)| *name).take(11).collect();
    assert_eq!(order[..5], ["version", "virtual size", "cluster size", "refcount bits", "compression type"]);
    assert_eq!(order[5..], ["features", "backing file", "data file", "encryption", "snapshots", "bitmaps"]);
}

#[test]
fn names_of_other_files_are_told_and_never_opened() {
    let bases = Bases::make();
    let untrusted = Options { untrusted: true, ..Options::default() };
    for (base, role, words) in [("overlay", "backing file", "base.raw"), ("data", "data file", "data.bin")] {
        let trusting = judge(&bases.images[base], &Options::default());
        assert_eq!(trusting.references.len(), 1, "{base}");
        assert_eq!(trusting.references[0].role, role);
        assert!(trusting.references[0].name.ends_with(words), "{:?}", trusting.references);
        assert!(!codes(&trusting).contains("QCOW2-POLICY-REFERENCE"));
        assert!(
            trusting.not_checked.iter().any(|line| line.contains(words) && line.contains("not opened")),
            "{}",
            story(&trusting)
        );
        let report = judge(&bases.images[base], &untrusted);
        assert!(codes(&report).contains("QCOW2-POLICY-REFERENCE"), "{}", story(&report));
    }
    assert!(!codes(&judge(&bases.images["plain"], &untrusted)).contains("QCOW2-POLICY-REFERENCE"));

    // A name is data: it can not steer a terminal.
    let mut bytes = bases.images["overlay"].clone();
    let at = be64(&bytes, 8);
    put(&mut bytes, at, b"\x1b[2J\xff\x00");
    let report = judge(&bytes, &Options::default());
    assert_eq!(report.references[0].name, "\\u{1b}[2J\\xff\\u{0}aw");
}

#[test]
fn a_raw_data_file_has_the_whole_disk() {
    let bases = Bases::make();
    for (base, len, short) in [("raw-data", 1 << 20, false), ("raw-data", 1 << 19, true), ("data", 1 << 19, false)] {
        let report = judge(&bases.images[base], &Options { data_file_len: Some(len), ..Options::default() });
        assert_eq!(codes(&report).contains("QCOW2-DATA-FILE-SHORT"), short, "{base}, {len} bytes");
        assert_eq!(report.lost.bytes, if short { 1 << 19 } else { 0 }, "{base}, {len} bytes");
    }
}

#[test]
fn unknown_fields_of_a_longer_header_are_kept() {
    let bases = Bases::make();
    let mut bytes = bases.images["plain"].clone();
    let end = be32(&bytes, 100);
    let list = bytes[end..end + 512].to_vec();
    put(&mut bytes, end + 16, &list);
    put(&mut bytes, end, &[1; 16]);
    put32(&mut bytes, 100, end as u32 + 16);
    let report = judge(&bytes, &Options::default());
    assert_eq!(codes(&report), BTreeSet::from(["QCOW2-HEADER-UNKNOWN-FIELDS"]), "{}", story(&report));
    assert_eq!(qemu_check(bases.folder().path(), &bytes, "plain"), 0);
}

#[test]
fn assumed_fields_replace_dead_ones() {
    let bases = Bases::make();
    let assume = |text: &str| Options { assume: Assume::parse(text).unwrap(), orphans: false, ..Options::default() };
    let mut dead = bases.images["plain"].clone();
    dead[..CLUSTER].fill(0);
    let report = judge(&dead, &assume(""));
    assert!(report.not_checked.iter().any(|line| line.contains("nothing behind the header")), "{}", story(&report));

    let all =
        "cluster_bits=16,size=64M,l1_offset=0x30000,l1_size=1,refcount_table_offset=0x10000,refcount_table_clusters=1";
    let report = judge(&dead, &assume(all));
    assert_eq!(report.verdict, Verdict::Damaged, "{}", story(&report));
    assert_eq!(fact(&report, "cluster size"), "64 KiB (65536 bytes)");
    assert_eq!(report.lost.bytes, 0, "the L1 table is where it was said to be: {}", story(&report));
    assert_eq!(codes(&report), BTreeSet::from(["QCOW2-HEADER-OVERWRITTEN"]), "{}", story(&report));
    assert!(report.not_checked.iter().any(|line| line.contains("l1_offset is 0x30000")), "{}", story(&report));

    // What agrees with a sound header changes nothing; what contradicts it is never healthy.
    let report = judge(&bases.images["plain"], &assume("cluster_bits=16"));
    assert_eq!(report.verdict, Verdict::Healthy, "{}", story(&report));
    let report = judge(&bases.images["plain"], &assume("size=32M"));
    assert_ne!(report.verdict, Verdict::Healthy, "{}", story(&report));

    assert_eq!(Assume::parse("cluster_bits=16,colour=3").unwrap().unknown(Format::Qcow2), Some("colour"));
    assert_eq!(Assume::parse(all).unwrap().unknown(Format::Qcow2), None);
    for name in Assume::known(Format::Qcow2) {
        let report = judge(&bases.images["snapshots"], &assume(&format!("{name}=0xffffffffffffffff")));
        assert_ne!(report.verdict, Verdict::Healthy, "{name}: {}", story(&report));
    }
}

#[test]
fn a_dead_header_is_found_out_from_the_reference_counts() {
    let bases = Bases::make();
    for (base, lost_len, bits) in
        [("plain", CLUSTER, 16), ("narrow", 4096, 12), ("wide", 512, 9), ("big", 2 << 20, 21), ("snapshots", 512, 16)]
    {
        let mut dead = bases.images[base].clone();
        dead[..lost_len].fill(0);
        let report = judge(&dead, &Options::default());
        assert!(fact(&report, "guessed").contains(&format!("cluster_bits={bits}")), "{base}: {}", story(&report));
        assert_eq!(report.verdict, Verdict::Damaged, "{base}");
        let without = judge(&dead, &Options { orphans: false, ..Options::default() });
        assert_eq!(fact(&without, "guessed"), "", "{base}");
    }
    for (at, value) in [(20, 0u32), (20, 63), (20, 22), (96, 9)] {
        let mut flipped = bases.images["plain"].clone();
        put32(&mut flipped, at, value);
        let report = judge(&flipped, &Options::default());
        assert_eq!(fact(&report, "cluster size"), "64 KiB (65536 bytes)", "{at} = {value}: {}", story(&report));
        assert_eq!(fact(&report, "refcount bits"), "16", "{at} = {value}: {}", story(&report));
    }
}

#[test]
fn any_bytes_of_the_first_cluster_give_a_verdict() {
    let bases = Bases::make();
    let mut state = 0x5eed_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let small = Options { memory: 1 << 20, ..Options::default() };
    for (base, bytes) in &bases.images {
        if *base == "big" {
            continue;
        }
        let mut bytes = bytes.clone();
        let side: Vec<usize> = match *base {
            "snapshots" => (0..3).map(|index| snapshot(&bytes, index)).collect(),
            "bitmaps" => (0..2).map(|index| bitmap(&bytes, index)).collect(),
            "luks" => vec![luks(&bytes), luks(&bytes) + 200],
            _ => vec![0],
        };
        for _ in 0..30 {
            let area = [side[random() % side.len()], 0][random() % 2];
            let at = (area + random() % if area == 0 { 400 } else { 80 }).min(bytes.len() - 1);
            let before = bytes[at];
            bytes[at] = [0, 1, 0x7f, 0x80, 0xff, before ^ (1 << (random() % 8))][random() % 6];
            let report = judge(&bytes, &small);
            assert_ne!(report.verdict, Verdict::Unsupported, "{base}: byte {at:#x}");
            bytes[at] = before;
        }
    }
}

#[test]
fn sixty_five_thousand_snapshots_are_listed_within_bounds() {
    let bases = Bases::make();
    let mut bytes = bases.images["snapshots"].clone();
    let (at, first) = (bytes.len().next_multiple_of(CLUSTER), snapshot(&bytes, 0));
    let entry = bytes[first..snapshot(&bytes, 1)].to_vec();
    put64(&mut bytes, 64, at as u64);
    put32(&mut bytes, 60, 65_536);
    bytes.resize(at, 0);
    for _ in 0..65_536 {
        bytes.extend_from_slice(&entry);
    }
    let report = judge(&bytes, &Options { memory: 4 << 20, ..Options::default() });
    assert!(fact(&report, "snapshots").contains("65504 more"), "{}", fact(&report, "snapshots"));
    assert!(fact(&report, "snapshots").len() < 8192);
    assert!(report.findings.len() < 100, "{}", report.findings.len());
    assert!(report.not_checked.iter().any(|line| line.contains("for want of memory")), "{:?}", report.not_checked);
}
