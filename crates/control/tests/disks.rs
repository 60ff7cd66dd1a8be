//! Disks, write logs and statistics by command.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::rc::Rc;

use blkproof_block::{BlockDevice as _, Errno, WriteFlags};
use blkproof_fault::lab::Part;
use blkproof_fault::trace::{Sink, Trace, TraceOptions};
use common::{Bench, run};
use serde_json::json;

#[test]
fn the_power_of_a_disk_is_cut_by_command() {
    run(async {
        let bench = Bench::new();
        let node = bench.open("driver=disk,node-name=d,stay-off=on,file.driver=memory,file.size=1M").await;
        let mut client = bench.client().await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        node.flush().await.unwrap();
        node.write(0, &[2; 512], WriteFlags::empty()).await.unwrap();
        let state = client.ok("disk-state", json!({"names": 3})).await;
        assert_eq!((&state["node"], &state["on"], &state["requests"]), (&json!("d"), &json!(true), &json!(1)));
        assert_eq!((&state["kind"], &state["cuts"]), (&json!("honest"), &json!(0)));
        assert!(state["names"].as_array().unwrap().len() <= 3);
        let (_, words) = client.refused("power-cut", json!({"state": "all-odd"})).await;
        assert!(words.starts_with("'all-odd' names no state"), "{words}");
        let cut = client.ok("power-cut", json!({"state": "all-old"})).await;
        assert_eq!((&cut["cut"], &cut["state"], &cut["lost"]), (&json!(1), &json!("all-old"), &json!(512)));
        assert_eq!((&cut["betrayed"], &cut["on"]), (&json!(0), &json!(false)));
        assert_eq!(client.event_named("POWER_CUT").await["state"], "all-old");
        assert_eq!(node.read(0, &mut [0; 512]).await.unwrap_err().errno, Errno::NOTCONN);
        let (class, _) = client.refused("power-cut", json!({})).await;
        assert_eq!(class, "DeviceNotActive");
        client.ok("power-on", json!({})).await;
        let mut buf = [0; 512];
        node.read(0, &mut buf).await.unwrap();
        assert_eq!(buf, [1; 512]);
    });
}

#[test]
fn a_state_is_saved_to_an_image() {
    run(async {
        let bench = Bench::new();
        let node = bench.open("driver=disk,file.driver=memory,file.size=64k").await;
        let mut client = bench.client().await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        let saved = client.ok("disk-save", json!({"file": "new.raw"})).await;
        assert_eq!((&saved["state"], &saved["size"], &saved["lost"]), (&json!("all-new"), &json!(65536), &json!(0)));
        let old = client.ok("disk-save", json!({"file": "old.raw", "state": "all-old"})).await;
        assert_eq!(old["lost"], 512);
        let made = bench.process.made.borrow().clone();
        assert_eq!(*bench.process.kept.borrow(), ["new.raw", "old.raw"]);
        for ((name, image), (want, fill)) in made.iter().zip([("new.raw", 1), ("old.raw", 0)]) {
            assert_eq!(name, want);
            let mut buf = [9; 512];
            image.read(0, &mut buf).await.unwrap();
            assert_eq!((buf, image.info().size), ([fill; 512], 65536), "{name}");
        }
        for (arguments, want) in [
            (json!({"file": "taken.raw"}), "'taken.raw' exists"),
            (json!({"file": "a", "state": "drop:99"}), "state 'drop:99': no request 99 is in the cache"),
            (
                json!({"file": "a", "format": "raw", "backing": "b"}),
                "a raw image has no backing file; 'backing' goes with format qcow2",
            ),
        ] {
            assert_eq!(client.refused("disk-save", arguments).await.1, want);
        }
        client.refused("disk-fail-flushes", json!({})).await;
        // An overlay without its backing file at hand can not hold parts of sectors.
        client.ok("disk-save", json!({"file": "over.qcow2", "backing": "b"})).await;
        node.write(1000, &[1; 10], WriteFlags::empty()).await.unwrap();
        let (_, words) = client.refused("disk-save", json!({"file": "c", "backing": "b"})).await;
        assert!(words.starts_with("an overlay holds whole sectors"), "{words}");
    });
}

#[test]
fn an_image_that_is_not_complete_is_not_kept() {
    run(async {
        let bench = Bench::new();
        let node = bench.open("driver=disk,node-name=d,file.driver=memory,file.size=64k").await;
        let image = bench.open("driver=fault,node-name=f,file.driver=memory,file.size=0").await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        let mut client = bench.client().await;
        client.ok("fault-add", json!({"rule": {"id": "full", "on": {"op": "write"}, "do": {"fail": "ENOSPC"}}})).await;
        bench.process.next.borrow_mut().push(image.clone());
        let (_, words) = client.refused("disk-save", json!({"file": "full.raw"})).await;
        assert!(words.contains("No space left"), "{words}");
        // In the middle of it its client goes.
        client.ok("fault-remove", json!({"all": true})).await;
        client.ok("fault-hold", json!({"tag": "A", "on": {"op": "write"}})).await;
        bench.process.next.borrow_mut().push(image);
        client.send(json!({"execute": "disk-save", "arguments": {"file": "held.raw"}}).to_string()).await;
        client.event_named("SUSPENDED").await;
        bench.server.shut_down();
        client.event_named("SHUTDOWN").await;
        assert_eq!(client.next().await, None);
        assert_eq!(bench.process.made.borrow().len(), 2);
        assert!(bench.process.kept.borrow().is_empty());
    });
}

#[test]
fn flushes_fail_by_command() {
    run(async {
        let bench = Bench::new();
        let node = bench.open("driver=disk,flush-error=keep,file.driver=memory,file.size=64k").await;
        let mut client = bench.client().await;
        client.ok("disk-fail-flushes", json!({})).await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        node.flush().await.unwrap_err();
        node.flush().await.unwrap();
    });
}

#[test]
fn a_log_gets_marks() {
    run(async {
        let bench = Bench::new();
        let graph = "driver=blklogwrites,node-name=l,file.driver=memory,file.size=64k,log.driver=memory,log.size=1M";
        let node = bench.open(graph).await;
        let mut client = bench.client().await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        assert_eq!(client.ok("log-mark", json!({"text": "here"})).await, json!({"entries": 2}));
        let (_, words) = client.refused("log-mark", json!({"text": "x".repeat(600)})).await;
        assert!(words.contains("at most"), "{words}");
        let nodes = client.ok("query-nodes", json!({})).await;
        assert_eq!(nodes, json!([{"node": "l", "driver": "blklogwrites", "entries": 2}]));
    });
}

#[test]
fn statistics_are_started_stopped_and_asked_for() {
    run(async {
        let bench = Bench::new();
        let mut client = bench.client().await;
        assert_eq!(client.ok("query-blockstats", json!({"query-nodes": true})).await, json!([]));
        assert_eq!(client.refused("stats-query", json!({})).await.0, "DeviceNotFound");
        let node = bench.open("driver=stats,node-name=s,file.driver=memory,file.size=64k").await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        let all = client.ok("query-blockstats", json!({})).await;
        assert_eq!((&all[0]["node-name"], &all[0]["stats"]["wr_operations"]), (&json!("s"), &json!(1)));
        client.ok("stats-stop", json!({})).await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        client.ok("stats-start", json!({"node": "s"})).await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        assert_eq!(client.ok("stats-query", json!({})).await[0]["stats"]["wr_operations"], 2);
        client.ok("block-latency-histogram-set", json!({"id": "s", "boundaries": [10, 100]})).await;
        let bins = client.ok("stats-query", json!({})).await[0]["stats"]["rd_latency_histogram"].clone();
        assert_eq!(bins, json!({"boundaries": [10, 100], "bins": [0, 0, 0]}));
        let (_, words) = client.refused("block-latency-histogram-set", json!({"id": "s", "boundaries": [5, 5]})).await;
        assert!(words.contains("must ascend"), "{words}");
        client.ok("stats-reset", json!({})).await;
        assert_eq!(client.ok("stats-query", json!({})).await[0]["stats"]["wr_operations"], 0);
    });
}

#[test]
fn traces_are_started_and_stopped() {
    run(async {
        let bench = Bench::new();
        let mut client = bench.client().await;
        let (class, words) = client.refused("trace-start", json!({})).await;
        assert_eq!((class.as_str(), words.as_str()), ("DeviceNotFound", "there is no trace node in any graph"));
        let [one, two] = ["one", "two"].map(|name| {
            let options = TraceOptions { start: false, ..TraceOptions::default() };
            let trace = Trace::new(name, 512, bench.lab.clock(), Rc::new(Nowhere), options);
            bench.lab.add(trace.name(), Part::Trace(Rc::clone(&trace))).unwrap();
            trace
        });
        let running = || (one.is_running(), two.is_running());
        client.ok("trace-start", json!({"node": "two"})).await;
        assert_eq!(running(), (false, true));
        client.ok("trace-start", json!({})).await;
        assert_eq!(running(), (true, true));
        client.ok("trace-stop", json!({"node": "one"})).await;
        assert_eq!(running(), (false, true));
        let (_, words) = client.refused("stats-stop", json!({"node": "one"})).await;
        assert_eq!(words, "node 'one' is of driver 'trace', and this is for 'stats'");
    });
}

struct Nowhere;

impl Sink for Nowhere {
    fn line(&self, _: &str) -> bool {
        true
    }
}
