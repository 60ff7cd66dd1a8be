//! All planted bugs, and how fast each is found: `torture --gallery`.
//!
//! A driver with one bug is tortured from several first seeds; each start ends when something is found, or when its time
//! or its seeds are spent. Time is that of one processor, of the thread that works: other programs, and other starts in
//! other threads, do not count. What the first start found is shrunk.
//!
//! In the same run the copies without a bug are tortured from the same first seeds, with as many seeds as the slowest of
//! the bugs planted in them took: what is found has to be the bug, and not the copying.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use blkproof_gallery::{Driver, Entry, Planting, catalogue};
use blkproof_report::torture::gallery as page;
use blkproof_torture::campaign::{Campaign, Results, Watch, campaign};
use blkproof_torture::run::{Finding, Stats};
use blkproof_torture::shrink::Budget;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::numbers::{counted, grouped};
use super::output::file;
use super::watcher::bar;
use super::{Args, FINDING, TOO_LITTLE, print};
use crate::stop::Stop;

/// For one start of one driver, if nothing else is said.
const TIME: Duration = Duration::from_secs(10);

/// First seeds are so far apart that no two starts run the same seed.
const APART: u32 = 32;

/// Ops of a plan that can be taken in at a glance: what shrinking is to reach.
const FEW: usize = 6;

/// Schema of the JSON.
const SCHEMA: &str = "blkproof.torture-gallery/1";

pub(super) fn run(args: &Args, stop: &Stop) -> anyhow::Result<ExitCode> {
    let entries = chosen(args)?;
    let bench = Bench { args, stop, limit: args.time.unwrap_or(TIME) };
    let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    let human = !args.output.is_json();
    if human {
        print(&format!(
            "{:width$}  {:>7}  {:>21}  {:>15}  {:>9}  {:<15}  the real bug\n{:width$}  {:>7}  {:>10} {:>10}  {:>7} {:>7}\n",
            "planted",
            "found",
            "operations",
            "seconds",
            "plan, ops",
            "finding",
            "",
            "",
            "median",
            "worst",
            "median",
            "worst",
        ))?;
    }
    let mut rows = Vec::new();
    let progress = bar("gallery", Some(entries.len() as u64), "{prefix} {pos} of {len}, {eta} left: {wide_msg}");
    for &entry in &entries {
        progress.set_message(entry.name);
        let row = bench.torture(entry);
        if stop.asked() {
            break;
        }
        if human {
            progress.suspend(|| print(&row.line(width)))?;
        }
        progress.inc(1);
        rows.push(row);
    }
    progress.finish_and_clear();
    let mut sound = Vec::new();
    for (driver, seeds) in slowest(&rows) {
        if stop.asked() {
            break;
        }
        let clean = bench.sound(driver, seeds);
        if human {
            print(&clean.line(width))?;
        }
        sound.push(clean);
    }
    let complete = rows.len() == entries.len() && !stop.asked();
    stop.calm();
    let code = match () {
        () if sound.iter().any(|clean| !clean.findings.is_empty()) => FINDING,
        () if !complete || rows.iter().any(|row| !row.is_found()) => TOO_LITTLE,
        () => 0,
    };
    let again = args.again(args.seed.unwrap_or(0));
    let words = summary(&rows, &sound, complete);
    if let Some(path) = &args.pages.html {
        let bugs: Vec<_> = rows.iter().map(Row::bug).collect();
        let clean: Vec<_> = sound.iter().map(Clean::sound).collect();
        file(path, &page::html(&bugs, &clean, &again, &words))?;
    }
    if human {
        print(&words)?;
    } else {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let sound: Vec<Value> = sound.iter().map(Clean::json).collect();
        let json = json!({
            "schema": SCHEMA, "again": again, "profile": args.profile.name,
            "starts": args.gallery_starts, "seconds-max": bench.limit.as_secs_f64(), "complete": complete,
            "exit-status": code, "planted": rows, "sound": sound,
        });
        print(&format!("{json:#}\n"))?;
    }
    Ok(ExitCode::from(code))
}

/// The bugs asked for; all, if none is.
fn chosen(args: &Args) -> anyhow::Result<Vec<&'static Entry>> {
    if args.target.is_empty() {
        return Ok(catalogue().iter().collect());
    }
    let find = |name: &String| match catalogue().iter().find(|entry| entry.name == *name) {
        Some(entry) => Ok(entry),
        None => bail!("--target {name}: the gallery has no bug of that name"),
    };
    args.target.iter().map(find).collect()
}

/// Of each driver, how many seeds the slowest start of any of its bugs took.
fn slowest(rows: &[Row]) -> Vec<(Driver, u64)> {
    let mut seeds: BTreeMap<usize, u64> = BTreeMap::new();
    for row in rows {
        let place = Driver::ALL.iter().position(|driver| *driver == row.entry.driver).unwrap_or(0);
        let most = row.starts.iter().map(|start| start.seeds).max().unwrap_or(0);
        let sum = seeds.entry(place).or_default();
        *sum = most.max(*sum);
    }
    seeds.into_iter().filter_map(|(place, seeds)| Some((*Driver::ALL.get(place)?, seeds))).collect()
}

struct Bench<'a> {
    args: &'a Args,
    stop: &'a Stop,
    limit: Duration,
}

/// What one start came to.
struct Start {
    seeds: u64,
    ops: u64,
    seconds: f64,
    /// What was found, by which seed.
    found: Option<(u64, Finding)>,
    /// Ops of the least plan, and the plan, of the start whose finding was shrunk.
    plan: Option<(usize, String)>,
}

struct Row {
    entry: &'static Entry,
    starts: Vec<Start>,
}

/// A driver without a bug.
struct Clean {
    name: String,
    seeds: u64,
    ops: u64,
    states: u64,
    findings: Vec<(u64, Finding)>,
}

impl Bench<'_> {
    fn first(&self, start: u64) -> u64 {
        self.args.seed.unwrap_or(0).wrapping_add(start << APART)
    }

    /// Tortures a driver with this bug, from each start.
    fn torture(&self, entry: &'static Entry) -> Row {
        let starts = self.each(|start| {
            let target = Planting::of(entry);
            let clock = Stopwatch::new(self.stop, Some(self.limit));
            let shrink = (start == 0 && !self.args.no_shrink).then(Budget::default);
            let plan = Campaign { runs: self.args.runs, shrink, jobs: 1, ..self.args.campaign(self.first(start)) };
            let results = campaign(&plan, &target, &clock);
            let found = results.found.first();
            Start {
                seeds: results.seeds,
                ops: results.stats.ops,
                seconds: clock.seconds(),
                found: found.map(|found| (found.seed, found.finding.clone())),
                plan: found.filter(|found| found.shrunk.is_some()).map(|found| {
                    let plan = found.least();
                    (plan.ops.len(), plan.to_string())
                }),
            }
        });
        Row { entry, starts }
    }

    /// Tortures a driver without a bug, with so many seeds from each start.
    fn sound(&self, driver: Driver, seeds: u64) -> Clean {
        let all: Vec<Results> = self.each(|start| {
            let target = Planting::sound(driver);
            let clock = Stopwatch::new(self.stop, None);
            let plan = Campaign { runs: Some(seeds), shrink: None, jobs: 1, ..self.args.campaign(self.first(start)) };
            campaign(&plan, &target, &clock)
        });
        let mut stats = Stats::default();
        all.iter().for_each(|results| stats += results.stats);
        let findings = all.iter().flat_map(|results| &results.found).map(|found| (found.seed, found.finding.clone()));
        Clean {
            name: blkproof_torture::target::Target::name(&Planting::sound(driver)).to_owned(),
            seeds: all.iter().map(|results| results.seeds).sum(),
            ops: stats.ops,
            states: stats.states,
            findings: findings.collect(),
        }
    }

    /// Does something from each start, several at a time; in the order of the starts.
    fn each<T: Send>(&self, work: impl Fn(u64) -> T + Sync) -> Vec<T> {
        let count = usize::try_from(self.args.gallery_starts).unwrap_or(usize::MAX);
        let next = AtomicUsize::new(0);
        let done = Mutex::new(BTreeMap::new());
        let worker = || {
            loop {
                let start = next.fetch_add(1, Ordering::Relaxed);
                if start >= count || self.stop.asked() {
                    return;
                }
                let result = work(start as u64);
                done.lock().unwrap_or_else(PoisonError::into_inner).insert(start, result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.args.jobs().min(count) {
                scope.spawn(worker);
            }
            worker();
        });
        done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }
}

/// Watches one start, in the thread that works for it.
struct Stopwatch<'a> {
    stop: &'a Stop,
    limit: Option<Duration>,
    begun: Duration,
    /// When the last seed had ended: shrinking comes after that.
    last: Mutex<Duration>,
}

impl<'a> Stopwatch<'a> {
    fn new(stop: &'a Stop, limit: Option<Duration>) -> Self {
        Self { stop, limit, begun: processor_time(), last: Mutex::default() }
    }

    fn seconds(&self) -> f64 {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).as_secs_f64()
    }
}

impl Watch for Stopwatch<'_> {
    fn stop(&self) -> bool {
        let spent = processor_time().saturating_sub(self.begun);
        self.stop.asked() || self.limit.is_some_and(|limit| spent >= limit)
    }

    fn stop_shrinking(&self) -> bool {
        self.stop.asked()
    }

    fn seed(&self, _seed: u64, _stats: &Stats, _finding: Option<&Finding>) {
        let spent = processor_time().saturating_sub(self.begun);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = spent;
    }
}

/// Time that this thread has worked.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The middle one, and the largest.
fn spread<T: Copy + PartialOrd>(mut all: Vec<T>) -> Option<(T, T)> {
    all.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    Some((*all.get(all.len() / 2)?, *all.last()?))
}

impl Row {
    fn hits(&self) -> impl Iterator<Item = &Start> {
        self.starts.iter().filter(|start| start.found.is_some())
    }

    /// From every start.
    fn is_found(&self) -> bool {
        self.hits().count() == self.starts.len()
    }

    fn plan(&self) -> Option<&(usize, String)> {
        self.starts.iter().find_map(|start| start.plan.as_ref())
    }

    /// The code of the first start's finding.
    fn code(&self) -> &str {
        self.hits().find_map(|start| start.found.as_ref()).map_or("", |(_, finding)| finding.signature.code.as_str())
    }

    fn line(&self, width: usize) -> String {
        let name = self.entry.name;
        let found = format!("{}/{}", self.hits().count(), self.starts.len());
        let ops = spread(self.hits().map(|start| start.ops).collect());
        let seconds = spread(self.hits().map(|start| start.seconds).collect());
        let (ops, worst_ops) = ops.map_or_else(Default::default, |(mid, worst)| (grouped(mid), grouped(worst)));
        let seconds = seconds.map(|(mid, worst)| (format!("{mid:.3}"), format!("{worst:.3}")));
        let (seconds, worst) = seconds.unwrap_or_default();
        let plan = self.plan().map(|(ops, _)| ops.to_string()).unwrap_or_default();
        let missed = if self.is_found() { "" } else { "  NOT FOUND from every start" };
        format!(
            "{name:width$}  {found:>7}  {ops:>10} {worst_ops:>10}  {seconds:>7} {worst:>7}  {plan:>9}  {:<15}  {}{missed}\n",
            self.code(),
            self.entry.copies
        )
    }

    /// For the page.
    fn bug(&self) -> page::Bug<'_> {
        page::Bug {
            name: self.entry.name,
            copies: self.entry.copies,
            what: self.entry.what,
            found: (self.hits().count(), self.starts.len()),
            ops: spread(self.hits().map(|start| start.ops).collect()),
            seconds: spread(self.hits().map(|start| start.seconds).collect()),
            code: self.code(),
            plan: self.plan().map(|(ops, text)| (*ops, text.as_str())),
        }
    }

    fn json(&self) -> Value {
        let ops = spread(self.hits().map(|start| start.ops).collect());
        let seconds = spread(self.hits().map(|start| start.seconds).collect());
        let starts: Vec<Value> = self
            .starts
            .iter()
            .map(|start| {
                let found = start.found.as_ref();
                json!({
                    "found": found.is_some(), "seeds": start.seeds, "operations": start.ops, "seconds": start.seconds,
                    "seed": found.map(|(seed, _)| format!("{seed:#x}")),
                    "signature": found.map(|(_, finding)| finding.signature.to_string()),
                })
            })
            .collect();
        json!({
            "name": self.entry.name,
            "copies": self.entry.copies,
            "what": self.entry.what,
            "rule": self.entry.found.rule,
            "found": self.hits().count(),
            "operations": ops.map(|(median, worst)| json!({"median": median, "worst": worst})),
            "seconds": seconds.map(|(median, worst)| json!({"median": median, "worst": worst})),
            "plan-ops": self.plan().map(|(ops, _)| ops),
            "plan": self.plan().map(|(_, text)| text),
            "starts": starts,
        })
    }
}

impl Clean {
    /// For the page.
    fn sound(&self) -> page::Sound<'_> {
        let findings = self.findings.iter().map(|(seed, finding)| format!("seed {seed:#x}: {finding}")).collect();
        page::Sound { name: &self.name, seeds: self.seeds, ops: self.ops, states: self.states, findings }
    }

    fn line(&self, width: usize) -> String {
        let what = match self.findings.first() {
            None => "clean".to_owned(),
            Some((seed, finding)) => format!("NOT CLEAN: seed {seed:#x}: {finding}"),
        };
        format!(
            "{:width$}  without a bug: {what} ({}, {}, {})\n",
            self.name,
            counted(self.seeds, "seed"),
            counted(self.ops, "operation"),
            counted(self.states, "crash state"),
        )
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "seeds": self.seeds, "operations": self.ops, "crash-states": self.states,
            "findings": self.sound().findings,
        })
    }
}

fn summary(rows: &[Row], sound: &[Clean], complete: bool) -> String {
    let all = rows.len();
    let found = rows.iter().filter(|row| row.is_found()).count();
    let slowest = rows.iter().flat_map(Row::hits).map(|start| start.seconds).fold(0.0, f64::max);
    let shrunk = rows.iter().filter_map(Row::plan).count();
    let few = rows.iter().filter_map(Row::plan).filter(|(ops, _)| *ops <= FEW).count();
    let dirty = sound.iter().filter(|clean| !clean.findings.is_empty()).count();
    let mut text = format!(
        "\n{found} of {} found from every start; the slowest took {slowest:.3} s of a processor\n",
        counted(all as u64, "bug")
    );
    if shrunk > 0 {
        text.push_str(&format!("{few} of {} shrunk to at most {FEW} ops\n", counted(shrunk as u64, "plan")));
    }
    let drivers = counted(sound.len() as u64, "driver");
    text.push_str(&match dirty {
        0 => format!("{drivers} without a bug: clean\n"),
        dirty => format!("{dirty} of {drivers} without a bug: NOT CLEAN\n"),
    });
    if !complete {
        text.push_str("stopped before the end\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_middle_and_the_largest() {
        assert_eq!(spread(vec![3, 1, 2]), Some((2, 3)));
        assert_eq!(spread(vec![0.5]), Some((0.5, 0.5)));
        assert_eq!(spread(Vec::<u64>::new()), None);
    }
}
