//! What nodes tell, as events.

use base64::Engine as _;
use blkproof_block::{ByteRange, DeviceError, IoError};
use blkproof_fault::ask::{Asked, Asks};
use blkproof_fault::notice::{Notice, What};
use blkproof_fault::rule::Failure;
use serde_json::{Map, Value, json};

use crate::wire::event;

/// Every event, and what it says.
pub static EVENTS: &[(&str, &str)] = &[
    (
        "FAULT_FIRED",
        "a rule fired: `node`, `rule`, `action`, `state` (the engine's, afterwards), `request?` (its number), `operation?`, \
         `offset?`, `bytes?`, `event?` (the step that fired it), `error?` (`errno`, `text`, `first-bad?`, `device?`)",
    ),
    (
        "FAULT_ASK",
        "a request waits for `fault-answer`; sent to the client that registered for it, and to no other: `node`, `ask`, \
         `rule`, `operation`, `offset`, `bytes`, `fua`, `timeout` (seconds), `data?` (base64; of its first 3 MiB), `truncated?` (true if there is more of it)",
    ),
    (
        "FAULT_ASK_OVER",
        "a question has no answer, and the rule's default was taken, or nobody waits for it: `node`, `rule`, `ask?`, `why` \
         (`timeout`, `nobody-listens`, `client-gone`, `cancelled`)",
    ),
    ("SUSPENDED", "a request is parked until `fault-release`, or at a breakpoint until `resume`: `node`, `tag`"),
    ("RESUMED", "a parked request goes on: `node`, `tag`"),
    (
        "POWER_CUT",
        "a disk lost its power and is in its new state: `node`, `cut` (its number), `state` (its name), `lost` and `betrayed` \
         (bytes acknowledged and lost; of these, flushed in vain)",
    ),
    ("MISMATCH", "a mirror's sides differ: `node`, `offset`, `bytes`, `words`"),
    (
        "OUTSIDE_LIMITS",
        "a driver sent a request that does not keep to the limits of the node below it: `node`, `operation`, `offset`, \
         `bytes`, `words`",
    ),
    ("CLIENT_CONNECTED", "a client of the disk came: `client`, `export`"),
    ("CLIENT_DISCONNECTED", "a client of the disk left: `client`"),
    ("RELOADED", "the exports were described anew: `words` (what has changed), `error?` (what went wrong)"),
    ("SHUTDOWN", "the process ends: `reason` (`quit` or `stopped`)"),
    ("EVENTS_LOST", "this client reads too slowly, and missed `count` events"),
];

/// Bytes of a question's data that are shown: as many as an answer could replace. An event is put together in one turn.
const SHOWN_MAX: usize = 3 << 20;

/// Whether the client that is `me` hears of it: a question is for the one who is asked.
pub(crate) fn concerns(notice: &Notice, me: Asked) -> bool {
    !matches!(notice.what, What::Ask { to, .. } if to != me)
}

/// A notice as an event. The data that a question shows is taken from `asks`: it is for the one client that is asked.
pub(crate) fn from_notice(notice: &Notice, asks: &Asks) -> Value {
    let (name, fields) = match &notice.what {
        What::Fired { rule, request, operation, range, event, action, error, state } => {
            let mut fields = fields(json!({ "rule": rule.to_string(), "action": action, "state": &**state }));
            let mut put = |key: &str, value: Value| fields.insert(key.to_owned(), value);
            if let Some(request) = request {
                put("request", json!(request));
            }
            if let Some(operation) = operation {
                put("operation", json!(operation.name()));
                put("offset", json!(range.start));
                put("bytes", json!(range.len()));
            }
            if let Some(event) = event {
                put("event", json!(event.name()));
            }
            if let Some(error) = error {
                put("error", error_json(error));
            }
            ("FAULT_FIRED", fields)
        }
        What::Ask { ask, to, rule, operation, range, fua, timeout } => {
            let mut fields = fields(json!({ "ask": ask, "rule": rule.to_string(), "operation": operation.name() }));
            place(&mut fields, *range);
            fields.insert("fua".to_owned(), json!(fua));
            fields.insert("timeout".to_owned(), json!(timeout.as_secs_f64()));
            if let Some(data) = asks.take_shown(*ask, *to) {
                let shown = data.get(..SHOWN_MAX).unwrap_or(&data);
                let text = base64::engine::general_purpose::STANDARD.encode(shown);
                fields.insert("data".to_owned(), Value::String(text));
                if shown.len() < data.len() {
                    fields.insert("truncated".to_owned(), Value::Bool(true));
                }
            }
            ("FAULT_ASK", fields)
        }
        What::AskOver { ask, rule, why } => {
            let mut fields = fields(json!({ "rule": rule.to_string(), "why": why }));
            if let Some(ask) = ask {
                fields.insert("ask".to_owned(), json!(ask));
            }
            ("FAULT_ASK_OVER", fields)
        }
        What::Suspended { tag } => ("SUSPENDED", fields(json!({ "tag": &**tag }))),
        What::Resumed { tag } => ("RESUMED", fields(json!({ "tag": &**tag }))),
        What::PowerCut { cut, state, lost, betrayed } => {
            ("POWER_CUT", fields(json!({ "cut": cut, "state": &**state, "lost": lost, "betrayed": betrayed })))
        }
        What::Mismatch { words, range } => {
            let mut fields = fields(json!({ "words": &**words }));
            place(&mut fields, *range);
            ("MISMATCH", fields)
        }
        What::OutsideLimits { operation, range, words } => {
            let mut fields = fields(json!({ "operation": operation.name(), "words": &**words }));
            place(&mut fields, *range);
            ("OUTSIDE_LIMITS", fields)
        }
        What::Reloaded { words, error } => {
            let mut fields = fields(json!({ "words": &**words }));
            if let Some(error) = error {
                fields.insert("error".to_owned(), json!(&**error));
            }
            ("RELOADED", fields)
        }
        What::ClientConnected { client, export } => {
            ("CLIENT_CONNECTED", fields(json!({ "client": &**client, "export": &**export })))
        }
        What::ClientDisconnected { client } => ("CLIENT_DISCONNECTED", fields(json!({ "client": &**client }))),
    };
    let mut data = Map::new();
    if !notice.node.is_empty() {
        data.insert("node".to_owned(), Value::String(notice.node.to_string()));
    }
    data.extend(fields);
    event(notice.time, name, Value::Object(data))
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn place(fields: &mut Map<String, Value>, range: ByteRange) {
    fields.insert("offset".to_owned(), json!(range.start));
    fields.insert("bytes".to_owned(), json!(range.len()));
}

/// An error in full: number and text, the first bad byte, and what a device says, as rules write it.
pub(crate) fn error_json(error: &IoError) -> Value {
    let mut fields = fields(json!({ "errno": error.errno.0, "text": error.errno.to_string() }));
    if let Some(bad) = error.first_bad {
        fields.insert("first-bad".to_owned(), json!(bad.0));
    }
    if let Some(device) = error.device {
        fields.insert("device".to_owned(), json!(device_text(device)));
    }
    Value::Object(fields)
}

fn device_text(device: DeviceError) -> String {
    Failure::device(device).to_string()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use blkproof_block::{Errno, RuleId};
    use blkproof_fault::request::Operation;

    use super::*;

    fn told(what: What) -> Value {
        told_by(what, &Asks::default())
    }

    fn told_by(what: What, asks: &Asks) -> Value {
        from_notice(&Notice { time: Duration::from_micros(1_500_000), node: Rc::from("n"), what }, asks)
    }

    #[test]
    fn notices_become_events() {
        let device = DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 };
        let error = IoError { device: Some(device), ..IoError::new(Errno::IO).at(25600) };
        let fired = told(What::Fired {
            rule: RuleId("bad".into()),
            request: Some(4),
            operation: Some(Operation::Read),
            range: ByteRange::at(16384, 16384),
            event: None,
            action: "fail",
            error: Some(error),
            state: Rc::from("1"),
        });
        assert_eq!(
            fired,
            json!({
                "timestamp": {"seconds": 1, "microseconds": 500_000},
                "event": "FAULT_FIRED",
                "data": {
                    "node": "n", "rule": "bad", "action": "fail", "state": "1", "request": 4, "operation": "read",
                    "offset": 16384, "bytes": 16384,
                    "error": {"errno": 5, "text": "Input/output error", "first-bad": 25600, "device": "03/1101"},
                },
            })
        );
        let asks = Asks::default();
        let me = asks.newcomer();
        asks.register(me, None, None);
        let question = asks.ask("n", "q", Ok(2)).unwrap();
        question.show(Rc::from([0_u8, 255]));
        let ask = |to| What::Ask {
            ask: question.number,
            to,
            fua: true,
            rule: RuleId("q".into()),
            operation: Operation::Write,
            range: ByteRange::at(512, 2),
            timeout: Duration::from_millis(500),
        };
        let mut want = json!({
            "node": "n", "ask": question.number, "rule": "q", "operation": "write", "offset": 512, "bytes": 2, "fua": true,
            "timeout": 0.5,
        });
        assert_eq!(told_by(ask(asks.newcomer()), &asks)["data"], want, "the data is not for others");
        want["data"] = json!("AP8=");
        assert_eq!(told_by(ask(me), &asks)["data"], want);
        question.show(Rc::from(vec![0; SHOWN_MAX + 1]));
        let cut = told_by(ask(me), &asks);
        assert_eq!(cut["data"]["data"].as_str().unwrap().len(), SHOWN_MAX / 3 * 4);
        assert_eq!(cut["data"]["truncated"], true);
    }

    #[test]
    fn every_event_is_described() {
        let text: Rc<str> = Rc::from("t");
        let range = ByteRange::at(0, 1);
        for what in [
            What::AskOver { ask: Some(1), rule: RuleId("r".into()), why: "timeout" },
            What::Suspended { tag: Rc::clone(&text) },
            What::Resumed { tag: Rc::clone(&text) },
            What::PowerCut { cut: 1, state: Rc::clone(&text), lost: 2, betrayed: 1 },
            What::Mismatch { words: Rc::clone(&text), range },
            What::OutsideLimits { operation: Operation::Read, range, words: Rc::clone(&text) },
            What::Reloaded { words: Rc::clone(&text), error: Some(Rc::clone(&text)) },
            What::ClientConnected { client: Rc::clone(&text), export: Rc::clone(&text) },
            What::ClientDisconnected { client: Rc::clone(&text) },
        ] {
            let event = told(what);
            let name = event["event"].as_str().unwrap();
            let (_, about) = EVENTS.iter().find(|(known, _)| *known == name).unwrap();
            for key in event["data"].as_object().unwrap().keys().filter(|key| *key != "node") {
                assert!(about.contains(&format!("`{key}")), "{name}: {key}");
            }
        }
    }
}
