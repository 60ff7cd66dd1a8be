//! Plans that show planted bugs, and their runs.
#![allow(dead_code, unreachable_pub, reason = "not every test uses everything")]

use blkproof_report::torture::Case;
use blkproof_torture::plan::Plan;
use blkproof_torture::run::{Outcome, Settings, run};
use blkproof_torture::target::Target;

pub const EVENTS: Settings = Settings { steps: 1_000_000, findings: 1, check: true, events: true };

/// VDI, V1: a block is mapped before its data is written, and stays so when that fails; its next write does not write
/// the map.
pub fn lost_write() -> Plan {
    "schema = \"blkproof.plan/1\"\n\
     seed = 1\n\
     ops = [\"1 write 0+512\", \"2 write 512+512 after 1\", \"3 flush after 2\"]\n\
     faults = [\"1#1 fails EIO\"]\n\
     [target]\nname = \"v1-map-before-data\"\nsize = \"1M\"\n"
        .parse()
        .unwrap()
}

pub fn outcome(plan: &Plan) -> Outcome {
    let planted = blkproof_gallery::find(&plan.target.name);
    let target: &dyn Target = match &planted {
        Some(target) => target,
        None => blkproof_torture::target::find(&plan.target.name).unwrap(),
    };
    run(plan, target, &EVENTS)
}

/// The case of a plan that fails.
pub fn with_case<T>(plan: &Plan, tell: impl FnOnce(&Case<'_>) -> T) -> T {
    let outcome = outcome(plan);
    let case = Case::of_run(plan, &outcome, "finding.toml").expect("the plan fails");
    tell(&Case { format: Some("vdi"), ..case })
}
