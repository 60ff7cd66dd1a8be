//! Writes the pictures of some made-up images, to look at: `cargo run -p blkproof-report --example map -- FOLDER`.

#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::PathBuf;

use blkproof_report::map;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "maps".into()));
    std::fs::create_dir_all(&folder)?;
    for (name, report) in common::all().into_iter().chain([("worst", common::worst())]) {
        std::fs::write(folder.join(format!("{name}.html")), map::html(&report))?;
        std::fs::write(folder.join(format!("{name}.svg")), map::svg(&report))?;
        std::fs::write(folder.join(format!("{name}.txt")), map::term(&report, 100, false))?;
        std::fs::write(folder.join(format!("{name}.ansi")), map::term(&report, 100, true))?;
    }
    Ok(())
}
