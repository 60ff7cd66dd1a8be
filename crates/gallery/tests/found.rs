//! What is planted is found, and what is sound is not.
#![allow(missing_docs)]

use blkproof_gallery::find;
use blkproof_torture::campaign::{Campaign, Silent, campaign};

#[test]
fn vertical() {
    let name = std::env::var("TARGET").unwrap_or("v1-map-before-data".to_owned());
    let runs = std::env::var("SEEDS").map_or(200, |text| text.parse().unwrap());
    let found_target = find(&name);
    let target: &dyn blkproof_torture::target::Target = match &found_target {
        Some(t) => t,
        None => blkproof_torture::target::find(&name).unwrap(),
    };
    let started = std::time::Instant::now();
    let results = campaign(&Campaign { runs: Some(runs), ..Campaign::default() }, target, &Silent);
    println!("{} seeds {:?} in {:?}", results.seeds, results.stats, started.elapsed());
    for found in &results.found {
        println!("seed {} {} cut {:?}", found.seed, found.finding, found.finding.cut);
        if let Some(shrunk) = &found.shrunk {
            println!(
                "{} -> {} in {} runs, {:?}; others {:?}",
                shrunk.original,
                shrunk.size,
                shrunk.runs,
                shrunk.limit,
                shrunk.others.keys()
            );
        }
        println!("{}", found.least());
    }
}
