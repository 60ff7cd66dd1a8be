//! Files that images name: followed only where the user allows it, and told where they are not.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{blkproof, run, shell};
use std::path::Path;
use tempfile::tempdir;

fn create(dir: &Path, format: &str, name: &str, size: &str) {
    run(dir, "qemu-img", &["create", "-q", "-f", format, name, size]).exited(0);
}

#[test]
fn files_that_images_name_are_checked_when_allowed() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    shell(dir, "mkdir sub").exited(0);
    create(dir, "raw", "sub/base.raw", "1M");
    let overlay = |name: &str, base: &str, format: &str| {
        run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", base, "-F", format, name]).exited(0);
    };
    overlay("sub/mid.qcow2", "base.raw", "raw");
    overlay("top.qcow2", "sub/mid.qcow2", "qcow2");
    let heads = |args: &[&str], code| {
        let outcome = blkproof(dir, &[&["check"][..], args].concat()).exited(code);
        let heads = outcome.stdout.lines().filter_map(|line| line.split_once(": ")).map(|(head, _)| head.to_owned());
        (heads.filter(|head| head.ends_with(".qcow2")).collect::<Vec<_>>(), outcome.stderr)
    };
    assert_eq!(heads(&["top.qcow2"], 0), (vec!["top.qcow2".to_owned()], String::new()));
    let chain = vec!["top.qcow2".to_owned(), "sub/mid.qcow2".to_owned()];
    assert_eq!(heads(&["--allow-backing", "top.qcow2"], 0), (chain.clone(), String::new()));
    // What is gone is said, and who needs it.
    shell(dir, "mv sub/base.raw sub/gone").exited(0);
    let (shown, error) = heads(&["--allow-backing", "top.qcow2"], 1);
    assert_eq!(shown, chain);
    let want = "error: could not open 'sub/base.raw' (named by 'sub/mid.qcow2'): No such file or directory\nhint: ";
    assert!(error.starts_with(want), "{error}");
    // A chain that bites its tail has an end; a name that is no path is not followed.
    run(dir, "qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", "../top.qcow2", "-F", "qcow2", "sub/mid.qcow2"])
        .exited(0);
    assert_eq!(heads(&["--allow-backing", "top.qcow2"], 0).0, chain);
    run(dir, "qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", "nbd://h/x", "-F", "raw", "sub/mid.qcow2"]).exited(0);
    let (_, note) = heads(&["--allow-backing", "top.qcow2"], 0);
    assert!(note.contains("note: sub/mid.qcow2: backing file 'nbd://h/x' is no plain file name"), "{note}");
    let (_, note) = heads(&["--allow-backing", "--untrusted", "sub/mid.qcow2"], 0);
    assert!(note.contains("is no plain file name"), "{note}");
    run(dir, "qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", "../x.qcow2", "-F", "qcow2", "sub/mid.qcow2"])
        .exited(0);
    let (_, note) = heads(&["--allow-backing", "--untrusted", "sub/mid.qcow2"], 0);
    assert!(note.contains("backing file '../x.qcow2' is in another folder and was not checked"), "{note}");
    // The data file is looked at, not into.
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=d.raw,data_file_raw=on", "x.qcow2", "1M"])
        .exited(0);
    heads(&["--allow-backing", "x.qcow2"], 0);
    shell(dir, "truncate -s 64K d.raw").exited(0);
    let short = blkproof(dir, &["check", "--allow-backing", "x.qcow2"]).exited(2);
    assert!(short.stdout.contains("QCOW2-DATA-FILE-SHORT"), "{}", short.stdout);
    shell(dir, "rm d.raw").exited(0);
    assert!(heads(&["--allow-backing", "x.qcow2"], 1).1.contains("could not open 'd.raw' (named by 'x.qcow2')"));
}
