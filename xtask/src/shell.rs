//! Running other programs.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    variable("CARGO_TARGET_DIR").unwrap_or_else(|| root().join("target"))
}

/// The program as `cargo build --release` makes it; `BLKPROOF` names another build, to race it.
pub(crate) fn blkproof() -> PathBuf {
    variable("BLKPROOF").unwrap_or_else(|| target().join("release/blkproof"))
}

/// Runs a program in the root, showing the command and its output.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> anyhow::Result<()> {
    run_with(None, program, args)
}

/// Runs a program as [`run`] does, with an environment variable set.
pub(crate) fn run_with<S: AsRef<OsStr>>(
    variable: Option<(&str, &str)>,
    program: &str,
    args: &[S],
) -> anyhow::Result<()> {
    let mut words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
    words.insert(0, program.to_owned());
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    if let Some((name, value)) = variable {
        words.insert(0, format!("{name}='{value}'"));
        command.env(name, value);
    }
    let words = words.join(" ");
    eprintln!("$ {words}");
    let status = command.status().with_context(|| format!("starting {program}"))?;
    if !status.success() {
        bail!("`{words}` failed: {status}");
    }
    Ok(())
}

/// The standard output of a program run in the root.
pub(crate) fn output<S: AsRef<OsStr>>(program: &str, args: &[S]) -> anyhow::Result<String> {
    let output =
        Command::new(program).args(args).current_dir(root()).output().with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
