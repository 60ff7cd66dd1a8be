//! The rule files and the output shown in `docs/faults.md` are what this program takes and prints.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{blkproof, shell};
use tempfile::tempdir;

const PAGE: &str = include_str!("../../../docs/faults.md");

/// The part of the page that is about rule files.
fn docs() -> &'static str {
    PAGE.split("<!-- end of rule files -->").next().unwrap()
}

/// Blocks of code of one language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    docs().split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn every_rule_file_shown_is_right() {
    let dir = tempdir().unwrap();
    let files = blocks("toml");
    assert!(files.len() >= 3);
    for (number, text) in files.into_iter().enumerate() {
        let name = format!("{number}.toml");
        std::fs::write(dir.path().join(&name), text).unwrap();
        let outcome = blkproof(dir.path(), &["rules", "check", "--strict", &name]);
        assert_eq!(outcome.code, 0, "{text}\n{}", outcome.stderr);
    }
}

/// `console` blocks: a line after `$` is run in a folder with the files the page has shown (the first rule file is
/// `lab.toml`), and what follows is what it prints.
#[test]
fn every_command_shown_prints_what_is_shown() {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join("lab.toml"), blocks("toml")[0]).unwrap();
    let mut run = 0;
    for block in blocks("console") {
        for command in block.split("$ ").skip(1) {
            let (line, shown) = command.split_once('\n').unwrap();
            let outcome = shell(dir.path(), &format!("{{ {line}\n}} 2>&1 || true"));
            assert_eq!(outcome.stdout.trim_end(), shown.trim_end(), "{line}");
            run += 1;
        }
    }
    assert!(run >= 3);
}
