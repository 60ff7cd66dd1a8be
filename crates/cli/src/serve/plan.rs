//! What is to be served, whether the command line says so or a lab file.

use std::path::Path;

use anyhow::{Context as _, bail};
use blkproof_block::graph::OpenFlags;
use blkproof_fault::disk::DiskOptions;
use blkproof_fault::file::lab::{self, ExportEntry, LabFile, Written};
use blkproof_fault::file::{Mistakes, in_file};
use blkproof_fault::rule::RuleSet;
use blkproof_verify::OnMismatch;

use super::listen::Address;
use super::{Args, parse_on_mismatch};
use crate::control;
use crate::graph::read_rules;
use crate::messages::without_number;

/// Whether a node stands in front of a graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    No,
    /// So that there is one: not if the graph has one of its own, which would make it unclear which is meant.
    Some,
    Yes,
}

/// One export.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct ExportPlan {
    pub(super) name: String,
    pub(super) description: String,
    /// What is served.
    pub(super) graph: String,
    pub(super) format: Option<String>,
    pub(super) image_opts: bool,
    pub(super) flags: OpenFlags,
    /// What stands in front of it.
    pub(super) disk: Option<DiskOptions>,
    pub(super) log: Option<String>,
    pub(super) trace: Option<String>,
    pub(super) stats: Wanted,
    /// A node for rules, even if there is no rule yet.
    pub(super) fault: Wanted,
    pub(super) rules: RuleSet,
    /// Before the names of its nodes.
    pub(super) prefix: String,
}

impl ExportPlan {
    /// Whether the two differ in their rules alone, or not at all.
    pub(super) fn is_same_but_for_rules(&self, other: &Self) -> bool {
        // A node for rules that was there without any stays.
        let fault = if self.fault == Wanted::Yes { other.fault } else { self.fault };
        let bare = |plan: &Self| Self { rules: RuleSet::default(), fault, ..plan.clone() };
        bare(self) == bare(other)
    }

    /// Whether anything stands in front of the graph.
    pub(super) fn is_bare(&self) -> bool {
        let records = self.log.is_some() || self.trace.is_some() || self.stats != Wanted::No;
        self.disk.is_none() && !records && self.fault == Wanted::No
    }
}

/// Everything.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Plan {
    pub(super) exports: Vec<ExportPlan>,
    pub(super) listen: Vec<Address>,
    pub(super) control: Option<control::Address>,
    pub(super) prometheus: Option<String>,
    pub(super) on_mismatch: OnMismatch,
    pub(super) connections: usize,
    pub(super) in_flight_bytes: usize,
}

impl Plan {
    /// What the command line says, and the lab file it names.
    ///
    /// # Errors
    /// With everything that is wrong with the file, a line each.
    pub(super) fn new(args: &Args) -> anyhow::Result<Self> {
        match &args.config {
            Some(path) => Self::from_file(args, path),
            None => Self::from_args(args),
        }
    }

    fn from_args(args: &Args) -> anyhow::Result<Self> {
        let names = names(args)?;
        let rules = args.rules.as_ref().map(|path| path.display().to_string());
        let rules = rules.map(|path| read_rules(&path).map_err(anyhow::Error::msg)).transpose()?;
        let flags = if args.read_only { args.image.reading() } else { args.image.writing() };
        let several = args.graphs.len() > 1;
        if several && (args.log.is_some() || args.trace.is_some()) {
            bail!("one log or trace can not serve several exports; name one for each in a file (--config)");
        }
        let each = names.iter().zip(&args.graphs).enumerate();
        let exports = each.map(|(index, (name, graph))| {
            let mut rules = rules.clone().unwrap_or_default();
            let mut disk = args.disk;
            if let Some(seed) = args.seed {
                rules.seed = seed;
                disk = disk.map(|disk| DiskOptions { seed, ..disk });
            }
            let words = args.description.get(index).or(args.description.first());
            ExportPlan {
                name: name.clone(),
                description: words.cloned().unwrap_or_default(),
                graph: graph.clone(),
                format: args.image.image_format.clone(),
                image_opts: args.image.image_opts,
                flags,
                disk,
                log: args.log.clone(),
                trace: args.trace.clone(),
                stats: wanted(args.stats, args.prometheus.is_some()),
                fault: wanted(args.rules.is_some(), args.control.is_some()),
                rules,
                prefix: if several { format!("{name}.") } else { String::new() },
            }
        });
        let exports = exports.collect();
        Ok(Self {
            exports,
            listen: vec![args.address().unwrap_or_else(|| Address::tcp(DEFAULT_ADDRESS))],
            control: args.control.clone(),
            prometheus: args.prometheus.clone(),
            on_mismatch: args.on_mismatch.unwrap_or_default(),
            connections: args.max_connections.unwrap_or(CONNECTIONS),
            in_flight_bytes: memory(args.max_in_flight.unwrap_or(IN_FLIGHT_BYTES))?,
        })
    }

    fn from_file(args: &Args, path: &Path) -> anyhow::Result<Self> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let words = error.to_string();
            anyhow::anyhow!("could not read '{file}': {}", without_number(&words))
        })?;
        let lab = lab::read(&file, &text).map_err(anyhow::Error::msg)?;
        for warning in &lab.warnings {
            eprintln!("warning: {}", in_file(&file, warning));
        }
        Self::from_lab(args, &file, lab)
    }

    /// What only this program can judge: addresses, words of other crates, rule files.
    fn from_lab(args: &Args, file: &str, lab: LabFile) -> anyhow::Result<Self> {
        let mut wrong = Wrong { file, mistakes: Vec::new() };
        let listen: Vec<Address> = match args.address() {
            Some(address) => vec![address],
            None if lab.listen.is_empty() => vec![Address::tcp(DEFAULT_ADDRESS)],
            None => lab.listen.iter().filter_map(|text| wrong.unless(text, |text| text.parse())).collect(),
        };
        let control = match &args.control {
            Some(address) => Some(address.clone()),
            None => lab.control.as_ref().and_then(|text| wrong.unless(text, |text| text.parse())),
        };
        let on_mismatch = lab.on_mismatch.as_ref().and_then(|word| wrong.unless(word, parse_on_mismatch));
        let prometheus = args.prometheus.clone().or_else(|| lab.prometheus.map(|address| address.value));
        let watched = prometheus.is_some();
        let seed = args.seed.or(lab.seed);
        let mut exports = Vec::with_capacity(lab.exports.len());
        for export in lab.exports {
            let rules = match &export.rules_file {
                Some(name) => wrong.unless(name, read_rules),
                None => Some(export.rules.clone()),
            };
            let mut plan = plan_of(args, export, rules.unwrap_or_default(), seed);
            if watched && plan.stats == Wanted::No {
                plan.stats = Wanted::Some;
            }
            exports.push(plan);
        }
        wrong.end()?;
        let connections = lab.max_connections.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        Ok(Self {
            exports,
            listen,
            control,
            prometheus,
            on_mismatch: args.on_mismatch.or(on_mismatch).unwrap_or_default(),
            connections: args.max_connections.or(connections).unwrap_or(CONNECTIONS),
            in_flight_bytes: memory(args.max_in_flight.or(lab.max_in_flight).unwrap_or(IN_FLIGHT_BYTES))?,
        })
    }
}

/// Where clients come in if nobody says so.
const DEFAULT_ADDRESS: &str = "127.0.0.1:10809";

/// Most connections if nobody says so.
const CONNECTIONS: usize = 64;

/// Most bytes in flight if nobody says so.
const IN_FLIGHT_BYTES: u64 = 256 << 20;

fn wanted(asked: bool, needed: bool) -> Wanted {
    match (asked, needed) {
        (true, _) => Wanted::Yes,
        (false, true) => Wanted::Some,
        (false, false) => Wanted::No,
    }
}

fn memory(bytes: u64) -> anyhow::Result<usize> {
    usize::try_from(bytes).context("--max-in-flight is larger than memory")
}

/// The names given; a single graph needs none.
fn names(args: &Args) -> anyhow::Result<Vec<String>> {
    let (graphs, given) = (args.graphs.len(), args.export.len());
    let names = if args.export.is_empty() { vec![String::new()] } else { args.export.clone() };
    if names.len() != graphs {
        bail!("{graphs} graphs and {given} export names; give --export once for each graph");
    }
    let texts = args.description.len();
    if texts > 1 && texts != graphs {
        bail!("{graphs} graphs and {texts} descriptions; give --description once for all, or once for each");
    }
    Ok(names)
}

fn plan_of(args: &Args, export: ExportEntry, mut rules: RuleSet, seed: Option<u64>) -> ExportPlan {
    let mut disk = export.disk;
    if let Some(seed) = seed {
        if !export.rules_seeded && export.rules_file.is_none() {
            rules.seed = seed;
        }
        disk = disk.map(|disk| if export.disk_seeded { disk } else { DiskOptions { seed, ..disk } });
    }
    let flags = OpenFlags {
        read_only: export.read_only || args.read_only,
        cache: export.cache.unwrap_or(args.image.cache),
        allow_backing: export.allow_backing || args.image.allow_backing,
        force_share: export.force_share || args.image.force_share,
        ..OpenFlags::default()
    };
    // Also where it is the only one, and also without rules: what is added to the file later must not change a name,
    // nor send a client away.
    let prefix = if export.name.value.is_empty() { String::new() } else { format!("{}.", export.name.value) };
    ExportPlan {
        name: export.name.value,
        description: export.description.unwrap_or_default(),
        graph: export.graph.value,
        format: export.format,
        image_opts: export.image_opts,
        flags,
        disk,
        log: export.log,
        trace: export.trace,
        stats: wanted(export.stats, false),
        fault: wanted(export.rules_file.is_some() || !rules.rules.is_empty(), true),
        rules,
        prefix,
    }
}

/// What is wrong with a lab file, beyond what stands in it.
struct Wrong<'a> {
    file: &'a str,
    mistakes: Vec<blkproof_fault::file::Mistake>,
}

impl Wrong<'_> {
    fn unless<T>(&mut self, text: &Written<String>, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match read(&text.value) {
            Ok(value) => Some(value),
            Err(words) => {
                self.mistakes.push(text.mistake(words));
                None
            }
        }
    }

    fn end(self) -> anyhow::Result<()> {
        if self.mistakes.is_empty() {
            return Ok(());
        }
        let mistakes = Mistakes { file: self.file.to_owned(), list: self.mistakes, more: 0 };
        Err(anyhow::Error::msg(mistakes))
    }
}
