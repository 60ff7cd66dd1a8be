//! How fast planted bugs are found, a line each: `hunt [STARTS [SECONDS [SHRINKS [PROFILE [NAME…]]]]]`.
//!
//! What `blkproof torture --gallery` prints, without the rest of that program to be built: for work on the generator.
//! Seconds are those of a processor, of the one thread that works.
#![allow(clippy::print_stdout, reason = "an example of the library, whose program is `blkproof torture --gallery`")]

use std::collections::BTreeMap;
use std::time::Duration;

use blkproof_gallery::{Driver, Planting, catalogue};
use blkproof_torture::campaign::{Campaign, Replays, Watch, campaign};
use blkproof_torture::run::Settings;
use blkproof_torture::shrink::{Budget, shrink};
use blkproof_torture::target::Target as _;
use blkproof_torture::workload::Profile;
use rustix::time::{ClockId, clock_gettime};

/// Ends a start when its time is spent.
struct Limit(Duration);

impl Watch for Limit {
    fn stop(&self) -> bool {
        processor_time() >= self.0
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| words.get(index).map_or(Ok(default), |word| word.parse());
    let (starts, seconds, shrinks) = (number(0, 30)?, number(1, 20)?, number(2, 0)?);
    let profile = words.get(3).map_or("quick", String::as_str);
    let profile = Profile::named(profile).ok_or("no such profile")?;
    let names = words.get(4..).unwrap_or_default();
    println!("{:34} {:>6} {:>15} {:>16}  shrunk; findings", "planted", "found", "ops", "processor s");
    let sound = Driver::ALL.iter().map(|&driver| Planting::sound(driver));
    for target in catalogue().iter().map(Planting::of).chain(sound) {
        let listed = names.iter().any(|name| target.name().split('-').next() == Some(name) || target.name() == name);
        if if names.is_empty() { target.entry().is_some() } else { listed } {
            hunt(&target, profile, starts, Duration::from_secs(seconds), shrinks);
        }
    }
    Ok(())
}

fn hunt(target: &Planting, profile: Profile, starts: u64, limit: Duration, shrinks: u64) {
    let (mut times, mut ops) = (Vec::new(), Vec::new());
    let mut signatures: BTreeMap<String, u64> = BTreeMap::new();
    let mut shrunk = Vec::new();
    let (mut seeds, mut done, mut spent) = (0, 0, 0.0);
    for start in 0..starts {
        let begun = processor_time();
        let wanted = Campaign { profile, first: start << 32, runs: None, shrink: None, ..Campaign::default() };
        let results = campaign(&wanted, target, &Limit(begun.saturating_add(limit)));
        let took = processor_time().saturating_sub(begun).as_secs_f64();
        seeds += results.seeds;
        done += results.stats.ops;
        spent += took;
        let Some(found) = results.found.first() else { continue };
        times.push(took);
        ops.push(results.stats.ops);
        *signatures.entry(found.finding.signature.to_string()).or_default() += 1;
        if start < shrinks {
            let begun = processor_time();
            let judge = Replays { target, settings: Settings::default(), jobs: 1, stop: &|| false };
            let budget = Budget::default();
            let least = shrink(&found.plan, &found.finding.signature, &budget, &judge, &mut |_| {
                std::ops::ControlFlow::Continue(())
            });
            let took = processor_time().saturating_sub(begun).as_secs_f64();
            shrunk.push(format!("{}({took:.1}s)", least.plan.ops.len()));
            if std::env::var_os("PLANS").is_some() {
                println!("seed {}: {}\n{}", found.seed, found.finding, least.plan);
            }
        }
    }
    times.sort_by(f64::total_cmp);
    ops.sort_unstable();
    let codes: Vec<String> = signatures.iter().map(|(signature, times)| format!("{signature}×{times}")).collect();
    println!(
        "{:34} {:>2}/{:<3} {:>7} {:>7} {:>8.2} {:>7.2}  {} {}  [{seeds} seeds, {done} ops, {spent:.1} s]",
        target.name(),
        times.len(),
        starts,
        ops.get(ops.len() / 2).copied().unwrap_or(0),
        ops.last().copied().unwrap_or(0),
        times.get(times.len() / 2).copied().unwrap_or(0.0),
        times.last().copied().unwrap_or(0.0),
        shrunk.join(","),
        codes.join(" "),
    );
}

/// Time that this thread has worked.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
