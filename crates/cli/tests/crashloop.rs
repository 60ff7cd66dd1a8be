//! `crashloop`: real programs under power cuts, and that each kind of loss is seen and blamed on whom it belongs to.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Outcome, blkproof, run, shell};
use serde_json::Value;
use tempfile::tempdir;

fn crashloop(dir: &Path, args: &[&str]) -> Outcome {
    blkproof(dir, &[&["crashloop"], args].concat())
}

/// The report of a run that ended with this status.
fn report(dir: &Path, code: i32, args: &[&str]) -> Value {
    let outcome = crashloop(dir, &[args, &["--format", "json"]].concat()).exited(code);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["schema"], "blkproof.crashloop/1");
    report
}

fn number(report: &Value, pointer: &str) -> u64 {
    report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {report}"))
}

fn cuts(report: &Value) -> &[Value] {
    report["cuts"].as_array().unwrap()
}

/// Numbered sectors through libnbd, each flushed before it is acknowledged; or not.
fn sectors(flush: &str) -> [String; 4] {
    let script = format!("for i in range(1, 21): h.pwrite(bytes([i]) * 512, i * 512); {flush}; print(i, flush=True)");
    let work = format!("/usr/bin/python3 -m nbd -u {{uri}} -c '{script}'");
    let check = "exec /usr/bin/python3 check.py {uri} {acknowledged}";
    ["--run".into(), work, "--check".into(), check.into()]
}

fn write_check(dir: &Path) {
    let check = r#"
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
lost = [i for i in map(int, open(sys.argv[2])) if h.pread(512, i * 512) != bytes([i]) * 512]
print(f"lost {lost}" if lost else "all there")
sys.exit(1 if lost else 0)
"#;
    std::fs::write(dir.join("check.py"), check).unwrap();
}

fn refs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn sqlite_survives_an_honest_disk() {
    let dir = tempdir().unwrap();
    for (workload, disk) in [
        ("sqlite", "honest"),
        ("sqlite-truncate", "honest:profile=shorn,block-size=4k"),
        ("sqlite-persist", "honest:profile=torn,cache-size=64k,write-back=random"),
        ("sqlite-wal", "honest:profile=request"),
    ] {
        let args = ["--workload", workload, "--disk", disk, "--cuts", "8", "--seed", "3", "--during-recovery"];
        let report = report(dir.path(), 0, &args);
        assert_eq!(number(&report, "/totals/survived"), 8, "{report}");
        assert_eq!(number(&report, "/totals/flushes/betrayed"), 0, "{report}");
        assert!(number(&report, "/totals/flushes/acknowledged") > 100, "{report}");
        assert!(number(&report, "/totals/transactions/acknowledged") > 50, "{report}");
        let during = cuts(&report).iter().filter(|cut| !cut["power"]["during"].is_null()).count();
        assert!(during >= 6, "the power goes while something runs: {report}");
        let again = cuts(&report).iter().filter(|cut| !cut["during-recovery"].is_null()).count();
        assert!(again >= 6, "and again while it recovers: {report}");
    }
}

#[test]
fn a_liar_is_caught_and_blamed() {
    let dir = tempdir().unwrap();
    let args = ["--workload", "sqlite", "--disk", "liar", "--cuts", "16", "--seed", "3", "--report", "liar.json"];
    let outcome = crashloop(dir.path(), &args).exited(1);
    assert!(outcome.stderr.starts_with("blkproof crashloop --workload sqlite --disk liar "), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("The disk is to blame"), "{}", outcome.stdout);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(dir.path().join("liar.json")).unwrap()).unwrap();
    assert!(number(&report, "/totals/lost") > 8, "in most of them: {report}");
    assert_eq!(number(&report, "/totals/blame/program"), 0, "{report}");
    for cut in cuts(&report).iter().filter(|cut| cut["verdict"] == "lost") {
        let first = &cut["power"]["flushes"]["first"];
        let betrayed = cut["power"]["flushes"]["betrayed"].as_array().unwrap();
        assert_eq!(betrayed[0], first["number"], "{cut}");
        assert!(number(first, "/write") < number(first, "/request"), "a write before the flush: {cut}");
        assert!(number(cut, "/power/betrayed-bytes") > 0, "the disk knows it too: {cut}");
    }
}

#[test]
fn a_program_that_does_not_flush_is_blamed() {
    let dir = tempdir().unwrap();
    // Without any flush most cuts do harm; with one too few, the last transaction is lost now and then.
    for (workload, cuts, least) in [("sqlite-off", "8", 4), ("sqlite-full", "16", 0)] {
        let report = report(dir.path(), 1, &["--workload", workload, "--cuts", cuts]);
        assert!(number(&report, "/totals/lost") > least, "{report}");
        assert_eq!(number(&report, "/totals/lost"), number(&report, "/totals/blame/program"), "{report}");
        assert_eq!(number(&report, "/totals/flushes/betrayed"), 0, "{report}");
        if workload == "sqlite-full" {
            // As SQLite's manual says of it: not durable, and consistent all the same.
            assert_eq!(number(&report, "/totals/transactions/lost"), number(&report, "/totals/lost"), "{report}");
            assert!(self::cuts(&report).iter().all(|cut| cut["details"]["damage"].is_null()), "{report}");
        }
    }
}

#[test]
fn a_cut_is_made_again_alone() {
    let dir = tempdir().unwrap();
    let args = ["--workload", "sqlite-wal", "--disk", "liar:profile=torn", "--cuts", "6", "--seed", "11"];
    let all = report(dir.path(), 1, &args);
    let one_job = report(dir.path(), 1, &[&args[..], &["--jobs", "1"]].concat());
    assert_eq!(all["cuts"], one_job["cuts"]);
    let lost = cuts(&all).iter().find(|cut| cut["verdict"] == "lost").unwrap();
    let alone = report(dir.path(), 1, &[&args[..], &["--only", &lost["cut"].to_string()]].concat());
    assert_eq!(cuts(&alone), std::slice::from_ref(lost));
    // What is printed does it, in the shell.
    let first = cuts(&all).iter().find(|cut| cut["verdict"] != "survived").unwrap();
    let text = crashloop(dir.path(), &[&args[..], &["--report", "again.json"]].concat()).exited(1).stdout;
    let line = text.lines().find_map(|line| line.strip_prefix("the first again, alone: ")).unwrap();
    std::fs::remove_file(dir.path().join("again.json")).unwrap();
    shell(dir.path(), line).exited(1);
    let report = std::fs::read_to_string(dir.path().join("again.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(cuts(&report), std::slice::from_ref(first), "{line}");
}

#[test]
fn a_cut_can_leave_a_state_of_ones_choice() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    write_check(dir);
    let bad = sectors("pass");
    let with = |state| [&refs(&bad)[..], &["--only", "200", "--state", state]].concat();
    let state = |code, state| report(dir, code, &with(state))["cuts"][0]["power"]["state"].clone();
    assert_eq!(state(1, "all-old"), "all-old");
    assert_eq!(state(0, "all-new"), "all-new");
    let unknown = crashloop(dir, &with("drop:999")).exited(4).stderr;
    assert!(unknown.contains("cut 200: state 'drop:999': no request 999 is in the cache"), "{unknown}");
    for (more, words) in [
        (&["--only", "1", "--state", "all-odd"][..], "'all-odd' names no state"),
        (&["--only", "1,2", "--state", "all-old"], "--state names the state of one cut; --only has 2"),
        (&["--state", "all-old"], "--only"),
    ] {
        let refused = crashloop(dir, &[&refs(&bad)[..], more].concat()).exited(2).stderr;
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn programs_of_ones_own() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    write_check(dir);
    let good = sectors("h.flush()");
    let honest = report(dir, 0, &[&refs(&good)[..], &["--cuts", "8"]].concat());
    assert_eq!((number(&honest, "/requests-uncut"), number(&honest, "/totals/survived")), (40, 8));
    let bad = sectors("pass");
    let outcome = crashloop(dir, &[&refs(&bad)[..], &["--cuts", "8"]].concat()).exited(1);
    assert!(outcome.stdout.contains("The program is to blame"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("lost: lost ["), "{}", outcome.stdout);
    let fua = bad.map(|word| word.replace("i * 512);", "i * 512, nbd.CMD_FLAG_FUA);"));
    let honest = report(dir, 0, &[&refs(&fua)[..], &["--cuts", "8"]].concat());
    assert_eq!(number(&honest, "/totals/survived"), 8);
    report(dir, 1, &[&refs(&fua)[..], &["--cuts", "8", "--disk", "liar"]].concat());
}

#[test]
fn the_disk_can_be_prepared_and_be_a_copy() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]).exited(0);
    run(dir, "qemu-io", &["-f", "qcow2", "a.qcow2", "-c", "write -q -P 7 0 4k"]).exited(0);
    let read = |at: u32, byte: u8| format!("assert h.pread(4096, {at}) == bytes([{byte}]) * 4096");
    let args = [
        "--image".into(),
        "a.qcow2".into(),
        "--setup".into(),
        "/usr/bin/python3 -m nbd -u {uri} -c 'h.pwrite(bytes([8]) * 4096, 4096)'".into(),
        "--run".into(),
        format!("/usr/bin/python3 -m nbd -u {{uri}} -c '{}; {}; h.zero(4096, 0)'", read(0, 7), read(4096, 8)),
        "--check".into(),
        format!("/usr/bin/python3 -m nbd -u {{uri}} -c '{}'", read(4096, 8)),
        "--cuts".into(),
        "4".into(),
    ];
    report(dir, 0, &refs(&args));
    // The image itself is as it was.
    run(dir, "qemu-io", &["-r", "-f", "qcow2", "a.qcow2", "-c", "read -q -P 7 0 4k", "-c", "read -q -P 0 4k 4k"])
        .exited(0);
}

#[test]
fn programs_that_do_not_work_are_told_of() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let write = "/usr/bin/python3 -m nbd -u {uri} -c 'h.pwrite(bytes(512), 0)'";
    for (args, code, words) in [
        (
            vec!["--run", "echo no luck >&2; exit 3", "--check", "true"],
            4,
            "ended with status 3 although its disk kept its power: no luck",
        ),
        (vec!["--run", "true", "--check", "true"], 4, "neither wrote to its disk"),
        (vec!["--run", write, "--check", "echo wrong; exit 1"], 4, "although the power was never cut: wrong"),
        (vec!["--run", write, "--check", "true", "--setup", "kill -9 $$"], 4, "--setup was ended by signal 9"),
        (vec!["--run", "sleep 1000", "--check", "true", "--timeout", "1"], 4, "did not end in time"),
        (vec!["--run", write, "--check", "true", "--only", "0"], 2, "there are cuts 1 to 200"),
        (vec!["--run", "true"], 2, "--check"),
        (vec!["--workload", "sqlite", "--cuts", "0"], 2, "--cuts"),
        (vec!["--workload", "sqlite", "--disk", "liar:seed=1"], 2, "--seed"),
        (vec!["--workload", "sqlite", "--check", "true"], 2, "cannot be used with"),
        (vec!["--workload", "postgres"], 2, "there are sqlite, "),
        (vec!["--workload", "sqlite", "--disk", "broken"], 2, "liar"),
        (vec![], 2, "--workload"),
    ] {
        let outcome = crashloop(dir, &args).exited(code);
        assert!(outcome.stderr.contains(words), "{args:?}: {}", outcome.stderr);
    }
    // The check works on the disk that nothing happened to, and not on the others.
    let check = "test -e once && exit 2; touch once";
    let outcome = crashloop(dir, &["--run", write, "--check", check, "--cuts", "2"]).exited(4);
    assert!(outcome.stdout.contains("could not be checked"), "{}", outcome.stdout);
}

#[test]
fn nothing_is_left_running() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    // The shell ends, what it started in the background would not.
    let work = "sleep 1000 & echo $! >> started; /usr/bin/python3 -m nbd -u {uri} -c 'h.pwrite(bytes(512), 0)'";
    // Each ends with status 0: the check needs no disk.
    crashloop(dir, &["--run", work, "--check", "true", "--cuts", "3"]).exited(0);
    let started = std::fs::read_to_string(dir.join("started")).unwrap();
    assert_eq!(started.lines().count(), 4);
    for pid in started.lines() {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // One that is dead may still wait for init to collect it.
        let alive = state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'));
        assert!(!alive, "{pid}: {state}");
    }
}

#[test]
fn a_run_that_is_ended_leaves_no_directory() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    // While the disk is prepared, while the program is rehearsed, and while a cut is made.
    for (signal, at) in [("-INT", 1), ("-TERM", 2), ("-TERM", 3)] {
        let scratch = dir.join(format!("scratch{at}"));
        std::fs::create_dir(&scratch).unwrap();
        run(dir, "mkfifo", &[&format!("fifo{at}")]).exited(0);
        let work = "/usr/bin/python3 -m nbd -u {uri} -c 'h.pwrite(bytes(512), 0)'";
        // Each writes on after the signal.
        let told = format!("touch {{dir}}/made; echo > fifo{at}; while :; do touch {{dir}}/more; done");
        let once = format!("test -e again{at} && {{ {told}; }}; touch again{at}; {work}");
        let (setup, run_line) = match at {
            1 => (told.as_str(), work),
            2 => ("true", told.as_str()),
            _ => ("true", once.as_str()),
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_blkproof"))
            .args(["crashloop", "--run", run_line, "--check", "true", "--setup", setup, "--cuts", "3"])
            .env("TMPDIR", &scratch)
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        run(dir, "timeout", &["60", "cat", &format!("fifo{at}")]).exited(0);
        run(dir, "kill", &[signal, &child.id().to_string()]).exited(0);
        assert_eq!(child.wait().unwrap().code(), Some(5), "{at}");
        let left: Vec<_> = std::fs::read_dir(&scratch).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{at}: {left:?}");
    }
}

#[test]
fn an_interrupted_run_reports_what_it_found() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    run(dir, "mkfifo", &["fifo"]).exited(0);
    let work = "/usr/bin/python3 -m nbd -u {uri} -c 'h.pwrite(bytes(512), 0)'; echo > fifo";
    let mut child = Command::new(env!("CARGO_BIN_EXE_blkproof"))
        .args(["crashloop", "--run", work, "--check", "true", "--jobs", "1", "--report", "report.json"])
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The rehearsal, the first cut, and the second, which is under way when the interrupt comes.
    for _ in 0..3 {
        run(dir, "timeout", &["60", "cat", "fifo"]).exited(0);
    }
    run(dir, "kill", &["-INT", &child.id().to_string()]).exited(0);
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5), "{stdout}");
    assert!(stdout.contains("ended early: 200 cuts were to be made"), "{stdout}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("report.json")).unwrap()).unwrap();
    assert!((1..200).contains(&cuts(&report).len()), "{report}");
}
