//! Comparing two whole images: `blkproof compare` against `cmp` and `qemu-img compare`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::Bench;
use super::report::Table;
use crate::shell;

const SIZE: u64 = 4 << 30;

pub(super) fn run(bench: &Bench<'_>) -> anyhow::Result<Table> {
    let (a, b) = (bench.dir.join("a.raw"), bench.dir.join("b.raw"));
    for image in [&a, &b] {
        if std::fs::metadata(image).map_or(0, |meta| meta.len()) != SIZE {
            fill(image, SIZE, 7)?;
        }
    }
    let (a, b) = (a.display().to_string(), b.display().to_string());
    let contenders: [(&str, PathBuf, Vec<&str>); 3] = [
        ("blkproof", shell::blkproof(), vec!["compare", "-q", "-f", "raw", "-F", "raw", &a, &b]),
        ("cmp", PathBuf::from("cmp"), vec![&a, &b]),
        ("qemu-img", PathBuf::from("qemu-img"), vec!["compare", "-f", "raw", "-F", "raw", &a, &b]),
    ];
    let mut table = Table::new(
        "comparing two equal raw images of 4 GiB in page cache",
        "GiB/s",
        contenders.iter().map(|(name, program, args)| {
            let program = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (*name, bench.shown(&format!("{program} {}", args.join(" "))))
        }),
    );
    for round in 0..=bench.args.rounds {
        for (place, (name, program, args)) in contenders.iter().enumerate() {
            let start = Instant::now();
            let status = Command::new(program)
                .args(args)
                .stdout(Stdio::null())
                .status()
                .with_context(|| format!("starting {name}"))?;
            let seconds = start.elapsed().as_secs_f64();
            ensure!(status.success(), "{name} found the images different, or failed: {status}");
            let rate = 4.0 / seconds;
            eprintln!("compare: round {round}, {name}: {rate:.2} GiB/s");
            // Round 0 fills the page cache.
            if round > 0 {
                table.record(place, rate);
            }
        }
    }
    Ok(table)
}

/// Writes `size` bytes that do not compress and hold no zero block; the same ones for the same seed.
pub(super) fn fill(path: &Path, size: u64, seed: u64) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let mut state = seed;
    for _ in 0..size / 8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.write_all(&state.to_le_bytes())?;
    }
    out.flush().with_context(|| format!("writing {}", path.display()))
}
