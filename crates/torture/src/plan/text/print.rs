//! A plan's document, written.

use std::fmt;

use super::crash::print_plan;
use super::size_text;
use crate::plan::{CrashPlan, DiskSpec, Plan, RandomFaults};

/// The version of the text form: the value of `schema`.
pub const SCHEMA: &str = "blkproof.plan/1";

struct Crash<'a>(&'a CrashPlan);

impl fmt::Display for Crash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_plan(self.0, f)
    }
}

pub(super) fn plan(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "schema = \"{SCHEMA}\"")?;
    seed(f, plan.seed)?;
    if plan.crash != CrashPlan::None {
        writeln!(f, "crash = \"{}\"", Crash(&plan.crash))?;
    }
    lines(f, "ops", &plan.ops)?;
    if !plan.faults.named.is_empty() {
        lines(f, "faults", &plan.faults.named)?;
    }
    let target = &plan.target;
    writeln!(f, "\n[target]\nname = {}\nsize = \"{}\"", quoted(&target.name), size_text(target.size))?;
    if let Some(base) = target.base {
        writeln!(f, "base = \"{}\"", size_text(base))?;
    }
    if !target.options.is_empty() {
        writeln!(f, "\n[target.options]")?;
        for (name, value) in &target.options {
            writeln!(f, "{} = {}", key(name), quoted(value))?;
        }
    }
    let disk = &plan.disk;
    if *disk != DiskSpec::default() {
        writeln!(f, "\n[disk]\nblock = {}\nprofile = \"{}\"", disk.block, disk.profile.name())?;
        writeln!(f, "kind = \"{}\"\nflush-error = \"{}\"", disk.kind.name(), disk.flush_error.name())?;
        seed(f, disk.seed)?;
    }
    let random = &plan.faults.random;
    if *random != RandomFaults::default() {
        writeln!(f, "\n[random-faults]\nrate = {}", random.rate)?;
        writeln!(f, "immediate = {}\npartial = {}", random.immediate, random.partial)?;
        writeln!(f, "spare-open = {}", random.spare_open)?;
        seed(f, random.seed)?;
    }
    let schedule = &plan.schedule;
    if *schedule != blkproof_sim::Schedule::default() {
        writeln!(f, "\n[schedule]\nstrategy = \"{}\"", schedule.strategy)?;
        seed(f, schedule.seed)?;
        if !schedule.holds.is_empty() {
            lines(f, "holds", &schedule.holds)?;
        }
    }
    Ok(())
}

fn lines<T: fmt::Display>(f: &mut fmt::Formatter<'_>, name: &str, items: &[T]) -> fmt::Result {
    writeln!(f, "{name} = [")?;
    for item in items {
        writeln!(f, "    \"{item}\",")?;
    }
    writeln!(f, "]")
}

/// A seed that is no number of TOML, whose numbers are signed, is a text.
fn seed(f: &mut fmt::Formatter<'_>, seed: u64) -> fmt::Result {
    match i64::try_from(seed) {
        Ok(seed) => writeln!(f, "seed = {seed}"),
        Err(_) => writeln!(f, "seed = \"{seed:#x}\""),
    }
}

fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { quoted(name) }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            _ if letter.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(letter))),
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
