//! Reports made by hand for the tests of the pictures: sound, damaged, huge, empty and hostile images.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init
)]

use std::ops::Range;

use blkproof_check::Format;
use blkproof_check::code::{Code, Severity};
use blkproof_check::finding::{Confidence, Finding, Findings};
use blkproof_check::map::{Claim, Class, Grid, GuestMap, GuestState, HostMap, Owner};
use blkproof_check::report::{Cause, Lost, Numbers, Reference, Report, Verdict};
use blkproof_report::map::CELLS;

pub const OVERLAP: &Code = &Code {
    name: "QCOW2-DATA-CLAIMED-TWICE",
    severity: Severity::Corruption,
    title: "a cluster of data belongs to two places of the disk",
    why: "a write to one of them changes the other",
    cause: "two programs had the image open for writing",
    next: "copy both ranges away before anything writes to the image",
    spec: "qcow2, section \"Host cluster management\"",
};
pub const PAST_END: &Code = &Code {
    name: "QCOW2-L2-PAST-END",
    severity: Severity::Corruption,
    title: "an L2 entry points past the end of the file",
    why: "what the guest wrote there is not in this file",
    cause: "the file was cut off",
    next: "look for a longer copy of this file",
    spec: "qcow2, section \"Cluster mapping\"",
};
pub const LEAK: &Code = &Code {
    name: "QCOW2-REFCOUNT-LEAK",
    severity: Severity::Leak,
    title: "clusters are counted as used and nothing refers to them",
    why: "they take space and nothing else",
    cause: "a writer was killed between counting a cluster and using it",
    next: "nothing is urgent: a repair frees them",
    spec: "qcow2, section \"Host cluster management\"",
};
pub const NAME: &Code = &Code {
    name: "QCOW2-HEADER-NAME-ODD",
    severity: Severity::Warning,
    title: "a name holds characters that names do not",
    why: "programs may show or open something else than you read",
    cause: "an image of unknown origin",
    next: "do not open the file it names",
    spec: "qcow2, section \"Header\"",
};

/// An image under construction.
pub struct Sample {
    host: HostMap,
    guest: GuestMap,
    claims: Vec<Claim>,
    findings: Findings,
    pub report: Report,
}

impl Sample {
    pub fn new(name: &str, file: u64, disk: u64, cluster: u64, cells: usize) -> Self {
        let grid = |len| (cells > 0).then(|| Grid::new(len, cluster, cells));
        Self {
            host: HostMap { len: file, unit: cluster, claims: Vec::new(), totals: [0; Class::COUNT], grid: grid(file) },
            guest: GuestMap {
                size: disk,
                totals: [0; GuestState::COUNT],
                grid: (cells > 0).then(|| Grid::new(disk, cluster, cells)),
            },
            claims: Vec::new(),
            findings: Findings::new(1000),
            report: Report {
                image: name.to_owned(),
                format: Some(Format::Qcow2),
                probed: true,
                verdict: Verdict::Healthy,
                lost: Lost::default(),
                causes: Vec::new(),
                findings: Vec::new(),
                sums: Vec::new(),
                not_checked: vec!["guest data: this format has no checksums of it".to_owned()],
                next: Vec::new(),
                facts: vec![("version", "3".to_owned()), ("cluster size", cluster.to_string())],
                references: Vec::new(),
                numbers: Numbers::default(),
                host: None,
                guest: None,
                stopped: false,
                live: false,
            },
        }
    }

    pub fn host(&mut self, range: Range<u64>, class: Class) {
        let range = range.start..range.end.min(self.host.len);
        if range.is_empty() {
            return;
        }
        self.host.totals[class as usize] += range.end - range.start;
        if let Some(grid) = &mut self.host.grid {
            grid.add(range.clone(), class as usize);
        }
        if class.is_metadata() {
            let index = self.claims.iter().rev().take(64).filter(|claim| claim.class == class).count() as u64;
            self.claims.push(Claim { start: range.start, len: range.end - range.start, class, index });
        }
    }

    pub fn guest(&mut self, range: Range<u64>, state: GuestState) {
        let range = range.start..range.end.min(self.guest.size);
        if range.is_empty() {
            return;
        }
        self.guest.totals[state as usize] += range.end - range.start;
        if let Some(grid) = &mut self.guest.grid {
            grid.add(range, state as usize);
        }
    }

    pub fn find(&mut self, finding: Finding) {
        self.findings.add(finding);
    }

    pub fn lose(&mut self, range: Range<u64>) {
        self.report.lost.bytes += range.end - range.start;
        self.report.lost.ranges.push(range);
    }

    pub fn report(mut self) -> Report {
        self.report.verdict = if self.findings.errors(Severity::Corruption) > 0 {
            Verdict::Damaged
        } else if self.findings.errors(Severity::Leak) > 0 {
            Verdict::Leaks
        } else {
            self.report.verdict
        };
        self.host.claims = self.claims;
        self.report.sums = self.findings.sums().collect();
        self.report.findings = self.findings.into_kept();
        self.report.host = Some(self.host);
        self.report.guest = Some(self.guest);
        self.report
    }
}

const K64: u64 = 64 << 10;

/// 1 MiB: header, tables, a little data.
pub fn small() -> Report {
    let mut image = Sample::new("/var/lib/images/small.qcow2", 10 * K64 - 512, 1 << 20, K64, CELLS);
    for (at, class) in [
        Class::Header,
        Class::RefcountTable,
        Class::RefcountBlock,
        Class::L1,
        Class::L2,
        Class::Data,
        Class::Data,
        Class::Compressed,
        Class::Leaked,
        Class::Data,
    ]
    .into_iter()
    .enumerate()
    {
        image.host(at as u64 * K64..(at as u64 + 1) * K64, class);
    }
    image.guest(0..3 * K64, GuestState::Data);
    image.guest(3 * K64..4 * K64, GuestState::Compressed);
    image.guest(4 * K64..9 * K64, GuestState::Zero);
    image.guest(9 * K64..16 * K64, GuestState::Unallocated);
    image.find(
        Finding::new(LEAK, "1 cluster at 0x80000 has a refcount of 1 and nobody refers to it").host(8 * K64..9 * K64),
    );
    image.report.causes = vec![Cause {
        what: "a writer was killed between counting a cluster and using it".to_owned(),
        confidence: Confidence::Likely,
        codes: vec![LEAK.name],
        errors: 1,
        host: vec![8 * K64..9 * K64],
        guest: Vec::new(),
    }];
    image.report()
}

/// A disk in order, filled to a share, with its tables where QEMU puts them. `random` gives numbers below its argument.
fn fill(image: &mut Sample, disk: u64, cluster: u64, used: u64, random: &mut impl FnMut(u64) -> u64) {
    let window = cluster / 8 * cluster;
    let file = image.host.len;
    image.host(0..cluster, Class::Header);
    image.host(cluster..2 * cluster, Class::RefcountTable);
    image.host(2 * cluster..3 * cluster, Class::RefcountBlock);
    let l1 = (disk / window * 8).next_multiple_of(cluster).max(cluster);
    image.host(3 * cluster..3 * cluster + l1, Class::L1);
    let mut at = 3 * cluster + l1;
    let mut guest = 0;
    while guest < disk {
        let end = (guest + window).min(disk);
        if random(100) >= used {
            image.guest(guest..end, if random(6) == 0 { GuestState::Zero } else { GuestState::Unallocated });
            guest = end;
            continue;
        }
        if at + cluster > file {
            image.guest(guest..disk, GuestState::Unallocated);
            break;
        }
        image.host(at..at + cluster, Class::L2);
        at += cluster;
        let mut data = end - guest;
        if random(3) == 0 {
            data = (random(data / cluster) + 1) * cluster;
        }
        let data = data.min(file - at);
        image.host(at..at + data, Class::Data);
        image.guest(guest..guest + data, GuestState::Data);
        image.guest(guest + data..end, GuestState::Unallocated);
        at += data;
        if random(3) == 0 && at + cluster < file {
            image.host(at..at + cluster, Class::RefcountBlock);
            at += cluster;
        }
        guest = end;
    }
    image.host(at..file, Class::Free);
}

pub fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below.max(1)
    }
}

/// 100 GiB, sound, two thirds filled.
pub fn hundred() -> Report {
    let mut image = Sample::new("/srv/vm/mail-store.qcow2", 70 << 30, 100 << 30, K64, CELLS);
    fill(&mut image, 100 << 30, K64, 70, &mut numbers(11));
    image.report()
}

/// 2 TiB, with a cut-off end, overwritten clusters and leaks.
pub fn damaged() -> Report {
    let (disk, file) = (2u64 << 40, (1u64 << 40) + (600 << 30));
    let mut image = Sample::new("/srv/vm/database, primary (2019).qcow2", file, disk, K64, CELLS);
    let mut random = numbers(5);
    fill(&mut image, disk, K64, 78, &mut random);
    for index in 0..9u64 {
        let host = (index * 131 + 7) * (1 << 30) + random(5000) * K64;
        let guest = (index * 190 + 31) * (1 << 30) + random(5000) * K64;
        let len = if index == 4 { 9 << 30 } else { K64 * (1 + random(20)) };
        // The map says conflict where it said something else before.
        if let Some(grid) = &mut image.host.grid {
            let cell = (host / grid.cell_len) as usize;
            let from = grid.cells[cell].iter().position(|bytes| *bytes >= K64).unwrap();
            grid.cells[cell][from] -= K64;
            grid.cells[cell][Class::Conflict as usize] += K64;
            image.host.totals[from] -= K64;
            image.host.totals[Class::Conflict as usize] += K64;
        }
        image.find(
            Finding::new(
                OVERLAP,
                format!(
                    "{} clusters from {host:#x} are data of guest {guest:#x} and L2 table of l1[{index}]",
                    len / K64
                ),
            )
            .host(host..host + len)
            .guest(guest..guest + len)
            .count(len / K64)
            .owner(Owner {
                class: Class::L2,
                host: host..host + K64,
                guest: Some(guest..guest + (512 << 20)),
                label: format!("L2 table of l1[{index}]"),
            })
            .owner(Owner {
                class: Class::Data,
                host: host..host + len,
                guest: Some(guest..guest + len),
                label: "data".to_owned(),
            }),
        );
        image.lose(guest..guest + len);
    }
    image.find(
        Finding::new(
            PAST_END,
            format!("L2 entries 12..8192 of the table at 0x7a0000000 point past the end of the file ({file:#x})"),
        )
        .host(0x7_a000_0000..0x7_a001_0000)
        .guest(0x190_0000_0000..0x190_2000_0000)
        .count(8180),
    );
    image.lose(0x190_0000_0000..0x190_2000_0000);
    image.find(
        Finding::new(LEAK, "2048 clusters from 0x3200000000 are counted and nobody refers to them")
            .host(0x32_0000_0000..0x32_0800_0000)
            .count(2048),
    );
    image.find(Finding::new(NAME, "the name of the backing file holds a line feed").host(0..0x68));
    image.report.causes = vec![
        Cause {
            what: "two programs wrote to the image at the same time: 9 L2 tables were overwritten by data, the other errors follow from that".to_owned(),
            confidence: Confidence::Likely,
            codes: vec![OVERLAP.name],
            errors: 147_548,
            host: image.findings.iter().filter(|finding| finding.code == OVERLAP).flat_map(|finding| finding.host.clone()).collect(),
            guest: image.report.lost.ranges.iter().take(9).cloned().collect(),
        },
        Cause {
            what: "the end of the file is gone".to_owned(),
            confidence: Confidence::Certain,
            codes: vec![PAST_END.name],
            errors: 8180,
            host: vec![file..file],
            guest: vec![0x190_0000_0000..0x190_2000_0000],
        },
    ];
    image.report.next = vec![
        "keep this file as it is: work on a copy, and do not start the virtual machine on it".to_owned(),
        "copy what is sound with qemu-img convert --salvage".to_owned(),
    ];
    image.report.not_checked.push("the backing file was not opened".to_owned());
    image.report.references =
        vec![Reference { role: "backing file", name: "base\n.qcow2".to_owned(), format: Some("qcow2".to_owned()) }];
    image.report()
}

/// One cluster.
pub fn one_cell() -> Report {
    let mut image = Sample::new("one.qcow2", K64, K64, K64, CELLS);
    image.host(0..K64, Class::Header);
    image.guest(0..K64, GuestState::Unallocated);
    image.report()
}

/// A file and a disk of no bytes.
pub fn empty() -> Report {
    let mut report = Sample::new("empty.qcow2", 0, 0, K64, CELLS).report();
    report.verdict = Verdict::Undecided;
    report
}

/// No map at all.
pub fn raw() -> Report {
    let mut report = Sample::new("disk.img", 0, 0, 1, 0).report();
    (report.host, report.guest, report.format, report.verdict) = (None, None, None, Verdict::Unsupported);
    report.not_checked = vec!["no known image format: a raw disk, or a header that is gone".to_owned()];
    report
}

/// Sums, but no picture.
pub fn no_grid() -> Report {
    let mut image = Sample::new("sums.qcow2", 4 * K64, 1 << 30, K64, 0);
    image.host(0..K64, Class::Header);
    image.host(K64..2 * K64, Class::L1);
    image.guest(0..1 << 30, GuestState::Unallocated);
    image.report.stopped = true;
    image.report()
}

/// The largest numbers there are.
pub fn huge() -> Report {
    let (disk, file) = (u64::MAX - 511, (i64::MAX as u64) - 4095);
    let mut image = Sample::new("huge.qcow2", file, disk, 2 << 20, CELLS);
    image.host(0..2 << 20, Class::Header);
    image.host(2 << 20..4 << 20, Class::L1);
    image.host(4 << 20..1 << 62, Class::Free);
    image.host(1 << 62..file - 1_000_003, Class::Data);
    image.host(file - 1_000_003..file, Class::Unknown);
    image.guest(0..1 << 63, GuestState::Data);
    image.guest(1 << 63..disk, GuestState::Unallocated);
    image.find(
        Finding::new(PAST_END, "an entry points past the end")
            .host(u64::MAX - 1..u64::MAX)
            .guest(0..u64::MAX)
            .count(u64::MAX),
    );
    image.lose(0..u64::MAX);
    image.report()
}

/// Text that tries to get out of wherever it is put.
pub const HOSTILE: &str = "</script></title></text>]]><!--\"'><img src=x onerror=\"document.documentElement.dataset.owned=1\">&amp;\u{0}\u{1b}[31m\u{202e}\u{2028}\r\n\u{ffff}`${7*7}";

/// Every text that may come from an image is hostile.
pub fn hostile() -> Report {
    let mut image = Sample::new(HOSTILE, 16 * K64, 16 * K64, K64, CELLS);
    image.host(0..16 * K64, Class::Unknown);
    image.guest(0..16 * K64, GuestState::Damaged);
    image.find(Finding::new(NAME, format!("the name is {HOSTILE}")).host(0..K64).guest(0..K64).owner(Owner {
        class: Class::Header,
        host: 0..K64,
        guest: None,
        label: HOSTILE.to_owned(),
    }));
    image.find(Finding::new(OVERLAP, "x".repeat(5000)).host(K64..K64));
    image.report.causes = vec![Cause {
        what: HOSTILE.to_owned(),
        confidence: Confidence::Possible,
        codes: vec![NAME.name],
        errors: 1,
        host: vec![0..K64],
        guest: Vec::new(),
    }];
    image.report.not_checked = vec![HOSTILE.to_owned()];
    image.report.next = vec![HOSTILE.to_owned()];
    image.report.facts = vec![("name", HOSTILE.to_owned())];
    image.report.references = vec![Reference { role: "backing file", name: HOSTILE.to_owned(), format: None }];
    image.report()
}

/// As much as a check may report: every cell different, a thousand findings of many ranges, a claim for every cluster.
pub fn worst() -> Report {
    let (clusters, cluster) = (CELLS as u64 * 24, 4096);
    let mut image = Sample::new("worst.qcow2", clusters * cluster, clusters * cluster, cluster, CELLS);
    let mut random = numbers(3);
    for at in 0..clusters {
        let class = Class::ALL[random(Class::COUNT as u64) as usize];
        image.host(at * cluster..(at + 1) * cluster, class);
        image.guest(at * cluster..(at + 1) * cluster, GuestState::ALL[random(5) as usize]);
    }
    for index in 0..1100u64 {
        let mut finding = Finding::new(OVERLAP, format!("finding {index} {}", "of very many words".repeat(8)));
        for _ in 0..300 {
            let (host, guest) = (random(clusters) * cluster, random(clusters) * cluster);
            finding = finding.host(host..host + cluster).guest(guest..guest + cluster);
        }
        image.find(finding);
    }
    image.report()
}

/// All of them, by name.
pub fn all() -> Vec<(&'static str, Report)> {
    vec![
        ("small", small()),
        ("hundred", hundred()),
        ("damaged", damaged()),
        ("one-cell", one_cell()),
        ("empty", empty()),
        ("raw", raw()),
        ("no-grid", no_grid()),
        ("huge", huge()),
        ("hostile", hostile()),
    ]
}
