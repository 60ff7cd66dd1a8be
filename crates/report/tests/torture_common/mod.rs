//! Plans that show planted bugs, and their runs.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Stdio};

use blkproof_report::torture::{Case, Coverage, Ended, Entry, Suite};
use blkproof_torture::plan::{Plan, TargetSpec};
use blkproof_torture::run::{Outcome, Settings, Stats, run};
use blkproof_torture::store::{Issue, Standing};
use blkproof_torture::target::{Content, Files, Opening, Target};

pub const EVENTS: Settings = Settings { steps: 1_000_000, findings: 1, check: true, events: true };

/// VDI, V1: a block is mapped before its data is written, and stays so when that fails; its next write does not write
/// the map.
pub const LOST_WRITE: &str = r#"schema = "blkproof.plan/1"
seed = 1
ops = ["1 write 0+512", "2 write 512+512 after 1", "3 flush after 2"]
faults = ["1#1 fails EIO"]
[target]
name = "v1-map-before-data"
size = "1M"
"#;

/// VDI, M35: a flush is acknowledged without a flush below.
pub const LOST_FLUSH: &str = r#"schema = "blkproof.plan/1"
seed = 1
crash = "at after 2 all-old"
ops = ["1 write 64K+1K", "2 q1 flush after 1", "3 q2 write 128K+512 after 1"]
[target]
name = "m35-flush-without-barrier"
size = "1M"
"#;

/// The same, with the power cut in the middle.
pub const SECOND_LIFE: &str = r#"schema = "blkproof.plan/1"
seed = 1
ops = [
    "1 write 64K+1K",
    "2 flush after 1",
    "3 q1 write 64K+512 after 1 drop@1",
    "4 cut all-old",
    "5 q2 read 64K+2K as 1K+1K",
    "6 reopen",
]
[target]
name = "m35-flush-without-barrier"
size = "1M"
"#;

pub fn plan(text: &str) -> Plan {
    text.parse().unwrap()
}

/// A run of a plan against the copy of a driver that it names.
pub fn outcome(plan: &Plan) -> Outcome {
    run(plan, &blkproof_gallery::find(&plan.target.name).unwrap(), &EVENTS)
}

/// The case of a plan that fails.
pub fn with_case<T>(plan: &Plan, tell: impl FnOnce(Case<'_>) -> T) -> T {
    let outcome = outcome(plan);
    let case = Case::of_run(plan, &outcome, Some("finding.toml")).expect("the plan fails");
    tell(Case { format: Some("vdi"), ..case })
}

/// A suite of a campaign with these findings.
pub fn suite<'a>(target: &'a str, cases: &[Case<'a>], coverage: &'a Coverage) -> Suite<'a> {
    let entries = cases.iter().map(|case| Entry::new(*case)).collect();
    let stats =
        Stats { ops: 421, faults: 7, points: 40, exhausted: 10, states: 300, distinct: 150, ..Stats::default() };
    let ended = Ended::Findings;
    let coverage = Some(coverage);
    Suite { target, profile: "quick", first: Some(3), seeds: 17, stats, ended, seconds: Some(1.25), entries, coverage }
}

/// Known until that day.
pub fn known(why: &str) -> Standing {
    let signature = "flush::recovery:".parse().unwrap();
    Standing::Known(Issue { signature, target: None, until: "2099-01-01".parse().unwrap(), why: why.to_owned() })
}

/// What breaks out of every place that does not escape it.
pub const HOSTILE: &str =
    "x\"'><script>alert(1)</script>]]>&\u{1b}[2J\u{202e}%0A::error::y,z:w\r\n::warning::q `rm` $(rm) /* */ \"#";

/// A driver with a hostile name that panics with hostile words.
pub struct Hostile;

impl Target for Hostile {
    fn name(&self) -> &str {
        HOSTILE
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        Ok(Content::new(spec.size))
    }

    fn open(&self, _files: Files, _spec: &TargetSpec) -> Opening {
        panic!("{HOSTILE}")
    }
}

pub fn hostile_plan() -> Plan {
    let mut plan =
        plan("schema = \"blkproof.plan/1\"\nseed = 1\nops = [\"1 flush\"]\n[target]\nname = \"x\"\nsize = \"1M\"\n");
    plan.target.name = HOSTILE.to_owned();
    plan.target.options = vec![(HOSTILE.to_owned(), HOSTILE.to_owned())];
    plan
}

/// Compares with a file beside the tests; `UPDATE_GOLDEN=1` writes it instead.
pub fn golden(name: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture_golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(got == want, "{name} is not what it was; UPDATE_GOLDEN=1 makes it so:\n{got}");
}

/// What a program of Python makes of a text on its standard input.
pub fn python(program: &str, input: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed (scripts/install-peers)");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "python3 refuses {input}");
    String::from_utf8(output.stdout).unwrap()
}
