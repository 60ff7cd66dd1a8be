//! The drivers this program knows, and the arguments by which a user names a graph.

use std::rc::Rc;

use anyhow::Context as _;
use blkproof_block::graph::{CacheMode, OpenContext, OpenFlags, Registry};
use blkproof_block::{IoError, Node};
use blkproof_fault::blkdebug::BlkdebugDriver;
use blkproof_fault::disk::DiskDriver;
use blkproof_fault::filter::FaultDriver;
use blkproof_fault::lab::Lab;
use blkproof_fault::log_writes::driver::LogWritesDriver;
use blkproof_fault::rule::RuleSet;
use blkproof_fault::stats::StatsDriver;
use blkproof_fault::trace::TraceDriver;
use blkproof_nbd::driver::NbdDriver;
use blkproof_verify::OnMismatch;

use crate::clock::MachineClock;
use crate::messages::without_number;
use crate::mismatches::Mismatches;
use crate::sockets::Sockets;
use crate::trace_file::TraceFiles;

/// A lab on the clock of this machine.
pub(crate) fn lab() -> Rc<Lab> {
    Lab::new(Rc::new(MachineClock::new()))
}

/// Every driver; mismatches of a mirror are printed, and otherwise forgotten.
pub(crate) fn registry() -> Registry {
    registry_with(&Mismatches::default(), OnMismatch::Report, &lab())
}

/// Every driver; mirrors report to `mismatches`, and do `on_mismatch` unless their graph says something else. Nodes that
/// can be controlled are made known to `lab`.
pub(crate) fn registry_with(mismatches: &Mismatches, on_mismatch: OnMismatch, lab: &Rc<Lab>) -> Registry {
    let mut registry = Registry::new();
    blkproof_block::nodes::register(&mut registry);
    registry.add(blkproof_formats::qcow2::Qcow2Driver);
    registry.add(blkproof_formats::vdi::VdiDriver);
    registry.add(NbdDriver(Sockets));
    registry.add(mismatches.driver(on_mismatch));
    registry.add(blkdebug(lab));
    registry.add(DiskDriver::new(lab));
    registry.add(FaultDriver::new(lab, Rc::new(read_rules)));
    registry.add(LogWritesDriver::new(lab));
    registry.add(StatsDriver::new(lab));
    registry.add(TraceDriver::new(lab, Rc::new(TraceFiles)));
    registry
}

/// blkdebug, which says nothing of its breakpoints.
pub(crate) fn blkdebug(lab: &Rc<Lab>) -> BlkdebugDriver {
    let read = |path: &str| std::fs::read_to_string(path).map_err(IoError::from);
    BlkdebugDriver::new(lab, Rc::new(read))
}

/// Reads a rule file; what its author hardly meant is a warning.
///
/// # Errors
/// With everything that is wrong with it, a line each.
pub(crate) fn read_rules(path: &str) -> Result<RuleSet, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let words = error.to_string();
        format!("could not read the rules in '{path}': {}", without_number(&words))
    })?;
    let read = blkproof_fault::file::read(path, &text).map_err(|mistakes| mistakes.to_string())?;
    for warning in &read.warnings {
        eprintln!("warning: {}", blkproof_fault::file::in_file(path, warning));
    }
    Ok(read.rules)
}

/// How an image given on the command line is to be opened.
#[derive(clap::Args, Clone)]
pub(crate) struct ImageArgs {
    /// Format of the image (raw, qcow2, vdi); without it the image is probed, and never guessed to be raw for writing
    #[arg(short = 'f', long, value_name = "FMT")]
    pub(crate) image_format: Option<String>,

    /// The image is a list of options, such as driver=qcow2,file.filename=a.qcow2
    #[arg(long, conflicts_with = "image_format")]
    pub(crate) image_opts: bool,

    /// Open the backing and data files that the image itself names
    #[arg(long)]
    pub(crate) allow_backing: bool,

    /// Cache mode of the host file: writeback, writethrough, none, directsync or unsafe
    #[arg(short = 't', long, value_name = "MODE", default_value = "writeback", value_parser = parse_cache)]
    pub(crate) cache: CacheMode,

    /// Open although another process holds the image; read-only
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
}

impl ImageArgs {
    /// The flags for a graph that is only read.
    pub(crate) fn reading(&self) -> OpenFlags {
        OpenFlags { read_only: true, ..self.writing() }
    }

    /// The flags for a graph that is written too.
    pub(crate) fn writing(&self) -> OpenFlags {
        OpenFlags {
            cache: self.cache,
            allow_backing: self.allow_backing,
            force_share: self.force_share,
            ..OpenFlags::default()
        }
    }

    /// Opens `name` as these arguments say.
    pub(crate) async fn open(&self, registry: &Registry, name: &str, flags: OpenFlags) -> anyhow::Result<Node> {
        let context = OpenContext { registry, flags };
        context
            .open_image(name, self.image_format.as_deref(), self.image_opts)
            .await
            .with_context(|| format!("could not open '{name}'"))
    }
}

pub(crate) fn parse_cache(word: &str) -> Result<CacheMode, String> {
    CacheMode::from_name(word).ok_or_else(|| {
        format!("'{word}' is no cache mode; there are writeback, writethrough, none, directsync and unsafe")
    })
}

/// A size on the command line: 65536, 64k, 1.5G.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    blkproof_block::graph::parse_size(text)
        .ok_or_else(|| format!("'{text}' is no size; write a number, or one with a suffix: 64k, 1.5G, 2T"))
}
