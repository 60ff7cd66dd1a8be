//! What packagers install: manual pages and completion scripts.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{blkproof, run, shell};
use tempfile::tempdir;

const COMMANDS: &[&str] = &[
    "check",
    "compare",
    "completions",
    "crashloop",
    "create",
    "ctl",
    "diff-meta",
    "explain",
    "findings",
    "io",
    "log",
    "man",
    "map",
    "replay",
    "rules",
    "serve",
    "torture",
    "verify",
];

#[test]
fn every_command_has_a_page_that_renders() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    blkproof(dir, &["man", "--out", "."]).exited(0);
    let mut pages: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    let mut want: Vec<_> = COMMANDS.iter().map(|command| format!("blkproof-{command}.1")).collect();
    want.push("blkproof.1".to_owned());
    want.sort();
    // Some commands have a page for each of their own commands, too.
    let deeper =
        |page: &&String| want.iter().all(|one| !page.starts_with(&one.replace(".1", "-")) || one == "blkproof.1");
    assert_eq!(pages.iter().filter(deeper).cloned().collect::<Vec<_>>(), want);
    for page in pages {
        let rendered = run(dir, "man", &["--warnings", "-l", &page]).exited(0);
        assert_eq!(rendered.stderr, "", "{page}");
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION"] {
            assert!(rendered.stdout.contains(section), "{page} has {section}");
        }
    }
    let one = shell(dir, "blkproof man | man --warnings -l -").exited(0);
    assert!(one.stdout.contains("A laboratory for block storage") && one.stderr.is_empty(), "{one:?}");
    let error = blkproof(dir, &["man", "--out", "nodir/deeper"]).exited(1);
    assert!(error.stderr.starts_with("error: ") && error.stderr.contains("nodir/deeper"), "{}", error.stderr);
}

#[test]
fn help_of_every_command_has_an_example() {
    let dir = tempdir().unwrap();
    for command in COMMANDS.iter().filter(|command| **command != "io") {
        let help = blkproof(dir.path(), &[command, "--help"]).exited(0).stdout;
        assert!(help.contains(&format!("Example: `blkproof {command}")), "{command}: {help}");
        for option in help.lines().filter(|line| line.starts_with("  ") && line.trim_start().starts_with('-')) {
            assert!(!option.ends_with('.'), "{command}: one line without a full stop: {option}");
        }
    }
}

#[test]
fn completion_scripts_are_accepted_by_their_shells() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    shell(dir, "blkproof completions bash | bash -n").exited(0);
    let bash = "source <(blkproof completions bash); COMP_WORDS=(blkproof ser); COMP_CWORD=1; \
                _blkproof blkproof ser blkproof; echo ${COMPREPLY[*]}";
    assert_eq!(shell(dir, bash).exited(0).stdout, "serve\n");
    for name in ["zsh", "fish", "elvish", "powershell"] {
        let script = blkproof(dir, &["completions", name]).exited(0).stdout;
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{name}");
    }
    blkproof(dir, &["completions", "tcsh"]).exited(2);
}
