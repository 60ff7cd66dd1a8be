//! How fast a driver of ours is tortured: `speed ops|states TARGET SIZE`, `speed seeds TARGET JOBS`. Prints how many a
//! second, of everything that one core (or `JOBS`) does of it: simulation, driver, oracle, check. `cargo xtask bench torture`
//! runs it.
#![allow(clippy::print_stdout, reason = "an example of the library, whose program is `blkproof torture`")]

use std::time::Instant;

use blkproof_block::ByteRange;
use blkproof_block::choice::hash;
use blkproof_sim::{Schedule, Strategy};
use blkproof_torture::campaign::{Campaign, Silent, campaign};
use blkproof_torture::plan::{Act, CrashPlan, DiskSpec, Faults, Op, Plan, TargetSpec};
use blkproof_torture::run::{Settings, Stats, run};
use blkproof_torture::target::{self, Target};

/// Requests in flight.
const QUEUES: u32 = 8;
const PAGE: u64 = 4096;
/// The guest's disk is used in so many pages, spread over all of it.
const PAGES: u64 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, name, number] = words.as_slice() else { return Err("speed ops|states|seeds TARGET NUMBER".into()) };
    let target = target::find(name).ok_or("no such target")?;
    let number: u64 = number.parse()?;
    let (count, seconds) = match what.as_str() {
        "ops" => {
            let (stats, seconds) = timed(target, &workload(1, name, number, 200_000, 64, CrashPlan::None))?;
            (stats.ops, seconds)
        }
        "states" => {
            let (mut all, mut seconds) = (Stats::default(), 0.0);
            for seed in 0..16 {
                let crash = CrashPlan::Explore { states: 4096, depth: 0, seed };
                let (stats, took) = timed(target, &workload(seed, name, number, 64, 16, crash))?;
                all += stats;
                seconds += took;
            }
            println!("{} moments, {} states, {} of them unlike the others", all.points, all.states, all.distinct);
            (all.states, seconds)
        }
        "seeds" => {
            let jobs = usize::try_from(number)?;
            let wanted = Campaign { first: 1, runs: Some(400), jobs, ..Campaign::default() };
            let begun = Instant::now();
            let results = campaign(&wanted, target, &Silent);
            (results.seeds, begun.elapsed().as_secs_f64())
        }
        _ => return Err("speed ops|states|seeds TARGET NUMBER".into()),
    };
    println!("{:.0}", count as f64 / seconds);
    Ok(())
}

/// Reads and writes of a page, and a flush now and then, without faults.
fn workload(seed: u64, name: &str, size: u64, count: u32, flush_every: u32, crash: CrashPlan) -> Plan {
    let step = size / PAGES / PAGE * PAGE;
    let ops = (1..=count).map(|id| {
        let draw = hash(seed, u64::from(id));
        let range = ByteRange::at(draw % PAGES * step.max(PAGE), PAGE);
        let act = match draw >> 32 {
            _ if id % flush_every == 0 => Act::Flush,
            draw if draw % 2 == 0 => Act::Read { range, vector: Vec::new() },
            _ => Act::Write { range, fua: false, compressed: false },
        };
        Op { id, queue: u8::try_from(id % QUEUES).unwrap_or(0), act, after: Vec::new(), drop_at: None }
    });
    Plan {
        seed,
        target: TargetSpec { name: name.to_owned(), options: Vec::new(), size, base: None },
        disk: DiskSpec::default(),
        ops: ops.collect(),
        faults: Faults::default(),
        schedule: Schedule { strategy: Strategy::Random, seed, holds: Vec::new() },
        crash,
    }
}

fn timed(target: &dyn Target, plan: &Plan) -> Result<(Stats, f64), Box<dyn std::error::Error>> {
    let settings = Settings { steps: u64::MAX, ..Settings::default() };
    let begun = Instant::now();
    let outcome = run(plan, target, &settings);
    let seconds = begun.elapsed().as_secs_f64();
    match outcome.findings.first() {
        Some(finding) => Err(finding.to_string().into()),
        None => Ok((outcome.stats, seconds)),
    }
}
