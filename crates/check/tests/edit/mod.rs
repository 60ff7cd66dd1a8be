//! Images made by qemu-img and qemu-io, damaged by editing bytes, and what both checkers say of them.

#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use blkproof_check::map::{Class, GuestState};
use blkproof_check::source::Source;
use blkproof_check::watch::Silent;
use blkproof_check::{Assume, Format, Options, Report, check};

/// Runs a tool that has to be there.
pub fn run(tool: &str, args: &[&str]) -> Output {
    Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("{tool} is needed for this test: {error}"))
}

/// An image of `size`, written to by qemu-io `commands`, as bytes.
pub fn image(format: &str, options: &[&str], size: &str, commands: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let path = path.to_str().unwrap();
    let create: Vec<&str> =
        ["create", "-q", "-f", format].iter().chain(options).chain(&[path, size]).copied().collect();
    let done = run("qemu-img", &create);
    assert!(done.status.success(), "{create:?}: {}", String::from_utf8_lossy(&done.stderr));
    if !commands.is_empty() {
        let words = commands.iter().flat_map(|command| ["-c", command]);
        let args: Vec<&str> = ["-f", format].into_iter().chain(words).chain([path]).collect();
        let done = run("qemu-io", &args);
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    std::fs::read(path).unwrap()
}

/// Writes `bytes` at `at`, growing the image where they reach past its end.
pub fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if image.len() < at + bytes.len() {
        image.resize(at + bytes.len(), 0);
    }
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

pub fn put_u32(image: &mut Vec<u8>, at: usize, value: u32) {
    put(image, at, &value.to_le_bytes());
}

pub fn put_u64(image: &mut Vec<u8>, at: usize, value: u64) {
    put(image, at, &value.to_le_bytes());
}

pub fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
}

pub fn u64_at(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
}

/// The exit status of `qemu-img check`; -6 if it aborted.
pub fn qemu_check(format: &str, image: &[u8]) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image).unwrap();
    let done = run("qemu-img", &["check", "-f", format, path.to_str().unwrap()]);
    done.status.code().unwrap_or_else(|| -done.status.signal().unwrap())
}

/// What `qemu-img check --output=json` has under `key`.
pub fn qemu_number(format: &str, image: &[u8], key: &str) -> Option<u64> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image).unwrap();
    let done = run("qemu-img", &["check", "--output=json", "-f", format, path.to_str().unwrap()]);
    let text = String::from_utf8(done.stdout).unwrap();
    let after = text.split_once(&format!("\"{key}\": "))?.1;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Bytes of an image, not copied: there are many checks of one image.
struct Borrowed<'a>(&'a [u8]);

impl Source for Borrowed<'_> {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let there = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let len = there.len().min(buf.len());
        buf[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }
}

/// Checks bytes as an image of `format`, and that both maps add up.
pub fn check_as(format: Format, image: &[u8], options: Options) -> Report {
    let source = Borrowed(image);
    let options = Options { format: Some(format), cells: 64, ..options };
    let report = check(&source, &options, &Silent);
    if let Some(host) = &report.host {
        assert_eq!(host.totals.iter().sum::<u64>(), source.len(), "the map of the file has gaps: {:?}", host.totals);
        let cells = host.grid.as_ref().unwrap().cells.iter().flatten().sum::<u64>();
        assert_eq!(cells, source.len(), "the picture of the file has gaps");
    }
    if let Some(guest) = &report.guest {
        assert_eq!(guest.totals.iter().sum::<u64>(), guest.size, "the map of the disk has gaps: {:?}", guest.totals);
        let cells = guest.grid.as_ref().unwrap().cells.iter().flatten().sum::<u64>();
        assert_eq!(cells, guest.size, "the picture of the disk has gaps");
        let within = report.lost.ranges.iter().map(|range| range.end.min(guest.size) - range.start.min(guest.size));
        assert_eq!(guest.bytes(GuestState::Damaged), within.sum::<u64>(), "what is lost is damaged");
    }
    report
}

/// Names of the codes raised.
pub fn codes(report: &Report) -> BTreeSet<&'static str> {
    report.sums.iter().map(|(name, _, _)| *name).collect()
}

/// Bytes of the file in a class.
pub fn bytes(report: &Report, class: Class) -> u64 {
    report.host.as_ref().map_or(0, |host| host.bytes(class))
}

/// One damaged image and what is to be said of it.
pub struct Case {
    pub name: &'static str,
    pub damage: fn(&mut Vec<u8>),
    /// All codes, and no other.
    pub codes: &'static [&'static str],
    /// Our exit status and that of `qemu-img check`.
    pub exit: (u8, i32),
    /// Lost guest ranges.
    pub lost: &'static [std::ops::Range<u64>],
    /// Why the two differ, where they do.
    pub differs: &'static str,
    /// `--assume`, if any.
    pub assume: &'static str,
}

/// A row whose image both call sound, to be changed by `..SOUND`.
pub const SOUND: Case = Case { name: "", damage: |_| {}, codes: &[], exit: (0, 0), lost: &[], differs: "", assume: "" };

/// Goes through a table; the codes it raised.
pub fn go_through(format: Format, base: &[u8], table: &[Case]) -> BTreeSet<&'static str> {
    let mut raised = BTreeSet::new();
    let mut wrong = Vec::new();
    for case in table {
        let name = case.name;
        let mut image = base.to_vec();
        (case.damage)(&mut image);
        let options = Options { assume: Assume::parse(case.assume).unwrap(), ..Options::default() };
        let report = check_as(format, &image, options);
        let got = codes(&report);
        raised.extend(&got);
        let want: BTreeSet<_> = case.codes.iter().copied().collect();
        let exits = (report.verdict.exit_status(), qemu_check(format.name(), &image));
        let shown: Vec<_> =
            report.findings.iter().map(|finding| format!("\n    {}: {}", finding.code.name, finding.what)).collect();
        let shown = shown.concat();
        if got != want {
            wrong.push(format!("{name}: codes {got:?}, want {want:?}{shown}"));
        }
        if exits != case.exit {
            wrong.push(format!("{name}: exit (ours, qemu-img) {exits:?}, want {:?}{shown}", case.exit));
        }
        if report.lost.ranges != case.lost {
            wrong.push(format!("{name}: lost {:#x?}, want {:#x?}{shown}", report.lost.ranges, case.lost));
        }
        let same = i32::from(case.exit.0) == case.exit.1;
        if same != case.differs.is_empty() {
            wrong.push(format!("{name}: a difference to qemu-img needs its reason, and only that: {:?}", case.exit));
        }
        // The same answer with a thread's worth of memory less, and the same again.
        let small = Options { memory: 300 << 10, assume: Assume::parse(case.assume).unwrap(), ..Options::default() };
        let again = check_as(format, &image, small);
        if codes(&again) != got || again.lost != report.lost {
            wrong.push(format!("{name}: little memory changes the answer: {:?}", codes(&again)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    raised
}

/// Every code of a format (by the beginning of its name) has to be raised by some case.
pub fn all_raised(prefix: &str, raised: &BTreeSet<&'static str>) {
    let all: BTreeSet<_> =
        blkproof_check::catalogue::all().map(|code| code.name).filter(|name| name.starts_with(prefix)).collect();
    let silent: Vec<_> = all.difference(raised).collect();
    assert!(silent.is_empty(), "codes that no case raises: {silent:?}");
}

/// A sample image of the folder named by BLKPROOF_SAMPLE_IMAGES, unpacked; `None`, with a line that says so, without
/// it.
pub fn sample(name: &str) -> Option<Vec<u8>> {
    let Some(folder) = std::env::var_os("BLKPROOF_SAMPLE_IMAGES") else {
        println!("skipped: BLKPROOF_SAMPLE_IMAGES does not name the folder of sample images");
        return None;
    };
    let path = Path::new(&folder).join(name);
    let done = run("bzip2", &["-dc", path.to_str().unwrap()]);
    assert!(done.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&done.stderr));
    Some(done.stdout)
}
