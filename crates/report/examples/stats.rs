//! Writes pages and tables of made-up figures, to look at: `cargo run -p blkproof-report --example stats -- FOLDER`.

#![allow(missing_docs)]

#[path = "../tests/stats_common/mod.rs"]
mod common;

use std::path::PathBuf;

use blkproof_report::stats::{html, table};

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "stats".into()));
    std::fs::create_dir_all(&folder)?;
    for (name, size, requests) in [
        ("tiny", 5000, 300),
        ("1m", 1 << 20, 3000),
        ("100g", 100 << 30, 20_000),
        ("2t", 2 << 40, 60_000),
        ("idle", 1 << 30, 0),
    ] {
        let snapshot = common::snapshot("disk0", size, requests);
        std::fs::write(folder.join(format!("{name}.html")), html(std::slice::from_ref(&snapshot)))?;
        std::fs::write(folder.join(format!("{name}.txt")), table(&snapshot, 100))?;
        std::fs::write(folder.join(format!("{name}-60.txt")), table(&snapshot, 60))?;
    }
    Ok(())
}
