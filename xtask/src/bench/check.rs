//! `blkproof check` against `qemu-img check` on large qcow2 images without data: time, peak memory, and the bare time
//! of reading the same metadata.
//!
//! The images are what `preallocation=metadata` makes: every cluster mapped, in order, in a sparse file that holds
//! nothing but tables. "Shuffled" permutes the entries of the L2 tables, as years of random guest writes leave them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::Bench;
use super::report::Table;
use crate::shell;

/// Seconds after which a peer that runs only once is stopped.
const PATIENCE: u32 = 120;

/// An image to check.
struct Image {
    title: &'static str,
    name: &'static str,
    options: &'static str,
    size: &'static str,
    shuffled: bool,
    /// Whether the peer is so slow that one round of it has to do.
    once: bool,
}

pub(super) fn in_order(bench: &Bench<'_>) -> anyhow::Result<Table> {
    run(
        bench,
        &Image {
            title: "checking a qcow2 image: 1 TiB, every cluster mapped, in order",
            name: "check-1t.qcow2",
            options: "preallocation=metadata",
            size: "1T",
            shuffled: false,
            once: false,
        },
    )
}

pub(super) fn shuffled(bench: &Bench<'_>) -> anyhow::Result<Table> {
    run(
        bench,
        &Image {
            title: "checking a qcow2 image: 1 TiB, every cluster mapped, data in random order",
            name: "check-1t-shuffled.qcow2",
            options: "preallocation=metadata",
            size: "1T",
            shuffled: true,
            once: true,
        },
    )
}

pub(super) fn small_clusters(bench: &Bench<'_>) -> anyhow::Result<Table> {
    run(
        bench,
        &Image {
            title: "checking a qcow2 image: 100 GiB in clusters of 4 KiB, every cluster mapped",
            name: "check-100g-4k.qcow2",
            options: "preallocation=metadata,cluster_size=4k",
            size: "100G",
            shuffled: false,
            once: false,
        },
    )
}

pub(super) fn mostly_empty(bench: &Bench<'_>) -> anyhow::Result<Table> {
    run(
        bench,
        &Image {
            title: "checking a qcow2 image: 64 TiB, mostly empty",
            name: "check-64t.qcow2",
            options: "preallocation=off",
            size: "64T",
            shuffled: false,
            once: false,
        },
    )
}

fn run(bench: &Bench<'_>, image: &Image) -> anyhow::Result<Table> {
    let path = bench.dir.join(image.name);
    if !path.exists() {
        let fresh = path.with_extension("new");
        let words = ["create", "-q", "-f", "qcow2", "-o", image.options, &fresh.display().to_string(), image.size];
        shell::run("qemu-img", &words)?;
        if image.options == "preallocation=off" {
            let words = ["-f", "qcow2", "-c", "write 1T 1M", "-c", "write 60T 1M", &fresh.display().to_string()];
            shell::run("qemu-io", &words)?;
        }
        if image.shuffled {
            shuffle(&fresh)?;
        }
        std::fs::rename(&fresh, &path).with_context(|| format!("naming {}", path.display()))?;
    }
    let file = path.display().to_string();
    let ours = shell::blkproof().display().to_string();
    let contenders: [(&str, Vec<&str>); 2] = [
        ("blkproof", vec![&ours, "check", "-f", "qcow2", &file]),
        ("qemu-img", vec!["qemu-img", "check", "-q", "-f", "qcow2", &file]),
    ];
    let shown = |words: &[&str]| {
        let program =
            Path::new(words[0]).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        bench.shown(&format!("{program} {}", words[1..].join(" ")))
    };
    let bare = "bare pread";
    let rows = contenders.iter().map(|(name, words)| (*name, shown(words)));
    let mut table = Table::new(
        image.title,
        "checks/s",
        rows.chain([(bare, "# the same metadata, read by pread of 1 MiB".to_owned())]),
    );
    let metadata = Metadata::of(&path)?;
    let mut memory = [0u64; 2];
    let mut stopped = false;
    for round in 0..=bench.args.rounds {
        for (place, (name, words)) in contenders.iter().enumerate() {
            if place == 1 && image.once && round != 1 {
                continue;
            }
            let patience = (place == 1 && image.once).then_some(PATIENCE);
            let Run { seconds, peak, finished } =
                measure(words, patience).with_context(|| format!("running {name}"))?;
            stopped |= !finished;
            let end = if finished { "" } else { ", not finished" };
            eprintln!("{}: round {round}, {name}: {seconds:.3} s, {peak} KiB{end}", image.name);
            // Round 0 fills the page cache.
            if round > 0 {
                table.record(place, 1.0 / seconds);
                memory[place] = memory[place].max(peak);
            }
        }
        let seconds = metadata.read()?;
        eprintln!("{}: round {round}, {bare}: {seconds:.3} s", image.name);
        if round > 0 {
            table.record(2, 1.0 / seconds);
        }
    }
    #[allow(clippy::cast_precision_loss)]
    let mib = |kib: u64| kib as f64 / 1024.0;
    table.note(format!(
        "Metadata: {} MiB. Peak memory: blkproof {:.1} MiB, qemu-img {:.1} MiB ({:.1} times ours).",
        metadata.bytes() >> 20,
        mib(memory[0]),
        mib(memory[1]),
        mib(memory[1]) / mib(memory[0])
    ));
    if stopped {
        table.note(format!(
            "qemu-img ran once and was stopped after {PATIENCE} s, unfinished: its rate is an upper bound, the ratio a lower one."
        ));
    } else if image.once {
        table.note("qemu-img ran once.".to_owned());
    }
    Ok(table)
}

/// One run of a program.
struct Run {
    seconds: f64,
    /// KiB of memory at the peak, as GNU time says.
    peak: u64,
    /// Whether it came to its end before patience did.
    finished: bool,
}

fn measure(words: &[&str], patience: Option<u32>) -> anyhow::Result<Run> {
    let patience = patience.map(|seconds| seconds.to_string());
    let limit = patience.iter().flat_map(|seconds| ["timeout", seconds.as_str()]);
    let start = Instant::now();
    let child = Command::new("/usr/bin/time")
        .args(["-f", "%M"])
        .args(limit)
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting /usr/bin/time (Debian package 'time')")?;
    let output = child.wait_with_output()?;
    let seconds = start.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stderr);
    // What `timeout` says of a program it had to stop.
    let finished = output.status.code() != Some(124);
    ensure!(output.status.success() || !finished, "it failed: {text}");
    let peak = text.lines().last().and_then(|line| line.trim().parse().ok());
    Ok(Run { seconds, peak: peak.with_context(|| format!("no figure of memory in {text:?}"))?, finished })
}

/// Where the tables of an image are.
struct Metadata {
    path: PathBuf,
    /// Offset and length, sorted, neighbours joined.
    parts: Vec<(u64, u64)>,
    l2: Vec<u64>,
    cluster: u64,
}

impl Metadata {
    fn of(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path)?;
        let word = |at: u64| -> anyhow::Result<u64> {
            let mut bytes = [0u8; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_be_bytes(bytes))
        };
        let cluster = 1u64 << (word(20)? >> 32);
        let (l1_size, l1, reftable) = (word(36)? >> 32, word(40)?, word(48)?);
        let reftable_len = (word(56)? >> 32) * cluster;
        let pointers = |at: u64, count: u64| -> anyhow::Result<Vec<u64>> {
            let mut bytes = vec![0u8; usize::try_from(count * 8)?];
            file.read_exact_at(&mut bytes, at)?;
            let entries = bytes.chunks_exact(8).map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or([0; 8])));
            Ok(entries.map(|entry| entry & 0x00ff_ffff_ffff_fe00).filter(|entry| *entry != 0).collect())
        };
        let l2 = pointers(l1, l1_size)?;
        let mut all = vec![(0, cluster), (l1, l1_size * 8), (reftable, reftable_len)];
        all.extend(l2.iter().chain(&pointers(reftable, reftable_len / 8)?).map(|table| (*table, cluster)));
        all.sort_unstable();
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for (at, len) in all {
            match parts.last_mut() {
                Some((start, whole)) if *start + *whole == at => *whole += len,
                _ => parts.push((at, len)),
            }
        }
        Ok(Self { path: path.to_owned(), parts, l2, cluster })
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, len)| len).sum()
    }

    /// Reads it all, in pieces of up to 1 MiB; how long that takes.
    fn read(&self) -> anyhow::Result<f64> {
        let file = File::open(&self.path)?;
        let mut buf = vec![0u8; 1 << 20];
        let start = Instant::now();
        for (at, len) in &self.parts {
            let mut done = 0;
            while done < *len {
                let piece = usize::try_from(len - done)?.min(buf.len());
                file.read_exact_at(&mut buf[..piece], at + done)?;
                done += piece as u64;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Permutes what the L2 tables point at; the same way every time.
fn shuffle(path: &Path) -> anyhow::Result<()> {
    let metadata = Metadata::of(path)?;
    let file = File::options().read(true).write(true).open(path)?;
    let mut tables = vec![0u8; metadata.l2.len() * usize::try_from(metadata.cluster)?];
    let cluster = usize::try_from(metadata.cluster)?;
    for (table, at) in tables.chunks_mut(cluster).zip(&metadata.l2) {
        file.read_exact_at(table, *at)?;
    }
    let mapped: Vec<usize> =
        (0..tables.len()).step_by(8).filter(|at| tables[*at..at + 8].iter().any(|byte| *byte != 0)).collect();
    let mut state = 7u64;
    for last in (1..mapped.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from((state >> 33) % (last as u64 + 1))?;
        for byte in 0..8 {
            tables.swap(mapped[last] + byte, mapped[other] + byte);
        }
    }
    for (table, at) in tables.chunks(cluster).zip(&metadata.l2) {
        file.write_all_at(table, *at)?;
    }
    file.sync_all().with_context(|| format!("writing {}", path.display()))
}
