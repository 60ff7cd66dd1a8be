//! `cargo xtask foreign`: what CI runs of `crates/foreign`.
//!
//! It is a workspace of its own, so that nothing which only drivers of other projects need is in the lock file of the
//! program, or changes the features of what it is built from. That is why no command about the workspace reaches it.

use crate::shell;

/// Its manifest, from the root.
const MANIFEST: &[&str] = &["--manifest-path", "crates/foreign/Cargo.toml"];

pub(crate) fn run() -> anyhow::Result<()> {
    // Where the program is built too: most of what both need is the same. The versions are those of its own lock file.
    let target = shell::target().display().to_string();
    let place = ["--target-dir", target.as_str(), "--locked"];
    let cargo = |words: &[&[&str]]| shell::run("cargo", &words.concat());
    cargo(&[&["fmt"], MANIFEST, &["--check"]])?;
    cargo(&[&["clippy"], MANIFEST, &place, &["--all-targets", "--", "-D", "warnings"]])?;
    let doc = [&["doc"], MANIFEST, &place[..], &["--no-deps", "--document-private-items"]].concat();
    shell::run_with(Some(("RUSTDOCFLAGS", "-D warnings")), "cargo", &doc)?;
    cargo(&[&["test"], MANIFEST, &place])
}
