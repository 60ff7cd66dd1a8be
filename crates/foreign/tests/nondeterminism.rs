//! Without them they do not, and torture says so: each run draws other keys for its hash maps, whose order is the order in
//! which tables are written back. That none of these seeds shows it is next to impossible.

mod support;

use blkproof_foreign::find;
use support::found;

#[test]
fn maps_in_random_order_are_noticed() {
    let found = found(find("imago-qcow2").unwrap(), 100);
    assert!(found.iter().any(|(code, _)| code == "nondeterminism"), "{found:?}");
}
