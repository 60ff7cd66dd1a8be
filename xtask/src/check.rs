//! `cargo xtask check`: one command that runs what CI runs.

use crate::{foreign, rules, shell};

pub(crate) fn run() -> anyhow::Result<()> {
    shell::run("cargo", &["fmt", "--all", "--check"])?;
    rules::run()?;
    shell::run("cargo", &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])?;
    shell::run_with(
        Some(("RUSTDOCFLAGS", "-D warnings")),
        "cargo",
        &["doc", "--workspace", "--no-deps", "--all-features", "--document-private-items"],
    )?;
    // The command-line tests run the binary, which therefore has to be there, with every feature.
    shell::run("cargo", &["build", "--workspace", "--all-features", "--bins"])?;
    shell::run("cargo", &["test", "--workspace", "--all-features"])?;
    foreign::run()?;
    // The Python package, against the binary that was built beside this program.
    let binary = std::env::current_exe()?.with_file_name("blkproof");
    shell::run_with(Some(("BLKPROOF", &binary.to_string_lossy())), "clients/python/check", &[] as &[&str])
}
