//! Our client and our server, over pipes in memory: every layout, every command, errors, cancelling, loss, shutdown.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::future::pending;
use std::rc::Rc;

use blkproof_block::testing::{Action, OpKind, Rule, TestDisk};
use blkproof_block::{
    BlockDevice, ByteOffset, ByteRange, Capabilities, DeviceError, Errno, IoError, Node, WriteFlags, ZeroFlags,
};
use blkproof_nbd::client::Client;
use blkproof_nbd::handshake::Mode;
use blkproof_nbd::handshake::client::Wanted;
use blkproof_nbd::server::{Ended, Export, Exports, Limits, Server};
use common::{MIB, connect, exports, memory, patterned, run, single};
use tokio::task::{spawn_local, yield_now};

const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

fn wanted(mode: Mode) -> Wanted {
    Wanted { mode, ..Wanted::new("") }
}

/// A small generator with a fixed stream.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn a_random_workload_reads_back_the_model() {
    for (mode, pipe) in [(Mode::Simple, 7), (Mode::Structured, 4096), (Mode::Extended, 61), (Mode::Extended, 1 << 20)] {
        run(async {
            let size = 4 * MIB + 77;
            let mut model = vec![0; usize::try_from(size).unwrap()];
            let server = single(memory(&model));
            let client = connect(&server, wanted(mode), pipe).await;
            assert_eq!(client.agreed().mode, mode);
            assert_eq!(client.info().size, size);
            let mut random = Random(0x51f0 + pipe as u64);
            for step in 0..if pipe < 100 { 60 } else { 300 } {
                let at = random.below(size);
                let longest = if pipe < 100 { 5000 } else { 600_000 };
                let len = random.below((size - at).min(longest) + 1);
                let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
                match random.below(5) {
                    0 => {
                        let fill = u8::try_from(step % 255).unwrap() + 1;
                        let flags = if step % 3 == 0 { WriteFlags::FUA } else { WriteFlags::empty() };
                        model[range.clone()].fill(fill);
                        client.write(at, &model[range], flags).await.unwrap();
                    }
                    1 => {
                        model[range].fill(0);
                        client.write_zeroes(at, len, ZeroFlags::MAY_UNMAP).await.unwrap();
                    }
                    2 => {
                        model[range].fill(0);
                        client.discard(at, len).await.unwrap();
                    }
                    3 if len > 0 => {
                        let status = client.block_status(at, len).await.unwrap();
                        assert!((1..=len).contains(&status.len), "{mode:?} step {step}");
                        let told = &model[range][..usize::try_from(status.len).unwrap()];
                        assert!(!status.zero || told.iter().all(|&byte| byte == 0), "{mode:?} step {step}");
                        assert!(mode != Mode::Simple || status.data, "nothing is known without structured replies");
                    }
                    _ => {
                        let mut buf = vec![0xaa; range.len()];
                        client.read(at, &mut buf).await.unwrap();
                        assert!(buf == model[range], "{mode:?} step {step}: {len} bytes at {at}");
                    }
                }
            }
            client.flush().await.unwrap();
        });
    }
}

#[test]
fn many_requests_are_in_flight_at_once() {
    for mode in MODES {
        run(async {
            let disk = TestDisk::new(MIB);
            let server = single(Node::new(disk.clone()));
            let client = Rc::new(connect(&server, wanted(mode), 1 << 16).await);
            disk.hold_kind(OpKind::Write);
            let writes: Vec<_> = (0..20_u8)
                .map(|n| {
                    let client = Rc::clone(&client);
                    spawn_local(async move {
                        client.write(u64::from(n) * 4096, &[n + 1; 4096], WriteFlags::empty()).await.unwrap();
                    })
                })
                .collect();
            while disk.parked().len() < 20 {
                yield_now().await;
            }
            // A read overtakes all of them.
            let mut buf = [9; 512];
            client.read(0, &mut buf).await.unwrap();
            assert_eq!(buf, [0; 512], "{mode:?}");
            disk.clear_rules();
            disk.release_all();
            for write in writes {
                write.await.unwrap();
            }
            let mut buf = vec![0; 20 * 4096];
            client.read(0, &mut buf).await.unwrap();
            assert!(buf.chunks(4096).zip(1..).all(|(chunk, n)| chunk.iter().all(|&byte| byte == n)), "{mode:?}");
        });
    }
}

#[test]
fn errors_keep_their_place_and_what_the_device_said() {
    let medium = IoError {
        device: Some(DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 }),
        ..IoError::new(Errno::IO).at(0x3200)
    };
    for mode in MODES {
        run(async {
            let disk = TestDisk::new(MIB);
            let data = patterned(MIB);
            disk.tamper(|bytes| bytes.write(0, &data));
            let server = single(Node::new(disk.clone()));
            let client = connect(&server, wanted(mode), 1 << 16).await;
            for kind in [OpKind::Read, OpKind::Write, OpKind::WriteZeroes, OpKind::Discard] {
                disk.clear_rules();
                let action = Action::PartThenFail { bytes: 0x200, error: medium.clone() };
                disk.add_rule(Rule::new(action).kind(kind).range(ByteRange { start: 0x3200, end: 0x3400 }).times(1));
                let mut buf = vec![0xee; 0x1000];
                let result = match kind {
                    OpKind::Read => client.read(0x3000, &mut buf).await,
                    OpKind::Write => client.write(0x3000, &buf, WriteFlags::empty()).await,
                    OpKind::WriteZeroes => client.write_zeroes(0x3000, 0x1000, ZeroFlags::empty()).await,
                    _ => client.discard(0x3000, 0x1000).await,
                };
                let error = result.unwrap_err();
                assert_eq!(error.errno, Errno::IO, "{mode:?} {kind:?}");
                if mode == Mode::Simple {
                    assert_eq!(error.first_bad, None, "{mode:?} {kind:?}");
                    continue;
                }
                assert_eq!(error.first_bad, Some(ByteOffset(0x3200)), "{mode:?} {kind:?}");
                let words = error.detail.unwrap();
                assert!(words.contains("SK=3 ASC=11 ASCQ=01"), "{mode:?} {kind:?}: {words}");
                assert!(words.contains("rule testing"), "{mode:?} {kind:?}: {words}");
                if kind == OpKind::Read {
                    assert!(buf[..0x200] == data[0x3000..0x3200], "{mode:?}: what comes before the place is valid");
                }
            }
        });
    }
}

#[test]
fn errno_crosses_the_wire() {
    let cases = [
        (Errno::PERM, Errno::PERM),
        (Errno::ROFS, Errno::PERM),
        (Errno::NOSPC, Errno::NOSPC),
        (Errno::FBIG, Errno::NOSPC),
        (Errno::NOMEM, Errno::NOMEM),
        (Errno::INVAL, Errno::INVAL),
        (Errno::TIMEDOUT, Errno::IO),
        (Errno::NOMEDIUM, Errno::IO),
        (Errno::NOTSUP, Errno::INVAL),
        (Errno::OVERFLOW, Errno::INVAL),
    ];
    for mode in MODES {
        run(async {
            let disk = TestDisk::new(MIB);
            let server = single(Node::new(disk.clone()));
            let client = connect(&server, wanted(mode), 1 << 16).await;
            for (device, client_sees) in cases {
                disk.clear_rules();
                disk.fail_kind(OpKind::Write, IoError::new(device));
                let error = client.write(0, &[1; 512], WriteFlags::empty()).await.unwrap_err();
                assert_eq!(error.errno, client_sees, "{mode:?} {device:?}");
            }
            disk.clear_rules();
            disk.fail_kind(OpKind::WriteZeroes, IoError::new(Errno::NOTSUP));
            let fast = client.write_zeroes(0, 512, ZeroFlags::NO_FALLBACK).await.unwrap_err();
            assert_eq!(fast.errno, Errno::NOTSUP, "{mode:?}: only here it has a meaning");
            let slow = client.write_zeroes(0, 512, ZeroFlags::empty()).await.unwrap_err();
            assert_eq!(slow.errno, Errno::INVAL, "{mode:?}");
        });
    }
}

#[test]
fn flags_reach_the_device() {
    run(async {
        let disk = TestDisk::new(MIB);
        let server = single(Node::new(disk.clone()));
        let client = connect(&server, wanted(Mode::Extended), 1 << 16).await;
        client.write(0, &[1; 512], WriteFlags::FUA).await.unwrap();
        client.write(512, &[1; 512], WriteFlags::empty()).await.unwrap();
        client.write_zeroes(0, 512, ZeroFlags::FUA | ZeroFlags::MAY_UNMAP).await.unwrap();
        client.write_zeroes(0, 512, ZeroFlags::empty()).await.unwrap();
        client.flush().await.unwrap();
        let log = disk.log();
        let writes: Vec<_> = log.of_kind(OpKind::Write).map(|op| op.fua).collect();
        assert_eq!(writes, [true, false]);
        let zeroes: Vec<_> = log.of_kind(OpKind::WriteZeroes).map(|op| op.zero_flags).collect();
        assert_eq!(zeroes, [ZeroFlags::FUA | ZeroFlags::MAY_UNMAP, ZeroFlags::empty()]);
        assert_eq!(log.of_kind(OpKind::Flush).count(), 1);
    });
}

#[test]
fn a_dropped_request_is_drained_before_drain_returns() {
    run(async {
        let disk = TestDisk::new(MIB);
        let server = single(Node::new(disk.clone()));
        let client = Rc::new(connect(&server, wanted(Mode::Extended), 1 << 16).await);
        disk.hold_kind(OpKind::Write);
        let one = Rc::clone(&client);
        let write = spawn_local(async move { one.write(0, &[7; 512], WriteFlags::empty()).await });
        while disk.parked().is_empty() {
            yield_now().await;
        }
        write.abort();
        assert!(write.await.unwrap_err().is_cancelled());
        let two = Rc::clone(&client);
        let drain = spawn_local(async move { two.drain().await });
        for _ in 0..20 {
            yield_now().await;
        }
        assert!(!drain.is_finished(), "the dropped write may still land");
        disk.clear_rules();
        disk.release_all();
        drain.await.unwrap().unwrap();
        assert_eq!(disk.bytes(0, 512), [7; 512], "it landed, before drain returned");
        // The cookie is free, the connection fine.
        client.write(512, &[8; 512], WriteFlags::empty()).await.unwrap();
    });
}

#[test]
fn a_lost_connection_fails_what_is_in_flight_and_what_comes() {
    run(async {
        let disk = TestDisk::new(MIB);
        let server = single(Node::new(disk.clone()));
        let (near, far) = tokio::io::duplex(1 << 16);
        let served = spawn_local(async move { server.serve(far, "test", pending()).await });
        let (client, connection) = Client::connect(near, Wanted::new("")).await.unwrap();
        spawn_local(connection);
        disk.hold_all();
        let client = Rc::new(client);
        let one = Rc::clone(&client);
        let write = spawn_local(async move { one.write(0, &[7; 512], WriteFlags::empty()).await });
        while disk.parked().is_empty() {
            yield_now().await;
        }
        served.abort();
        assert_eq!(write.await.unwrap().unwrap_err().errno, Errno::SHUTDOWN);
        let mut buf = [0; 512];
        assert_eq!(client.read(0, &mut buf).await.unwrap_err().errno, Errno::SHUTDOWN);
        assert_eq!(client.flush().await.unwrap_err().errno, Errno::SHUTDOWN);
        assert_eq!(client.drain().await.unwrap_err().errno, Errno::SHUTDOWN, "the server may still write");
    });
}

#[test]
fn shutting_down_answers_what_is_in_flight_and_refuses_the_rest() {
    for mode in MODES {
        run(async {
            let disk = TestDisk::new(MIB);
            let server = single(Node::new(disk.clone()));
            let (near, far) = tokio::io::duplex(1 << 16);
            let shared = Rc::clone(&server);
            let served = spawn_local(async move { shared.serve(far, "test", pending()).await });
            let (client, connection) = Client::connect(near, wanted(mode)).await.unwrap();
            spawn_local(connection);
            let client = Rc::new(client);
            disk.hold_kind(OpKind::Write);
            let one = Rc::clone(&client);
            let write = spawn_local(async move { one.write(0, &[7; 512], WriteFlags::empty()).await });
            while disk.parked().is_empty() {
                yield_now().await;
            }
            server.shut_down();
            yield_now().await;
            let late = client.write(512, &[8; 512], WriteFlags::empty()).await.unwrap_err();
            assert_eq!(late.errno, Errno::SHUTDOWN, "{mode:?}");
            disk.clear_rules();
            disk.release_all();
            write.await.unwrap().unwrap();
            let summary = served.await.unwrap().unwrap();
            assert!(matches!(summary.ended, Ended::Shutdown | Ended::Disconnect), "{mode:?}: {summary:?}");
            assert_eq!((summary.requests, summary.errors), (2, 1), "{mode:?}");
            assert_eq!(disk.bytes(0, 512), [7; 512]);
            assert_eq!(disk.bytes(512, 512), [0; 512]);
        });
    }
}

#[test]
fn writes_in_flight_are_completed_when_the_client_goes_away() {
    run(async {
        let disk = TestDisk::new(MIB);
        let server = single(Node::new(disk.clone()));
        let (near, far) = tokio::io::duplex(1 << 16);
        let shared = Rc::clone(&server);
        let served = spawn_local(async move { shared.serve(far, "test", pending()).await });
        let (client, connection) = Client::connect(near, Wanted::new("")).await.unwrap();
        let connection = spawn_local(connection);
        disk.hold_kind(OpKind::Write);
        let write = spawn_local(async move { client.write(0, &[7; 512], WriteFlags::empty()).await });
        while disk.parked().is_empty() {
            yield_now().await;
        }
        connection.abort();
        let _ = write.await;
        for _ in 0..20 {
            yield_now().await;
        }
        assert!(!served.is_finished(), "the write is still in flight");
        assert!(disk.orphans().is_empty(), "nobody dropped it");
        disk.clear_rules();
        disk.release_all();
        let summary = served.await.unwrap().unwrap();
        assert!(matches!(summary.ended, Ended::Closed | Ended::Broken), "{summary:?}");
        assert_eq!(disk.bytes(0, 512), [7; 512]);
        assert_eq!(server.connections(), 0);
    });
}

#[test]
fn closing_says_goodbye() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let (near, far) = tokio::io::duplex(1 << 16);
        let shared = Rc::clone(&server);
        let served = spawn_local(async move { shared.serve(far, "test", pending()).await });
        let (client, connection) = Client::connect(near, Wanted::new("")).await.unwrap();
        spawn_local(connection);
        client.close().await.unwrap();
        assert_eq!(served.await.unwrap().unwrap().ended, Ended::Disconnect);
        let mut buf = [0; 1];
        assert_eq!(client.read(0, &mut buf).await.unwrap_err().errno, Errno::SHUTDOWN);
    });
}

#[test]
fn exports_have_names_and_constraints() {
    run(async {
        let list = exports([
            Export::new("a", memory(&[1; 4096])).description("first"),
            Export::new("b", memory(&[2; 8192])).read_only(),
            Export::new("c", memory(&[3; 8192])).minimum_block(4096).unwrap(),
        ]);
        let mut with_default = list.clone();
        with_default.set_default("b").unwrap();
        let server = Rc::new(Server::new(with_default, Limits::default()));
        for (name, fill, read_only) in [("a", 1, false), ("b", 2, true), ("", 2, true)] {
            let client = connect(&server, Wanted::new(name), 1 << 16).await;
            let mut buf = [0; 512];
            client.read(0, &mut buf).await.unwrap();
            assert_eq!(buf, [fill; 512], "'{name}'");
            assert_eq!(client.info().read_only, read_only, "'{name}'");
            let written = client.write(0, &[9; 512], WriteFlags::empty()).await;
            assert_eq!(written.map_err(|error| error.errno), if read_only { Err(Errno::PERM) } else { Ok(()) });
        }
        let client = connect(&server, Wanted::new("c"), 1 << 16).await;
        assert_eq!(client.info().limits.alignment, 4096);
        let mut buf = [0; 512];
        assert_eq!(client.read(0, &mut buf).await.unwrap_err().errno, Errno::INVAL, "we promised to keep the size");
        let (near, far) = tokio::io::duplex(1 << 16);
        let shared = Rc::clone(&server);
        spawn_local(async move { shared.serve(far, "test", pending()).await });
        let error = Client::connect(near, Wanted::new("nothing")).await.unwrap_err().to_string();
        assert!(error.contains("no export of that name"), "{error}");
        let nameless = Rc::new(Server::new(list, Limits::default()));
        let (near, far) = tokio::io::duplex(1 << 16);
        spawn_local(async move { nameless.serve(far, "test", pending()).await });
        assert!(Client::connect(near, Wanted::new("")).await.is_err(), "there is no default export");
    });
}

#[test]
fn exports_that_make_no_sense_are_refused() {
    let export = |name: &str| Export::new(name, memory(&[0; 512]));
    let mut list = Exports::new();
    list.add(export("a")).unwrap();
    assert!(list.add(export("a")).is_err());
    assert!(list.add(export(&"x".repeat(4097))).is_err());
    assert!(list.add(export("x\0")).is_err());
    assert!(list.set_default("b").is_err());
    for minimum in [0, 3, 1 << 17] {
        assert!(export("b").minimum_block(minimum).is_err(), "{minimum}");
    }
}

#[test]
fn multi_conn_is_said_only_if_it_is_true() {
    use blkproof_nbd::wire::TransmissionFlags;
    run(async {
        for honest in [true, false] {
            let all = TestDisk::new(MIB).info().capabilities;
            let disk = TestDisk::new(MIB).with_capabilities(if honest {
                all | Capabilities::MULTI_CONN
            } else {
                all.difference(Capabilities::MULTI_CONN)
            });
            let client = connect(&single(Node::new(disk)), Wanted::new(""), 1 << 16).await;
            assert_eq!(client.agreed().flags.contains(TransmissionFlags::CAN_MULTI_CONN), honest);
        }
    });
}
