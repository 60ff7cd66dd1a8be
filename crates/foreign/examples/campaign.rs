//! A campaign against a driver of another project: `campaign TARGET FIRST RUNS [PROFILE [FINDINGS]]`.
#![allow(clippy::print_stdout, reason = "an example")]

#[path = "../tests/pinned/mod.rs"]
mod pinned;

use blkproof_torture::campaign::{Campaign, Silent, campaign};
use blkproof_torture::workload::Profile;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let name = words.next().ok_or("which target?")?;
    let first = words.next().map_or(Ok(0), |text| text.parse())?;
    let runs = words.next().map_or(Ok(100), |text| text.parse())?;
    let profile = words.next().unwrap_or_else(|| "quick".to_owned());
    let profile = Profile::named(&profile).ok_or("no such profile")?;
    let until_findings = words.next().map_or(Ok(3), |text| text.parse())?;
    let target = blkproof_foreign::find(&name).ok_or("no such target")?;
    let wanted = Campaign { profile, first, runs: Some(runs), until_findings, ..Campaign::default() };
    let results = campaign(&wanted, target, &Silent);
    println!("{} seeds: {:?}", results.seeds, results.stats);
    for found in &results.found {
        println!("seed {} ({} times): {}\n{}", found.seed, found.times, found.finding, found.least());
    }
    Ok(())
}
