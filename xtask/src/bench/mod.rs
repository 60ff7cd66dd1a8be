//! `cargo xtask bench`: speed, side by side with the peers, in one run.
//!
//! Every comparison runs its contenders in turn, A B C A B C …, and compares within a round: these machines are shared
//! and drift, so a ratio taken inside a round means more than two figures taken minutes apart. Medians are printed and
//! written to `docs/benchmarks.md` with the commands.

mod ask;
mod check;
mod client;
mod compare;
mod fio;
mod report;
mod servers;
mod torture;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::shell;
use report::{Report, Table};
use servers::{Served, Server};

/// Measure speed side by side with QEMU, nbdkit and cmp
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the benchmarks whose name contains this
    filter: Option<String>,

    /// Rounds; the median of them is reported
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Seconds each contender runs in a round
    #[arg(long, default_value_t = 3)]
    seconds: u64,

    /// Folder for the images (about 10 GiB); a temporary one in target/ if left out
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    shell::run("cargo", &["build", "--release", "--bin", "blkproof"])?;
    let dir = args.dir.clone().unwrap_or_else(|| shell::root().join("target/bench"));
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let bench = Bench { args, dir: &dir };
    let mut report = Report::default();
    let wanted = |name: &str| args.filter.as_ref().is_none_or(|filter| name.contains(filter));
    for (name, measure) in BENCHMARKS {
        if wanted(name) {
            report.add(measure(&bench).with_context(|| format!("benchmark {name}"))?);
        }
    }
    anyhow::ensure!(!report.is_empty(), "no benchmark is called like {:?}", args.filter);
    println!("{report}");
    if args.filter.is_none() {
        let page = shell::root().join("docs/benchmarks.md");
        std::fs::create_dir_all(shell::root().join("docs")).context("creating docs/")?;
        std::fs::write(&page, report.page()?).with_context(|| format!("writing {}", page.display()))?;
    }
    Ok(())
}

type Measure = fn(&Bench<'_>) -> anyhow::Result<Table>;

const BENCHMARKS: &[(&str, Measure)] = &[
    ("nbd-random-4k-light", |bench| bench.nbd("4 KiB random reads, depth 32, light client", Load::RANDOM, light)),
    ("nbd-random-4k-fio", |bench| bench.nbd("4 KiB random reads, depth 32, fio", Load::RANDOM, fio::run)),
    ("nbd-sequential-256k-light", |bench| {
        bench.nbd("256 KiB sequential reads, depth 32, light client", Load::SEQUENTIAL, light)
    }),
    ("nbd-sequential-256k-fio", |bench| {
        bench.nbd("256 KiB sequential reads, depth 32, fio", Load::SEQUENTIAL, fio::run)
    }),
    ("blkverify-random-4k-light", |bench| bench.blkverify("blkverify, 4 KiB random reads, light client", light)),
    ("blkverify-random-4k-fio", |bench| bench.blkverify("blkverify, 4 KiB random reads, fio", fio::run)),
    ("fault-idle-random-4k-light", |bench| {
        bench.idle("4 KiB random reads, light client, no node and idle nodes", light)
    }),
    ("fault-idle-random-4k-fio", |bench| bench.idle("4 KiB random reads, fio, no node and idle nodes", fio::run)),
    ("ask-random-4k-light", ask::run),
    ("compare-4g", compare::run),
    ("check-1t-in-order", check::in_order),
    ("check-1t-shuffled", check::shuffled),
    ("check-100g-4k", check::small_clusters),
    ("check-64t-empty", check::mostly_empty),
    ("torture-operations", torture::ops),
    ("torture-crash-states", torture::states),
    ("torture-workers", torture::workers),
];

/// Shape of the requests.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    block: u32,
    random: bool,
    depth: usize,
    /// Offset of the first byte that is asked for.
    from: u64,
}

impl Load {
    const RANDOM: Self = Self { block: 4096, random: true, depth: 32, from: 0 };
    const SEQUENTIAL: Self = Self { block: 256 << 10, random: false, depth: 32, from: 0 };
}

/// Runs a load against a socket and returns requests per second.
type Client = fn(&Path, Load, Duration) -> anyhow::Result<f64>;

fn light(socket: &Path, load: Load, time: Duration) -> anyhow::Result<f64> {
    client::run(socket, load, time)
}

pub(crate) struct Bench<'a> {
    args: &'a Args,
    dir: &'a Path,
}

const DISK: u64 = 1 << 30;

impl Bench<'_> {
    fn nbd(&self, title: &str, load: Load, client: Client) -> anyhow::Result<Table> {
        let raw = self.raw_image()?;
        let contenders = [
            Server::Blkproof(Served::Raw(raw.clone())),
            Server::QemuNbd(Served::Raw(raw.clone())),
            Server::Nbdkit(raw),
        ];
        self.race(title, &contenders, load, client)
    }

    fn blkverify(&self, title: &str, client: Client) -> anyhow::Result<Table> {
        let raw = self.raw_image()?;
        let qcow2 = self.dir.join("disk.qcow2");
        if !qcow2.exists() {
            shell::run(
                "qemu-img",
                &["convert".as_ref(), "-O".as_ref(), "qcow2".as_ref(), raw.as_os_str(), qcow2.as_os_str()],
            )?;
        }
        let pair = Served::Mirror { raw, qcow2 };
        self.race(title, &[Server::Blkproof(pair.clone()), Server::QemuNbd(pair)], Load::RANDOM, client)
    }

    /// What filters of ours cost that have nothing to do.
    fn idle(&self, title: &str, client: Client) -> anyhow::Result<Table> {
        let raw = self.raw_image()?;
        let under = |filter| Server::Blkproof(Served::Under { filter, raw: raw.clone() });
        self.race(
            title,
            &[Server::Blkproof(Served::Raw(raw.clone())), under("fault"), under("stats")],
            Load::RANDOM,
            client,
        )
    }

    /// Runs every contender in every round. The first one is ours; ratios are ours to theirs.
    fn race(&self, title: &str, contenders: &[Server], load: Load, client: Client) -> anyhow::Result<Table> {
        let mut table = Table::new(
            title,
            "requests/s",
            contenders.iter().map(|server| (server.name(), self.shown(&server.command(Path::new("SOCKET")).join(" ")))),
        );
        contenders.iter().flat_map(Server::images).try_for_each(warm)?;
        for round in 0..self.args.rounds {
            for (place, server) in contenders.iter().enumerate() {
                let running = server.start(self.dir)?;
                // The first requests warm the page cache of a fresh server; they are not counted.
                client(running.socket(), load, Duration::from_millis(300))?;
                let figure = client(running.socket(), load, Duration::from_secs(self.args.seconds))?;
                eprintln!("{title}: round {}, {}: {figure:.0} requests/s", round + 1, server.name());
                table.record(place, figure);
            }
        }
        Ok(table)
    }

    /// A command as anybody would type it: images by their names alone.
    fn shown(&self, command: &str) -> String {
        command.replace(&format!("{}/", self.dir.display()), "")
    }

    /// A fully written raw image.
    fn raw_image(&self) -> anyhow::Result<PathBuf> {
        let raw = self.dir.join("disk.raw");
        if std::fs::metadata(&raw).map_or(0, |meta| meta.len()) != DISK {
            compare::fill(&raw, DISK, 1)?;
        }
        Ok(raw)
    }
}

/// Reads a file once, so that all of it lies in the page cache.
fn warm(path: &Path) -> anyhow::Result<()> {
    let mut file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    std::io::copy(&mut file, &mut std::io::sink()).with_context(|| format!("reading {}", path.display()))?;
    Ok(())
}
