//! Checks an image and prints the verdict, the causes and the findings.
//!
//! ```text
//! cargo run --release -p blkproof-check --example verdict -- disk.qcow2 [memory in MiB] [threads]
//! ```

use std::process::ExitCode;

use blkproof_check::source::FileSource;
use blkproof_check::watch::Silent;
use blkproof_check::{Options, check};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(path) = words.next() else {
        eprintln!("error: no image named");
        return ExitCode::from(1);
    };
    let mut options = Options::default();
    if let Some(mib) = words.next().and_then(|word| word.parse::<u64>().ok()) {
        options.memory = mib << 20;
    }
    if let Some(threads) = words.next().and_then(|word| word.parse().ok()) {
        options.threads = threads;
    }
    let image = match FileSource::open(path.as_ref()) {
        Ok(image) => image,
        Err(error) => {
            eprintln!("error: {path}: {error}");
            return ExitCode::from(1);
        }
    };
    let report = check(&image, &options, &Silent);
    println!("{}: {}", report.image, report.verdict.name());
    if report.lost.bytes > 0 {
        println!("lost: {} bytes of the guest's disk in {} ranges", report.lost.bytes, report.lost.ranges.len());
    }
    for cause in &report.causes {
        println!("cause ({}, {} errors): {}", cause.confidence, cause.errors, cause.what);
    }
    for finding in report.findings.iter().take(50) {
        println!("{}: {}: {}", finding.severity, finding.code.name, finding.what);
    }
    for sentence in &report.not_checked {
        println!("not checked: {sentence}");
    }
    for line in &report.next {
        println!("next: {line}");
    }
    println!("{:?}", report.numbers);
    if let Some(map) = &report.host {
        for class in blkproof_check::map::Class::ALL.iter().filter(|class| map.bytes(**class) > 0) {
            println!("{class}: {} bytes", map.bytes(*class));
        }
    }
    if let Some(map) = &report.guest {
        for state in blkproof_check::map::GuestState::ALL.iter().filter(|state| map.bytes(**state) > 0) {
            println!("guest {state}: {} bytes", map.bytes(*state));
        }
    }
    ExitCode::from(report.verdict.exit_status())
}
