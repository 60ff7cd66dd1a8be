//! Rules by command: armed, listed, waited for, held, answered by a program, removed.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use base64::Engine as _;
use blkproof_block::{BlockDevice as _, DeviceError, Errno, WriteFlags};
use blkproof_fault::filter::SPENT;
use blkproof_fault::rule::RULES_MAX;
use common::{Bench, run, settle};
use serde_json::{Value, json};
use tokio::task::spawn_local;

const GRAPH: &str = "driver=fault,node-name=f,file.driver=memory,file.size=1M";
const SECTOR: u64 = 512;

#[test]
fn a_sector_fails_until_it_is_rewritten() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let rule = json!({
            "id": "bad-50", "on": {"op": "read", "lba": 50}, "do": {"fail": "03/1101"}, "life": "until-rewritten",
        });
        let added = client.ok("fault-add", json!({"rule": rule})).await;
        assert_eq!(added, json!({"rules": ["bad-50"]}));
        let mut buf = [0; 512];
        let error = node.read(50 * SECTOR, &mut buf).await.unwrap_err();
        assert_eq!(error.device, Some(DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 }));
        let fired = client.event_named("FAULT_FIRED").await;
        assert_eq!((&fired["node"], &fired["rule"]), (&json!("f"), &json!("bad-50")));
        assert_eq!(fired["error"]["device"], "03/1101");
        assert_eq!(fired["error"]["first-bad"], 25600);
        let list = client.ok("fault-list", json!({})).await;
        let status = &list[0]["rules"][0];
        assert_eq!((&status["id"], &status["armed"], &status["fired"]), (&json!("bad-50"), &json!(true), &json!(1)));
        assert_eq!(status["bad-sectors"], 1);
        // What is listed can be added again.
        let again = status["rule"].clone();
        client.ok("fault-remove", json!({"rule": "bad-50"})).await;
        node.read(50 * SECTOR, &mut buf).await.unwrap();
        client.ok("fault-add", json!({"rule": [again]})).await;
        node.read(50 * SECTOR, &mut buf).await.unwrap_err();
        node.write(50 * SECTOR, &[7; 512], WriteFlags::empty()).await.unwrap();
        node.read(50 * SECTOR, &mut buf).await.unwrap();
        client.ok("fault-reset", json!({"rule": "bad-50"})).await;
        node.read(50 * SECTOR, &mut buf).await.unwrap_err();
        assert_eq!(client.ok("reassign", json!({"lba": 50})).await, json!({"rules": 1}));
        node.read(50 * SECTOR, &mut buf).await.unwrap();
    });
}

#[test]
fn rules_are_armed_together_or_not_at_all() {
    run(async {
        let bench = Bench::new();
        let _node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let good = json!({"on": {"lba": 1}, "do": "fail"});
        for bad in [
            json!({"on": {"lbas": 1}, "do": "fail"}),
            json!({"on": {"lba": 1}, "do": {"fail": "EWHAT"}}),
            json!({"do": {"fial": "EIO"}}),
            json!({"do": 7}),
            json!({"id": "twice", "do": "fail"}),
        ] {
            let twice = json!({"id": "twice", "do": "fail"});
            let rules = json!({"rule": [good, twice, bad]});
            let (_, words) = client.refused("fault-add", rules).await;
            assert!(words.len() > 20, "{words}");
            assert_eq!(client.ok("fault-list", json!({})).await[0]["rules"], json!([]), "{words}");
        }
        let (_, words) = client.refused("fault-add", json!({"rule": {"on": {"lbas": 1}, "do": "fail"}})).await;
        assert_eq!(words, "rule 'rule-1': on.lbas: no such field; did you mean 'lba'?");
        assert_eq!(client.ok("fault-add", json!({"rule": [good, good]})).await["rules"], json!(["rule-1", "rule-2"]));
        assert_eq!(client.ok("fault-add", json!({"rule": good})).await["rules"], json!(["rule-3"]));
        let (_, words) = client.refused("fault-remove", json!({"rule": "rule-4"})).await;
        assert_eq!(words, "node 'f' has no rule 'rule-4'; did you mean 'rule-1'?");
        client.refused("fault-remove", json!({})).await;
        client.refused("fault-remove", json!({"rule": "rule-1", "all": true})).await;
        client.ok("fault-remove", json!({"all": true})).await;
        assert_eq!(client.ok("fault-list", json!({"node": "f"})).await[0]["rules"], json!([]));
    });
}

#[test]
fn ids_that_are_made_up_leave_given_ones_alone() {
    run(async {
        let bench = Bench::new();
        let _node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let rules = json!([{"do": "fail"}, {"id": "rule-1", "do": "fail"}, {"do": "fail"}]);
        let added = client.ok("fault-add", json!({"rule": rules})).await;
        assert_eq!(added["rules"], json!(["rule-2", "rule-1", "rule-3"]));
        // Two lists at a time, each of them long enough for the other to have a turn in its middle.
        let list = |times| json!({"rule": vec![json!({"on": {"lba": 1, "times": times}, "do": "fail"}); 200]});
        client.send(json!({"execute": "fault-add", "arguments": list(1)}).to_string()).await;
        client.send(json!({"exec-oob": "fault-add", "arguments": list(2)}).to_string()).await;
        for _ in 0..2 {
            let reply = client.reply().await;
            assert_eq!(reply["return"]["rules"].as_array().unwrap().len(), 200, "{reply}");
        }
        // What is said of a rule says its real id.
        let warned = client.ok("fault-add", json!({"rule": {"on": {"op": "write"}}})).await;
        let want = json!(["rule 'rule-404': do: it does nothing but count; give do or then"]);
        assert_eq!((&warned["rules"], &warned["warnings"]), (&json!(["rule-404"]), &want));
    });
}

#[test]
fn thousands_of_rules_come_and_go() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let some = |count: usize| json!({"rule": vec![json!({"on": {"op": "read", "lba": 9}, "do": "pass"}); count]});
        assert_eq!(client.ok("fault-add", some(RULES_MAX - 1)).await["rules"].as_array().unwrap().len(), RULES_MAX - 1);
        let (_, words) = client.refused("fault-add", some(2)).await;
        assert_eq!(words, "a node has 10000 rules at most, and there would be 10001");
        client.ok("fault-hold", json!({"tag": "A", "on": {"op": "write"}})).await;
        let held = {
            let node = node.clone();
            spawn_local(async move { node.write(0, &[1; 512], WriteFlags::empty()).await })
        };
        client.event_named("SUSPENDED").await;
        assert_eq!(client.ok("fault-list", json!({})).await[0]["rules"].as_array().unwrap().len(), RULES_MAX);
        let mut waiting = bench.client().await;
        waiting.send(json!({"execute": "fault-wait", "arguments": {"rule": "A", "count": 2}}).to_string()).await;
        settle().await;
        client.ok("fault-remove", json!({"all": true})).await;
        held.await.unwrap().unwrap();
        assert_eq!(waiting.reply().await["error"]["desc"], "node 'f' has no rule 'A'");
        assert_eq!(client.ok("fault-list", json!({})).await[0]["rules"], json!([]));
    });
}

#[test]
fn errors_that_were_had_are_forgotten() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        client.ok("fault-add", json!({"rule": {"id": "mine", "on": {"op": "write", "times": 1}, "do": "fail"}})).await;
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap_err();
        let waits = client.ok("device-error", json!({"operation": "flush"})).await["rules"][0].clone();
        for _ in 0..100 {
            let id = client.ok("device-error", json!({"operation": "read"})).await["rules"][0].clone();
            node.read(0, &mut [0; 512]).await.unwrap_err();
            assert_eq!(client.ok("fault-wait", json!({"rule": id})).await, json!({"fired": 1}));
        }
        let list = client.ok("fault-list", json!({})).await;
        let rules = list[0]["rules"].as_array().unwrap();
        // Somebody's own, one that waits for its request, the last that was had, and those that are kept.
        assert_eq!(rules.len(), 1 + 1 + 1 + SPENT, "{list}");
        assert_eq!((&rules[0]["id"], &rules[1]["id"]), (&json!("mine"), &waits));
        node.flush().await.unwrap_err();
    });
}

#[test]
fn nodes_are_named_where_there_are_several() {
    run(async {
        let bench = Bench::new();
        let mut client = bench.client().await;
        let (class, words) = client.refused("fault-reset", json!({})).await;
        assert_eq!((class.as_str(), words.as_str()), ("DeviceNotFound", "there is no fault node in any graph"));
        let stack = "driver=fault,node-name=upper,file.driver=fault,file.node-name=lower,file.file.driver=stats,\
                     file.file.node-name=s,file.file.file.driver=memory,file.file.file.size=1M";
        let node = bench.open(stack).await;
        let (_, words) = client.refused("fault-reset", json!({})).await;
        assert_eq!(words, "there are several fault nodes: say which, of 'lower', 'upper'");
        let (class, words) = client.refused("fault-reset", json!({"node": "uper"})).await;
        assert_eq!(
            (class.as_str(), words.as_str()),
            ("DeviceNotFound", "no node is named 'uper'; did you mean 'upper'?")
        );
        let (_, words) = client.refused("fault-reset", json!({"node": "s"})).await;
        assert_eq!(words, "node 's' is of driver 'stats', and this is for 'fault'");
        client.ok("fault-reset", json!({"node": "lower"})).await;
        let nodes = client.ok("query-nodes", json!({})).await;
        let names: Vec<&Value> = nodes.as_array().unwrap().iter().map(|node| &node["node"]).collect();
        assert_eq!(names, ["lower", "s", "upper"]);
        assert_eq!(client.ok("fault-list", json!({})).await.as_array().unwrap().len(), 2);
        drop(node);
        assert_eq!(client.ok("query-nodes", json!({})).await, json!([]));
    });
}

#[test]
fn waiting_for_a_rule_ends_when_it_has_fired_or_the_time_is_up_or_the_rule_is_gone() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let mut other = bench.client().await;
        other.ok("fault-add", json!({"rule": {"id": "r", "on": {"op": "read"}, "do": "pass"}})).await;
        client
            .send(json!({"execute": "fault-wait", "arguments": {"rule": "r", "count": 2}, "id": 1}).to_string())
            .await;
        // Out of band something else goes on meanwhile.
        client.send(json!({"exec-oob": "query-version", "id": 2}).to_string()).await;
        assert_eq!(client.reply().await["id"], 2);
        let mut buf = [0; 512];
        node.read(0, &mut buf).await.unwrap();
        settle().await;
        node.read(0, &mut buf).await.unwrap();
        assert_eq!(client.reply().await, json!({"return": {"fired": 2}, "id": 1}));

        client
            .send(json!({"execute": "fault-wait", "arguments": {"rule": "r", "count": 5, "timeout": 1}}).to_string())
            .await;
        settle().await;
        bench.clock.pass(Duration::from_secs(1));
        assert_eq!(client.reply().await["error"]["desc"], "rule 'r' fired 2 of 5 times within 1 s");

        client.send(json!({"execute": "fault-wait", "arguments": {"rule": "r", "count": 5}}).to_string()).await;
        settle().await;
        other.ok("fault-remove", json!({"rule": "r"})).await;
        assert_eq!(client.reply().await["error"]["desc"], "node 'f' has no rule 'r'");
        client.send(json!({"exec-oob": "fault-wait", "arguments": {"rule": "r"}}).to_string()).await;
        assert_eq!(client.reply().await["error"]["desc"], "The command fault-wait does not support OOB");
    });
}

#[test]
fn requests_are_held_and_released() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        client.ok("fault-hold", json!({"tag": "A", "on": {"op": "write"}})).await;
        let held = {
            let node = node.clone();
            spawn_local(async move { node.write(0, &[1; 512], WriteFlags::empty()).await })
        };
        client.ok("fault-wait", json!({"rule": "A"})).await;
        assert_eq!(client.event_named("SUSPENDED").await, json!({"node": "f", "tag": "A"}));
        assert_eq!(client.ok("fault-list", json!({})).await[0]["held"], json!([{"tag": "A", "requests": 1}]));
        // One was asked for: the next one passes.
        node.write(512, &[1; 512], WriteFlags::empty()).await.unwrap();
        assert!(!held.is_finished());
        let (_, words) = client.refused("fault-release", json!({"tag": "B"})).await;
        assert_eq!(words, "nothing is parked under 'B'; parked is 'A'");
        assert_eq!(client.ok("fault-release", json!({"tag": "A"})).await, json!({"released": 1}));
        held.await.unwrap().unwrap();
        assert_eq!(client.event_named("RESUMED").await, json!({"node": "f", "tag": "A"}));
        assert_eq!(client.ok("fault-release", json!({})).await, json!({"released": 0}));
    });
}

#[test]
fn a_stopped_node_holds_everything_back() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        client.ok("stop", json!({})).await;
        assert_eq!(client.ok("query-nodes", json!({})).await[0]["stopped"], true);
        let waiting = spawn_local(async move { node.flush().await });
        settle().await;
        assert!(!waiting.is_finished());
        client.ok("cont", json!({"node": "f"})).await;
        waiting.await.unwrap().unwrap();
    });
}

#[test]
fn errors_once_and_state_and_arming() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let mut buf = [0; 512];
        let added = client.ok("device-error", json!({"operation": "read", "lba": 3, "error": "ENOSPC"})).await;
        assert_eq!(added, json!({"rules": ["device-error-1"]}));
        node.read(2 * SECTOR, &mut buf).await.unwrap();
        assert_eq!(node.read(3 * SECTOR, &mut buf).await.unwrap_err().errno, Errno::NOSPC);
        node.read(3 * SECTOR, &mut buf).await.unwrap();
        client.ok("device-error", json!({"operation": "flush"})).await;
        assert_eq!(node.flush().await.unwrap_err().errno, Errno::IO);
        node.flush().await.unwrap();
        let (_, words) = client.refused("device-error", json!({"operation": "reed"})).await;
        assert_eq!(words, "Parameter 'operation' does not accept value 'reed'; did you mean 'read'?");
        client.refused("device-error", json!({"error": "EWHAT"})).await;

        client.ok("fault-add", json!({"rule": {"id": "s", "on": {"op": "read", "state": "sick"}, "do": "fail"}})).await;
        node.read(0, &mut buf).await.unwrap();
        client.ok("fault-state", json!({"state": "sick"})).await;
        node.read(0, &mut buf).await.unwrap_err();
        client.ok("fault-arm", json!({"rule": "s", "armed": false})).await;
        node.read(0, &mut buf).await.unwrap();
        client.ok("fault-arm", json!({"rule": "s"})).await;
        node.read(0, &mut buf).await.unwrap_err();
        client.refused("fault-arm", json!({"rule": "t"})).await;
    });
}

#[test]
fn a_program_decides_about_every_write_to_a_range() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let mut bystander = bench.client().await;
        let rule = json!({
            "id": "q", "on": {"op": "write", "lba": [8, 15]}, "do": {"ask": "30 s", "data": true, "default": "EIO"},
        });
        client.ok("fault-add", json!({"rule": rule})).await;
        client.ok("fault-register", json!({"node": "f", "rule": "q"})).await;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let write = |fill: u8| {
            let node = node.clone();
            spawn_local(async move { node.write(8 * SECTOR, &[fill; 512], WriteFlags::empty()).await })
        };
        for (fill, answer, errno, content) in [
            (1, json!({"answer": "proceed"}), None, 1),
            (2, json!({"answer": "proceed", "data": encode(&[9; 512])}), None, 9),
            (3, json!({"answer": "fail"}), Some(Errno::IO), 9),
            (4, json!({"answer": "fail", "error": "ENOSPC"}), Some(Errno::NOSPC), 9),
            (5, json!({"answer": "succeed"}), None, 9),
        ] {
            let request = write(fill);
            let ask = client.event_named("FAULT_ASK").await;
            assert_eq!((&ask["rule"], &ask["operation"]), (&json!("q"), &json!("write")));
            assert_eq!((&ask["offset"], &ask["bytes"]), (&json!(4096), &json!(512)));
            assert_eq!(ask["data"], encode(&[fill; 512]));
            // The rest of the disk waits for nothing.
            node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
            let mut arguments = answer.clone();
            arguments["ask"] = ask["ask"].clone();
            for wrong in [json!({"data": encode(&[1])}), json!({"error": "EIO"}), json!({"answer": "perhaps"})] {
                let mut wrong_arguments = json!({"ask": ask["ask"], "answer": "proceed"});
                wrong_arguments.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
                client.refused("fault-answer", wrong_arguments).await;
            }
            client.ok("fault-answer", arguments.clone()).await;
            assert_eq!(request.await.unwrap().err().map(|error| error.errno), errno, "{answer}");
            let mut buf = [0; 512];
            node.read(8 * SECTOR, &mut buf).await.unwrap();
            assert_eq!(buf, [content; 512], "{answer}");
            let (_, words) = client.refused("fault-answer", arguments).await;
            assert!(words.contains("is not open"), "{words}");
        }
        // Nobody else has heard the questions.
        bystander.ok("query-version", json!({})).await;
        for _ in 0..5 {
            assert_eq!(bystander.event().await["event"], "FAULT_FIRED");
        }
        // Late: the default.
        let request = write(6);
        let ask = client.event_named("FAULT_ASK").await;
        settle().await;
        bench.clock.pass(Duration::from_secs(31));
        assert_eq!(request.await.unwrap().unwrap_err().errno, Errno::IO);
        let over = client.event_named("FAULT_ASK_OVER").await;
        assert_eq!((&over["ask"], &over["why"]), (&ask["ask"], &json!("timeout")));
        // Taken back: nobody to ask.
        client.ok("fault-unregister", json!({"node": "f", "rule": "q"})).await;
        client.refused("fault-unregister", json!({"node": "f", "rule": "q"})).await;
        assert_eq!(write(7).await.unwrap().unwrap_err().errno, Errno::IO);
        assert_eq!(client.event_named("FAULT_ASK_OVER").await["why"], "nobody-listens");
    });
}

#[test]
fn a_client_that_disappears_in_the_middle_of_a_question_leaves_the_default() {
    for half_closed in [false, true] {
        run(async {
            let bench = Bench::new();
            let node = bench.open(GRAPH).await;
            let mut watcher = bench.client().await;
            let rule = json!({"id": "q", "on": {"op": "read"}, "do": {"ask": "1 h", "default": "ENOSPC"}});
            watcher.ok("fault-add", json!({"rule": rule})).await;
            let mut client = bench.client().await;
            client.ok("fault-register", json!({})).await;
            let request = spawn_local(async move { node.read(0, &mut [0; 512]).await });
            client.event_named("FAULT_ASK").await;
            if half_closed {
                // It still waits for a reply, but it can not answer any more.
                client.send(json!({"execute": "fault-wait", "arguments": {"rule": "q", "count": 9}}).to_string()).await;
                tokio::io::AsyncWriteExt::shutdown(&mut client.writer).await.unwrap();
                assert_eq!(request.await.unwrap().unwrap_err().errno, Errno::NOSPC);
            } else {
                drop(client);
                assert_eq!(request.await.unwrap().unwrap_err().errno, Errno::NOSPC);
            }
            assert_eq!(watcher.event_named("FAULT_ASK_OVER").await["why"], "client-gone");
        });
    }
}

#[test]
fn a_client_that_does_not_read_its_questions_is_left_behind_with_the_default() {
    run(async {
        let bench = Bench::new();
        let node = bench.open(GRAPH).await;
        let mut client = bench.client().await;
        let rule = json!({"id": "q", "on": {"op": "write"}, "do": {"ask": "1 h", "default": "proceed", "data": true}});
        client.ok("fault-add", json!({"rule": rule})).await;
        let (mut asked, session) = bench.connect_with(1024);
        asked.negotiate().await;
        asked.ok("fault-register", json!({})).await;
        let requests: Vec<_> = (0..64)
            .map(|number| {
                let node = node.clone();
                spawn_local(async move { node.write(number * 4096, &[1; 4096], WriteFlags::empty()).await })
            })
            .collect();
        settle().await;
        bench.clock.pass(Duration::from_secs(11));
        for request in requests {
            request.await.unwrap().unwrap();
        }
        assert_eq!(session.await.unwrap(), blkproof_control::Ended::TooSlow);
    });
}
