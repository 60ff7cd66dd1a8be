//! Real VMDK images, made by qemu-img, and what is said of them.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use blkproof_check::source::FileSource;
use blkproof_check::watch::Silent;
use blkproof_check::{Options, Report, check};

/// Runs a program that must be there; its exit status and everything it printed.
pub fn run(program: &str, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

/// Runs a program that must succeed.
pub fn must(program: &str, arguments: &[&str]) -> String {
    let (status, text) = run(program, arguments);
    assert_eq!(status, 0, "{program} {arguments:?}: {text}");
    text
}

/// What `qemu-img check` says by its exit status.
pub fn qemu_check(path: &Path) -> i32 {
    run("qemu-img", &["check", "-f", "vmdk", path.to_str().unwrap()]).0
}

/// Makes an image of 200 MiB with data at its start, its middle and its end.
pub fn create(dir: &Path, name: &str, options: &str) -> PathBuf {
    let path = dir.join(name);
    let text = path.to_str().unwrap();
    must("qemu-img", &["create", "-q", "-f", "vmdk", "-o", options, text, "200M"]);
    let writes = ["write -P 1 0 1M", "write -P 2 100M 192k", "write -P 3 199M 1M"];
    must("qemu-io", &["-f", "vmdk", "-c", writes[0], "-c", writes[1], "-c", writes[2], text]);
    path
}

/// Checks a file.
pub fn look(path: &Path, options: &Options) -> Report {
    check(&FileSource::open(path).unwrap(), options, &Silent)
}

/// All that was found, for messages.
pub fn told(report: &Report) -> String {
    let findings: Vec<String> = report
        .findings
        .iter()
        .take(12)
        .map(|one| {
            format!("  {} ({}, {}): {} guest {:x?}", one.code.name, one.severity, one.count, one.what, one.guest)
        })
        .collect();
    format!(
        "{:?}, lost {:x?}\n{}\n  not checked: {:?}",
        report.verdict,
        report.lost.ranges,
        findings.join("\n"),
        report.not_checked
    )
}

/// The map of the file covers every byte once, the map of the disk every byte of it.
pub fn maps_are_whole(report: &Report, name: &str) {
    if let Some(host) = &report.host {
        assert_eq!(host.totals.iter().sum::<u64>(), host.len, "{name}: host map {}", told(report));
    }
    if let Some(guest) = &report.guest {
        assert_eq!(guest.totals.iter().sum::<u64>(), guest.size, "{name}: guest map {}", told(report));
    }
}
