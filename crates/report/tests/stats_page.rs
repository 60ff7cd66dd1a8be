//! The page of statistics in a real browser, and the table: what they show is what the snapshot says.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod stats_common;

use std::process::Command;

use blkproof_fault::request::Operation;
use blkproof_fault::stats::{PerOperation, Snapshot};
use blkproof_report::stats::{html, table, table_since};
use stats_common::snapshot;

/// The document after its script has run, and what it wrote to the console.
fn look(page: &str) -> (String, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    std::fs::write(&file, page).unwrap();
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
        ])
        .args(["--v=0", "--window-size=1200,900", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .expect("chromium is installed (scripts/install-peers)");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && dom.contains("<html"), "chromium failed: {log}");
    (dom, log.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect())
}

#[test]
fn disks_of_all_sizes_are_drawn() {
    let all: Vec<Snapshot> = [5000, 1 << 20, 100 << 30, 2 << 40]
        .into_iter()
        .map(|size| snapshot(&format!("<b>disk</b> {size}"), size, 2000))
        .collect();
    let (dom, console) = look(&html(&all));
    assert_eq!(console, Vec::<String>::new());
    assert!(dom.contains("data-ready=\"1\"") && !dom.contains("data-error"), "the script ran to its end");
    assert!(!dom.contains("<b>disk</b>") && dom.contains("&lt;b&gt;disk&lt;/b&gt; 5000"), "names are escaped");
    assert!(dom.contains("bad-&lt;spot&gt;"), "rules are escaped");
    for (number, seen) in all.iter().enumerate() {
        let touched = [
            ("reads", seen.heat.cells.iter().filter(|cell| cell.reads > 0).count()),
            ("writes", seen.heat.cells.iter().filter(|cell| cell.writes > 0).count()),
            ("errors", seen.heat.cells.iter().filter(|cell| cell.errors > 0).count()),
        ];
        for (kind, touched) in touched {
            assert!(touched > 0);
            let figure = format!("data-node=\"{number}\" data-kind=\"{kind}\" data-drawn=\"{touched}\"");
            assert!(dom.contains(&figure), "{figure}");
        }
        let read = seen.of(Operation::Read);
        assert!(dom.contains(&format!(">{} requests · p50 ", read.latency.count)) || read.latency.count >= 1000);
    }
}

#[test]
fn nothing_to_show_is_shown() {
    for page in [html(&[]), html(&[snapshot("idle", 0, 0)])] {
        let (dom, console) = look(&page);
        assert!(console.is_empty() && dom.contains("data-ready=\"1\""), "{console:?}");
    }
    assert!(table(&snapshot("idle", 0, 0), 80).contains("no request yet"));
}

#[test]
fn the_table_fits_and_says_what_the_snapshot_says() {
    let seen = snapshot("disk0", 100 << 30, 3000);
    for width in [0, 40, 60, 80, 100, 132, 300] {
        let text = table(&seen, width);
        for line in text.lines() {
            assert!(line.chars().count() <= width.max(40), "width {width}: {line}");
        }
        assert!(text.contains("operation") && text.contains("requests"), "{text}");
    }
    let text = table(&seen, 140);
    let read: &PerOperation = &seen.of(Operation::Read);
    let row = text.lines().find(|line| line.starts_with("read ")).unwrap();
    let words: Vec<&str> = row.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(words[1].replace(' ', ""), read.submitted.to_string(), "{row}");
    assert_eq!(words[5].replace(' ', ""), read.failed.to_string(), "{row}");
    assert!(text.contains("read 03/1101 by rule bad-<spot>: "), "{text}");
    assert!(text.contains('!') && text.contains('#'), "{text}");
}

#[test]
fn rates_are_those_since_the_last_look() {
    let before = snapshot("disk0", 1 << 20, 1000);
    let now = snapshot("disk0", 1 << 20, 2000);
    let rate = |text: &str| text.lines().find(|line| line.starts_with("read ")).unwrap().to_owned();
    let both = now.of(Operation::Read).done + now.of(Operation::Read).failed;
    let old = before.of(Operation::Read).done + before.of(Operation::Read).failed;
    let want = (both - old) * 1_000_000_000 / (now.elapsed_ns - before.elapsed_ns);
    let text = rate(&table_since(&now, Some(&before), 100));
    let words: Vec<&str> = text.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(words[2].replace(' ', ""), want.to_string(), "{text}");
    // After a reset, and of another node, there is nothing to compare with.
    let elsewhere = Snapshot { node: "disk1".into(), ..before.clone() };
    for other in [&now, &elsewhere] {
        assert_eq!(table_since(&now, Some(other), 100), table(&now, 100));
    }
    assert_eq!(table_since(&before, Some(&now), 100), table(&before, 100));
}
