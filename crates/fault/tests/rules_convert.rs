//! Settings of other programs become rules that do the same, and what can not is told.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::process::Command;
use std::time::Duration;

use blkproof_block::choice::Choices;
use blkproof_block::{ByteRange, Event};
use blkproof_fault::blkdebug::config::{self, Config};
use blkproof_fault::engine::{Engine, Fate};
use blkproof_fault::file::convert::{Converted, Options, Origin, convert};
use blkproof_fault::file::{explain, json, read};
use blkproof_fault::request::{Operation, Request};

/// Converts, and checks that what comes out is a rule file of the same rules without a warning.
#[track_caller]
fn converted_with(origin: Origin, text: &str, options: &Options) -> Converted {
    let converted = convert(origin, "in", text, options).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let file = converted.text();
    let read = read("out", &file).unwrap_or_else(|mistakes| panic!("{mistakes}\n{file}"));
    assert_eq!(read.rules, converted.rules, "{file}");
    for words in &converted.lost {
        assert!(file.contains("# LOST: "), "{words}");
    }
    converted
}

#[track_caller]
fn converted(origin: Origin, text: &str) -> Converted {
    converted_with(origin, text, &Options::default())
}

/// The rules in JSON, one per line.
fn lines(converted: &Converted) -> Vec<String> {
    converted.rules.rules.iter().map(|rule| json(rule, converted.rules.lba_size).to_string()).collect()
}

/// blkdebug as its documentation has it (block-layer.md 1.4), for comparison.
struct Blkdebug {
    config: Config,
    state: u32,
    active: Vec<usize>,
    gone: Vec<usize>,
}

impl Blkdebug {
    fn new(config: Config) -> Self {
        let mut new = Self { config, state: 1, active: Vec::new(), gone: Vec::new() };
        new.event(Event::None);
        new
    }

    fn event(&mut self, event: Event) {
        let state = self.state;
        let here = |of: Event, wanted: u32| of == event && (wanted == 0 || wanted == state);
        let mut fired = Vec::new();
        for (index, rule) in self.config.inject_error.iter().enumerate() {
            if here(rule.event, rule.state) && !self.gone.contains(&index) {
                fired.push(index);
            }
        }
        if !fired.is_empty() {
            self.active = fired;
        }
        for rule in self.config.set_state.iter().rev() {
            if here(rule.event, rule.state) {
                self.state = rule.new_state;
            }
        }
    }

    fn request(&mut self, operation: Operation, range: ByteRange) -> Option<i32> {
        let matches = |index: &&usize| {
            let rule = self.config.inject_error[**index];
            let kind = rule.iotype.map_or(operation != Operation::BlockStatus, |iotype| iotype == operation);
            kind && rule.sector.is_none_or(|sector| range.contains(sector * 512))
        };
        let index = *self.active.iter().find(matches)?;
        let rule = self.config.inject_error[index];
        if rule.once && rule.errno != 0 {
            self.active.retain(|other| *other != index);
            self.gone.push(index);
        }
        (rule.errno != 0).then_some(rule.errno)
    }
}

fn fate(engine: &mut Engine, id: u64, operation: Operation, range: ByteRange) -> Option<i32> {
    let request = Request { id, operation, range, fua: false };
    let plan = engine.submit(&request, 1 << 20, Duration::ZERO);
    match plan.fate {
        Fate::Fail { error, .. } => Some(error.errno.0),
        Fate::Proceed => None,
        fate => panic!("{fate:?}"),
    }
}

/// A configuration out of a few events, states, sectors and kinds.
fn configuration(choices: &mut Choices) -> String {
    let events = ["none", "l2_load", "l2_update", "write_aio"];
    let kinds = ["read", "write", "flush", "block-status", "discard"];
    let mut text = String::new();
    for _ in 0..1 + choices.index(4) {
        let event = events[choices.index(4)];
        if choices.index(3) == 0 {
            text.push_str(&format!("[set-state]\nevent = \"{event}\"\nnew_state = \"{}\"\n", 1 + choices.index(3)));
            if choices.index(2) == 0 {
                text.push_str(&format!("state = \"{}\"\n", choices.index(4)));
            }
            continue;
        }
        text.push_str(&format!(
            "[inject-error]\nevent = \"{event}\"\nerrno = \"{}\"\n",
            [5, 28, 0, 5][choices.index(4)]
        ));
        if choices.index(3) == 0 {
            text.push_str(&format!("state = \"{}\"\n", choices.index(4)));
        }
        if choices.index(2) == 0 {
            text.push_str(&format!("sector = \"{}\"\n", choices.index(3)));
        }
        if choices.index(3) == 0 {
            text.push_str(&format!("iotype = \"{}\"\n", kinds[choices.index(5)]));
        }
        if choices.index(3) == 0 {
            text.push_str("once = \"on\"\n");
        }
    }
    text
}

#[test]
fn blkdebug_files_do_the_same_on_our_engine() {
    let events = [Event::L2Load, Event::L2Update, Event::WriteAio, Event::ReadAio];
    let operations = [Operation::Read, Operation::Write, Operation::Flush, Operation::BlockStatus, Operation::Discard];
    let (mut failed, mut exact) = (0, 0);
    for seed in 0..400 {
        let mut choices = Choices::new(seed);
        let text = configuration(&mut choices);
        let theirs = config::parse("in", &text).unwrap();
        let ours = convert(Origin::Blkdebug, "in", &text, &Options::default()).unwrap();
        if let Err(mistakes) = read("out", &ours.text()) {
            panic!("seed {seed}\n{text}\n{mistakes}\n{}", ours.text());
        }
        if !ours.lost.is_empty() {
            continue;
        }
        exact += 1;
        let mut reference = Blkdebug::new(theirs);
        let mut engine = Engine::new(ours.rules.clone(), Duration::ZERO).unwrap();
        for step in 0..60 {
            if choices.index(2) == 0 {
                let event = events[choices.index(4)];
                reference.event(event);
                engine.event(event, Duration::ZERO);
                continue;
            }
            let operation = operations[choices.index(5)];
            let range = match operation {
                Operation::Flush => ByteRange::at(0, 0),
                _ => ByteRange::at(choices.below(4) * 256, 1 + choices.below(1024)),
            };
            let want = reference.request(operation, range);
            failed += usize::from(want.is_some());
            let got = fate(&mut engine, step, operation, range);
            assert_eq!(got, want, "seed {seed}, step {step}: {operation} {range}\n{text}\n{}", ours.text());
        }
    }
    assert!(failed > 1_000 && exact > 350, "{failed} failures in {exact} exact files prove little");
}

#[test]
fn blkdebug() {
    let simple = converted(
        Origin::Blkdebug,
        "[inject-error]\nevent = \"none\"\nsector = \"2\"\nerrno = \"28\"\niotype = \"read\"\n",
    );
    assert_eq!(
        lines(&simple),
        [r#"{"id":"inject-1","on":{"op":"read","bytes":"0x400..0x401"},"do":{"fail":"ENOSPC","done":"nothing"}}"#]
    );
    assert_eq!(simple.lost, Vec::<String>::new());

    let once = converted(Origin::Blkdebug, "[inject-error]\nevent = \"l2_update\"\nonce = \"on\"\n");
    assert_eq!(&*once.rules.state, "1");
    assert_eq!(
        lines(&once),
        [
            r#"{"id":"s1.l2_update","on":{"event":"l2_update","state":"1"},"do":"none","then":{"state":"1:1"}}"#,
            r#"{"id":"s3.inject-1","on":{"state":"1:1"},"do":{"fail":"EIO","done":"nothing"},"then":{"state":"1-1"}}"#,
        ]
    );

    let error = convert(Origin::Blkdebug, "in", "[inject-error]\nevnt = \"none\"", &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "in:2: Invalid parameter 'evnt'; did you mean 'event'?");

    // Thirty independent rules that are used up have 2^30 moments.
    let many: String = (0..30)
        .map(|sector| format!("[inject-error]\nevent = \"read_aio\"\nsector = \"{sector}\"\nonce = \"on\"\n"))
        .collect();
    let many = converted(Origin::Blkdebug, &many);
    assert_eq!((many.rules.rules.len(), many.lost.len()), (30, 1));
}

#[test]
fn ddrescue() {
    let map = "# Mapfile. Created by GNU ddrescue version 1.27\n# current_pos  current_status  current_pass\n\
               0x00000000     ?               1\n#      pos        size  status\n\
               0x00000000  0x00000200  +\n0x00000200  0x00000400  -\n0x00000600  0x00000200  ?\n0x800 512 /\n\
               0x00000A00  0x00000200  -\n0x00000C00  0x00000600  +\n";
    let converted = converted(Origin::Ddrescue, map);
    assert_eq!(lines(&converted), [r#"{"id":"bad","on":{"op":"read","lba":["1..3",5]},"do":{"fail":"03/1100"}}"#]);
    assert_eq!(converted.lost.len(), 1);
    assert!(converted.lost[0].starts_with("1024 bytes in 2 areas were not read"), "{:?}", converted.lost);

    let all = converted_with(Origin::Ddrescue, map, &Options { untried_bad: true, ..Options::default() });
    assert_eq!(lines(&all), [r#"{"id":"bad","on":{"op":"read","lba":"1..6"},"do":{"fail":"03/1100"}}"#]);
    assert_eq!(all.lost, Vec::<String>::new());

    let large = converted_with(Origin::Ddrescue, map, &Options { lba_size: Some(4096), ..Options::default() });
    assert_eq!(
        lines(&large),
        [r#"{"id":"bad","on":{"op":"read","bytes":["0x200..0x600","0xa00..0xc00"]},"do":{"fail":"03/1100"}}"#]
    );

    for (text, want) in [
        ("", "in:1: there is no status line"),
        ("# x\n", "in:1: there is no status line"),
        ("0x0 0x200 +\n", "in:1: '0x200' is no status; the first line"),
        ("0x0 ? 1\n0x0 0x200 x", "in:2: 'x' is no status; there are ? * / - and +"),
        ("0x0 ? 1\n0x0 0x200", "in:2: the status is missing"),
        ("0x0 ? 1\n0x0 zz -", "in:2: 'zz' is no size"),
        ("0x0 ? 1\nzz", "in:2: 'zz' is no position"),
        ("0x0 ? 1\n0x0 0 -", "in:2: the area is empty"),
        ("0x0 ? 1\n0x0 0x400 -\n0x200 0x200 +", "in:3: the area begins before the one above it ends"),
        ("0x0 ? 1\n0xffffffffffffffff 0x400 -", "in:2: the area ends beyond 2^64 bytes"),
    ] {
        let error = convert(Origin::Ddrescue, "in", text, &Options::default()).unwrap_err().to_string();
        assert!(error.starts_with(want), "{text:?}: {error}");
    }
}

#[test]
fn dm_dust() {
    for (text, lba_size, want, lost) in [
        (
            "60\n67\n68\n",
            512,
            &[
                r#"{"id":"bad","on":{"op":"read","lba":[60,"67..69"]},"do":{"fail":"EIO","done":"nothing"},"life":{"until":"rewritten"}}"#,
            ][..],
            0,
        ),
        ("null\n", 512, &[][..], 0),
        (
            "#!/bin/sh\ndmsetup create dust1 --table '0 33552384 dust /dev/vdb1 0 4096'\n\
             dmsetup message dust1 0 addbadblock 60\nsudo dmsetup message dust1 0 addbadblock 61 3\n\
             dmsetup message dust1 0 addbadblock 62\ndmsetup message dust1 0 removebadblock 62\n\
             dmsetup message dust1 0 quiet\ndmsetup message dust1 0 enable\n",
            4096,
            &[
                r#"{"id":"write-fails-3-1","on":{"op":["write","write-zeroes"],"lba":61},"do":{"fail":"EIO","done":"nothing"},"life":{"accesses":3}}"#,
                r#"{"id":"bad","on":{"op":"read","lba":"60..62"},"do":{"fail":"EIO","done":"nothing"},"life":{"until":"rewritten"}}"#,
            ],
            1,
        ),
        (
            "kernel: device-mapper: dust: dust_add_block: badblock added at block 60 with write fail count 2\n",
            512,
            &[
                r#"{"id":"write-fails-2-1","on":{"op":["write","write-zeroes"],"lba":60},"do":{"fail":"EIO","done":"nothing"},"life":{"accesses":2}}"#,
                r#"{"id":"bad","on":{"op":"read","lba":60},"do":{"fail":"EIO","done":"nothing"},"life":{"until":"rewritten"}}"#,
            ],
            0,
        ),
        (
            "0 2097152 dust /dev/vdb 0 1048576\n1\n",
            65536,
            &[
                r#"{"id":"bad","on":{"op":"read","lba":"16..32"},"do":{"fail":"EIO","done":"nothing"},"life":{"until":"rewritten"}}"#,
            ],
            2,
        ),
    ] {
        let converted = converted(Origin::DmDust, text);
        assert_eq!(lines(&converted), want, "{text}");
        assert_eq!((converted.rules.lba_size, converted.lost.len()), (lba_size, lost), "{text}: {:?}", converted.lost);
    }
    for (text, want) in [
        ("hello world\n", "in:1: this is neither a list of blocks"),
        ("1\ndmsetup message d 0 addbadblock\n", "in:2: the number of the block is missing"),
        ("dmsetup message d 0 addbadblock 1 x\n", "in:1: 'x' is no count"),
        ("0 1 dust /dev/x 0 1000\n", "in:1: a table line is START LENGTH dust DEVICE OFFSET BLOCKSIZE"),
        ("18446744073709551615\n", "in:1: block 18446744073709551615 lies beyond"),
    ] {
        let error = convert(Origin::DmDust, "in", text, &Options::default()).unwrap_err().to_string();
        assert!(error.starts_with(want), "{text:?}: {error}");
    }
}

#[test]
fn nbdkit_error() {
    for (text, want, lost) in [
        (
            "nbdkit --filter=error file disk.img error=ENOSPC error-pwrite-rate=100% error-zero-rate=50%",
            &[
                r#"{"id":"pwrite","on":{"op":"write"},"do":{"fail":"ENOSPC","done":"nothing"}}"#,
                r#"{"id":"zero","on":{"op":"write-zeroes","probability":0.5},"do":{"fail":"ENOSPC","done":"nothing"}}"#,
            ][..],
            0,
        ),
        (
            "error-pread=EPERM error-pread-rate=1:4 error=EIO",
            &[r#"{"id":"pread","on":{"op":"read","probability":0.25},"do":{"fail":"EIO","done":"nothing"}}"#],
            0,
        ),
        (
            "error-trim-rate=1 error-rate=0\nerror-extents-rate='1'",
            &[r#"{"id":"extents","on":{"op":"block-status"},"do":{"fail":"EIO","done":"nothing"}}"#],
            0,
        ),
        ("error-cache-rate=1", &[][..], 1),
        ("error-rate=0", &[], 0),
        (
            "error-pread-rate=1 error-file=/run/x",
            &[r#"{"id":"pread","on":{"op":"read"},"do":{"fail":"EIO","done":"nothing"}}"#],
            1,
        ),
    ] {
        let converted = converted(Origin::NbdkitError, text);
        assert_eq!(lines(&converted), want, "{text}");
        assert_eq!(converted.lost.len(), lost, "{text}: {:?}", converted.lost);
    }
}

/// Parameters that nbdkit takes or refuses, and so do we. (It takes `nan` too, as the rate it is not.)
const NBDKIT: &[&str] = &[
    "error=EIO",
    "error=EPERM",
    "error=ESHUTDOWN",
    "error=EWHAT",
    "error=eio",
    "error=5",
    "error=ENOTSUP",
    "error-rate=10%",
    "error-rate=0.1",
    "error-rate=0",
    "error-rate=1",
    "error-rate=100%",
    "error-rate=1e-3",
    "error-rate=.5",
    "error-rate=+0.5",
    "error-rate= 10%",
    "error-rate=2",
    "error-rate=-1",
    "error-rate=",
    "error-rate=10 %",
    "error-rate=200%",
    "error-rate=1:0",
    "error-rate=0:0",
    "error-rate=3:2",
    "error-rate=1:2:3",
    "error-rate=abc",
    "error-rate=10%x",
    "error-rate=inf",
    "error-pread=ENOSPC",
    "error-pread=",
    "error-pwrite-rate=1",
    "error-trim-rate=x",
    "error-zero=EIO",
    "error-extents=EIO",
    "error-cache-rate=0.5",
    "error-flush=EIO",
    "error-foo=1",
    "error-pread-foo=1",
    "error-file=/nowhere/x",
    "error-zero-file=/nowhere/x",
];

#[test]
fn nbdkit_itself_takes_and_refuses_the_same_parameters() {
    for parameter in NBDKIT {
        let theirs = Command::new("nbdkit")
            .args(["-U", "-", "--filter=error", "memory", "1M", parameter, "--run", "true"])
            .output()
            .expect("nbdkit is needed; run scripts/install-peers");
        let quoted = format!("'{parameter}'");
        let ours = convert(Origin::NbdkitError, "in", &quoted, &Options::default());
        assert_eq!(
            ours.is_ok(),
            theirs.status.success(),
            "{parameter}: {ours:?}\n{}",
            String::from_utf8_lossy(&theirs.stderr)
        );
    }
}

#[test]
fn scsi_debug() {
    for (text, want, lost) in [
        (
            "modprobe scsi_debug dev_size_mb=256 opts=2 medium_error_start=50 medium_error_count=1",
            &[r#"{"id":"medium-error","on":{"op":"read","lba":50},"do":{"fail":"03/1100"}}"#][..],
            0,
        ),
        (
            "options scsi_debug opts=0x3 sector_size=4096\n",
            &[r#"{"id":"medium-error","on":{"op":"read","lba":"4660..4670"},"do":{"fail":"03/1100"}}"#],
            0,
        ),
        (
            "opts=0xc every_nth=100",
            &[
                r#"{"id":"timeout","on":{"every":100},"do":"hang"}"#,
                r#"{"id":"recovered","on":{"op":["read","write"],"every":100},"do":{"recovered":"01/5d00"}}"#,
            ],
            1,
        ),
        (
            "opts=0x10 every_nth=-5",
            &[
                r#"{"id":"transport","on":{"op":["read","write"],"nth":5,"every":1},"do":{"fail":"0b/4b03","done":"nothing"}}"#,
            ],
            1,
        ),
        (
            "opts=0x118100 every_nth=2 new_thing=1",
            &[r#"{"id":"busy","on":{"every":2},"do":{"fail":"EBUSY","done":"nothing"}}"#],
            6,
        ),
        ("opts=4", &[], 0),
        (
            "opts=0 wp=1 ndelay=50000",
            &[
                r#"{"id":"delay","do":{"delay":"50us"}}"#,
                r#"{"id":"write-protected","on":{"op":["write","write-zeroes","discard"]},"do":{"fail":"07/2702","done":"nothing"}}"#,
            ],
            0,
        ),
        ("delay=5 random=1", &[r#"{"id":"delay","do":{"delay":"0s..20ms"}}"#], 1),
        ("delay=-1 ndelay=0 random=0 wp=0 fake_rw=0 tur_ms_to_ready=0 virtual_gb=0", &[], 0),
        ("delay=0 random=1 fake_rw=1 tur_ms_to_ready=0x10 virtual_gb=2", &[], 4),
        (
            "2 -10 0x88 0 0 0x2 0x3 0x11 0x0\n0 1 ff\n3 1 28\n",
            &[
                r#"{"id":"line-1","on":{"op":"read","times":10},"do":{"fail":"03/1100","done":"nothing"}}"#,
                r#"{"id":"line-2","do":"hang"}"#,
            ],
            2,
        ),
        ("0 1 0x2a\n- 0 0x2a\n1 1 0x12\n", &[], 1),
        ("2 1 0x35 7 0 0 0 0 0\n", &[r#"{"id":"line-1","on":{"op":"flush"},"do":{"fail":"EIO","done":"nothing"}}"#], 1),
    ] {
        let converted = converted(Origin::ScsiDebug, text);
        assert_eq!(lines(&converted), want, "{text}");
        assert_eq!(converted.lost.len(), lost, "{text}: {:#?}", converted.lost);
    }
    for (text, want) in [
        ("nothing", "in:1: these are neither module parameters"),
        ("opts=x", "in:1: 'x' is no value for opts"),
        ("wp=2", "in:1: '2' is no value for wp"),
        ("delay=1s", "in:1: '1s' is no value for delay"),
        ("fake_rw=yes", "in:1: 'yes' is no value for fake_rw"),
        ("opts=2 sector_size=100", "in:1: '100' is no value for sector_size"),
        ("opts=2 medium_error_start=18446744073709551615", "in:1: the medium error lies beyond"),
        ("9 1 0x28", "in:1: there is no type 9"),
        ("2 1 0x28", "in:1: a line of type 2 is"),
        ("0 1", "in:1: a line is TYPE COUNT OPCODE"),
        ("0 1 zz", "in:1: 'zz' is no number"),
    ] {
        let error = convert(Origin::ScsiDebug, "in", text, &Options::default()).unwrap_err().to_string();
        assert!(error.starts_with(want), "{text:?}: {error}");
    }
}

/// Sectors of 512 bytes that the rules of `converted` cover, up to `end`.
fn sectors(converted: &Converted, end: u64) -> Vec<u64> {
    let covers = |sector: &u64| {
        let at = ByteRange::at(sector * 512, 512);
        converted.rules.rules.iter().any(|rule| rule.on.ranges.iter().any(|range| range.overlaps(at)))
    };
    (0..end).filter(covers).collect()
}

#[test]
fn maps_of_ddrescue_itself_name_the_same_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let shell = |line: &str| {
        let output =
            Command::new("bash").args(["-euo", "pipefail", "-c", line]).current_dir(dir.path()).output().unwrap();
        assert!(
            output.status.success(),
            "{line}: {}; run scripts/install-peers",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    // A list of good blocks becomes a map, in which everything else is bad; the map is listed again.
    let map =
        shell("printf '5\\n6\\n9\\n100\\n' > good; ddrescuelog --create-mapfile --size=64KiB x.map < good; cat x.map");
    let listed = shell("ddrescuelog --list-blocks=- x.map");
    let listed: Vec<u64> = listed.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(listed.len(), 124);
    assert_eq!(sectors(&converted(Origin::Ddrescue, &map), 1000), listed);
    // A real rescue of a file whose end is missing for it: read, and not tried.
    let map = shell("truncate -s 64K src; ddrescue -q --size=16KiB src out y.map; cat y.map");
    assert_eq!(converted(Origin::Ddrescue, &map).rules.rules.len(), 0, "{map}");
}

#[test]
fn what_is_converted_can_be_explained_and_no_text_panics() {
    let good = [
        (
            Origin::Blkdebug,
            "[inject-error]\nevent = \"l2_update\"\nonce = \"on\"\nstate = \"2\"\n[set-state]\nevent = \
             \"l2_load\"\nnew_state = \"2\"\n",
        ),
        (Origin::Ddrescue, "# Mapfile\n0x0 ? 1\n0x00000000  0x00000200  +\n0x00000200  0x00000400  -\n"),
        (Origin::DmDust, "0 33552384 dust /dev/vdb1 0 4096\nmessage dust1 0 addbadblock 61 3\n1 2 3\n"),
        (Origin::NbdkitError, "error=ENOSPC error-pwrite-rate=100% error-zero-rate=1:2 error-file=x\n"),
        (Origin::ScsiDebug, "opts=0x1e every_nth=-5 medium_error_start=0x10\n"),
        (Origin::ScsiDebug, "2 -10 0x88 0 0 0x2 0x3 0x11 0x0\n- 0 2a\n"),
    ];
    let pieces =
        ["\n", " ", "\"", "=", "-", "0x", "18446744073709551615", "0", "#", "[", "]", "é", "\u{0}", "+", "%", ":"];
    let mut choices = Choices::new(9);
    for (origin, text) in good {
        for rule in &converted(origin, text).rules.rules {
            assert!(explain(rule, 512).len() >= 3);
        }
        for _ in 0..1_000 {
            let mut mutant: Vec<char> = text.chars().collect();
            for _ in 0..=choices.index(3) {
                let at = choices.index(mutant.len());
                let end = (at + choices.index(6)).min(mutant.len());
                let piece = pieces[choices.index(pieces.len())];
                mutant.splice(at..end, piece.chars());
            }
            let mutant: String = mutant.into_iter().collect();
            match convert(origin, "in", &mutant, &Options::default()) {
                Ok(converted) => {
                    let file = converted.text();
                    let read = read("out", &file).unwrap_or_else(|mistakes| panic!("{mistakes}\n{mutant}\n{file}"));
                    assert_eq!(read.rules, converted.rules, "{file}");
                }
                Err(error) => assert!(error.to_string().starts_with("in:"), "{error}"),
            }
        }
    }
}
