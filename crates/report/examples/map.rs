//! Writes the pictures of images, or of some made-up ones, to look at:
//! `cargo run -p blkproof-report --example map -- FOLDER [IMAGE…]`.

#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use blkproof_check::source::FileSource;
use blkproof_check::watch::Silent;
use blkproof_check::{Options, Report, check};
use blkproof_report::map;

fn main() -> std::io::Result<()> {
    let mut words = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = words.next().unwrap_or_else(|| "maps".into());
    std::fs::create_dir_all(&folder)?;
    let images: Vec<PathBuf> = words.collect();
    if images.is_empty() {
        for (name, report) in common::all().into_iter().chain([("worst", common::worst())]) {
            write(&folder, name, &report)?;
        }
    }
    for image in images {
        let options = Options { cells: map::CELLS, ..Options::default() };
        let report = check(&FileSource::open(&image)?, &options, &Silent);
        let name = image.file_name().unwrap_or(image.as_os_str()).to_string_lossy();
        write(&folder, &name, &report)?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, report: &Report) -> std::io::Result<()> {
    std::fs::write(folder.join(format!("{name}.html")), map::html(report))?;
    std::fs::write(folder.join(format!("{name}.svg")), map::svg(report))?;
    std::fs::write(folder.join(format!("{name}.txt")), map::term(report, 100, false))?;
    std::fs::write(folder.join(format!("{name}.ansi")), map::term(report, 100, true))
}
