//! Copies the drivers of `crates/formats`, plants the defects of `mutants/` in the copy, and leaves it where the crate
//! includes it.
#![allow(clippy::panic, reason = "a build script that can not read or write a file has nothing else to do")]

mod apply;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn main() {
    // What the originals have for their own tests is not in the copies.
    println!("cargo::rustc-check-cfg=cfg(copied)");
    println!("cargo::rustc-cfg=copied");
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("formats");
    let sources = here.join("../formats/src");
    let mutants = here.join("mutants");
    for watched in [&sources, &mutants, &here.join("build")] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let mut tree = apply::Tree::new();
    read_all(&sources, "", "rs", &mut tree);
    let mut patches = BTreeMap::new();
    read_all(&mutants, "", "patch", &mut patches);

    match apply::apply(&tree, &patches) {
        Ok(planted) => write_all(&out, &planted),
        Err(misfits) => misfits.iter().for_each(|misfit| println!("cargo::error={misfit}")),
    }
}

/// Reads the files below `folder` that end in `extension`.
fn read_all(folder: &Path, under: &str, extension: &str, into: &mut BTreeMap<String, String>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            read_all(&path, &format!("{under}{name}/"), extension, into);
        } else if path.extension().is_some_and(|found| found == extension) {
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            into.insert(format!("{under}{name}"), text);
        }
    }
}

fn write_all(out: &Path, tree: &apply::Tree) {
    // What an earlier version of the drivers left is no part of this one.
    let _ = std::fs::remove_dir_all(out);
    for (name, text) in tree {
        let path = out.join(name);
        let folder = path.parent().unwrap_or(out);
        std::fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        // A file that is included can not have inner comments or attributes of the file it is included into.
        let root = name == "lib.rs";
        let kept =
            text.split_inclusive('\n').filter(|line| !root || !(line.starts_with("//!") || line.starts_with("#![")));
        // The drivers' own unit tests, and marks for them, stay where they are; this crate has tests of its own.
        let text: String =
            kept.collect::<String>().replace("cfg(test)", "cfg(not(copied))").replace("cfg(not(test))", "cfg(copied)");
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
