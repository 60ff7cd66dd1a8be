//! How fast drivers of ours are tortured. There is no peer to race: each row is the same work on something else.

use anyhow::Context as _;

use super::Bench;
use super::report::Table;
use crate::shell;

/// A figure: what is counted, of which driver, on a disk of how many bytes or by how many workers.
struct Case {
    name: &'static str,
    words: [&'static str; 3],
}

const MIB_64: &str = "67108864";
const TIB: &str = "1099511627776";

/// Guest operations a second; the first row is the shortest way from the client to the disk.
pub(super) fn ops(bench: &Bench<'_>) -> anyhow::Result<Table> {
    let cases = [
        Case { name: "raw, 64 MiB", words: ["ops", "raw", MIB_64] },
        Case { name: "vdi, 64 MiB", words: ["ops", "vdi", MIB_64] },
        Case { name: "qcow2, 64 MiB", words: ["ops", "qcow2", MIB_64] },
        Case { name: "raw, 1 TiB", words: ["ops", "raw", TIB] },
        Case { name: "vdi, 1 TiB", words: ["ops", "vdi", TIB] },
        Case { name: "qcow2, 1 TiB", words: ["ops", "qcow2", TIB] },
    ];
    let title = "torture: 4 KiB reads and writes of 8 queues, a flush of 64, random schedule, oracle on, one core";
    measure(bench, title, "operations/s", &cases)
}

/// States after a power cut, opened, checked and judged.
pub(super) fn states(bench: &Bench<'_>) -> anyhow::Result<Table> {
    let cases = [
        Case { name: "raw", words: ["states", "raw", MIB_64] },
        Case { name: "vdi", words: ["states", "vdi", MIB_64] },
        Case { name: "qcow2", words: ["states", "qcow2", MIB_64] },
    ];
    let title = "torture: states after a power cut, 64 MiB, 64 requests, up to 4096 states of each moment, one core";
    measure(bench, title, "states/s", &cases)
}

/// Whole seeds, by two workers and by one.
pub(super) fn workers(bench: &Bench<'_>) -> anyhow::Result<Table> {
    let cases = [
        Case { name: "two workers", words: ["seeds", "vdi", "2"] },
        Case { name: "one worker", words: ["seeds", "vdi", "1"] },
    ];
    measure(bench, "torture: seeds of profile quick against vdi", "seeds/s", &cases)
}

fn measure(bench: &Bench<'_>, title: &str, unit: &'static str, cases: &[Case]) -> anyhow::Result<Table> {
    let build = ["build", "--release", "--package", "blkproof-torture", "--example", "speed"];
    shell::run("cargo", &build)?;
    let program = shell::target().join("release/examples/speed").display().to_string();
    let rows = cases.iter().map(|case| {
        (case.name, format!("cargo run --release -p blkproof-torture --example speed -- {}", case.words.join(" ")))
    });
    let mut table = Table::new(title, unit, rows);
    for round in 1..=bench.args.rounds {
        for (place, case) in cases.iter().enumerate() {
            let output = shell::output(&program, &case.words)?;
            let last = output.lines().last().unwrap_or_default();
            let figure: f64 = last.parse().with_context(|| format!("the last line is '{last}', no figure"))?;
            eprintln!("{title}: round {round}, {}: {figure:.0} {unit}", case.name);
            table.record(place, figure);
        }
    }
    Ok(table)
}
