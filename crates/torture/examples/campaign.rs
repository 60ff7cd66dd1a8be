//! A campaign against a built-in target: `campaign TARGET FIRST RUNS [PROFILE]`.
#![allow(clippy::print_stdout, reason = "an example of the library, whose program is `blkproof torture`")]

use blkproof_torture::campaign::{Campaign, Silent, campaign};
use blkproof_torture::target;
use blkproof_torture::workload::Profile;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let name = words.next().ok_or("which target?")?;
    let first = words.next().map_or(Ok(0), |text| text.parse())?;
    let runs = words.next().map_or(Ok(100), |text| text.parse())?;
    let profile = words.next().unwrap_or_else(|| "quick".to_owned());
    let profile = Profile::named(&profile).ok_or("no such profile")?;
    let target = target::find(&name).ok_or("no such target")?;
    let wanted = Campaign { profile, first, runs: Some(runs), until_findings: 3, ..Campaign::default() };
    let results = campaign(&wanted, target, &Silent);
    println!("{} seeds: {:?}", results.seeds, results.stats);
    for found in &results.found {
        println!("seed {} ({} times): {}\n{}", found.seed, found.times, found.finding, found.least());
    }
    Ok(())
}
