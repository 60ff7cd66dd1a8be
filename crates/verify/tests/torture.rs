//! The mirror under the workload that drivers are tortured with: its client must be promised no less than TEST keeps,
//! whatever fails and whatever is dropped, and RAW must follow.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::rc::Rc;

use blkproof_block::testing::{DiscardEffect, TestDisk, workload};
use blkproof_verify::{Difference, OnMismatch, Verify, VerifyOptions};

#[test]
fn the_mirror_keeps_what_test_promises_and_raw_follows() {
    for seed in 0..16 {
        for hostile in [false, true] {
            let (raw, test) = (TestDisk::new(64 << 10), TestDisk::new(64 << 10));
            raw.set_discard_effect(DiscardEffect::Mixed(seed));
            test.set_discard_effect(DiscardEffect::Mixed(seed + 1));
            let seen = common::Seen::default();
            let options = VerifyOptions::new(OnMismatch::Report).history(4 << 20).sink(seen.sink());
            let verify = Rc::new(Verify::new(raw.clone(), test.clone(), options).unwrap());
            let config = workload::Config { seed, ..workload::Config::default() };
            let config = if hostile { config.hostile() } else { config };
            workload::run(config, verify, &test).assert_clean();
            // Faults strike TEST alone, so outcomes differ, and are told. Data never does.
            for mismatch in seen.take() {
                let outcome = matches!(mismatch.difference, Difference::Outcome { .. });
                assert!(hostile && outcome, "seed {seed}, hostile: {hostile}: {mismatch}");
            }
            // The run ends with a read of everything, which settles everything.
            assert_eq!(raw.bytes(0, 64 << 10), test.bytes(0, 64 << 10), "seed {seed}, hostile: {hostile}");
        }
    }
}
