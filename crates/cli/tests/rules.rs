//! `blkproof rules`: what it prints, where, and how it ends.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{blkproof, shell};
use tempfile::tempdir;

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

const GOOD: &str = "[[rule]]\nid = \"bad-50\"\non = { op = \"read\", lba = 50 }\ndo = { fail = \"03/1101\" }\nlife \
                    = \"until-rewritten\"\n";
const BAD: &str = "[[rule]]\nid = \"x\"\non = { opp = \"read\", lba = \"5-6\" }\ndo = \"hang\"\n";
const ODD: &str = "[[rule]]\nid = \"y\"\non.state = \"z\"\ndo = \"hang\"\n";

#[test]
fn check_tells_mistakes_with_their_places() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    write(dir, "good.toml", GOOD);
    write(dir, "bad.toml", BAD);
    write(dir, "odd.toml", ODD);
    let good = blkproof(dir, &["rules", "check", "good.toml"]).exited(0);
    assert_eq!((good.stdout.as_str(), good.stderr.as_str()), ("good.toml: 1 rule, all right\n", ""));

    let bad = blkproof(dir, &["rules", "check", "bad.toml", "good.toml"]).exited(1);
    assert_eq!(bad.stdout, "good.toml: 1 rule, all right\n");
    assert_eq!(
        bad.stderr,
        "error: bad.toml:3:8: rule 'x': on.opp: no such field; did you mean 'op'?\n\
         error: bad.toml:3:28: rule 'x': on.lba: '5-6' is no range of sectors; write 50, 50..60 (60 is not in it), 50+8, or \
         50.. to the end\n"
    );

    let odd = blkproof(dir, &["rules", "check", "-q", "odd.toml"]).exited(0);
    let warning = "warning: odd.toml:3:12: rule 'y': on.state: it can never fire: no rule sets the state 'z', and \
                   things \
                   begin in '1'\n";
    assert_eq!((odd.stdout.as_str(), odd.stderr.as_str()), ("", warning));
    blkproof(dir, &["rules", "check", "--strict", "odd.toml"]).exited(1);

    let json = blkproof(dir, &["rules", "check", "--format", "json", "bad.toml", "good.toml"]).exited(1).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["schema"], "blkproof.rules-check/1");
    assert_eq!(json["files"][0]["mistakes"][0]["line"], 3);
    assert_eq!(json["files"][0]["mistakes"][0]["field"], "on.opp");
    assert_eq!(json["files"][1]["rules"][0]["on"]["lba"], 50);

    let none = blkproof(dir, &["rules", "check", "none.toml"]).exited(1);
    assert_eq!(none.stderr, "error: could not read 'none.toml': No such file or directory\n");
    std::fs::write(dir.join("noise"), [0xff, 0xfe]).unwrap();
    let noise = blkproof(dir, &["rules", "check", "noise"]).exited(1);
    assert_eq!(noise.stderr, "error: 'noise' is no text: byte 0 is not UTF-8\n");
}

#[test]
fn explain_says_what_a_rule_does() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    write(dir, "good.toml", GOOD);
    let explained = blkproof(dir, &["rules", "explain", "good.toml"]).exited(0).stdout;
    assert_eq!(
        explained,
        "1 rule, sectors of 512 bytes, seed 0, beginning in state '1'.\n\
         \n\
         bad-50\n  \
           On any read that touches LBA 50:\n  \
           it fails with SCSI sense 03/1101 (medium error: read retries exhausted); what lies before the first bad byte is \
           done, and that byte is named.\n  \
           It stops for a sector when that is written whole.\n"
    );
    write(dir, "bad.toml", BAD);
    let refused = blkproof(dir, &["rules", "explain", "bad.toml"]).exited(1);
    assert!(refused.stdout.is_empty() && refused.stderr.starts_with("error: bad.toml:3:8: "), "{refused:?}");
    let presets = blkproof(dir, &["rules", "explain", "--presets"]).exited(0).stdout;
    for word in
        ["until-rewritten", "until-reassigned", "first-N-reads", "recovered", "pending", "bit-rot", "growing-defects"]
    {
        assert!(presets.contains(&format!("\n{word} ")) || presets.starts_with(word), "{word}\n{presets}");
    }
}

#[test]
fn convert_tells_by_its_status_whether_something_was_lost() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    write(dir, "bd.conf", "[inject-error]\nevent = \"none\"\nsector = \"50\"\niotype = \"read\"\n");
    let exact = blkproof(dir, &["rules", "convert", "--from", "blkdebug", "bd.conf"]).exited(0);
    assert_eq!(exact.stderr, "");
    write(dir, "lab.toml", &exact.stdout);
    blkproof(dir, &["rules", "check", "--strict", "lab.toml"]).exited(0);

    let lossy = shell(
        dir,
        "echo 'error-rate=10% error-file=/run/inject' | blkproof rules convert --from nbdkit-error - || exit $?",
    );
    assert_eq!(lossy.code, 3);
    assert!(
        lossy.stderr.starts_with("warning: lost: errors only while the file '/run/inject' exists"),
        "{}",
        lossy.stderr
    );
    assert!(lossy.stdout.contains("# LOST: errors only while"), "{}", lossy.stdout);

    write(dir, "bad.conf", "[inject-error]\nevent = none\n");
    let bad = blkproof(dir, &["rules", "convert", "--from", "blkdebug", "bad.conf"]).exited(1);
    let words = "error: bad.conf:2: parse error: the value of 'event' has to stand in double quotes\n";
    assert_eq!((bad.stdout.as_str(), bad.stderr.as_str()), ("", words));
    blkproof(dir, &["rules", "convert", "--from", "floppy", "bad.conf"]).exited(2);
    blkproof(dir, &["rules", "convert", "--from", "ddrescue", "--lba-size", "1000", "bad.conf"]).exited(2);
}

#[test]
fn schema_is_printed_as_published() {
    let dir = tempdir().unwrap();
    let schema = blkproof(dir.path(), &["rules", "schema"]).exited(0).stdout;
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    assert_eq!(schema["$id"], "urn:blkproof:rules-1");
}
