//! qcheck's streams: which line goes where, and that ranges add up.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use blkproof_check::catalogue;
use blkproof_check::finding::Finding;
use blkproof_check::map::{Class, HostMap};
use blkproof_check::report::{Lost, Numbers};
use blkproof_check::watch::{Event, Watch as _};
use blkproof_check::{Format, Report, Verdict};
use blkproof_report::qcheck::{LETTERS, Preset, Printer, Streams};

const CLUSTER: u64 = 0x10000;

/// The file, cluster by cluster.
const FILE: &[(u64, Class)] = &[
    (1, Class::Header),
    (1, Class::RefcountTable),
    (2, Class::L2),
    (3, Class::Data),
    (2, Class::Free),
    (1, Class::Leaked),
    (1, Class::Free),
    (1, Class::Conflict),
    (1, Class::Compressed),
];

fn report(verdict: Verdict) -> Report {
    let mut totals = [0; Class::COUNT];
    for (clusters, class) in FILE {
        totals[*class as usize] += clusters * CLUSTER;
    }
    Report {
        image: "disk.qcow2".to_owned(),
        format: Some(Format::Qcow2),
        probed: true,
        verdict,
        lost: Lost::default(),
        causes: Vec::new(),
        findings: Vec::new(),
        sums: Vec::new(),
        not_checked: vec!["guest data".to_owned()],
        next: vec!["copy it".to_owned()],
        facts: Vec::new(),
        references: Vec::new(),
        numbers: Numbers { corruptions: 3, ..Numbers::default() },
        host: Some(HostMap { len: 13 * CLUSTER, unit: CLUSTER, claims: Vec::new(), totals, grid: None }),
        guest: None,
        stopped: false,
        live: false,
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// What a check of a small qcow2 image tells, and what is printed of it on both outputs.
fn printed(streams: Streams) -> (String, String) {
    let (out, err) = (Shared::default(), Shared::default());
    let printer = Printer::new(streams, out.clone(), err.clone());
    let problem = Finding::new(catalogue::find("IMAGE-UNREADABLE").unwrap(), "reading 0x20000 failed").count(3);
    let entry = |class, index, raw, value, flags, flawed| Event::Entry {
        class,
        table: 0x30000,
        index,
        cluster: 0x2000 + index,
        raw,
        value,
        flags,
        flawed,
    };
    printer.start("disk.qcow2", "2018-02-13 12:00:00");
    for event in [
        Event::Field("told again", "in its section"),
        Event::Section("Header"),
        Event::Field("magic", "0x514649fb"),
        Event::Section("Derivative Data"),
        Event::Field("size", "1 GiB"),
        Event::Summary("Header", 0, false),
        Event::Section("L2 Tables"),
        entry(Class::L2, 3, 0x8000_0000_0123_0200, 0x0123_0200, "-COMPRESSED +COPIED -ZEROES", true),
        entry(Class::L2, 4, 0x8000_0000_0124_0000, 0x0124_0000, "-COMPRESSED +COPIED -ZEROES", false),
        entry(Class::RefcountBlock, 0, 2, 2, "", false),
        entry(Class::RefcountBlock, 1, 1, 1, "", false),
        entry(Class::RefcountBlock, 2, 0, 0, "", false),
        Event::Problem(&problem),
        Event::Confirm("not seen: overlaps"),
        Event::Summary("L2 tables", 3, true),
        Event::Summary("L1 table", 1, false),
    ] {
        printer.event(&event);
    }
    let mut at = 0;
    for (clusters, class) in FILE {
        printer.event(&Event::Host(at * CLUSTER..(at + clusters) * CLUSTER, *class));
        at += clusters;
    }
    printer.message('w', "no backing file");
    printer.finish(&report(Verdict::Damaged)).unwrap();
    (out.text(), err.text())
}

fn only(letters: &str) -> Streams {
    Streams::preset(Preset::Silent).with(letters)
}

#[test]
fn each_letter_selects_its_lines() {
    for (letters, want) in [
        ("e", "[2018-02-13 12:00:00] qcheck analyzing 'disk.qcow2' for corruption\n"),
        ("H", "magic: 0x514649fb\nsize: 1 GiB\n"),
        ("c", "OK: not seen: overlaps\n"),
        (
            "l",
            "0x0003: CLUSTER 0x00002003; ent: 0x8000000001230200; ptr: 0x0000000001230200; -COMPRESSED +COPIED -ZEROES\n\
             0x0004: CLUSTER 0x00002004; ent: 0x8000000001240000; ptr: 0x0000000001240000; -COMPRESSED +COPIED -ZEROES\n",
        ),
        ("2", "0x0000: CLUSTER 0x00002000; refcount: 2\n"),
        ("1", "0x0001: CLUSTER 0x00002001; refcount: 1\n"),
        ("0", "0x0002: CLUSTER 0x00002002; refcount: 0\n"),
        ("i", "Not checked: guest data\nNext: copy it\n"),
        (
            // A flawed entry is shown above its error even where its table is not.
            "p",
            "0x0003: CLUSTER 0x00002003; ent: 0x8000000001230200; ptr: 0x0000000001230200; -COMPRESSED +COPIED -ZEROES\n\
             Error: reading 0x20000 failed (3 errors) [IMAGE-UNREADABLE]\n",
        ),
        (
            "s",
            "Header: OK, 0 problems\n\
             L2 tables: Could not complete analysis, 3 problems found\n\
             L1 table: 1 problem found\n\
             Metadata:    4 (0x40000 bytes)\n\
             Data:        4 (0x40000 bytes)\n\
             Leaked:      1 (0x10000 bytes)\n\
             Vacant:      3 (0x30000 bytes)\n\
             Conflict:    1 (0x10000 bytes)\n\
             total:       13 (0xd0000 bytes)\n\
             qcheck: 3 problems found\n",
        ),
        (
            "M",
            "0x000000000 - 0x00000ffff [Metadata] (1 cluster) header\n\
             0x000010000 - 0x00001ffff [Metadata] (1 cluster) refcount table\n\
             0x000020000 - 0x00003ffff [Metadata] (2 clusters) L2 table\n\
             0x0000b0000 - 0x0000bffff [Conflict] (1 cluster) claimed twice\n\
             5 clusters\n",
        ),
        (
            "D",
            "0x000040000 - 0x00006ffff [Data] (3 clusters) guest data\n\
             0x0000c0000 - 0x0000cffff [Data] (1 cluster) compressed data\n\
             4 clusters\n",
        ),
        (
            "V",
            "0x000070000 - 0x00008ffff [Vacant] (2 clusters) free\n\
             0x0000a0000 - 0x0000affff [Vacant] (1 cluster) free\n\
             3 clusters\n",
        ),
        ("F", "0x000090000 - 0x00009ffff [Leaked] (1 cluster)\n1 clusters\n"),
        (
            "A",
            "0x000000000 - 0x00006ffff [Allocated] (7 clusters)\n\
             0x0000b0000 - 0x0000cffff [Allocated] (2 clusters)\n\
             9 clusters\n",
        ),
        ("U", "0x000070000 - 0x0000affff [Unallocated] (4 clusters)\n4 clusters\n"),
        ("fwd", ""),
        ("", ""),
    ] {
        let (out, err) = printed(only(letters));
        assert_eq!(out, want, "stream {letters}");
        assert_eq!(err, if letters.contains('w') { "no backing file\n" } else { "" }, "stream {letters}");
    }
    let (whole, _) = printed(only("E"));
    assert_eq!(whole.lines().count(), FILE.len() + 1, "{whole}");
    assert!(whole.ends_with("\n13 clusters\n"), "{whole}");
    let (headings, _) = printed(only("h"));
    assert_eq!(headings, "== Header ==\n== Derivative Data ==\n== L2 Tables ==\n");
    let (headings, _) = printed(only("hsF"));
    assert!(headings.contains("\n== Leaked ==\n") && headings.contains("\n== Leaked stats ==\n1 clusters\n"));
    assert!(headings.contains("\n== Cluster Counts ==\nMetadata:"));
}

#[test]
fn formats_qcheck_did_not_know_have_a_header_and_an_analysis() {
    let out = Shared::default();
    let printer = Printer::new(only("hHsp"), out.clone(), io::sink());
    printer.event(&Event::Field("version", "1.1"));
    let mut report = report(Verdict::Healthy);
    (report.format, report.host) = (Some(Format::Vdi), None);
    report.numbers = Numbers::default();
    printer.finish(&report).unwrap();
    let want = "== Header ==\nversion: 1.1\n== Analysis ==\nvdi: OK, 0 problems\nqcheck: OK, 0 problems\n";
    assert_eq!(out.text(), want);
}

#[test]
fn a_closed_pipe_stops_the_check() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let printer = Printer::new(Streams::preset(Preset::Basic), Closed, io::sink());
    assert!(!printer.stop());
    printer.start("disk.qcow2", "now");
    assert!(printer.stop());
    let error = printer.finish(&report(Verdict::Healthy)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert!(LETTERS.chars().all(|letter| !Streams::preset(Preset::Silent).has(letter)));
}
