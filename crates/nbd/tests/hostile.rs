//! Peers that mean no good: junk, giants, silence, deafness, crowds. None may crash, fill or stop the server.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::future::{pending, ready};
use std::rc::Rc;

use blkproof_block::testing::{OpKind, TestDisk};
use blkproof_block::{BlockDevice, Errno, Node, WriteFlags};
use blkproof_nbd::client::{Client, ConnectError};
use blkproof_nbd::handshake::client::Wanted;
use blkproof_nbd::server::{Ended, Exports, Limits, ServeError, Server};
use common::{MIB, connect, memory, run, single};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinHandle, spawn_local, yield_now};

type Served = JoinHandle<Result<blkproof_nbd::server::Summary, ServeError>>;

/// A connection that has sent nothing.
fn dial(server: &Rc<Server>, pipe: usize) -> (DuplexStream, Served) {
    let (near, far) = tokio::io::duplex(pipe);
    let server = Rc::clone(server);
    (near, spawn_local(async move { server.serve(far, "hostile", pending()).await }))
}

/// A connection in transmission with simple replies.
async fn transmission(server: &Rc<Server>, pipe: usize) -> (DuplexStream, Served) {
    let (mut near, served) = dial(server, pipe);
    near.write_all(&3_u32.to_be_bytes()).await.unwrap();
    near.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").await.unwrap();
    near.read_exact(&mut [0; 18 + 10]).await.unwrap();
    (near, served)
}

fn request(kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut message = 0x2560_9513_u32.to_be_bytes().to_vec();
    message.extend([0, 0]);
    message.extend(kind.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend(offset.to_be_bytes());
    message.extend(length.to_be_bytes());
    message
}

#[test]
fn junk_in_negotiation_ends_the_connection() {
    let option = |number: u32, length: u32| {
        [&3_u32.to_be_bytes()[..], b"IHAVEOPT", &number.to_be_bytes(), &length.to_be_bytes()].concat()
    };
    let cases = [
        ("unknown client flags", vec![0xff; 4]),
        ("a wrong magic", [&[0, 0, 0, 3][..], &[0x55; 16]].concat()),
        ("a giant option", option(3, u32::MAX)),
        ("a giant export name", option(1, 70_000)),
        ("a long export name", [option(1, 5000), vec![b'x'; 5000]].concat()),
        ("no UTF-8", [option(1, 2), vec![0xff; 2]].concat()),
        ("an option without fixed newstyle", [&[0; 4][..], b"IHAVEOPT\0\0\0\x03\0\0\0\0"].concat()),
    ];
    for (what, bytes) in cases {
        run(async {
            let server = single(memory(&[1; 4096]));
            let (mut stream, served) = dial(&server, 1 << 20);
            stream.write_all(&bytes).await.unwrap();
            let end = served.await.unwrap();
            assert!(matches!(end, Err(ServeError::Protocol(_))), "{what}: {end:?}");
            assert_eq!(server.connections(), 0, "{what}");
        });
    }
}

#[test]
fn truncated_handshakes_are_just_clients_that_left() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let whole = [&3_u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0"].concat();
        for len in 0..whole.len() {
            let (mut stream, served) = dial(&server, 1 << 16);
            stream.write_all(&whole[..len]).await.unwrap();
            drop(stream);
            let end = served.await.unwrap();
            // A pipe that is closed may also fail a reply that is on its way.
            let left = matches!(&end, Ok(summary) if summary.ended == Ended::BeforeTransmission);
            assert!(left || matches!(end, Err(ServeError::Io(_))), "{len} bytes: {end:?}");
        }
    });
}

#[test]
fn endless_options_come_to_an_end() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let (stream, served) = dial(&server, 1 << 16);
        let (mut from, mut to) = tokio::io::split(stream);
        spawn_local(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
        to.write_all(&3_u32.to_be_bytes()).await.unwrap();
        while to.write_all(b"IHAVEOPT\0\0\0\x63\0\0\0\0").await.is_ok() {}
        assert!(matches!(served.await.unwrap(), Err(ServeError::Protocol(_))));
    });
}

#[test]
fn a_client_that_never_reads_options_stops_only_itself() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let (mut stream, served) = dial(&server, 512);
        stream.write_all(&3_u32.to_be_bytes()).await.unwrap();
        let flood = spawn_local(async move { while stream.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").await.is_ok() {} });
        for _ in 0..1000 {
            yield_now().await;
        }
        assert!(!served.is_finished() && !flood.is_finished(), "both wait");
        let client = connect(&server, Wanted::new(""), 1 << 16).await;
        client.read(0, &mut [0; 512]).await.unwrap();
    });
}

#[test]
fn patience_ends_a_silent_client() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let (_near, far) = tokio::io::duplex(1 << 16);
        let end = server.serve(far, "silent", ready(())).await;
        assert!(matches!(end, Err(ServeError::Impatient)), "{end:?}");
        assert_eq!(server.connections(), 0);
    });
}

#[test]
fn silent_clients_do_not_hold_others() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let silent: Vec<_> = (0..20).map(|_| dial(&server, 1 << 10)).collect();
        let client = connect(&server, Wanted::new(""), 1 << 16).await;
        client.read(0, &mut [0; 512]).await.unwrap();
        assert_eq!(server.connections(), 21);
        server.shut_down();
        for (stream, served) in silent {
            let ended = served.await.unwrap().unwrap().ended;
            assert_eq!(ended, Ended::BeforeTransmission);
            drop(stream);
        }
    });
}

#[test]
fn a_crowd_is_turned_away() {
    run(async {
        let limits = Limits { connections: 2, ..Limits::default() };
        let server = Rc::new(Server::new(Exports::single(memory(&[1; 4096])), limits));
        let one = connect(&server, Wanted::new(""), 1 << 16).await;
        let two = connect(&server, Wanted::new(""), 1 << 16).await;
        let (near, served) = dial(&server, 1 << 16);
        assert!(matches!(served.await.unwrap(), Err(ServeError::TooManyConnections { limit: 2 })));
        assert!(matches!(Client::connect(near, Wanted::new("")).await, Err(ConnectError::Io(_))));
        one.close().await.unwrap();
        while server.connections() > 1 {
            yield_now().await;
        }
        let three = connect(&server, Wanted::new(""), 1 << 16).await;
        three.read(0, &mut [0; 512]).await.unwrap();
        two.read(0, &mut [0; 512]).await.unwrap();
    });
}

#[test]
fn junk_in_transmission_ends_the_connection_after_what_is_in_flight() {
    run(async {
        let disk = TestDisk::new(MIB);
        let server = single(Node::new(disk.clone()));
        let (mut stream, served) = transmission(&server, 1 << 16).await;
        disk.hold_kind(OpKind::Flush);
        stream.write_all(&request(3, 1, 0, 0)).await.unwrap();
        stream.write_all(&[0x77; 64]).await.unwrap();
        for _ in 0..50 {
            yield_now().await;
        }
        assert!(!served.is_finished());
        disk.clear_rules();
        disk.release_all();
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[4..8], [0; 4], "the flush succeeded");
        assert!(matches!(served.await.unwrap(), Err(ServeError::Protocol(_))));
    });
}

#[test]
fn giant_lengths_take_no_memory() {
    run(async {
        let server = single(memory(&[1; 4096]));
        let (mut stream, served) = transmission(&server, 1 << 16).await;
        let mut reply = [0; 16];
        // Reads are refused; a write that is too long is refused and its payload skipped; a giant one ends it.
        stream.write_all(&request(0, 1, 0, u32::MAX)).await.unwrap();
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[4..8], 22_u32.to_be_bytes());
        let too_long = (32 << 20) + 1;
        stream.write_all(&request(1, 2, 0, too_long)).await.unwrap();
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[4..8], 22_u32.to_be_bytes());
        stream.write_all(&vec![9; too_long as usize]).await.unwrap();
        stream.write_all(&request(0, 3, 0, 1)).await.unwrap();
        let mut reply = [0; 17];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[4..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1], "in step, and nothing was written");
        stream.write_all(&request(1, 4, 0, u32::MAX)).await.unwrap();
        assert!(matches!(served.await.unwrap(), Err(ServeError::Protocol(_))));
    });
}

#[test]
fn a_client_that_takes_no_replies_is_held_back_and_holds_nobody() {
    run(async {
        let disk = TestDisk::new(64 * MIB);
        let limits = Limits { in_flight_bytes: 8 << 20, ..Limits::default() };
        let server = Rc::new(Server::new(Exports::single(Node::new(disk.clone())), limits));
        let (mut stream, served) = transmission(&server, 4096).await;
        let flood = spawn_local(async move {
            let mut sent = 0_u64;
            while stream.write_all(&request(0, sent, 0, 4 << 20)).await.is_ok() {
                sent += 1;
            }
        });
        for _ in 0..2000 {
            yield_now().await;
        }
        assert!(!served.is_finished() && !flood.is_finished(), "the client waits for itself");
        let begun = disk.log().of_kind(OpKind::Read).count();
        assert!((1..=4).contains(&begun), "{begun} reads of 4 MiB were begun under a budget of 8 MiB");
        // Whatever it holds, another client gets its turn, with requests of any size.
        let client = connect(&server, Wanted::new(""), 1 << 16).await;
        let mut buf = vec![0; 16 << 20];
        client.read(0, &mut buf).await.unwrap();
        client.write(0, &buf, WriteFlags::empty()).await.unwrap();
        flood.abort();
        let summary = served.await.unwrap().unwrap();
        assert!(matches!(summary.ended, Ended::Broken | Ended::Closed), "{summary:?}");
    });
}

#[test]
fn warming_a_cache_is_paid_for() {
    run(async {
        let disk = TestDisk::new(64 * MIB);
        let limits = Limits { in_flight_bytes: 4 << 20, ..Limits::default() };
        let server = Rc::new(Server::new(Exports::single(Node::new(disk.clone())), limits));
        let (mut near, served) = transmission(&server, 1 << 16).await;
        disk.hold_kind(OpKind::Read);
        for cookie in 0..100 {
            near.write_all(&request(5, cookie, 0, 8 << 20)).await.unwrap();
        }
        for _ in 0..200 {
            yield_now().await;
        }
        assert_eq!(disk.parked().len(), 5, "four of 1 MiB out of the budget, one of the connection's own");
        disk.clear_rules();
        disk.release_all();
        near.read_exact(&mut [0; 16 * 100]).await.unwrap();
        near.write_all(&request(2, 0, 0, 0)).await.unwrap();
        assert_eq!(served.await.unwrap().unwrap().requests, 100);
    });
}

#[test]
fn replies_that_nobody_takes_stay_paid_for() {
    run(async {
        let disk = TestDisk::new(64 * MIB);
        // Data and holes by turns: such a reply is put together anew, and has to keep its price.
        disk.tamper(|bytes| (0..512).step_by(2).for_each(|n| bytes.write(n * 65536, &[7; 65536])));
        let limits = Limits { in_flight_bytes: 8 << 20, ..Limits::default() };
        let server = Rc::new(Server::new(Exports::single(Node::new(disk.clone())), limits));
        disk.hold_kind(OpKind::Read);
        let mut deaf = Vec::new();
        // The first takes the shared budget and its own share; for the second only its own is left.
        for (round, begun) in [(0, 3), (1, 1)] {
            let (mut near, served) = dial(&server, 4096);
            near.write_all(&3_u32.to_be_bytes()).await.unwrap();
            near.write_all(b"IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x01\0\0\0\0").await.unwrap();
            near.read_exact(&mut [0; 18 + 20 + 10]).await.unwrap();
            for cookie in 0..20 {
                near.write_all(&request(0, cookie, 0, 4 << 20)).await.unwrap();
            }
            for _ in 0..200 {
                yield_now().await;
            }
            assert_eq!(disk.parked().len(), begun, "connection {round}");
            disk.release_all();
            for _ in 0..200 {
                yield_now().await;
            }
            assert_eq!(disk.parked().len(), 0, "connection {round} begins nothing more while its replies wait");
            deaf.push((near, served));
        }
    });
}

#[test]
fn a_client_that_never_sends_its_payload_holds_nobody() {
    run(async {
        let limits = Limits { in_flight_bytes: 1 << 20, ..Limits::default() };
        let server = Rc::new(Server::new(Exports::single(memory(&vec![0; 40 << 20])), limits));
        let mut slow = Vec::new();
        for _ in 0..10 {
            let (mut stream, served) = transmission(&server, 1 << 16).await;
            stream.write_all(&request(1, 1, 0, 32 << 20)).await.unwrap();
            stream.write_all(&[5; 1000]).await.unwrap();
            slow.push((stream, served));
        }
        let client = connect(&server, Wanted::new(""), 1 << 16).await;
        client.write(0, &vec![1; 32 << 20], WriteFlags::empty()).await.unwrap();
        for (stream, served) in slow {
            drop(stream);
            assert_eq!(served.await.unwrap().unwrap().ended, Ended::Closed);
        }
        let mut byte = [0];
        client.read(0, &mut byte).await.unwrap();
        assert_eq!(byte, [1], "half a payload is no write");
    });
}

#[test]
fn requests_in_flight_are_bounded_by_number() {
    run(async {
        let disk = TestDisk::new(MIB);
        let limits = Limits { requests: 8, ..Limits::default() };
        let server = Rc::new(Server::new(Exports::single(Node::new(disk.clone())), limits));
        let (mut stream, served) = transmission(&server, 1 << 20).await;
        disk.hold_kind(OpKind::Flush);
        for cookie in 0..1000 {
            stream.write_all(&request(3, cookie, 0, 0)).await.unwrap();
        }
        for _ in 0..100 {
            yield_now().await;
        }
        assert_eq!(disk.parked().len(), 8);
        disk.clear_rules();
        disk.release_all();
        stream.read_exact(&mut [0; 16 * 1000]).await.unwrap();
        stream.write_all(&request(2, 0, 0, 0)).await.unwrap();
        assert_eq!(served.await.unwrap().unwrap().requests, 1000);
    });
}

/// Servers that mean no good.
#[test]
fn our_client_survives_bad_servers() {
    let cases: [(&str, Vec<u8>); 8] = [
        ("nothing", vec![]),
        ("junk", vec![0x5a; 100]),
        ("oldstyle", [&b"NBDMAGIC"[..], &0x0000_4202_8186_1253_u64.to_be_bytes(), &[0; 200]].concat()),
        ("half a greeting", b"NBDMAGICIHAVE".to_vec()),
        ("a giant reply", [&b"NBDMAGICIHAVEOPT\0\x03"[..], &reply_head(11, 1, u32::MAX)].concat()),
        ("a reply to something else", [&b"NBDMAGICIHAVEOPT\0\x03"[..], &reply_head(5, 1, 0)].concat()),
        ("an export without size", {
            let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
            for (option, kind) in [(11, 1), (10, 1), (7, 1)] {
                bytes.extend(reply_head(option, kind, 0));
            }
            bytes
        }),
        ("a refusal", [&b"NBDMAGICIHAVEOPT\0\x03"[..], &reply_head(11, 0x8000_0005, 0)].concat()),
    ];
    for (what, bytes) in cases {
        run(async {
            let (near, mut far) = tokio::io::duplex(1 << 16);
            spawn_local(async move {
                far.write_all(&bytes).await.unwrap();
                far.shutdown().await.unwrap();
                let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
            });
            assert!(Client::connect(near, Wanted::new("")).await.is_err(), "{what}");
        });
    }
}

fn reply_head(option: u32, kind: u32, length: u32) -> Vec<u8> {
    let mut head = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    head.extend([option, kind, length].iter().flat_map(|number| number.to_be_bytes()));
    head
}

#[test]
fn replies_that_can_not_be_end_the_connection() {
    let structured = |kind: u16, done: u16, cookie: u64, payload: &[u8]| {
        let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
        bytes.extend(done.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend(payload);
        bytes
    };
    let data = |at: u64, len: usize| [&at.to_be_bytes()[..], &vec![7; len]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("another cookie", structured(0, 1, 99, &[])),
        ("too little data", [structured(1, 0, 0, &data(0, 100)), structured(0, 1, 0, &[])].concat()),
        ("the same data twice", [structured(1, 0, 0, &data(0, 512)), structured(1, 1, 0, &data(0, 512))].concat()),
        ("overlapping data", [structured(1, 0, 0, &data(100, 412)), structured(1, 1, 0, &data(0, 101))].concat()),
        ("data past the request", structured(1, 1, 0, &data(1, 512))),
        ("data before the request", structured(1, 1, 0, &data(u64::MAX, 512))),
        ("a hole of no size", structured(2, 1, 0, &[0; 12])),
        ("an unknown chunk", structured(9, 1, 0, &[0; 4])),
        ("an error without a number", structured(0x8001, 1, 0, &[0; 6])),
        ("a message longer than its chunk", structured(0x8001, 1, 0, &[0, 0, 0, 5, 0xff, 0xff])),
        ("an empty chunk in the middle", structured(0, 0, 0, &[])),
        ("a status for a read", structured(5, 1, 0, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0])),
        ("a simple reply to a read", [&0x6744_6698_u32.to_be_bytes()[..], &[0; 12]].concat()),
        ("junk", vec![0x33; 64]),
        ("nothing", vec![]),
    ];
    for (what, bytes) in cases {
        run(async {
            let (near, mut far) = tokio::io::duplex(1 << 16);
            spawn_local(async move {
                let mut hello = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
                hello.extend(reply_head(11, 0x8000_0001, 0));
                hello.extend(reply_head(8, 1, 0));
                hello.extend(reply_head(10, 1, 0));
                hello.extend(reply_head(7, 3, 12));
                hello.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x8d]);
                hello.extend(reply_head(7, 1, 0));
                far.write_all(&hello).await.unwrap();
                // Whatever was asked in negotiation, then the read.
                let mut received = Vec::new();
                while !received.windows(4).any(|window| window == 0x2560_9513_u32.to_be_bytes()) {
                    assert!(far.read_buf(&mut received).await.unwrap() > 0);
                }
                far.write_all(&bytes).await.unwrap();
                far.shutdown().await.unwrap();
                let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
            });
            let (client, connection) = Client::connect(near, Wanted::new("")).await.unwrap();
            let connection = spawn_local(connection);
            let mut buf = [0; 512];
            let error = client.read(0, &mut buf).await.unwrap_err();
            assert_eq!(error.errno, Errno::SHUTDOWN, "{what}: {error}");
            connection.await.unwrap();
        });
    }
}
