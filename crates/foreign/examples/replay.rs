//! A plan, or that of a seed, against a driver of another project, or one of ours: `replay TARGET PLAN|SEED`.
#![allow(clippy::print_stdout, reason = "an example")]

#[path = "../tests/pinned/mod.rs"]
mod pinned;

use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Settings, run};
use blkproof_torture::target;
use blkproof_torture::workload::{Profile, generate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let name = words.next().ok_or("which target?")?;
    let target = blkproof_foreign::find(&name).or_else(|| target::find(&name)).ok_or("no such target")?;
    let word = words.next().ok_or("which plan?")?;
    let plan = match word.parse() {
        Ok(seed) => generate(seed, &target.info(), &Profile::QUICK),
        Err(_) => Plan::parse(&std::fs::read_to_string(word)?)?,
    };
    let outcome = run(&plan, target, &Settings { events: true, ..Settings::default() });
    for event in &outcome.events {
        println!("{event:?}");
    }
    for finding in &outcome.findings {
        println!("{finding}\nsignature {}", finding.signature);
    }
    println!("{} findings", outcome.findings.len());
    Ok(())
}
