//! `blkproof io` under its own name: qemu-io's commands and results, and what it says beyond them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Exit status, standard output, standard error.
fn io(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_blkproof"))
        .arg("io")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// A directory with `a.raw`, 1 MiB of zeroes.
fn bench() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::File::create(dir.path().join("a.raw")).unwrap().set_len(1 << 20).unwrap();
    dir
}

/// The objects printed, without the times.
fn objects(stdout: &str) -> Vec<Value> {
    let lines =
        stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{line}: {e}")));
    lines
        .map(|mut object| {
            object.as_object_mut().unwrap().remove("seconds");
            assert_eq!(object["schema"], "blkproof-io/1");
            object
        })
        .collect()
}

#[test]
fn a_failed_pattern_names_the_first_wrong_byte() {
    let dir = bench();
    let commands =
        ["-f", "raw", "-c", "write -q -P 0x11 0 4k", "-c", "write -q -P 7 1000 1", "-c", "read -q -P 0x11 0 4k"];
    let (code, stdout, stderr) = io(dir.path(), &[&commands[..], &["a.raw"]].concat());
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (
            1,
            "Pattern verification failed at offset 0, 4096 bytes\n\
             first wrong byte at offset 1000: expected 0x11, found 0x07\n",
            ""
        )
    );
}

#[test]
fn a_failed_request_says_more_than_its_errno() {
    let dir = bench();
    let (code, stdout, _) = io(dir.path(), &["-f", "raw", "-c", "read 1M 1", "a.raw"]);
    assert_eq!(code, 1);
    assert!(stdout.starts_with("read failed: Input/output error\n"), "{stdout}");
    assert!(stdout.contains("past the end"), "{stdout}");
}

#[test]
fn one_object_for_each_command() {
    let dir = bench();
    let args = [
        "-f",
        "raw",
        "--format",
        "json",
        "-c",
        "write -P 3 0 4",
        "-c",
        "read -v -P 3 0 6",
        "-c",
        "map",
        "-c",
        "length",
        "-c",
        "read -x",
        "-c",
        "nonsense",
        "-c",
        "read 1M 1",
        "a.raw",
    ];
    let (code, stdout, stderr) = io(dir.path(), &args);
    assert_eq!((code, stderr.as_str()), (1, ""));
    let objects = objects(&stdout);
    let oks: Vec<bool> = objects.iter().map(|object| object["ok"].as_bool().unwrap()).collect();
    assert_eq!(oks, [true, false, true, true, false, false, false], "{stdout}");
    assert_eq!(objects[0]["bytes"], 4);
    assert_eq!(objects[1]["data"], "030303030000");
    assert_eq!(objects[1]["mismatch"], json!({ "offset": 0, "bytes": 6, "first_bad": 4, "expected": 3, "found": 0 }));
    assert_eq!(objects[2]["extents"], json!([{ "start": 0, "length": 1 << 20, "allocated": true }]));
    assert_eq!(objects[3]["bytes"], 1 << 20);
    assert_eq!(objects[5]["messages"], json!(["command \"nonsense\" not found"]));
    assert_eq!(objects[6]["error"]["errno"], 5);
}

#[test]
fn asynchronous_results_name_the_command_they_complete() {
    let dir = bench();
    let args =
        ["-f", "raw", "--format=json", "-c", "aio_write 0 512", "-c", "aio_read 1M 1", "-c", "aio_flush", "a.raw"];
    let (code, stdout, _) = io(dir.path(), &args);
    assert_eq!(code, 0, "failures of aio requests are not counted: {stdout}");
    let objects = objects(&stdout);
    let completions: Vec<_> = objects.iter().filter(|object| object.get("completes").is_some()).collect();
    assert_eq!(completions.len(), 2, "{stdout}");
    let failed = completions.iter().find(|object| object["command"] == "aio_read").unwrap();
    assert_eq!((&failed["ok"], &failed["completes"]), (&json!(false), &json!(1)));
}

#[test]
fn an_unstated_format_is_not_guessed_to_be_raw_for_writing() {
    let dir = bench();
    let (code, stdout, stderr) = io(dir.path(), &["-c", "length", "a.raw"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("blkproof io: can't open device a.raw: "), "{stderr}");
    let (code, stdout, stderr) = io(dir.path(), &["-r", "-c", "length", "a.raw"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "1 MiB\n", ""));
}

#[test]
fn files_named_inside_an_image_need_permission() {
    let dir = bench();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "top.qcow2"])
        .current_dir(dir.path())
        .status();
    assert!(made.unwrap().success());
    let (code, _, stderr) = io(dir.path(), &["-f", "qcow2", "-c", "read 0 1", "top.qcow2"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("backing"), "{stderr}");
    let (code, _, stderr) = io(dir.path(), &["--allow-backing", "-f", "qcow2", "-c", "read -P 0 0 1", "top.qcow2"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
}

#[test]
fn no_prompt_stands_in_the_way_of_a_pipe() {
    let dir = bench();
    let (code, stdout, stderr) = io(dir.path(), &["-f", "raw", "a.raw"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", ""));
}

#[test]
fn output_shapes_are_checked() {
    let dir = bench();
    let (code, _, stderr) = io(dir.path(), &["--format", "raw", "-c", "length", "a.raw"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("the image's format is -f"), "{stderr}");
}

#[test]
fn help_covers_every_command() {
    let dir = bench();
    let (_, list, _) = io(dir.path(), &["-c", "help"]);
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_once(" -- ")?.0.split(' ').next()).collect();
    assert!(names.len() >= 32, "{list}");
    for name in names {
        let (code, help, _) = io(dir.path(), &["-c", &format!("help {name}")]);
        assert!(code == 0 && help.starts_with(name), "{help}");
    }
}
