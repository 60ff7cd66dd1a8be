//! The catalogue, the patches and the tests speak of the same defects.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;

use blkproof_gallery::{Driver, Mutant, catalogue};

fn read_all(folder: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut all = String::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            all.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
    all
}

#[test]
fn every_defect_has_an_entry_and_a_name_of_its_own() {
    let mutants: Vec<_> = catalogue().iter().map(|entry| entry.mutant).collect();
    assert_eq!(mutants, Mutant::ALL);
    let names: BTreeSet<_> = catalogue().iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), Mutant::ALL.len());
    for entry in catalogue() {
        let begin = format!("{}-", entry.mutant.to_string().to_lowercase());
        assert!(entry.name.starts_with(&begin), "{}", entry.name);
        assert!(entry.what.ends_with('.') && !entry.caps.is_empty() && !entry.found.codes.is_empty(), "{}", entry.name);
        assert_eq!(entry.mutant.entry(), entry);
    }
    assert!(Mutant::ALL.len() >= 40);
}

#[test]
fn every_defect_is_planted_where_its_entry_says_and_is_shown() {
    let tests = read_all("tests");
    for entry in catalogue() {
        let mark = format!("Mutant::{})", entry.mutant);
        let places = match entry.driver {
            Driver::Qcow2 | Driver::Vdi => {
                let patch = format!("mutants/{}.patch", entry.mutant.to_string().to_lowercase());
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&patch);
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{patch}: {error}"));
                let folder = if entry.driver == Driver::Vdi { "vdi" } else { "qcow2" };
                for file in text.lines().filter(|line| line.starts_with("--- a/")) {
                    assert!(file.contains(folder), "{patch}: {file}");
                }
                text
            }
            _ => read_all("src/drivers"),
        };
        assert!(places.contains(&mark), "{} is planted nowhere", entry.name);
        let shown = format!("Mutant::{},", entry.mutant);
        let listed = format!("Mutant::{}]", entry.mutant);
        assert!(tests.contains(&shown) || tests.contains(&listed), "{} is not shown", entry.name);
    }
}
