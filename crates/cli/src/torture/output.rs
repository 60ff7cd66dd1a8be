//! What is asked for on standard output and in files, and where it goes.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use blkproof_report::Style;
use blkproof_report::torture::text::{Detail, Show};
use blkproof_report::torture::{Suite, html};

use crate::terminal;

/// Characters of a line where nobody says how many there is room for.
const WIDTH: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Human,
    Json,
}

/// How much of a finding is told on a terminal.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Report {
    /// What fits on about a screen and a half
    Brief,
    /// Everything: all requests below, the script of qemu-io, the test of Rust, the plan
    Full,
}

/// The report on standard output.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// The report on standard output: human readable, or one JSON object
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub(crate) format: Format,

    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub(crate) json: bool,
}

impl Output {
    pub(crate) fn is_json(&self) -> bool {
        self.json || self.format == Format::Json
    }
}

/// The report of findings, for people.
#[derive(clap::Args)]
pub(crate) struct Pages {
    /// How much of a finding is told: brief, or full
    #[arg(long, value_name = "HOW", default_value = "brief")]
    pub(crate) report: Report,

    /// Write a page to this file too, which needs nothing else to be looked at
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

impl Pages {
    /// How the report looks on standard output.
    pub(crate) fn show(&self) -> Show {
        let detail = match self.report {
            Report::Brief => Detail::Brief,
            Report::Full => Detail::Full,
        };
        Show { style: Style { colour: terminal::colour() }, width: terminal::width().unwrap_or(WIDTH), detail }
    }

    /// Writes the page, if it is asked for.
    pub(crate) fn write(&self, suites: &[Suite<'_>]) -> anyhow::Result<()> {
        self.html.as_deref().map_or(Ok(()), |path| file(path, &html::html(suites)))
    }
}

pub(crate) fn file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("could not write '{}'", path.display()))
}
