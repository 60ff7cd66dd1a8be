//! Runs a plan against a target of ours and tells what happened: `replay PLAN`.
#![allow(clippy::print_stdout, reason = "an example of the library, whose program is `blkproof replay`")]

use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Settings, run};
use blkproof_torture::target;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which plan?")?;
    let plan = Plan::parse(&std::fs::read_to_string(path)?)?;
    let target = target::find(&plan.target.name).ok_or("no such target")?;
    let outcome = run(&plan, target, &Settings { events: true, ..Settings::default() });
    for event in &outcome.events {
        println!("{event:?}");
    }
    for finding in &outcome.findings {
        println!("{finding}");
    }
    Ok(())
}
