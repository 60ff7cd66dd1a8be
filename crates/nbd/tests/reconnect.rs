//! A node that connects again: what waits, what fails, what is said although nobody can know it (nothing).
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use blkproof_block::{BlockDevice, Errno, IoError, Node, WriteFlags, ZeroFlags};
use blkproof_nbd::wire::TransmissionFlags;
use common::puppet::{Offer, Puppet, World, at_once, settle};
use common::run;
use futures_lite::future::poll_once;
use tokio::io::AsyncWriteExt as _;
use tokio::task::{JoinHandle, spawn_local};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const ESHUTDOWN: u32 = 108;

type Outcome = Result<(), IoError>;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn write(node: &Node, at: u64) -> JoinHandle<Outcome> {
    let node = node.clone();
    spawn_local(async move { node.write(at, &[7; 512], WriteFlags::empty()).await })
}

fn read(node: &Node) -> JoinHandle<Outcome> {
    let node = node.clone();
    spawn_local(async move {
        let mut buf = [0; 512];
        node.read(0, &mut buf).await?;
        assert_eq!(buf, [9; 512]);
        Ok(())
    })
}

fn flush(node: &Node) -> JoinHandle<Outcome> {
    let node = node.clone();
    spawn_local(async move { node.flush().await })
}

/// What a request came to that waits for nothing any more.
async fn done(request: JoinHandle<Outcome>) -> Outcome {
    at_once(request).await.unwrap()
}

#[track_caller]
fn says(error: &IoError, errno: Errno, words: &[&str]) {
    assert_eq!(error.errno, errno, "{error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "no '{word}' in: {text}");
    }
}

/// A write that is in flight at the loss, and a node without a connection.
async fn cut_amid_a_write(world: &World, offer: Offer) -> (Node, JoinHandle<Outcome>) {
    let (node, mut server) = world.open("30", offer).await;
    let one = write(&node, 0);
    assert_eq!(server.next().await.kind, WRITE);
    world.refuse(true);
    drop(server);
    settle().await;
    (node, one)
}

#[test]
fn requests_wait_for_the_connection_and_are_sent_again() {
    run(async {
        let world = World::default();
        let (node, one) = cut_amid_a_write(&world, Offer::default()).await;
        let two = read(&node);
        world.pass(seconds(29)).await;
        assert!(!one.is_finished() && !two.is_finished());
        world.refuse(false);
        world.pass(seconds(1) - Duration::from_millis(1)).await;
        let mut server = world.accept(Offer::default()).await;
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let asked = server.serve().await;
            assert!(asked.kind != WRITE || asked.data == [7; 512]);
            kinds.push(asked.kind);
        }
        kinds.sort_unstable();
        assert_eq!(kinds, [READ, WRITE]);
        done(one).await.unwrap();
        done(two).await.unwrap();
        // The time that is over does not count for the next request, nor for the next loss.
        world.pass(seconds(100)).await;
        world.refuse(true);
        drop(server);
        let three = read(&node);
        world.pass(seconds(29)).await;
        assert!(!three.is_finished());
        world.pass(seconds(1)).await;
        says(&done(three).await.unwrap_err(), Errno::SHUTDOWN, &[]);
    });
}

#[test]
fn after_the_delay_requests_fail_at_once_until_a_connection_stands() {
    run(async {
        let world = World::default();
        let (node, one) = cut_amid_a_write(&world, Offer::default()).await;
        let two = flush(&node);
        world.pass(seconds(30)).await;
        let words = ["the server closed it", "more than 30 s", "attempts failed", "refused"];
        says(&done(one).await.unwrap_err(), Errno::SHUTDOWN, &words);
        says(&done(two).await.unwrap_err(), Errno::SHUTDOWN, &words);
        says(&at_once(node.read(0, &mut [0; 1])).await.unwrap_err(), Errno::SHUTDOWN, &words);
        // For ever.
        let before = world.attempts();
        world.pass(seconds(100)).await;
        assert!((99..=101).contains(&(world.attempts() - before)));
        world.refuse(false);
        world.pass(seconds(1)).await;
        let mut server = world.accept(Offer::default()).await;
        let three = read(&node);
        assert_eq!(server.serve().await.kind, READ);
        done(three).await.unwrap();
        assert!(!server.is_asked().await, "what failed is not sent again");
    });
}

#[test]
fn pauses_grow_to_a_second_and_begin_anew() {
    run(async {
        let world = World::default();
        let (node, one) = cut_amid_a_write(&world, Offer::default()).await;
        world.pass(seconds(4)).await;
        // Every attempt is bounded by 10 s.
        let pauses = |slept: &[Duration]| -> Vec<u128> {
            slept.iter().map(Duration::as_millis).filter(|&time| time != 10_000 && time != 30_000).collect()
        };
        assert_eq!(pauses(&world.slept()), [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        world.refuse(false);
        world.pass(seconds(1)).await;
        let mut server = world.accept(Offer::default()).await;
        server.serve().await;
        done(one).await.unwrap();
        let (attempts, slept) = (world.attempts(), world.slept().len());
        world.refuse(true);
        drop(server);
        settle().await;
        assert_eq!(world.attempts(), attempts + 1, "the first one is made at once");
        assert_eq!(pauses(&world.slept()[slept..]), [10]);
        drop(node);
    });
}

#[test]
fn an_attempt_is_bounded_in_time() {
    run(async {
        let world = World::default();
        let (node, one) = cut_amid_a_write(&world, Offer::default()).await;
        world.refuse(false);
        world.pass(seconds(1)).await;
        let mut deaf = world.arrival().await;
        deaf.write_all(b"NBDMAGIC").await.unwrap();
        world.pass(seconds(8)).await;
        assert!(!world.knocks().await);
        world.pass(seconds(3)).await;
        world.accept(Offer::default()).await.serve().await;
        done(one).await.unwrap();
        drop(node);
    });
}

#[test]
fn a_server_that_shuts_down_is_left_and_replaced() {
    run(async {
        let world = World::default();
        let (node, mut server) = world.open("30", Offer::default()).await;
        let one = write(&node, 0);
        let asked = server.next().await;
        server.answer(&asked, ESHUTDOWN).await;
        assert_eq!(server.next().await.kind, DISCONNECT);
        let mut server = world.accept(Offer::default()).await;
        assert_eq!(server.serve().await.kind, WRITE);
        done(one).await.unwrap();
        at_once(node.drain()).await.unwrap();

        // One that does not answer what else is in flight is waited for, but not for ever.
        let (one, two) = (write(&node, 0), write(&node, 512));
        let (asked, _) = (server.next().await, server.next().await);
        server.answer(&asked, ESHUTDOWN).await;
        world.pass(Duration::from_millis(900)).await;
        assert!(!world.knocks().await, "two may be answered still");
        world.pass(Duration::from_millis(200)).await;
        let mut next = world.accept(Offer::default()).await;
        next.serve().await;
        next.serve().await;
        done(one).await.unwrap();
        done(two).await.unwrap();
        drop(server);
    });
}

#[test]
fn a_server_that_falls_over_its_requests_does_not_make_them_wait_for_ever() {
    run(async {
        let world = World::default();
        let (node, mut server) = world.open("30", Offer::default()).await;
        let one = write(&node, 0);
        server.next().await;
        drop(server);
        let mut falls = 0;
        while !one.is_finished() {
            assert!(falls < 50, "it is sent again and again");
            if world.knocks().await {
                world.accept(Offer::default()).await.next().await;
                falls += 1;
            }
            world.pass(seconds(1)).await;
        }
        says(&done(one).await.unwrap_err(), Errno::SHUTDOWN, &["more than 30 s"]);
        // One that falls over while nobody wants anything of it leaves everybody his time.
        if world.knocks().await {
            drop(world.accept(Offer::default()).await);
        }
        world.pass(seconds(2)).await;
        drop(world.accept(Offer::default()).await);
        world.refuse(true);
        world.pass(seconds(5)).await;
        let two = read(&node);
        world.pass(seconds(20)).await;
        assert!(!two.is_finished());
        world.refuse(false);
        world.pass(seconds(1)).await;
        world.accept(Offer::default()).await.serve().await;
        done(two).await.unwrap();
    });
}

#[test]
fn a_server_that_only_ever_shuts_down_is_not_asked_for_ever() {
    run(async {
        let world = World::default();
        let (node, mut server) = world.open("30", Offer::default()).await;
        let one = write(&node, 0);
        let mut times = 0;
        loop {
            let asked = server.next().await;
            server.answer(&asked, ESHUTDOWN).await;
            times += 1;
            world.pass(seconds(1)).await;
            if one.is_finished() {
                break;
            }
            assert!(times < 50, "it is sent again and again");
            server = world.accept(Offer::default()).await;
        }
        says(&done(one).await.unwrap_err(), Errno::SHUTDOWN, &["shutting down", "more than 30 s"]);
        let pauses = world.slept();
        assert!(pauses.contains(&Duration::from_millis(640)), "{pauses:?}");
        at_once(node.drain()).await.unwrap();
    });
}

#[test]
fn a_dropped_request_does_not_wait_any_more() {
    run(async {
        let world = World::default();
        let (node, server) = world.open("30", Offer::default()).await;
        world.refuse(true);
        drop(server);
        settle().await;
        let mut buf = [0; 512];
        let mut one = Box::pin(node.read(0, &mut buf));
        assert!(poll_once(&mut one).await.is_none());
        drop(one);
        world.pass(seconds(20)).await;
        world.refuse(false);
        world.pass(seconds(1)).await;
        let server = world.accept(Offer::default()).await;
        // Nobody wanted anything of this connection, so its loss is a new one.
        world.refuse(true);
        drop(server);
        world.pass(seconds(15)).await;
        let two = read(&node);
        settle().await;
        assert!(!two.is_finished());
        world.pass(seconds(15)).await;
        done(two).await.unwrap_err();
    });
}

#[test]
fn another_export_is_refused_for_good() {
    let offer = Offer { minimum: 512, ..Offer::default() };
    let cases = [
        (Offer { size: 2 << 20, ..offer }, Err("1048576, now it is 2097152")),
        (Offer { size: 4096, ..offer }, Err("1048576, now it is 4096")),
        (offer.with(TransmissionFlags::READ_ONLY), Err("was writable, now it is read-only")),
        (Offer { minimum: 4096, ..offer }, Err("512, now it is 4096")),
        (Offer { maximum: 4096, ..offer }, Err("33554432, now it is 4096")),
        (offer.without(TransmissionFlags::FUA), Err("FUA")),
        (offer.without(TransmissionFlags::TRIM), Err("DISCARD")),
        (offer.without(TransmissionFlags::WRITE_ZEROES), Err("ZEROES")),
        (offer.without(TransmissionFlags::FLUSH), Err("flush")),
        (Offer { minimum: 1, ..offer }, Ok(())),
        (offer.with(TransmissionFlags::ROTATIONAL), Ok(())),
        (offer.without(TransmissionFlags::CAN_MULTI_CONN), Ok(())),
    ];
    for (other, want) in cases {
        run(async {
            let world = World::default();
            let (node, one) = cut_amid_a_write(&world, offer).await;
            let promised = node.info();
            world.refuse(false);
            world.pass(seconds(1)).await;
            let mut server = world.accept(other).await;
            let Err(words) = want else {
                assert_eq!(server.serve().await.kind, WRITE, "{other:?}");
                done(one).await.unwrap();
                assert_eq!(node.info(), promised, "{other:?}");
                return;
            };
            assert_eq!(server.next().await.kind, DISCONNECT, "{other:?}");
            says(&done(one).await.unwrap_err(), Errno::SHUTDOWN, &[words]);
            let attempts = world.attempts();
            world.pass(seconds(100)).await;
            assert_eq!(world.attempts(), attempts, "{other:?}");
            assert_eq!(world.tasks(), 0, "{other:?}");
            says(&at_once(node.read(0, &mut [0; 512])).await.unwrap_err(), Errno::SHUTDOWN, &[words]);
        });
    }
}

/// How far a write has come when its future is dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    NeverPolled,
    Queued,
    Received,
    Lost,
    LostAndNoticed,
    Connected,
    SentAgain,
    Answered,
}

#[test]
fn a_write_that_was_dropped_unanswered_is_open_for_ever() {
    use Stage::*;
    for stage in [NeverPolled, Queued, Received, Lost, LostAndNoticed, Connected, SentAgain, Answered] {
        run(async {
            let world = World::default();
            let (node, mut server) = world.open("30", Offer::default()).await;
            let mut one = Box::pin(node.write(0, &[7; 512], WriteFlags::empty()));
            let mut next = None;
            if stage >= Queued {
                assert!(poll_once(&mut one).await.is_none());
            }
            if stage >= Received {
                server.next().await;
            }
            if stage >= Lost {
                drop(server);
                settle().await;
            } else {
                next = Some(server);
            }
            if stage >= LostAndNoticed {
                assert!(poll_once(&mut one).await.is_none());
            }
            if stage >= Connected {
                next = Some(world.accept(Offer::default()).await);
            }
            if stage >= SentAgain {
                assert!(poll_once(&mut one).await.is_none());
                let server = next.as_mut().unwrap();
                let asked = server.next().await;
                if stage >= Answered {
                    server.answer(&asked, 0).await;
                }
            }
            drop(one);
            settle().await;
            // The first connection is lost in any case.
            let mut server = match next {
                Some(server) if stage >= Connected => server,
                Some(mut server) => {
                    if stage == Queued {
                        server.next().await;
                    }
                    drop(server);
                    world.accept(Offer::default()).await
                }
                None => world.accept(Offer::default()).await,
            };
            let sent = stage > NeverPolled;
            let drain = node.drain();
            if sent {
                let words = ["1 request that changes the disk", "may still carry it out"];
                says(&at_once(drain).await.unwrap_err(), Errno::SHUTDOWN, &words);
                let two = write(&node, 0);
                server.serve().await;
                done(two).await.unwrap();
                says(&at_once(node.drain()).await.unwrap_err(), Errno::SHUTDOWN, &words);
            } else {
                at_once(drain).await.unwrap();
            }
            assert!(!server.is_asked().await, "{stage:?}: what was dropped is not sent again");
        });
    }
}

#[test]
fn a_write_whose_failure_was_reported_is_open_for_ever() {
    run(async {
        let world = World::default();
        let (node, one) = cut_amid_a_write(&world, Offer::default()).await;
        at_once(node.drain()).await.unwrap();
        world.pass(seconds(30)).await;
        done(one).await.unwrap_err();
        says(&at_once(node.drain()).await.unwrap_err(), Errno::SHUTDOWN, &["1 request"]);

        let world = World::default();
        let (node, one) = cut_amid_a_write(&world, Offer::default()).await;
        world.refuse(false);
        world.pass(seconds(1)).await;
        let mut server = world.accept(Offer::default()).await;
        let asked = server.next().await;
        server.answer(&asked, 5).await;
        says(&done(one).await.unwrap_err(), Errno::IO, &[]);
        says(&at_once(node.drain()).await.unwrap_err(), Errno::SHUTDOWN, &["1 request"]);
    });
}

#[test]
fn what_can_not_land_is_not_held_against_a_drain() {
    run(async {
        let world = World::default();
        // Done again: the old server can but do the same.
        let (node, one) = cut_amid_a_write(&world, Offer::default()).await;
        // Never sent, and a dropped read.
        for kind in [READ, WRITE] {
            let mut buf = [0; 512];
            let mut request: blkproof_block::LocalBoxFuture<'_, Outcome> = match kind {
                READ => Box::pin(node.read(0, &mut buf)),
                _ => Box::pin(node.write(512, &[1; 512], WriteFlags::empty())),
            };
            assert!(poll_once(&mut request).await.is_none());
        }
        at_once(node.drain()).await.unwrap();
        // A write that waits now, and is dropped when it is under way: drain waits for its answer.
        let mut two = Box::pin(node.write(1024, &[2; 512], WriteFlags::empty()));
        assert!(poll_once(&mut two).await.is_none());
        world.refuse(false);
        world.pass(seconds(1)).await;
        let mut server = world.accept(Offer::default()).await;
        assert_eq!(server.serve().await.offset, 0);
        done(one).await.unwrap();
        assert!(poll_once(&mut two).await.is_none());
        let asked = server.next().await;
        assert_eq!(asked.offset, 1024);
        drop(two);
        let mut drain = Box::pin(node.drain());
        for _ in 0..3 {
            assert!(poll_once(&mut drain).await.is_none());
            settle().await;
        }
        server.answer(&asked, 0).await;
        at_once(drain).await.unwrap();
        assert!(!server.is_asked().await);

        // A read that was dropped in flight.
        let mut buf = [0; 512];
        let mut three = Box::pin(node.read(0, &mut buf));
        assert!(poll_once(&mut three).await.is_none());
        server.next().await;
        drop(three);
        drop(server);
        settle().await;
        at_once(node.drain()).await.unwrap();
    });
}

/// Behind a write that the pipe does not take whole, others wait with their heads unsent: no server knows of them.
#[test]
fn what_had_not_left_is_not_open() {
    run(async {
        for big in [128 << 10, 512] {
            let world = World::default();
            let (node, mut server) = world.open("30", Offer::default()).await;
            let data = vec![1; big];
            let mut one = Box::pin(node.write(0, &data, WriteFlags::empty()));
            let mut two = Box::pin(node.write(1 << 18, &[2; 512], WriteFlags::empty()));
            assert!(poll_once(&mut one).await.is_none() && poll_once(&mut two).await.is_none());
            settle().await;
            if big == 512 {
                // There was room: the server has both, whether it has looked at them or not.
                server.next().await;
            }
            drop((one, two));
            drop(server);
            settle().await;
            let words = if big == 512 { "2 requests that change the disk" } else { "1 request that changes the disk" };
            says(&at_once(node.drain()).await.unwrap_err(), Errno::SHUTDOWN, &[words]);
        }
    });
}

#[test]
fn only_what_changes_the_disk_and_was_sent_is_open() {
    run(async {
        // A read, in flight at the loss, dropped while it waits.
        let world = World::default();
        let (node, mut server) = world.open("30", Offer::default()).await;
        let mut buf = [0; 512];
        let mut one = Box::pin(node.read(0, &mut buf));
        assert!(poll_once(&mut one).await.is_none());
        server.next().await;
        drop(server);
        settle().await;
        assert!(poll_once(&mut one).await.is_none());
        drop(one);
        at_once(node.drain()).await.unwrap();

        // A write on the second connection.
        let mut server = world.accept(Offer::default()).await;
        let mut one = Box::pin(node.write(0, &[7; 512], WriteFlags::empty()));
        assert!(poll_once(&mut one).await.is_none());
        server.next().await;
        drop(one);
        drop(server);
        settle().await;
        says(&at_once(node.drain()).await.unwrap_err(), Errno::SHUTDOWN, &["1 request"]);

        // Zeroes in two steps: the first is answered, for the second there is no connection any more.
        let world = World::default();
        let offer = Offer { size: 4 << 20, ..Offer::default() }.without(TransmissionFlags::WRITE_ZEROES);
        let (node, mut server) = world.open("30", offer).await;
        let mut zeroes = Box::pin(node.write_zeroes(0, 2 << 20, ZeroFlags::empty()));
        assert!(poll_once(&mut zeroes).await.is_none());
        let first = server.next().await;
        let two = read(&node);
        let asked = server.next().await;
        server.answer(&asked, ESHUTDOWN).await;
        server.answer(&first, 0).await;
        assert!(poll_once(&mut zeroes).await.is_none());
        drop(zeroes);
        at_once(node.drain()).await.unwrap();
        assert_eq!(server.next().await.kind, DISCONNECT);
        world.accept(offer).await.serve().await;
        done(two).await.unwrap();
        at_once(node.drain()).await.unwrap();
    });
}

/// What happens on the first connection of a case about flushing.
#[derive(Clone, Copy, Debug)]
enum Before {
    Write,
    TwoWrites,
    Zeroes,
    Discard,
    NothingAtAll,
    WriteAndFlush,
    /// The flush is sent, then a write completes, then the flush does.
    WriteAmidFlush,
    /// The flush fails.
    WriteAndFailingFlush,
    DurableWrite,
    DurableZeroes,
    WriteThenDurable,
    FailingWrite,
    /// To a server without trim, and a write of no bytes.
    NothingSent,
}

async fn before(node: &Node, server: &mut Puppet, before: Before) {
    use Before::*;
    match before {
        NothingAtAll => {}
        NothingSent => {
            at_once(node.discard(0, 512)).await.unwrap();
            at_once(node.write(0, &[], WriteFlags::empty())).await.unwrap();
        }
        Write | TwoWrites | WriteAndFlush | WriteAndFailingFlush | FailingWrite => {
            let one = write(node, 0);
            let asked = server.next().await;
            server.answer(&asked, if matches!(before, FailingWrite) { 5 } else { 0 }).await;
            assert_eq!(done(one).await.is_err(), matches!(before, FailingWrite));
            if matches!(before, TwoWrites) {
                let two = write(node, 0);
                server.serve().await;
                done(two).await.unwrap();
            }
            if matches!(before, WriteAndFlush | WriteAndFailingFlush) {
                let fails = matches!(before, WriteAndFailingFlush);
                let flush = flush(node);
                let asked = server.next().await;
                server.answer(&asked, if fails { 5 } else { 0 }).await;
                assert_eq!(done(flush).await.is_err(), fails);
            }
        }
        WriteThenDurable => {
            for flags in [WriteFlags::empty(), WriteFlags::FUA] {
                let node = node.clone();
                let one = spawn_local(async move { node.write(0, &[7; 512], flags).await });
                server.serve().await;
                if !one.is_finished() {
                    assert_eq!(server.serve().await.kind, FLUSH);
                }
                done(one).await.unwrap();
            }
        }
        WriteAmidFlush => {
            let flush = flush(node);
            let asked = server.next().await;
            let one = write(node, 0);
            server.serve().await;
            done(one).await.unwrap();
            server.answer(&asked, 0).await;
            done(flush).await.unwrap();
        }
        Zeroes | Discard | DurableWrite | DurableZeroes => {
            let node = node.clone();
            let one = spawn_local(async move {
                match before {
                    Zeroes => node.write_zeroes(0, 512, ZeroFlags::empty()).await,
                    DurableZeroes => node.write_zeroes(0, 512, ZeroFlags::FUA).await,
                    Discard => node.discard(0, 512).await,
                    _ => node.write(0, &[7; 512], WriteFlags::FUA).await,
                }
            });
            server.serve().await;
            if !one.is_finished() {
                // FUA that takes a flush.
                assert_eq!(server.serve().await.kind, FLUSH);
            }
            done(one).await.unwrap();
        }
    }
}

#[test]
fn success_over_lost_data_is_never_said() {
    use Before::*;
    let many = Offer::default();
    let one = many.without(TransmissionFlags::CAN_MULTI_CONN);
    let no_fua = one.without(TransmissionFlags::FUA);
    let no_trim = one.without(TransmissionFlags::TRIM);
    // What the two servers offer, what happens before the loss, and how many writes no flush can cover any more.
    let cases = [
        (one, one, Write, 1),
        (one, one, TwoWrites, 2),
        (one, one, Zeroes, 1),
        (one, one, Discard, 1),
        (one, one, NothingAtAll, 0),
        (one, one, WriteAndFlush, 0),
        (one, one, WriteAmidFlush, 1),
        (one, one, WriteAndFailingFlush, 1),
        (one, one, DurableWrite, 0),
        (one, one, DurableZeroes, 0),
        (one, one, WriteThenDurable, 1),
        (one, one, FailingWrite, 0),
        (no_fua, no_fua, Write, 1),
        (no_fua, no_fua, DurableWrite, 0),
        (no_fua, no_fua, DurableZeroes, 0),
        (no_fua, no_fua, WriteThenDurable, 0),
        (no_trim, no_trim, Write, 1),
        (no_trim, no_trim, NothingSent, 0),
        (many, many, Write, 0),
        (many, many, WriteAmidFlush, 0),
        (many, one, Write, 1),
        (one, many, Write, 1),
        (one.without(TransmissionFlags::FLUSH), one.without(TransmissionFlags::FLUSH), Write, 0),
    ];
    for (first, second, story, lost) in cases {
        run(async {
            let case = format!("{story:?}, {:?}, {:?}", first.flags, second.flags);
            let world = World::default();
            let (node, mut server) = world.open("30", first).await;
            before(&node, &mut server, story).await;
            drop(server);
            // A flush that waits is no different from later ones.
            let waiting = flush(&node);
            let mut server = world.accept(second).await;
            let words = if lost == 1 { "1 write that".to_owned() } else { format!("{lost} writes that") };
            let flushes = second.flags.contains(TransmissionFlags::FLUSH);
            if lost == 0 && flushes {
                assert_eq!(server.serve().await.kind, FLUSH, "{case}");
            }
            let outcome = done(waiting).await;
            assert_eq!(outcome.is_err(), lost > 0, "{case}: {outcome:?}");
            // Over a third connection as well.
            for again in 0..2 {
                if lost == 0 {
                    break;
                }
                says(&at_once(node.flush()).await.unwrap_err(), Errno::IO, &[&words, "CAN_MULTI_CONN"]);
                let durable = node.clone();
                let durable = spawn_local(async move { durable.write(0, &[1; 512], WriteFlags::FUA).await });
                if second.flags.contains(TransmissionFlags::FUA) {
                    assert_eq!(server.serve().await.flags, 1, "{case}");
                    done(durable).await.unwrap();
                } else {
                    says(&done(durable).await.unwrap_err(), Errno::IO, &[&words]);
                }
                let plain = write(&node, 0);
                server.serve().await;
                done(plain).await.unwrap();
                if again > 0 || !second.flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
                    // The write just done would be one more.
                    break;
                }
                drop(server);
                server = world.accept(second).await;
            }
        });
    }
}

#[test]
fn a_completion_noticed_after_the_next_connection_counts_for_its_own() {
    run(async {
        let world = World::default();
        let offer = Offer::default().without(TransmissionFlags::CAN_MULTI_CONN);
        let (node, mut server) = world.open("30", offer).await;
        let mut one = Box::pin(node.write(0, &[7; 512], WriteFlags::empty()));
        assert!(poll_once(&mut one).await.is_none());
        server.serve().await;
        drop(server);
        let _server = world.accept(offer).await;
        at_once(one).await.unwrap();
        says(&at_once(node.flush()).await.unwrap_err(), Errno::IO, &["1 write that"]);
    });
}

#[test]
fn the_task_ends_with_the_node() {
    run(async {
        // Connected.
        let world = World::default();
        let (node, mut server) = world.open("30", Offer::default()).await;
        assert_eq!(world.tasks(), 1);
        drop(node);
        assert_eq!(server.next().await.kind, DISCONNECT);
        settle().await;
        assert_eq!(world.tasks(), 0);
        // Between two attempts, and in one.
        for refuse in [true, false] {
            let world = World::default();
            let (node, server) = world.open("30", Offer::default()).await;
            world.refuse(refuse);
            drop(server);
            settle().await;
            assert_eq!(world.tasks(), 1, "{refuse}");
            drop(node);
            settle().await;
            assert_eq!(world.tasks(), 0, "{refuse}");
            let attempts = world.attempts();
            world.pass(seconds(60)).await;
            assert_eq!(world.attempts(), attempts, "{refuse}");
        }
    });
}

#[test]
fn closing_ends_it() {
    run(async {
        let world = World::default();
        let (node, mut server) = world.open("30", Offer::default()).await;
        let (closing, closed) = (node.clone(), node.clone());
        let closing = spawn_local(async move { closing.close().await });
        assert_eq!(server.serve().await.kind, FLUSH);
        assert_eq!(server.next().await.kind, DISCONNECT);
        done(closing).await.unwrap();
        assert!(server.is_left().await);
        world.pass(seconds(60)).await;
        assert_eq!((world.attempts(), world.tasks()), (1, 0));
        says(&at_once(closed.read(0, &mut [0; 1])).await.unwrap_err(), Errno::SHUTDOWN, &["was closed"]);

        // Without a connection: what waits fails with it.
        let world = World::default();
        let (node, one) = cut_amid_a_write(&world, Offer::default()).await;
        world.pass(seconds(30)).await;
        done(one).await.unwrap_err();
        says(&at_once(node.close()).await.unwrap_err(), Errno::SHUTDOWN, &[]);
        settle().await;
        assert_eq!(world.tasks(), 0);
    });
}

#[test]
fn without_the_option_nothing_is_tried_again() {
    run(async {
        let world = World::default();
        let (node, mut server) = world.open("0", Offer::default()).await;
        let one = write(&node, 0);
        server.next().await;
        drop(server);
        says(&done(one).await.unwrap_err(), Errno::SHUTDOWN, &["the server closed it"]);
        world.pass(seconds(60)).await;
        assert_eq!((world.attempts(), world.tasks()), (1, 0));
        says(&at_once(node.drain()).await.unwrap_err(), Errno::SHUTDOWN, &[]);
    });
}

#[test]
fn the_first_connection_is_tried_for_as_long_as_the_user_says() {
    run(async {
        for delay in ["0", "30"] {
            let world = World::default();
            world.refuse(true);
            let opening = world.opening(&[("open-timeout", "5"), ("reconnect-delay", delay)]);
            world.pass(Duration::from_millis(4900)).await;
            assert!(!opening.is_finished());
            assert_eq!(world.attempts(), 11);
            world.refuse(false);
            // A server that does not answer is not waited for beyond that time.
            world.pass(Duration::from_millis(99)).await;
            if !world.knocks().await {
                world.pass(Duration::from_millis(1)).await;
            }
            world.pass(Duration::from_millis(2)).await;
            let error = at_once(opening).await.unwrap().unwrap_err();
            assert!(error.contains("nbd server") && error.contains("refused"), "{error}");
        }

        let world = World::default();
        world.refuse(true);
        let opening = world.opening(&[("open-timeout", "5")]);
        world.pass(seconds(3)).await;
        world.refuse(false);
        world.pass(seconds(1)).await;
        let mut server = world.accept(Offer::default()).await;
        let node = at_once(opening).await.unwrap().unwrap();
        let one = read(&node);
        server.serve().await;
        done(one).await.unwrap();

        let world = World::default();
        world.refuse(true);
        let error = at_once(world.opening(&[])).await.unwrap().unwrap_err();
        assert!(error.contains("refused"), "{error}");
        assert_eq!(world.attempts(), 1);
    });
}
