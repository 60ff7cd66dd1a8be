//! What is reported of drivers with planted bugs.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod torture_common;

use blkproof_report::torture::text::{Show, report};
use torture_common::{lost_write, with_case};

#[test]
fn show() {
    with_case(&lost_write(), |case| println!("{}", report(case, &Show::default())));
}
