//! The same blkdebug configurations and commands through qemu-io and through `blkproof` called by that name: standard
//! output and exit status have to be the same, and no image may be damaged afterwards (leaks aside).
//!
//! The rows are in `io_tables/blkdebug.txt` and `io_tables/blkdebug_open.txt`; the sweeps below arm every event there
//! is. What differs, and why, is in `docs/blkdebug.md`; the sweeps name those that do, and they have to.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use blkproof_block::Event;

/// Images by name, with the commands that fill them.
const IMAGES: [(&str, &[&str], &[&str]); 7] = [
    ("a.raw", &["-f", "raw", "a.raw", "1M"], &[]),
    ("back.raw", &["-f", "raw", "back.raw", "1M"], &["write -P 9 0 256k"]),
    ("a.qcow2", &["-f", "qcow2", "a.qcow2", "1M"], &[]),
    ("full.qcow2", &["-f", "qcow2", "full.qcow2", "1M"], &["write -P 7 0 512k", "write -c -P 8 512k 64k"]),
    ("top.qcow2", &["-f", "qcow2", "-b", "back.raw", "-F", "raw", "top.qcow2", "1M"], &[]),
    ("a.vdi", &["-f", "vdi", "a.vdi", "4M"], &[]),
    ("full.vdi", &["-f", "vdi", "full.vdi", "4M"], &["write -P 7 0 2M"]),
];

#[derive(PartialEq, Eq, Debug)]
struct Seen {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    /// What `qemu-img check` ends with.
    check: Option<i32>,
}

impl Seen {
    fn without_messages(&self) -> (Option<i32>, &str) {
        (self.code, &self.stdout)
    }
}

fn make_images(dir: &Path) {
    for (name, create, fill) in IMAGES {
        let made = Command::new("qemu-img").args(["create", "-q"]).args(create).current_dir(dir).status();
        assert!(made.expect("qemu-img can be run").success(), "qemu-img could not make {name}");
        if !fill.is_empty() {
            let mut command = Command::new("qemu-io");
            command.args(["-f", format_of(name)]).args(fill.iter().flat_map(|line| ["-c", line])).arg(name);
            assert!(command.current_dir(dir).stdout(Stdio::null()).status().unwrap().success(), "filling {name}");
        }
    }
}

fn format_of(image: &str) -> &str {
    image.rsplit('.').next().unwrap()
}

/// Runs qemu-io's words beside a fresh copy of the image and a configuration file.
fn see(program: &str, pristine: &Path, image: &str, config: &str, args: &[String]) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    for name in [image, "back.raw"] {
        std::fs::copy(pristine.join(name), dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("c.conf"), config).unwrap();
    let mut command = Command::new(program);
    command.arg0("qemu-io").args(args).current_dir(dir.path()).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let check = (format_of(image) != "raw").then(|| {
        let mut check = Command::new("qemu-img");
        check.args(["check", "-q", "-f", format_of(image), image]).current_dir(dir.path()).stderr(Stdio::null());
        check.status().unwrap().code().unwrap()
    });
    Seen {
        code: output.status.code(),
        stdout: without_times(&String::from_utf8_lossy(&output.stdout)),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        check,
    }
}

fn without_times(text: &str) -> String {
    let cut = |line: &str| line.split_once(" ops; ").map_or(line.to_owned(), |(figures, _)| format!("{figures} ops"));
    text.lines().map(|line| cut(line) + "\n").collect()
}

/// `inject-error` and `set-state` in short, as the table has them.
fn config(short: &str) -> String {
    let mut text = String::new();
    for rule in short.split(';').map(str::trim).filter(|rule| !rule.is_empty()) {
        let (event, rest) = rule.split_once(' ').unwrap_or((rule, ""));
        if let Some((state, new)) = rest.split_once('>') {
            writeln!(text, "[set-state]\nevent = \"{event}\"\nstate = \"{state}\"\nnew_state = \"{new}\"").unwrap();
            continue;
        }
        writeln!(text, "[inject-error]\nevent = \"{event}\"").unwrap();
        for pair in rest.split_whitespace() {
            let (key, value) = pair.split_once('=').unwrap();
            writeln!(text, "{key} = \"{value}\"").unwrap();
        }
    }
    text
}

struct Row {
    name: String,
    image: String,
    config: String,
    commands: Vec<String>,
}

impl Row {
    fn new(image: &str, config: String, commands: &str, name: &str) -> Self {
        let commands = commands.split(';').map(str::to_owned).collect();
        Self { name: name.to_owned(), image: image.to_owned(), config, commands }
    }

    fn both(&self, pristine: &Path) -> [Seen; 2] {
        let mut args = vec!["-f".to_owned(), format_of(&self.image).to_owned()];
        args.extend(self.commands.iter().flat_map(|command| ["-c".to_owned(), command.clone()]));
        args.push(format!("blkdebug:c.conf:{}", self.image));
        ["qemu-io", env!("CARGO_BIN_EXE_blkproof")]
            .map(|program| see(program, pristine, &self.image, &self.config, &args))
    }
}

/// Compares rows; `different` says which are expected to differ, and those have to.
fn compare(rows: impl IntoIterator<Item = Row>, messages: bool, different: impl Fn(&Row) -> bool) {
    let pristine = tempfile::tempdir().unwrap();
    make_images(pristine.path());
    let (mut count, mut report) = (0, String::new());
    for row in rows {
        count += 1;
        let [theirs, ours] = row.both(pristine.path());
        let same = if messages {
            (&theirs.code, &theirs.stdout, &theirs.stderr) == (&ours.code, &ours.stdout, &ours.stderr)
        } else {
            theirs.without_messages() == ours.without_messages()
        };
        let sound = matches!(ours.check, None | Some(0 | 3));
        if same != different(&row) && sound {
            continue;
        }
        writeln!(report, "=== {}: {}", row.name, if same { "as in QEMU, which was not expected" } else { "" }).unwrap();
        for (who, seen) in [("qemu-io ", &theirs), ("blkproof", &ours)] {
            writeln!(report, "{who} code {:?} check {:?}\n{}{}", seen.code, seen.check, seen.stdout, seen.stderr)
                .unwrap();
        }
    }
    assert!(count > 0, "no rows");
    assert!(report.is_empty(), "{report}");
}

fn table(text: &'static str, config: impl Fn(&str) -> String + 'static) -> impl Iterator<Item = Row> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("# "));
    lines.map(move |line| {
        let mut parts = line.splitn(3, '|');
        let mut part = || parts.next().unwrap_or_else(|| panic!("bad row: {line}")).trim_matches(' ');
        let (image, rules, commands) = (part(), part(), part());
        Row::new(image, config(rules), commands, line)
    })
}

#[test]
fn rules_states_sectors_and_breakpoints() {
    compare(table(include_str!("io_tables/blkdebug.txt"), config), false, |_| false);
}

#[test]
fn configuration_files() {
    let lines = |text: &str| text.split(';').map(|line| format!("{line}\n")).collect();
    compare(table(include_str!("io_tables/blkdebug_open.txt"), lines), true, |_| false);
}

/// Events that QEMU raises whatever the format is, or that a format raises which raises next to none.
const COMMON: [Event; 14] = [
    Event::ReadAio,
    Event::WriteAio,
    Event::L2Load,
    Event::ClusterAlloc,
    Event::FlushToOs,
    Event::FlushToDisk,
    Event::PwritevRmwHead,
    Event::PwritevRmwAfterHead,
    Event::PwritevRmwTail,
    Event::PwritevRmwAfterTail,
    Event::Pwritev,
    Event::PwritevZero,
    Event::PwritevDone,
    Event::None,
];

/// Every name in QEMU's table.
fn qemus() -> Vec<Event> {
    Event::ALL.iter().copied().filter(|event| !event.name().starts_with("vdi_")).collect()
}

/// Each event arms an error for whatever follows: for good, or once. Those in `different` have to differ, the others
/// not.
fn sweep(image: &'static str, events: &[Event], once: &str, work: &str, different: &[&str]) {
    let rows = events.iter().map(|event| {
        let rule = format!("{event} errno=28 once={once}");
        Row::new(image, config(&rule), work, event.name())
    });
    compare(rows, false, |row| different.contains(&row.name.as_str()));
}

/// qcow2 writes its tables when they have to be durable, QEMU's when the map changes. An error that stays therefore
/// leaves the map in memory as it was in QEMU, whereas ours knows the new place, and fails to read it.
const MAP_FIRST: [&str; 4] = ["l1_update", "l2_update", "refblock_update_part", "pwritev_done"];

/// Zeroes that have to be durable carry FUA here; QEMU's raw sends a flush behind them, which fails.
const ZEROES_BY_FLUSH: [&str; 2] = ["flush_to_os", "flush_to_disk"];

/// The same for every write to an allocated block of a VDI image.
const WRITES_BY_FLUSH: [&str; 3] = ["flush_to_os", "flush_to_disk", "pwritev_done"];

#[test]
fn every_event_over_raw() {
    let work = "write 0 4k;read 0 4k;write -z 4k 64k;discard 0 4k;flush";
    sweep("a.raw", &COMMON, "off", work, &ZEROES_BY_FLUSH);
}

#[test]
fn every_event_reading_qcow2() {
    sweep("full.qcow2", &qemus(), "off", "read 0 4k;read 512k 4k;read 800k 4k", &[]);
}

#[test]
fn every_event_changing_qcow2() {
    sweep("full.qcow2", &qemus(), "off", "write 0 4k;write 0 4k", &[]);
    sweep("full.qcow2", &qemus(), "on", "discard 0 64k;read 0 4k", &[]);
}

#[test]
fn every_event_allocating_qcow2() {
    sweep("a.qcow2", &qemus(), "off", "write 0 64k;read 0 64k", &MAP_FIRST);
    sweep("a.qcow2", &qemus(), "on", "write 0 64k;read 0 64k", &[]);
}

#[test]
fn every_event_copying_on_write() {
    sweep("top.qcow2", &qemus(), "off", "write 4k 4k;read 0 4k", &MAP_FIRST);
}

#[test]
fn every_event_over_vdi() {
    sweep("full.vdi", &COMMON, "off", "write 0 4k;read 0 4k;flush", &WRITES_BY_FLUSH);
    sweep("a.vdi", &COMMON, "off", "write 0 1M;read 0 4k", &[]);
}

/// The harness has teeth: what differs in any one respect is seen to differ.
#[test]
fn a_difference_is_found() {
    let pristine = tempfile::tempdir().unwrap();
    make_images(pristine.path());
    let run = |config: &str, line: &str| {
        let args = ["-f", "raw", "-c", line, "blkdebug:c.conf:a.raw"].map(str::to_owned);
        see("qemu-io", pristine.path(), "a.raw", config, &args)
    };
    let base = run("", "read 0 4k");
    assert_eq!(run("", "read 0 4k"), base);
    assert_ne!(run("", "read 0 8k").without_messages(), base.without_messages());
    assert_ne!(run(&config("none"), "read 0 4k").without_messages(), base.without_messages());
}
