//! What a campaign did not test (CM 12.2 (8)).

use std::collections::BTreeSet;

use blkproof_fault::disk::Profile as CutProfile;
use blkproof_sim::{FaultDone, Strategy};
use blkproof_torture::campaign::{Campaign, Results};
use blkproof_torture::plan::{Act, CrashPlan, Plan};
use blkproof_torture::run::Stats;
use blkproof_torture::workload::TargetInfo;

use crate::text::{count, plural};

/// Seeds whose plans are looked at for what they have: what none of so many has, chance does not bring.
const SEEDS_MAX: u64 = 2000;

/// What plans may have.
const FEATURES: &[&str] = &[
    "reads",
    "writes",
    "write zeroes",
    "discards",
    "flushes",
    "drains in between",
    "status requests",
    "resizes",
    "closing and opening again",
    "power cuts in between",
    "power cuts looked into beside the run",
    "power cuts during the recovery from one",
    "FUA",
    "compressed writes",
    "zeroes that give space back",
    "zeroes that may be refused",
    "vectored reads",
    "requests out of alignment",
    "dropped requests",
    "several queues",
    "orders other than first in, first out",
    "failing requests below",
    "requests below that are refused at once",
    "requests below that fail half done",
    "images over a base",
];

/// What was tested of what could have been.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    stats: Stats,
    seeds: u64,
    looked_at: u64,
    seen: BTreeSet<&'static str>,
    profiles: BTreeSet<CutProfile>,
    blocks: BTreeSet<u32>,
    variants: BTreeSet<Vec<(String, String)>>,
    all_variants: Vec<Vec<(String, String)>>,
}

impl Coverage {
    /// Of a campaign from this first seed: what its plans had, and what it made of their power cuts. Makes the plans of
    /// its first seeds again to see what they have.
    #[must_use]
    pub fn of(results: &Results, campaign: &Campaign, info: &TargetInfo) -> Self {
        let mut coverage = Self { stats: results.stats, seeds: results.seeds, ..Self::default() };
        coverage.all_variants = info.variants.iter().map(|variant| variant.options.clone()).collect();
        let seeds =
            (0..).map(|number| campaign.first.wrapping_add(number)).filter(|seed| !results.unfinished.contains(seed));
        for seed in seeds.take(usize::try_from(results.seeds.min(SEEDS_MAX)).unwrap_or(usize::MAX)) {
            coverage.add(&campaign.plan(seed, info));
        }
        coverage
    }

    /// Of a single plan.
    #[must_use]
    pub fn of_plan(plan: &Plan, stats: Stats) -> Self {
        let mut coverage = Self { stats, seeds: 1, ..Self::default() };
        coverage.add(plan);
        coverage
    }

    fn add(&mut self, plan: &Plan) {
        self.looked_at = self.looked_at.saturating_add(1);
        self.seen.extend(features(plan));
        self.blocks.insert(plan.disk.block);
        let cuts = plan.crash != CrashPlan::None || plan.ops.iter().any(|op| matches!(op.act, Act::Cut { .. }));
        if cuts {
            self.profiles.insert(plan.disk.profile);
        }
        if !self.variants.contains(&plan.target.options) {
            self.variants.insert(plan.target.options.clone());
        }
    }

    /// What was not tested, a sentence each; the last ones say what never is.
    #[must_use]
    pub fn not_tested(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let absent: Vec<_> = FEATURES.iter().copied().filter(|feature| !self.seen.contains(feature)).collect();
        if !absent.is_empty() {
            lines.push(format!("never drawn: {}", absent.join(", ")));
        }
        let mut left: Vec<String> = Vec::new();
        for options in self.all_variants.iter().filter(|options| !self.variants.contains(*options)) {
            // Some differ in their size only.
            let words = words(options);
            if !left.contains(&words) {
                left.push(words);
            }
        }
        if !left.is_empty() {
            lines.push(format!("images never made: {}", left.join("; ")));
        }
        // Each profile allows what those before it allow.
        let stronger = |profile: &CutProfile| self.profiles.last().is_none_or(|seen| profile > seen);
        let profiles: Vec<_> =
            CutProfile::NAMES.iter().filter(|(_, profile)| stronger(profile)).map(|(name, _)| *name).collect();
        if !profiles.is_empty() {
            lines.push(format!(
                "power cuts of disks of profile {}, and of disks that lie about flushes",
                profiles.join(", ")
            ));
        }
        lines.push(self.crash_points());
        if self.looked_at < self.seeds {
            lines.push(format!(
                "what was drawn was looked up for the first {} of {} only",
                count(self.looked_at),
                plural(self.seeds, "seed")
            ));
        }
        lines.push("real threads, and what one thread can not show".to_owned());
        lines
    }

    fn crash_points(&self) -> String {
        let Stats { points, exhausted, possible, states, distinct, .. } = self.stats;
        if points == 0 {
            return "power cuts: none was looked into".to_owned();
        }
        let share = crate::map::percent(exhausted, points);
        format!(
            "power cuts: of {}, {share} were looked into in every state; {} built, {} opened and judged, of {}{} possible",
            plural(points, "moment"),
            plural(states, "state"),
            count(distinct),
            if possible == u64::MAX { "more than " } else { "about " },
            if possible == u64::MAX { "2^64".to_owned() } else { count(possible) }
        )
    }

    /// Of the moments at which the power could go, those of which every state was looked into; and all.
    #[must_use]
    pub fn exhaustive(&self) -> (u64, u64) {
        (self.stats.exhausted, self.stats.points)
    }
}

fn words(options: &[(String, String)]) -> String {
    match options {
        [] => "without options".to_owned(),
        _ => options.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(","),
    }
}

/// What a plan has of [`FEATURES`].
fn features(plan: &Plan) -> Vec<&'static str> {
    let mut has = Vec::new();
    let mut put = |feature: &'static str, is: bool| {
        if is {
            has.push(feature);
        }
    };
    for op in &plan.ops {
        let act = &op.act;
        put("vectored reads", matches!(act, Act::Read { vector, .. } if !vector.is_empty()));
        put("FUA", matches!(act, Act::Write { fua: true, .. } | Act::Zeroes { fua: true, .. }));
        put("compressed writes", matches!(act, Act::Write { compressed: true, .. }));
        put("zeroes that give space back", matches!(act, Act::Zeroes { unmap: true, .. }));
        put("zeroes that may be refused", matches!(act, Act::Zeroes { no_fallback: true, .. }));
        let odd = act.range().is_some_and(|range| (range.start | range.end) % 512 != 0);
        put("requests out of alignment", odd);
        put("dropped requests", op.drop_at.is_some());
        put("several queues", op.queue > 0);
        let kind = match act {
            Act::Read { .. } => "reads",
            Act::Write { .. } => "writes",
            Act::Zeroes { .. } => "write zeroes",
            Act::Discard { .. } => "discards",
            Act::Flush => "flushes",
            Act::Drain => "drains in between",
            Act::Status { .. } => "status requests",
            Act::Resize { .. } => "resizes",
            Act::Reopen => "closing and opening again",
            Act::Cut { .. } => "power cuts in between",
        };
        put(kind, true);
    }
    put("power cuts looked into beside the run", plan.crash != CrashPlan::None);
    let again = match &plan.crash {
        CrashPlan::Explore { depth, .. } => *depth > 0,
        CrashPlan::At { again, .. } => again.is_some(),
        CrashPlan::None => false,
    };
    put("power cuts during the recovery from one", again);
    let ordered = plan.schedule.strategy != Strategy::Fifo || !plan.schedule.holds.is_empty();
    put("orders other than first in, first out", ordered);
    let (named, random) = (&plan.faults.named, &plan.faults.random);
    put("failing requests below", !named.is_empty() || random.rate > 0);
    let refused = named.iter().any(|fault| fault.immediate) || random.rate > 0 && random.immediate > 0;
    put("requests below that are refused at once", refused);
    let half = named.iter().any(|fault| fault.done != FaultDone::Nothing) || random.rate > 0 && random.partial > 0;
    put("requests below that fail half done", half);
    put("images over a base", plan.target.base.is_some());
    has
}
