//! Applying patches: what does not fit is named, with what to do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../build/apply.rs"]
#[allow(unreachable_pub)]
mod apply;

use std::collections::BTreeMap;

use apply::{Tree, apply};

const FILE: &str = "one\ntwo\nthree\nfour\nfive\nsix\nseven\n";

fn tree() -> Tree {
    BTreeMap::from([("a.rs".to_owned(), FILE.to_owned()), ("b.rs".to_owned(), "only\n".to_owned())])
}

fn patches(texts: &[&str]) -> BTreeMap<String, String> {
    texts.iter().enumerate().map(|(number, text)| (format!("m{number}.patch"), (*text).to_owned())).collect()
}

#[test]
fn patches_apply_together_each_by_the_untouched_file() {
    let first = "What it is.\n--- a/a.rs\n+++ b/a.rs\n@@ -2,3 +2,4 @@\n two\n three\n+first\n four\n";
    let second = "--- a/a.rs\n+++ b/a.rs\n@@ -3,2 +3,3 @@\n three\n+second\n four\n--- a/b.rs\n+++ b/b.rs\n\
                  @@ -1 +1 @@\n-only\n+other\n";
    let done = apply(&tree(), &patches(&[first, second])).unwrap();
    assert_eq!(done["a.rs"], "one\ntwo\nthree\nfirst\nsecond\nfour\nfive\nsix\nseven\n");
    assert_eq!(done["b.rs"], "other\n");
}

#[test]
fn lines_that_moved_are_found() {
    let moved = "--- a/a.rs\n+++ b/a.rs\n@@ -1,2 +1,3 @@\n five\n+here\n six\n";
    assert!(apply(&tree(), &patches(&[moved])).unwrap()["a.rs"].contains("five\nhere\nsix\n"));
}

#[test]
fn what_does_not_fit_is_named() {
    let table = [
        ("--- a/a.rs\n+++ b/a.rs\n@@ -1,2 +1,3 @@\n one\n+x\n changed\n", "no line `changed` any more"),
        ("--- a/a.rs\n+++ b/a.rs\n@@ -1,2 +1,3 @@\n one\n+x\n three\n", "no longer stand next to each other"),
        ("--- a/c.rs\n+++ b/c.rs\n@@ -1,1 +1,2 @@\n one\n+x\n", "there is no such file"),
        ("no patch\n", "holds no `--- a/FILE` line"),
        ("--- a/a.rs\n+++ b/a.rs\n@@ rubbish\n", "no unified diff"),
    ];
    for (patch, words) in table {
        let misfits = apply(&tree(), &patches(&[patch])).unwrap_err();
        let text = misfits[0].to_string();
        assert!(text.contains("mutants/m0.patch") && text.contains(words), "{text}");
    }
    let twice = "--- a/a.rs\n+++ b/a.rs\n@@ -1,1 +1,1 @@\n-one\n+uno\n";
    let misfits = apply(&tree(), &patches(&[twice, twice])).unwrap_err();
    assert!(misfits[0].to_string().contains("removed by mutants/m0.patch too"), "{}", misfits[0]);
}

#[test]
fn a_hunk_that_fits_twice_is_refused() {
    let tree = BTreeMap::from([("a.rs".to_owned(), "x\ny\nx\ny\n".to_owned())]);
    let patch = "--- a/a.rs\n+++ b/a.rs\n@@ -2,2 +2,3 @@\n x\n+z\n y\n";
    let misfits = apply(&tree, &patches(&[patch])).unwrap_err();
    assert!(misfits[0].to_string().contains("fits 2 places"), "{}", misfits[0]);
}
