//! The human report: what stands where, and what is left out.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init)]

use blkproof_check::catalogue;
use blkproof_check::code::Severity;
use blkproof_check::finding::{Confidence, Finding, Sum};
use blkproof_check::map::{Class, GuestMap, GuestState, HostMap, Owner};
use blkproof_check::report::{Cause, Lost, Numbers, Reference};
use blkproof_check::{Format, Report, Verdict};
use blkproof_report::human::{Show, write};
use blkproof_report::{Style, ddrescue, json};

fn empty(verdict: Verdict) -> Report {
    let mut totals = [0; Class::COUNT];
    totals[Class::Data as usize] = 5 << 20;
    totals[Class::Header as usize] = 64 << 10;
    totals[Class::Free as usize] = 960 << 10;
    Report {
        image: "disk.qcow2".to_owned(),
        format: Some(Format::Qcow2),
        probed: true,
        verdict,
        lost: Lost::default(),
        causes: Vec::new(),
        findings: Vec::new(),
        sums: Vec::new(),
        not_checked: vec!["guest data: the format keeps no checksums of it".to_owned()],
        next: Vec::new(),
        facts: vec![("version", "3".to_owned())],
        references: Vec::new(),
        numbers: Numbers::default(),
        host: Some(HostMap { len: 6 << 20, unit: 64 << 10, claims: Vec::new(), totals, grid: None }),
        guest: Some(GuestMap { size: 1 << 30, totals: [0; GuestState::COUNT], grid: None }),
        stopped: false,
        live: false,
    }
}

fn shown(report: &Report, show: &Show) -> String {
    let mut text = String::new();
    write(&mut text, report, show).unwrap();
    text
}

fn damaged() -> Report {
    let unreadable = catalogue::find("IMAGE-UNREADABLE").unwrap();
    let changed = catalogue::find("IMAGE-CHANGED").unwrap();
    let finding = |index: u64| {
        let at = index << 16;
        let words = format!("the L2 table at {at:#x}: reading {at:#x}..{:#x} failed: I/O error", at + 0x10000);
        Finding::new(unreadable, words).host(at..at + 0x10000).guest(index << 29..(index + 1) << 29).count(128)
    };
    let mut report = empty(Verdict::Damaged);
    report.findings = (1..=7).map(finding).collect();
    report.findings.push(Finding::new(changed, "two claim \x1b[2J0x10000").confidence(Confidence::Likely).owner(
        Owner {
            class: Class::L2,
            host: 0x10000..0x20000,
            guest: Some(0..0x2000_0000),
            label: "L2 table of l1[0]".to_owned(),
        },
    ));
    report.sums = vec![
        ("IMAGE-CHANGED", Severity::Warning, Sum { findings: 1, errors: 1 }),
        ("IMAGE-UNREADABLE", Severity::Corruption, Sum { findings: 9, errors: 1152 }),
    ];
    report.numbers.corruptions = 1152;
    report.causes = vec![Cause {
        what: "nine L2 tables lie on bad sectors".to_owned(),
        confidence: Confidence::Likely,
        codes: vec!["IMAGE-UNREADABLE"],
        errors: 1152,
        host: vec![0x10000..0xa0000],
        guest: vec![0x2000_0000..0x1_4000_0000],
    }];
    report.lost = Lost { ranges: vec![0x1000..0x3000, 0x10_0000..0x20_0000], bytes: 0x10_2000, left_out: 0 };
    report.next = vec!["copy the image with ddrescue to a sound disk and check the copy".to_owned()];
    report
}

#[test]
fn a_healthy_image_takes_a_few_lines() {
    let mut report = empty(Verdict::Healthy);
    report.references.push(Reference {
        role: "backing file",
        name: "base\n.raw".to_owned(),
        format: Some("raw".to_owned()),
    });
    report.not_checked.push("backing file: not opened".to_owned());
    let want = "\
disk.qcow2: healthy
  qcow2, disk 1 GiB, file 6 MiB: guest data 5 MiB, metadata 64 KiB, free 960 KiB
  backing file 'base\\n.raw' (raw)
NOT CHECKED
  - guest data: the format keeps no checksums of it
  - backing file: not opened
";
    assert_eq!(shown(&report, &Show::default()), want);
}

#[test]
fn a_damaged_image_says_verdict_cause_findings_loss_and_next_step() {
    let want = "\
disk.qcow2: damaged: 1 MiB of the guest's disk lost, in 2 ranges
  qcow2, disk 1 GiB, file 6 MiB: guest data 5 MiB, metadata 64 KiB, free 960 KiB
CAUSES
  1. nine L2 tables lie on bad sectors (likely, 1 152 errors)
     image 0x10000..0xa0000; guest 0x20000000..0x140000000; IMAGE-UNREADABLE
FINDINGS  (`blkproof explain CODE` says what one means)
  corruption IMAGE-UNREADABLE
    the L2 table at 0x10000: reading 0x10000..0x20000 failed: I/O error (128 errors)
    image 0x10000..0x20000; guest 0x20000000..0x40000000
  corruption IMAGE-UNREADABLE
    the L2 table at 0x20000: reading 0x20000..0x30000 failed: I/O error (128 errors)
    image 0x20000..0x30000; guest 0x40000000..0x60000000
  … and 7 more of IMAGE-UNREADABLE (896 errors); --max-findings
  warning IMAGE-CHANGED (likely)
    two claim \\u{1b}[2J0x10000
    - claimed as L2 table of l1[0] (image 0x10000..0x20000, guest 0x0..0x20000000)
LOST GUEST RANGES  (1 MiB)
  0x1000..0x3000  8 KiB
  … and 1 more; --ddrescue-map FILE lists them
NOT CHECKED
  - guest data: the format keeps no checksums of it
NEXT
  1. copy the image with ddrescue to a sound disk and check the copy
";
    let report = damaged();
    assert_eq!(shown(&report, &Show { per_code: 2, lost: 1, ..Show::default() }), want);
    // A bound on all of them still shows each code once.
    let few = shown(&report, &Show { findings: 1, ..Show::default() });
    assert_eq!((few.matches("corruption IMAGE-UNREADABLE").count(), few.matches("warning IMAGE").count()), (1, 1));
    let none = shown(&report, &Show { findings: 0, per_code: 0, ..Show::default() });
    assert!(none.contains("  … and 9 more of IMAGE-UNREADABLE (1 152 errors)"), "{none}");
    // Colour adds nothing but colour, and a narrow terminal breaks at spaces.
    let colour = shown(&report, &Show { style: Style { colour: true }, ..Show::default() });
    assert!(colour.contains("\x1b[1;31mdamaged\x1b[0m: ") && !colour.contains("\x1b[2J"));
    let narrow = shown(&report, &Show { width: Some(60), ..Show::default() });
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&narrow), words(&shown(&report, &Show::default())));
    assert!(narrow.lines().filter(|line| !line.contains("  … ")).all(|line| line.chars().count() <= 79), "{narrow}");
}

#[test]
fn each_verdict_has_its_words() {
    let first = |report: &Report| shown(report, &Show::default()).lines().next().unwrap().to_owned();
    let mut report = empty(Verdict::Leaks);
    report.numbers.leaks = 3;
    assert_eq!(first(&report), "disk.qcow2: leaks only: 3 leaks; no guest data is known to be affected");
    report.host.as_mut().unwrap().totals[Class::Leaked as usize] = 192 << 10;
    assert_eq!(
        first(&report),
        "disk.qcow2: leaks only: 192 KiB of the file wasted; no guest data is known to be affected"
    );
    let mut report = empty(Verdict::Damaged);
    report.numbers.corruptions = 1;
    assert_eq!(first(&report), "disk.qcow2: damaged: 1 error; no guest data is known to be lost");
    assert_eq!(first(&empty(Verdict::Undecided)), "disk.qcow2: could not decide: too much could not be checked");
    let report = empty(Verdict::Unsupported);
    assert_eq!(first(&report), "disk.qcow2: not checked: guest data: the format keeps no checksums of it");
    assert!(!shown(&report, &Show::default()).contains("NOT CHECKED"));
    let mut report = empty(Verdict::Healthy);
    (report.live, report.stopped) = (true, true);
    let text = shown(&report, &Show::default());
    assert!(text.contains("\n  stopped before its end: ") && text.contains("\n  the image is in use: "), "{text}");
}

#[test]
fn json_has_the_keys_of_qemu_img() {
    let mut report = damaged();
    report.numbers.image_end_offset = Some(0x60_0000);
    report.numbers.allocated_clusters = Some(0);
    let json = json::report(&report);
    let keys: Vec<&String> = json.as_object().unwrap().keys().take(6).collect();
    assert_eq!(keys, ["schema", "filename", "format", "check-errors", "image-end-offset", "corruptions"]);
    assert_eq!(json["corruptions"], 1152);
    assert!(json.get("allocated-clusters").is_none() && json.get("leaks").is_none(), "nought is left out");
    assert_eq!(json["lost"]["ranges"][1], serde_json::json!({ "offset": 0x10_0000, "length": 0x10_0000 }));
    assert_eq!(json["findings"].as_array().unwrap().len(), 8);
    assert_eq!(json["map"]["host"]["bytes"]["guest data"], 5 << 20);
}

#[test]
fn ddrescue_reads_its_map() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lost.map");
    let log = |args: &[&str]| {
        let output = std::process::Command::new("ddrescuelog").args(args).arg(&file).output();
        let output = output.unwrap_or_else(|error| panic!("ddrescuelog: {error}; run scripts/install-peers"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut report = damaged();
    for (left_out, sound) in [(0, "+"), (5, "?")] {
        report.lost.left_out = left_out;
        std::fs::write(&file, ddrescue::map(&report).unwrap()).unwrap();
        // Blocks of 4 KiB that are lost: by number.
        let bad: Vec<u64> = log(&["-b4096", "-l-"]).lines().map(|line| line.parse().unwrap()).collect();
        let want: Vec<u64> = (1..3).chain(0x100..0x200).collect();
        assert_eq!(bad, want);
        let all = log(&["-b4096", &format!("-l{sound}")]).lines().count();
        assert_eq!(all, (1 << 18) - want.len(), "everything else, up to the disk's end, is {sound}");
    }
    // A range past the end of the disk is cut; one that is not known makes no map.
    report.lost.ranges.push((1 << 30) - 512..(1 << 30) + 512);
    std::fs::write(&file, ddrescue::map(&report).unwrap()).unwrap();
    assert_eq!(log(&["-b512", "-l-"]).lines().last(), Some("2097151"));
    report.guest = None;
    assert_eq!(ddrescue::map(&report), None);
}
