//! blkdebug nodes by command: their rules, and their breakpoints.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use blkproof_block::{BlockDevice as _, Errno, WriteFlags};
use common::{Bench, run, settle};
use serde_json::json;
use tokio::task::spawn_local;

const GRAPH: &str = "driver=blkdebug,node-name=b,image.driver=memory,image.size=1M";

#[test]
fn a_blkdebug_node_is_known_and_has_rules() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let nodes = client.ok("query-nodes", json!({})).await;
        let want = json!([
            {"node": "b", "driver": "blkdebug", "rules": 0, "state": "1", "stopped": false, "breakpoints": 0},
        ]);
        assert_eq!(nodes, want);
        client.ok("fault-add", json!({"rule": {"id": "r", "on": {"op": "read"}, "do": "fail"}})).await;
        assert_eq!(node.read(0, &mut [0; 512]).await.unwrap_err().errno, Errno::IO);
        assert_eq!(client.ok("query-nodes", json!({})).await[0]["rules"], 1);
        let (_, words) = client.refused("stats-reset", json!({"node": "b"})).await;
        assert_eq!(words, "node 'b' is of driver 'blkdebug', and this is for 'stats'");
    });
}

#[test]
fn a_request_stops_at_a_breakpoint_until_it_is_resumed() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let write = || {
            let node = node.clone();
            spawn_local(async move { node.write(0, &[1; 512], WriteFlags::empty()).await })
        };
        let tag = json!({"tag": "A"});
        for ends in ["resume", "remove-break"] {
            client.ok("break", json!({"event": "pwritev", "tag": "A"})).await;
            client.ok("break", json!({"event": "read_aio", "tag": "B"})).await;
            client.send(json!({"execute": "wait-break", "arguments": tag, "id": 1}).to_string()).await;
            let held = write();
            assert_eq!(client.reply().await, json!({"return": {}, "id": 1}));
            assert_eq!(client.event_named("SUSPENDED").await, json!({"node": "b", "tag": "A"}));
            let want = json!([{
                "node": "b",
                "breakpoints": [{"event": "read_aio", "tag": "B"}],
                "suspended": [{"tag": "A", "requests": 1}],
            }]);
            assert_eq!(client.ok("query-breaks", json!({})).await, want);
            assert!(!held.is_finished());
            client.ok(ends, tag.clone()).await;
            held.await.unwrap().unwrap();
            assert_eq!(client.event_named("RESUMED").await, json!({"node": "b", "tag": "A"}));
            client.ok("remove-break", json!({"tag": "B"})).await;
        }
        for name in ["resume", "remove-break"] {
            let (_, words) = client.refused(name, tag.clone()).await;
            assert_eq!(words, "nothing of node 'b' waits under 'A'", "{name}");
        }
        let (_, words) = client.refused("break", json!({"event": "pwrite", "tag": "A"})).await;
        assert_eq!(words, "no driver announces 'pwrite'; did you mean 'pwritev'?");
        client.send(json!({"execute": "wait-break", "arguments": {"tag": "A", "timeout": 5}}).to_string()).await;
        settle().await;
        bench.clock.pass(Duration::from_secs(5));
        assert_eq!(client.reply().await["error"]["desc"], "no request was parked under 'A' within 5 s");
    });
}

#[test]
fn a_node_that_goes_lets_its_requests_go() {
    for how in ["break", "fault-hold"] {
        run(async {
            let bench = Bench::new();
            let node = bench.open(GRAPH).await;
            let mut client = bench.client().await;
            let arguments = match how {
                "break" => json!({"event": "pwritev", "tag": "A"}),
                _ => json!({"tag": "A"}),
            };
            client.ok(how, arguments).await;
            let held = spawn_local(async move { node.write(0, &[1; 512], WriteFlags::empty()).await });
            client.event_named("SUSPENDED").await;
            bench.lab.get("b").unwrap().let_go();
            held.await.unwrap().unwrap();
        });
    }
}
