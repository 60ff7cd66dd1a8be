//! One client's conversation: negotiation, order, malformed messages, the end.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::choice::hash;
use blkproof_block::{BlockDevice as _, Errno};
use blkproof_control::Ended;
use blkproof_fault::notice::{QUEUE, What};
use common::{Bench, run, settle};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

fn gone(number: u64) -> What {
    What::ClientDisconnected { client: Rc::from(number.to_string()) }
}

#[test]
fn a_session_from_greeting_to_quit() {
    run(async {
        let bench = Bench::new();
        let (mut client, session) = bench.connect_with(4096);
        let greeting = client.next().await.unwrap();
        assert_eq!(greeting["QMP"]["capabilities"], json!(["oob"]));
        assert!(greeting["QMP"]["version"]["qemu"]["major"].is_u64());
        client.send("{'execute':'query-nodes','id':'é'}").await;
        let early = client.next().await.unwrap();
        assert_eq!(early["error"]["class"], "CommandNotFound");
        assert_eq!(early["id"], "é");
        bench.lab.notices().tell(&Rc::from("n"), gone(0)); // nobody has negotiated: nobody hears
        client.send("{'execute':'qmp_capabilities','id':1}").await;
        assert_eq!(client.next().await.unwrap(), json!({"return": {}, "id": 1}));
        bench.lab.notices().tell(&Rc::from("n"), gone(1));
        let event = client.next().await.unwrap();
        assert_eq!(event["event"], "CLIENT_DISCONNECTED");
        assert_eq!(event["data"], json!({"node": "n", "client": "1"}));
        assert_eq!(event["timestamp"], json!({"seconds": 1_000_000_000, "microseconds": 0}));
        assert_eq!(client.ok("query-nodes", json!({})).await, json!([]));
        let (class, words) = client.refused("query-node", json!({})).await;
        assert_eq!(class, "CommandNotFound");
        assert_eq!(words, "The command query-node has not been found; did you mean 'query-nodes'?");
        assert_eq!(client.ok("quit", json!({})).await, json!({}));
        assert_eq!(bench.process.quits.get(), 1);
        bench.server.shut_down();
        assert_eq!(client.event_named("SHUTDOWN").await, json!({"reason": "quit"}));
        assert_eq!(client.next().await, None);
        assert_eq!(session.await.unwrap(), Ended::ShutDown);
    });
}

/// An event that happened before a reply was ready is on the wire before it, of whatever kind the command is.
#[test]
fn events_stand_before_the_replies_that_come_after_them() {
    run(async {
        let bench = Bench::new();
        let mut client = bench.client().await;
        for (number, execute) in (0..100).zip(["execute", "exec-oob"].into_iter().cycle()) {
            for event in 0..5 {
                bench.lab.notices().tell(&Rc::from("n"), gone(number * 5 + event));
            }
            client.send(json!({execute: "query-version", "id": number}).to_string()).await;
            for event in 0..5 {
                let message = client.next().await.unwrap();
                assert_eq!(message["data"]["client"], (number * 5 + event).to_string(), "{execute}: {message}");
            }
            assert_eq!(client.next().await.unwrap()["id"], number);
        }
    });
}

#[test]
fn what_can_be_asked_describes_itself() {
    run(async {
        let bench = Bench::new();
        let mut client = bench.client().await;
        let names = client.ok("query-commands", json!({})).await;
        let schema = client.ok("query-schema", json!({})).await;
        let described: Vec<&Value> = schema["commands"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
        let listed: Vec<&Value> = names.as_array().unwrap().iter().map(|it| &it["name"]).collect();
        assert_eq!(listed, described);
        let one = client.ok("query-schema", json!({"command": "quit"})).await;
        assert_eq!(one["commands"].as_array().unwrap().len(), 1);
        let (class, _) = client.refused("query-schema", json!({"command": "quid"})).await;
        assert_eq!(class, "CommandNotFound");
        let (_, words) = client.refused("query-schema", json!({"comand": "quit"})).await;
        assert_eq!(words, "Parameter 'comand' is unexpected; did you mean 'command'?");
        // Every declared command is there, and looks at its arguments before anything else.
        for name in listed {
            let (class, words) = client.refused(name.as_str().unwrap(), json!({"no-such-argument": 1})).await;
            assert_eq!(class, "GenericError");
            assert!(words.starts_with("Parameter 'no-such-argument' is unexpected"), "{name}: {words}");
        }
    });
}

#[test]
fn replies_come_in_order_and_a_script_gets_all_of_them() {
    run(async {
        let bench = Bench::new();
        let (mut client, session) = bench.connect_with(1 << 20);
        let mut script = String::from("{'execute':'qmp_capabilities'}");
        for number in 0..500 {
            script += &json!({"execute": "query-version", "id": number}).to_string();
        }
        client.send(script).await;
        client.writer.shutdown().await.unwrap();
        assert!(client.next().await.unwrap().get("QMP").is_some());
        assert_eq!(client.next().await.unwrap(), json!({"return": {}}));
        for number in 0..500 {
            assert_eq!(client.next().await.unwrap()["id"], number);
        }
        assert_eq!(client.next().await, None);
        assert_eq!(session.await.unwrap(), Ended::Left);
    });
}

/// A message that is wrong, by number; the same in every run.
fn malformed(number: u64) -> Vec<u8> {
    const GOOD: &[&str] = &[
        r#"{"execute": "query-version"}"#,
        r#"{"execute": "query-schema", "arguments": {"command": "quit"}, "id": 7}"#,
        r#"{"execute": "fault-add", "arguments": {"rule": {"on": {"lba": 50}, "do": "fail"}}}"#,
        r#"{'exec-oob': 'query-nodes', 'id': [1, {"a": null}]}"#,
    ];
    let draw = |site: u64, below: u64| hash(hash(7, number), site) % below;
    let mut text = GOOD[usize::try_from(draw(0, 4)).unwrap()].as_bytes().to_vec();
    for round in 0..=draw(1, 3) {
        let at = usize::try_from(draw(10 + round, text.len() as u64)).unwrap();
        match draw(20 + round, 4) {
            0 => text.truncate(at),
            1 => drop(text.remove(at)),
            2 => text.insert(at, b"{}[]:,'\"\\x0-\x01\x7f\xc3\xff"[usize::try_from(draw(30 + round, 16)).unwrap()]),
            _ => text[at] = u8::try_from(draw(40 + round, 256)).unwrap(),
        }
        if text.is_empty() {
            text.push(b'}');
        }
    }
    text
}

#[test]
fn ten_thousand_malformed_messages_are_refused_and_the_session_goes_on() {
    run(async {
        let bench = Bench::new();
        let mut client = bench.client().await;
        let (mut refused, mut taken) = (0_u32, 0_u32);
        for number in 0..10_000_u64 {
            let message = malformed(number);
            client.send(&message).await;
            // The end of a line, a reset, and a question that has to be answered whatever came before.
            client.send(format!("\n\u{1}{{'execute':'query-version','id':{number}}}")).await;
            let mut said = false;
            loop {
                let reply = client.reply().await;
                if reply["id"] == number && reply.get("return").is_some_and(|it| it.get("package").is_some()) {
                    break;
                }
                if let Some(error) = reply.get("error") {
                    let words = error["desc"].as_str().unwrap();
                    said |= !words.contains("stray '\\x01'");
                    assert!(words.len() > 10 && words.len() < 400, "{words}");
                }
            }
            if said { refused += 1 } else { taken += 1 }
        }
        // Some damage leaves a good message, or nothing but the beginning of one.
        assert!(refused > 6000, "{refused} refused, {taken} not");
        assert_eq!(bench.process.quits.get(), 0);
    });
}

#[test]
fn a_client_that_stops_reading_is_left_behind_and_nobody_waits_for_it() {
    run(async {
        let bench = Bench::new();
        let (mut slow, session) = bench.connect_with(1024);
        slow.negotiate().await;
        let mut other = bench.client().await;
        let node = Rc::from("n");
        for number in 0..20_000_u64 {
            bench.lab.notices().tell(&node, gone(number));
            if number % 100 == 0 {
                settle().await;
                other.ok("query-version", json!({})).await;
            }
        }
        assert!(!session.is_finished(), "it has some time");
        bench.clock.pass(Duration::from_secs(9));
        settle().await;
        assert!(!session.is_finished());
        bench.clock.pass(Duration::from_secs(2));
        assert_eq!(session.await.unwrap(), Ended::TooSlow);
        other.ok("query-version", json!({})).await;
    });
}

#[test]
fn commands_of_a_client_that_does_not_read_its_replies_wait_with_it() {
    run(async {
        let bench = Bench::new();
        let (mut client, session) = bench.connect_with(1024);
        client.negotiate().await;
        // The pipe takes a part; the rest waits at the client, not here.
        let mut pushed = 0;
        let command = b"{'execute':'query-schema'}";
        while tokio::select! { biased; () = client.send(command) => true, () = settle() => false } {
            pushed += 1;
            assert!(pushed < 10_000, "commands are taken without end");
        }
        bench.clock.pass(Duration::from_secs(11));
        assert_eq!(session.await.unwrap(), Ended::TooSlow);
    });
}

#[test]
fn a_client_that_falls_behind_is_told_how_much_it_missed() {
    run(async {
        let bench = Bench::new();
        let mut client = bench.client().await;
        let node = Rc::from("n");
        for number in 0..QUEUE as u64 + 10 {
            bench.lab.notices().tell(&node, gone(number));
        }
        assert_eq!(client.event_named("EVENTS_LOST").await, json!({"count": 10}));
        assert_eq!(client.event().await["data"]["client"], "10");
    });
}

#[test]
fn a_client_that_hangs_up_is_gone_whatever_its_commands_wait_for() {
    for queued in [0, 20] {
        run(async {
            let bench = Bench::new();
            let node = bench.open("driver=fault,node-name=f,file.driver=memory,file.size=1M").await;
            let mut watcher = bench.client().await;
            let rule = json!({"id": "q", "on": {"op": "read"}, "do": {"ask": "1 h", "default": "ENOSPC"}});
            watcher.ok("fault-add", json!({"rule": rule})).await;
            let (hang_up, hung_up) = tokio::sync::oneshot::channel();
            let (mut client, session) = bench.connect_until(64 << 10, async { hung_up.await.unwrap() });
            client.negotiate().await;
            client.ok("fault-register", json!({})).await;
            let asked = tokio::task::spawn_local(async move { node.read(0, &mut [0; 512]).await });
            client.event_named("FAULT_ASK").await;
            // Commands that are not begun keep the reader from the end of the stream.
            for _ in 0..=queued {
                client.send(json!({"execute": "fault-wait", "arguments": {"rule": "q", "count": 9}}).to_string()).await;
            }
            if queued == 0 {
                client.writer.shutdown().await.unwrap();
            }
            settle().await;
            assert!(!session.is_finished(), "half closed, it still waits for replies");
            hang_up.send(()).unwrap();
            assert_eq!(session.await.unwrap(), Ended::Left);
            assert_eq!(asked.await.unwrap().unwrap_err().errno, Errno::NOSPC);
            assert_eq!(watcher.event_named("FAULT_ASK_OVER").await["why"], "client-gone");
        });
    }
}

#[test]
fn a_web_page_can_not_reach_in() {
    run(async {
        let bench = Bench::new();
        let (mut client, session) = bench.connect_with(4096);
        client.next().await.unwrap();
        client.send("POST / HTTP/1.1\r\n\r\n{\"execute\":\"qmp_capabilities\"}\r\n{\"execute\":\"quit\"}\r\n").await;
        assert_eq!(client.next().await, None);
        assert_eq!(session.await.unwrap(), Ended::Alien);
        assert_eq!(bench.process.quits.get(), 0);
    });
}
