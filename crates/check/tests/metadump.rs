//! A metadump has the answer of its image, and nothing of the guest: over sound images of all formats, and over many
//! that were damaged at random in what the dump of the sound one holds.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use blkproof_check::code::Severity;
use blkproof_check::metadump::{Dumped, Error, Sink, metadump};
use blkproof_check::report::Numbers;
use blkproof_check::source::MemorySource;
use blkproof_check::watch::{Progress, Silent, Watch};
use blkproof_check::{Format, Options, Report, Verdict, check};

const MARKER: &[u8; 16] = b"GUEST-DATA-HERE!";

fn run(tool: &str, args: &[&str]) {
    let output = Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("{tool} is needed: {error}"));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    pieces: Vec<Range<usize>>,
}

impl Sink for Memory {
    fn begin(&mut self, len: u64) -> io::Result<()> {
        self.bytes = vec![0; len as usize];
        Ok(())
    }

    fn piece(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let range = at as usize..at as usize + bytes.len();
        assert!(self.pieces.last().is_none_or(|last| last.end <= range.start), "in order, apart");
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.pieces.push(range);
        Ok(())
    }
}

fn dump(image: &MemorySource, options: &Options, keep_names: bool) -> (Memory, Dumped) {
    let mut sink = Memory::default();
    let dumped = metadump(image, options, keep_names, &Silent, &mut sink).unwrap();
    (sink, dumped)
}

type Place = (&'static str, Severity, Vec<Range<u64>>, Vec<Range<u64>>, u64);

fn answer(report: &Report) -> (Verdict, Vec<Place>, Numbers) {
    let findings = (report.findings.iter())
        .map(|one| (one.code.name, one.severity, one.host.clone(), one.guest.clone(), one.count))
        .collect();
    (report.verdict, findings, report.numbers)
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|part| part == text)
}

/// Every format, by name: made from a disk full of markers here and there.
fn images() -> Vec<(&'static str, Vec<u8>, Option<Format>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut disk = vec![0u8; 6 << 20];
    let marks: Vec<u8> = MARKER.iter().copied().cycle().take(128 << 10).collect();
    for at in [0usize, 1 << 20, 3 << 20, (5 << 20) + (512 << 10)] {
        disk[at..at + marks.len()].copy_from_slice(&marks);
    }
    std::fs::write(path("raw"), &disk).unwrap();
    let mut all = Vec::new();
    let mut take = |label, name: &str, format| all.push((label, std::fs::read(Path::new(name)).unwrap(), format));
    for (label, format, options) in [
        ("qcow2", "qcow2", &[][..]),
        ("qcow2 v2, 4K", "qcow2", &["-o", "compat=0.10,cluster_size=4k"]),
        ("qcow2 extended L2", "qcow2", &["-o", "extended_l2=on"]),
        ("qcow2, 512, 64-bit counts", "qcow2", &["-o", "cluster_size=512,refcount_bits=64"]),
        ("qcow2 compressed", "qcow2", &["-c"]),
        ("vdi", "vdi", &[]),
        ("vmdk sparse", "vmdk", &[]),
        ("vmdk stream", "vmdk", &["-o", "subformat=streamOptimized"]),
        ("vhd", "vpc", &[]),
        ("vhd fixed", "vpc", &["-o", "subformat=fixed,force_size=on"]),
        ("vhdx", "vhdx", &["-o", "block_size=1M"]),
        ("parallels", "parallels", &["-o", "cluster_size=64k"]),
        ("qed", "qed", &["-o", "cluster_size=16k,table_size=2"]),
    ] {
        let to = path(label);
        run("qemu-img", &[&["convert", "-q", "-f", "raw", "-O", format], options, &[&path("raw"), &to]].concat());
        take(label, &to, (label == "vhd fixed").then_some(Format::Vhd));
    }
    // Everything with a name, snapshots that share tables, and freed clusters that hold what they held.
    let busy = path("busy");
    run("qemu-img", &["create", "-q", "-f", "raw", &path("private-base"), "6M"]);
    let create = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "private-base", "-F", "raw", "-u"];
    run("qemu-img", &[&create[..], &[&busy, "6M"]].concat());
    std::fs::write(path("marks"), marks).unwrap();
    let write = |at: &str| format!("write -q -s {} {at} 128k", path("marks"));
    run("qemu-io", &["-t", "unsafe", "-f", "qcow2", "-c", &write("64k"), "-c", &write("4M"), &busy]);
    run("qemu-img", &["snapshot", "-q", "-c", "private-first", &busy]);
    run("qemu-img", &["bitmap", "--add", "-g", "64k", &busy, "private-bits"]);
    run("qemu-io", &["-t", "unsafe", "-f", "qcow2", "-c", &write("64k"), "-c", &write("2M"), &busy]);
    run("qemu-img", &["snapshot", "-q", "-c", "private-second", &busy]);
    run("qemu-io", &["-t", "unsafe", "-f", "qcow2", "-c", &write("128k"), &busy]);
    run("qemu-img", &["snapshot", "-q", "-d", "private-first", &busy]);
    take("qcow2 busy", &busy, None);
    all
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// What keeps a dump from being right; `None` if nothing does.
fn wrong(bytes: &[u8], format: Option<Format>) -> Option<String> {
    let options = Options { format, ..Options::default() };
    let image = MemorySource(bytes.to_vec());
    let report = check(&image, &options, &Silent);
    let mut sink = Memory::default();
    match metadump(&image, &options, false, &Silent, &mut sink) {
        Err(Error::Unsupported(_)) if report.verdict == Verdict::Unsupported => return None,
        Err(error) => return Some(format!("no dump: {error}")),
        Ok(_) => {}
    }
    // Pieces that touch are one.
    let holes = |at: &usize| !sink.pieces.iter().any(|piece| piece.end == *at);
    let starts = sink.pieces.iter().map(|piece| piece.start).filter(holes);
    let parts = starts.map(|start| {
        let end = sink
            .pieces
            .iter()
            .filter(|piece| piece.start >= start)
            .try_fold(start, |end, piece| if piece.start == end { Ok(piece.end) } else { Err(end) });
        &sink.bytes[start..end.unwrap_or_else(|end| end)]
    });
    if parts.into_iter().any(|part| holds(part, &MARKER[..8]) || holds(part, b"private")) {
        return Some("a guest's bytes or a name are in the dump".to_owned());
    }
    let again = check(&MemorySource(sink.bytes), &options, &Silent);
    let (want, got) = (answer(&report), answer(&again));
    if want == got {
        return None;
    }
    let shown = |report: &Report| {
        let lines: Vec<String> =
            report.findings.iter().map(|one| format!("  {} {} {:x?}", one.code.name, one.what, one.host)).collect();
        format!("{:?} {:?}\n{}", report.verdict, report.numbers, lines.join("\n"))
    };
    Some(format!("the image:\n{}\nits dump:\n{}", shown(&report), shown(&again)))
}

#[test]
fn the_dump_of_a_sound_image_has_its_answer_and_nothing_of_the_guest() {
    for (label, bytes, format) in images() {
        assert!(holds(&bytes, MARKER) || label.contains("compressed") || label.contains("stream"), "{label}: set-up");
        if let Some(words) = wrong(&bytes, format) {
            panic!("{label}: {words}");
        }
        let options = Options { format, ..Options::default() };
        let image = MemorySource(bytes);
        let (sink, dumped) = dump(&image, &options, false);
        assert_eq!(dumped.shared, [], "{label}");
        assert_eq!(dumped.verdict, Some(Verdict::Healthy), "{label}");
        let held: usize = sink.pieces.iter().map(Range::len).sum();
        assert_eq!(held as u64, dumped.bytes, "{label}");
        assert!(held < 400 << 10, "{label}: {held} bytes");
    }
}

#[test]
fn the_dump_of_a_damaged_image_has_its_answer_and_nothing_of_the_guest() {
    let mut failed = Vec::new();
    let mut damaged = 0;
    for (label, bytes, format) in images() {
        let options = Options { format, ..Options::default() };
        let (sink, _) = dump(&MemorySource(bytes.clone()), &options, true);
        let mut random = Random(bytes.len() as u64);
        for turn in 0..24 {
            let mut image = bytes.clone();
            let piece = &sink.pieces[random.below(sink.pieces.len())];
            let at = (piece.start + random.below(piece.len())) & !7;
            let sector = at & !511;
            let what = match turn % 6 {
                0 => {
                    image[at..(at + 8).min(bytes.len())].fill(0);
                    "a word of zeroes"
                }
                1 => {
                    image[at] ^= 1 << random.below(8);
                    "a flipped bit"
                }
                2 => {
                    let from = (piece.start + random.below(piece.len())) & !7;
                    let end = (from + 8).min(bytes.len());
                    image.copy_within(from..end, at.min(bytes.len() - 8));
                    "a word of another place"
                }
                3 => {
                    let end = (sector + 512).min(bytes.len());
                    image[sector..end].fill(0);
                    "a sector of zeroes"
                }
                4 => {
                    for (to, from) in image[sector..].iter_mut().take(512).zip(MARKER.iter().cycle()) {
                        *to = *from;
                    }
                    "a sector of the guest"
                }
                _ => {
                    image.truncate(bytes.len() / 2 + random.below(bytes.len() / 2));
                    "the end cut off"
                }
            };
            damaged += 1;
            if let Some(words) = wrong(&image, format) {
                failed.push(format!("{label}, turn {turn}, {what} at {at:#x}: {words}"));
            }
        }
    }
    assert!(failed.is_empty(), "{} of {damaged}:\n{}", failed.len(), failed.join("\n"));
}

/// So little is left that no map can be drawn, or hardly one.
#[test]
fn the_dump_of_a_beginning_has_its_answer() {
    for (label, bytes, _) in images() {
        for len in [64, 512, 1024, 3000, 70_000].into_iter().filter(|len| *len < bytes.len()) {
            if let Some(words) = wrong(&bytes[..len], None) {
                panic!("{label}, {len} bytes of it: {words}");
            }
        }
    }
}

#[test]
fn names_are_blanked_unless_they_are_to_be_kept() {
    let (_, bytes, _) = images().into_iter().find(|(label, ..)| *label == "qcow2 busy").unwrap();
    let image = MemorySource(bytes);
    let options = Options::default();
    let (kept, _) = dump(&image, &options, true);
    for name in ["private-base", "private-second", "private-bits"] {
        assert!(holds(&kept.bytes, name.as_bytes()), "{name} is in the image, and kept");
    }
    let (blanked, dumped) = dump(&image, &options, false);
    assert!(!holds(&blanked.bytes, b"private"));
    assert!(dumped.names >= 3, "{dumped:?}");
    let report = check(&MemorySource(blanked.bytes), &options, &Silent);
    assert_eq!(report.references[0].name, "xxxxxxxxxxxx");
}

#[test]
fn no_dump_of_what_is_not_known_or_was_stopped_or_could_not_be_written() {
    struct Stopped;
    impl Watch for Stopped {
        fn progress(&self, _: Progress) {}
        fn stop(&self) -> bool {
            true
        }
    }
    struct Full;
    impl Sink for Full {
        fn begin(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn piece(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let options = Options::default();
    let none = MemorySource(vec![7; 1 << 16]);
    let error = metadump(&none, &options, false, &Silent, &mut Memory::default()).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    let (_, bytes, _) = images().remove(0);
    let image = MemorySource(bytes);
    let error = metadump(&image, &options, false, &Stopped, &mut Memory::default()).unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error}");
    let error = metadump(&image, &options, false, &Silent, &mut Full).unwrap_err();
    assert!(matches!(error, Error::Write(_)), "{error}");
}

/// A differencing VHD names its parent in its header, under a checksum, and by a path elsewhere.
#[test]
fn the_parent_of_a_vhd_is_blanked_under_its_checksum() {
    let (_, mut bytes, _) = images().into_iter().find(|(label, ..)| *label == "vhd").unwrap();
    let sum = |bytes: &[u8]| !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    let name: Vec<u16> = "private parent.vhd".encode_utf16().collect();
    let header = 512;
    for (place, unit) in (header + 64..).step_by(2).zip(&name) {
        bytes[place..place + 2].copy_from_slice(&unit.to_be_bytes());
    }
    bytes[header + 40] = 7;
    // One locator; its path lies where this image has room behind its table.
    let text = 0x800;
    assert!(bytes[text..text + 512].iter().all(|byte| [0, 0xff].contains(byte)), "set-up");
    let path: Vec<u8> = name.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let locator = header + 576;
    bytes[locator..locator + 4].copy_from_slice(b"W2ru");
    bytes[locator + 4..locator + 8].copy_from_slice(&1u32.to_be_bytes());
    bytes[locator + 8..locator + 12].copy_from_slice(&(path.len() as u32).to_be_bytes());
    bytes[locator + 16..locator + 24].copy_from_slice(&(text as u64).to_be_bytes());
    bytes[text..text + path.len()].copy_from_slice(&path);
    let end = bytes.len() - 512;
    for (from, len, at) in [(header, 1024, 36), (0, 512, 64), (end, 512, 64)] {
        if at == 64 {
            bytes[from + 60..from + 64].copy_from_slice(&4u32.to_be_bytes());
        }
        bytes[from + at..from + at + 4].fill(0);
        let right = sum(&bytes[from..from + len]).to_be_bytes();
        bytes[from + at..from + at + 4].copy_from_slice(&right);
    }
    let wide = |text: &str, big: bool| -> Vec<u8> {
        text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    assert_eq!(wrong(&bytes, None), None);
    let image = MemorySource(bytes);
    let (kept, _) = dump(&image, &Options::default(), true);
    let (blanked, _) = dump(&image, &Options::default(), false);
    for big in [true, false] {
        assert!(holds(&kept.bytes[..1 << 13], &wide("private", big)), "big endian: {big}");
        assert!(!holds(&blanked.bytes[..1 << 13], &wide("private", big)), "big endian: {big}");
    }
    let report = check(&MemorySource(blanked.bytes), &Options::default(), &Silent);
    assert!(!report.findings.iter().any(|one| one.code.name.contains("CHECKSUM")), "{:?}", report.findings);
    assert_eq!(report.references[0].name, "xxxxxxxxxxxxxx.xxx");
}
