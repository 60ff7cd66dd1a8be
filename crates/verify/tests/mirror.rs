//! What the mirror does with each kind of request: both sides get it, outcomes are compared, policies decide.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::type_complexity)]

mod common;

use blkproof_block::testing::{Action, DiscardEffect, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, ByteRange, Capabilities, Errno, IoError, Preallocation, WriteFlags, ZeroFlags};
use blkproof_verify::{Difference, OnMismatch, RequestKind, Verify, VerifyOptions};
use common::{Bench, K, assert_same, kinds};

#[test]
fn every_kind_of_request_reaches_both_sides() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    block_on(async {
        let verify = &bench.verify;
        verify.write(0, &[7; 4096], WriteFlags::FUA).await.unwrap();
        verify.write_zeroes(512, 1024, ZeroFlags::MAY_UNMAP).await.unwrap();
        verify.discard(8192, 4096).await.unwrap();
        verify.flush().await.unwrap();
        verify.resize(128 * K, Preallocation::Off).await.unwrap();
        let mut buf = [1; 4096];
        verify.read(0, &mut buf).await.unwrap();
        assert_eq!((buf[0], buf[511], buf[512], buf[1535], buf[1536]), (7, 7, 0, 0, 7));
    });
    let want = [OpKind::Write, OpKind::WriteZeroes, OpKind::Discard, OpKind::Flush, OpKind::Resize, OpKind::Read];
    assert_eq!(kinds(&bench.raw), want);
    assert_eq!(kinds(&bench.test), want);
    for disk in [&bench.raw, &bench.test] {
        let log = disk.log();
        assert!(log.ops()[0].fua, "FUA reaches a side that has it");
        assert!(log.ops()[1].zero_flags.contains(ZeroFlags::MAY_UNMAP));
    }
    assert_same(&bench);
    assert_eq!(bench.seen(), []);
    assert_eq!(bench.verify.info().size, 128 * K);
}

#[test]
fn fua_becomes_a_flush_on_the_side_that_lacks_it() {
    let raw = TestDisk::new(K).with_capabilities(Capabilities::all() - Capabilities::FUA - Capabilities::GROWS);
    let test = TestDisk::new(K);
    let verify = Verify::new(raw.clone(), test.clone(), VerifyOptions::default()).unwrap();
    assert!(verify.info().capabilities.contains(Capabilities::FUA));
    block_on(verify.write(0, &[1; 512], WriteFlags::FUA)).unwrap();
    assert_eq!(kinds(&raw), [OpKind::Write, OpKind::Flush]);
    assert_eq!(kinds(&test), [OpKind::Write]);
}

#[test]
fn write_zeroes_do_not_abort_and_are_compared_when_read() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    block_on(async {
        bench.verify.write(0, &[9; 8192], WriteFlags::empty()).await.unwrap();
        bench.verify.write_zeroes(100, 5000, ZeroFlags::empty()).await.unwrap();
        bench.verify.read(0, &mut [0; 8192]).await.unwrap();
        assert_eq!(bench.seen(), []);
        bench.test.tamper(|bytes| bytes.write(200, &[9]));
        bench.verify.read(0, &mut [0; 8192]).await.unwrap();
    });
    assert_eq!(bench.seen().iter().map(|m| m.first_bad()).collect::<Vec<_>>(), [Some(200)]);
}

/// Which of two outcomes differ, what is said, and what each policy gives to the client.
#[test]
fn equal_errors_are_no_mismatch_and_different_ones_are() {
    let fail = |errno| Some(IoError::new(errno));
    type Change = (Option<IoError>, Option<IoError>);
    let table: [(Change, Option<&str>); 5] = [
        ((None, None), None),
        ((fail(Errno::IO), fail(Errno::IO)), None),
        ((fail(Errno::IO), None), Some("return value mismatch -5 != 0")),
        ((None, fail(Errno::IO)), Some("return value mismatch 0 != -5")),
        ((fail(Errno::NOSPC), fail(Errno::IO)), Some("return value mismatch -28 != -5")),
    ];
    let kinds = [
        (OpKind::Read, "read offset=512 bytes=1024"),
        (OpKind::Write, "write offset=512 bytes=1024"),
        (OpKind::WriteZeroes, "write_zeroes offset=512 bytes=1024"),
        (OpKind::Discard, "discard offset=512 bytes=1024"),
        (OpKind::Flush, "flush offset=0 bytes=0"),
        (OpKind::Resize, "resize offset=8192 bytes=0"),
    ];
    for (kind, head) in kinds {
        for ((test, raw), want) in table.clone() {
            for policy in [OnMismatch::Report, OnMismatch::Fail, OnMismatch::RepairView, OnMismatch::Exit] {
                let case = format!("{kind:?}, test {test:?}, raw {raw:?}, {policy:?}");
                let bench = Bench::new(64 * K, policy);
                for (disk, error) in [(&bench.test, &test), (&bench.raw, &raw)] {
                    if let Some(error) = error {
                        disk.add_rule(Rule::new(Action::FailBefore(error.clone())).kind(kind).nth(1));
                    }
                }
                let got = block_on(bench.request(kind));
                let said: Vec<String> = bench.seen().iter().map(|mismatch| mismatch.headline()).collect();
                assert_eq!(said, want.map(|want| format!("blkverify: {head} {want}")).as_slice(), "{case}");
                let code = |error: &Option<IoError>| error.as_ref().map(|error| error.errno);
                let want_client = match (want, policy) {
                    (Some(_), OnMismatch::Fail) => Some(Errno::IO),
                    (_, OnMismatch::RepairView) => code(&raw),
                    _ => code(&test),
                };
                assert_eq!(got.err().map(|error| error.errno), want_client, "{case}");
            }
        }
    }
}

#[test]
fn a_side_without_discard_is_no_mismatch() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    bench.raw.fail_kind(OpKind::Discard, IoError::unsupported());
    block_on(async {
        bench.verify.write(0, &[5; 4096], WriteFlags::empty()).await.unwrap();
        bench.verify.discard(0, 4096).await.unwrap(); // zeroes in test, data in raw
        let mut buf = [1; 4096];
        bench.verify.read(0, &mut buf).await.unwrap();
        assert_eq!(buf, [0; 4096], "test's choice");
    });
    assert_eq!(bench.seen(), []);
    assert_same(&bench);
}

#[test]
fn a_refused_fast_zero_is_refused_to_the_client_and_changes_nothing() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    bench.test.fail_kind(OpKind::WriteZeroes, IoError::unsupported());
    block_on(async {
        bench.verify.write(0, &[5; 4096], WriteFlags::empty()).await.unwrap();
        let error = bench.verify.write_zeroes(0, 4096, ZeroFlags::NO_FALLBACK).await.unwrap_err();
        assert_eq!(error.errno, Errno::NOTSUP);
        bench.verify.read(0, &mut [0; 4096]).await.unwrap();
    });
    assert_eq!(bench.seen(), []);
    assert_eq!(bench.raw.bytes(0, 1), [5]);
}

#[test]
fn sizes_are_compared() {
    for policy in [OnMismatch::Report, OnMismatch::Fail] {
        let seen = common::Seen::default();
        let options = VerifyOptions::new(policy).sink(seen.sink());
        let opened = Verify::new(TestDisk::new(8192), TestDisk::new(4096), options);
        assert_eq!(opened.is_err(), policy == OnMismatch::Fail);
        let seen = seen.take();
        assert_eq!(seen[0].difference, Difference::Size { test: 4096, raw: 8192 });
        assert_eq!(seen[0].headline(), "blkverify: open size mismatch 4096 != 8192");
        if let Ok(verify) = opened {
            assert_eq!(verify.info().size, 4096);
            block_on(verify.read(0, &mut [0; 4096])).unwrap();
        }
    }
}

#[test]
fn a_request_beyond_the_end_is_refused_before_either_side_sees_it() {
    let bench = Bench::new(4096, OnMismatch::Report);
    block_on(async {
        let verify = &bench.verify;
        for (at, len) in [(4096, 1), (4095, 2), (u64::MAX, 1), (0, 4097)] {
            let data = vec![1; usize::try_from(len).unwrap()];
            assert!(verify.read(at, &mut data.clone()).await.is_err(), "{at}+{len}");
            assert!(verify.write(at, &data, WriteFlags::empty()).await.is_err(), "{at}+{len}");
            assert!(verify.discard(at, len).await.is_err(), "{at}+{len}");
            assert!(!verify.read_now(at, &mut data.clone()), "{at}+{len}");
        }
        verify.read(4096, &mut []).await.unwrap();
        verify.write(4096, &[], WriteFlags::empty()).await.unwrap();
    });
    assert_eq!(kinds(&bench.raw), []);
}

#[test]
fn policies_for_wrong_data() {
    for policy in [OnMismatch::Report, OnMismatch::Fail, OnMismatch::Exit, OnMismatch::RepairView] {
        let bench = Bench::new(64 * K, policy);
        block_on(async {
            bench.verify.write(0, &[5; 8192], WriteFlags::empty()).await.unwrap();
            bench.test.tamper(|bytes| bytes.write(4096 + 77, &[6, 6]));
            let mut buf = [0; 8192];
            let got = bench.verify.read(0, &mut buf).await;
            match policy {
                OnMismatch::Fail => {
                    let error = got.unwrap_err();
                    assert_eq!((error.errno, error.first_bad.unwrap().0, error.transferred), (Errno::IO, 4096, 4096));
                    assert!(buf[..4096].iter().all(|&b| b == 5), "what precedes the bad sector is valid");
                }
                OnMismatch::RepairView => {
                    got.unwrap();
                    assert_eq!(buf, [5; 8192]);
                }
                OnMismatch::Report | OnMismatch::Exit => {
                    got.unwrap();
                    assert_eq!(buf[4096 + 77], 6);
                }
            }
            let seen = bench.seen();
            assert_eq!((seen.len(), seen[0].on_mismatch), (1, policy));
            assert_eq!(seen[0].first_bad(), Some(4096 + 77));
            assert_eq!(bench.verify.counters().mismatches, 1);
            // It goes on: the next sector is as good as ever.
            bench.verify.read(16384, &mut [0; 512]).await.unwrap();
        });
    }
}

#[test]
fn every_differing_range_is_named() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    bench.test.tamper(|bytes| {
        for at in [0, 512, 5000, 65535] {
            bytes.write(at, &[1]);
        }
    });
    block_on(bench.verify.read(0, &mut vec![0; 65536])).unwrap();
    let ranges: Vec<_> = bench.seen()[0].ranges().iter().map(|range| (range.start, range.end)).collect();
    assert_eq!(ranges, [(0, 1024), (4608, 5120), (65024, 65536)]);
}

#[test]
fn block_status_comes_from_test_and_raw_is_held_to_it() {
    let bench = Bench::new(1 << 20, OnMismatch::Report);
    block_on(async {
        bench.verify.write(0, &[5; 65536], WriteFlags::empty()).await.unwrap();
        let status = bench.verify.block_status(0, 1 << 20).await.unwrap();
        assert!(status.data && status.len == 65536);
        let status = bench.verify.block_status(65536, (1 << 20) - 65536).await.unwrap();
        assert!(status.zero && status.len == (1 << 20) - 65536);
        assert_eq!(bench.seen(), []);
        // A write that TEST lost: its hole is where RAW holds data.
        bench.raw.tamper(|bytes| bytes.write(200_000, &[1]));
        bench.verify.block_status(65536, 1 << 19).await.unwrap();
    });
    let seen = bench.seen();
    assert_eq!(
        seen[0].headline(),
        "blkverify: block_status offset=65536 bytes=524288 contents mismatch at offset 200000"
    );
    assert_eq!(seen[0].request.kind, RequestKind::BlockStatus);
    assert_eq!(seen[0].ranges(), [ByteRange { start: 199_680, end: 200_192 }]);
}

#[test]
fn block_status_policies() {
    for policy in [OnMismatch::Fail, OnMismatch::RepairView] {
        let bench = Bench::new(1 << 20, policy);
        bench.raw.tamper(|bytes| bytes.write(66_000, &[1]));
        block_on(async {
            let got = bench.verify.block_status(0, 1 << 20).await;
            if policy == OnMismatch::Fail {
                assert_eq!(got.unwrap_err().first_bad.unwrap().0, 65_536);
            } else {
                let before = got.unwrap();
                assert!(before.zero && before.len == 65_536);
                let bad = bench.verify.block_status(65_536, 1 << 19).await.unwrap();
                assert!(bad.data && bad.len == 512, "{bad:?}");
            }
        });
    }
}

#[test]
fn discarded_space_may_be_old_or_zero_on_either_side_and_stays_what_it_was_read_as() {
    let effects = [DiscardEffect::Zero, DiscardEffect::Keep, DiscardEffect::Mixed(1), DiscardEffect::Mixed(2)];
    for raw_effect in effects {
        for test_effect in effects {
            let bench = Bench::new(64 * K, OnMismatch::Report);
            bench.raw.set_discard_effect(raw_effect);
            bench.test.set_discard_effect(test_effect);
            block_on(async {
                bench.verify.write(0, &[5; 32768], WriteFlags::empty()).await.unwrap();
                bench.verify.discard(1024, 20000).await.unwrap();
                let status = bench.verify.block_status(0, 65536).await.unwrap();
                assert!(status.len > 0);
                let mut first = [1; 32768];
                bench.verify.read(0, &mut first).await.unwrap();
                let mut second = [2; 32768];
                bench.verify.read(0, &mut second).await.unwrap();
                assert!(first == second);
                assert!(first.chunks(512).all(|sector| sector.iter().all(|b| *b == 0 || *b == 5)));
            });
            assert_eq!(bench.seen(), [], "raw {raw_effect:?}, test {test_effect:?}");
            assert_same(&bench);
        }
    }
}

#[test]
fn discarded_space_that_reads_as_something_else_is_a_mismatch() {
    for whole_sectors in [true, false] {
        let bench = Bench::new(64 * K, OnMismatch::Report);
        bench.raw.set_discard_effect(DiscardEffect::Keep);
        block_on(async {
            bench.verify.write(0, &[5; 32768], WriteFlags::empty()).await.unwrap();
            bench.verify.discard(1024, 8192).await.unwrap();
            let len = if whole_sectors { 512 } else { 10 };
            bench.test.tamper(|bytes| bytes.write(2048, &vec![6; len]));
            bench.verify.read(0, &mut [0; 32768]).await.unwrap();
        });
        let seen = bench.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].ranges(), [ByteRange { start: 2048, end: 2560 }]);
    }
}

#[test]
fn read_now_answers_what_both_sides_have_at_hand_and_leaves_stories_to_read() {
    use blkproof_block::nodes::memory::Memory;
    use std::rc::Rc;
    let (raw, test) = (Rc::new(Memory::new(64 * K)), Rc::new(Memory::new(64 * K)));
    let seen = common::Seen::default();
    let verify = Verify::new(raw, test.clone(), VerifyOptions::default().sink(seen.sink())).unwrap();
    block_on(async {
        verify.write(0, &[3; 4096], WriteFlags::empty()).await.unwrap();
        let mut buf = [0; 4096];
        assert!(verify.read_now(0, &mut buf));
        assert_eq!(buf, [3; 4096]);
        assert_eq!(verify.counters().bytes_compared, 4096);
        test.write(9, &[4], WriteFlags::empty()).await.unwrap();
        assert!(!verify.read_now(0, &mut buf));
        assert!(seen.take().is_empty(), "the slow path tells it");
        verify.read(0, &mut buf).await.unwrap();
        assert_eq!(seen.take().len(), 1);
        // Discarded space is settled by waiting, not at once.
        verify.discard(8192, 4096).await.unwrap();
        assert!(!verify.read_now(8192, &mut buf));
        verify.read(8192, &mut buf).await.unwrap();
        assert!(verify.read_now(8192, &mut buf));
    });
}

#[test]
fn read_now_waits_for_nobody() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    let mut executor = Executor::new();
    bench.test.hold_kind(OpKind::Write);
    let verify = bench.verify.client("writer");
    executor.spawn(async move { verify.write(0, &[1; 512], WriteFlags::empty()).await });
    executor.run_until_stalled();
    assert!(!bench.verify.read_now(0, &mut [0; 1]), "a writer is in the range");
    bench.test.release_all();
    executor.run_until_stalled();
}

#[test]
fn neighbours_run_side_by_side_and_overlapping_writes_in_order() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    bench.test.hold_kind(OpKind::Write);
    let mut executor = Executor::new();
    for (at, fill) in [(0u64, 1u8), (512, 2), (256, 3)] {
        let verify = bench.verify.client("a");
        executor.spawn(async move { verify.write(at, &[fill; 512], WriteFlags::empty()).await.unwrap() });
    }
    executor.run_until_stalled();
    let held = |disk: &TestDisk| disk.parked().iter().map(|op| op.range.start).collect::<Vec<_>>();
    assert_eq!(held(&bench.test), [0, 512], "the third waits for both");
    bench.test.clear_rules();
    bench.test.release_all();
    executor.run_until_stalled();
    assert!(executor.running().is_empty());
    assert_eq!(bench.test.bytes(255, 2), [1, 3]);
    assert_same(&bench);
}

#[test]
fn clients_are_told_apart() {
    let bench = Bench::new(64 * K, OnMismatch::Report);
    let fio = bench.verify.for_client("fio").unwrap();
    let guest = bench.verify.for_client("guest").unwrap();
    block_on(async {
        fio.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        bench.test.tamper(|bytes| bytes.write(0, &[2; 512]));
        guest.read(0, &mut [0; 512]).await.unwrap();
    });
    let seen = bench.seen();
    assert_eq!(seen[0].request.client.as_deref(), Some("guest"));
    let Difference::Content { sectors, .. } = &seen[0].difference else { panic!("{seen:?}") };
    assert_eq!(sectors[0].last_write.as_ref().unwrap().client.as_deref(), Some("fio"));
    assert_eq!(sectors[0].last_write.as_ref().unwrap().op, 1);
}

#[test]
fn a_flush_that_fails_on_the_reference_alone_is_seen() {
    let bench = Bench::new(K, OnMismatch::Report);
    bench.raw.fail_kind(OpKind::Flush, IoError::new(Errno::IO));
    block_on(bench.verify.flush()).unwrap();
    assert_eq!(bench.seen()[0].headline(), "blkverify: flush offset=0 bytes=0 return value mismatch 0 != -5");
}
