//! The lines of a trace: schema [`SCHEMA`].
//!
//! The first line is the head: `schema`, `node`, `size` (bytes), `unix_ns`, `hash`, `data`. Each further one is a
//! request that is over, in the order in which they ended:
//!
//! | field | is |
//! |---|---|
//! | `seq` | the request's number, from 0, in the order in which they came |
//! | `done` | its number in the order in which they ended |
//! | `after` | how many had ended when it came: those with a smaller `done` are what it may depend on |
//! | `op`, `offset`, `bytes`, `flags` | what was asked; of a resize, `bytes` is the new size |
//! | `submit_ns`, `complete_ns` | when it came and ended, since the head was written |
//! | `client` | who asked, where clients are told apart |
//! | `outcome` | `ok`, `cancelled`, or an object: `error` as rules write it, `errno`, `first_bad`, `gone`, `rule`, `detail` |
//! | `crc32c` | of the data read or written, if hashes are wanted |
//! | `data` | what was written, in base64, if data is wanted |
//!
//! `{"dropped": n}` stands where n lines were lost because the sink did not take them. `{"paused": true}` stands where the
//! trace was stopped: until it is started again requests have no line, except those that were under way. A further head
//! begins a further session, whose numbers and times begin anew; what happened in between has no line either.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bitflags::bitflags;
use blkproof_block::{ByteOffset, Errno, IoError, RuleId};
use serde_json::Value;

use crate::request::Operation;
use crate::rule::Failure;

/// Name and version of the format.
pub const SCHEMA: &str = "blkproof.trace/1";

bitflags! {
    /// How a request was to be done.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TraceFlags: u8 {
        /// `fua`
        const FUA = 1;
        /// `compressed`
        const COMPRESSED = 2;
        /// `may-unmap`
        const MAY_UNMAP = 4;
        /// `no-fallback`
        const NO_FALLBACK = 8;
    }
}

const FLAGS: [(TraceFlags, &str); 4] = [
    (TraceFlags::FUA, "fua"),
    (TraceFlags::COMPRESSED, "compressed"),
    (TraceFlags::MAY_UNMAP, "may-unmap"),
    (TraceFlags::NO_FALLBACK, "no-fallback"),
];

/// The first line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// Name of the node.
    pub node: String,
    /// Bytes of the disk.
    pub size: u64,
    /// When it was written, since 1970-01-01 UTC, in nanoseconds.
    pub unix_ns: u64,
    /// Lines have `crc32c`.
    pub hash: bool,
    /// Lines of writes have `data`.
    pub data: bool,
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It failed.
    Failed(Box<IoError>),
    /// Nobody waited for its end. It may have been done all the same, in whole or in part.
    Cancelled,
}

/// A request that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its number in the order of submission.
    pub seq: u64,
    /// Its number in the order of completion.
    pub done: u64,
    /// Requests that were over when it came.
    pub after: u64,
    /// What was asked for.
    pub operation: Operation,
    /// First byte.
    pub offset: u64,
    /// Bytes; of a resize, the new size.
    pub bytes: u64,
    /// How.
    pub flags: TraceFlags,
    /// When it came, in nanoseconds since the head.
    pub submit_ns: u64,
    /// When it ended.
    pub complete_ns: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// CRC-32C of the data read or written.
    pub crc32c: Option<u32>,
}

/// One line of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// The first.
    Head(Head),
    /// A request.
    Request {
        /// What was asked and what became of it.
        record: Record,
        /// Who asked.
        client: Option<String>,
        /// What was written.
        data: Option<Vec<u8>>,
    },
    /// So many lines are missing here.
    Dropped(u64),
    /// Requests that come from here on have no line, until there are lines again.
    Paused,
}

/// A line that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TraceError {
    /// No JSON object.
    #[error("no JSON object: {0}")]
    Json(String),
    /// Another schema, or none.
    #[error("schema '{0}' is not {SCHEMA}")]
    Schema(String),
    /// A field is missing or of another type.
    #[error("'{0}' is missing or wrong")]
    Field(&'static str),
}

/// The head as a line, without its end.
pub fn write_head(head: &Head, out: &mut String) {
    let Head { node, size, unix_ns, hash, data } = head;
    let _ = write!(
        out,
        "{{\"schema\":\"{SCHEMA}\",\"node\":{},\"size\":{size},\"unix_ns\":{unix_ns},\"hash\":{hash},\"data\":{data}}}",
        quoted(node)
    );
}

/// A request as a line, without its end.
pub fn write_request(record: &Record, client: Option<&str>, data: Option<&[u8]>, out: &mut String) {
    let Record { seq, done, after, operation, offset, bytes, flags, submit_ns, complete_ns, outcome, crc32c } = record;
    let _ = write!(
        out,
        "{{\"seq\":{seq},\"done\":{done},\"after\":{after},\"op\":\"{operation}\",\"offset\":{offset},\"bytes\":{bytes}"
    );
    if !flags.is_empty() {
        let names: Vec<&str> = FLAGS.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| *name).collect();
        let _ = write!(out, ",\"flags\":[\"{}\"]", names.join("\",\""));
    }
    let _ = write!(out, ",\"submit_ns\":{submit_ns},\"complete_ns\":{complete_ns}");
    if let Some(client) = client {
        let _ = write!(out, ",\"client\":{}", quoted(client));
    }
    match outcome {
        Outcome::Done => out.push_str(",\"outcome\":\"ok\""),
        Outcome::Cancelled => out.push_str(",\"outcome\":\"cancelled\""),
        Outcome::Failed(error) => {
            let name = Failure { errno: error.errno, device: error.device };
            let _ = write!(out, ",\"outcome\":{{\"error\":\"{name}\",\"errno\":{}", error.errno.0);
            if let Some(bad) = error.first_bad {
                let _ = write!(out, ",\"first_bad\":{}", bad.0);
            }
            if error.gone {
                out.push_str(",\"gone\":true");
            }
            if let Some(rule) = &error.injected_by {
                let _ = write!(out, ",\"rule\":{}", quoted(&rule.0));
            }
            if let Some(detail) = &error.detail {
                let _ = write!(out, ",\"detail\":{}", quoted(detail));
            }
            out.push('}');
        }
    }
    if let Some(sum) = crc32c {
        let _ = write!(out, ",\"crc32c\":\"{sum:08x}\"");
    }
    if let Some(data) = data {
        out.push_str(",\"data\":\"");
        STANDARD.encode_string(data, out);
        out.push('"');
    }
    out.push('}');
}

/// That `count` lines are missing, as a line without its end.
pub fn write_dropped(count: u64, out: &mut String) {
    let _ = write!(out, "{{\"dropped\":{count}}}");
}

/// That the trace is stopped, as a line without its end.
pub fn write_paused(out: &mut String) {
    out.push_str("{\"paused\":true}");
}

fn quoted(text: &str) -> Value {
    Value::from(text)
}

/// Reads a line.
///
/// # Errors
/// With the field that is wrong. Fields that are not known are passed over.
pub fn parse(line: &str) -> Result<Line, TraceError> {
    let value: Value = serde_json::from_str(line).map_err(|error| TraceError::Json(error.to_string()))?;
    let fields = Fields(&value);
    if !value.is_object() {
        return Err(TraceError::Json("a line is one object".into()));
    }
    if let Some(schema) = value.get("schema") {
        if schema.as_str() != Some(SCHEMA) {
            return Err(TraceError::Schema(schema.as_str().unwrap_or_default().to_owned()));
        }
        return Ok(Line::Head(Head {
            node: fields.text("node")?.to_owned(),
            size: fields.number("size")?,
            unix_ns: fields.number("unix_ns")?,
            hash: value.get("hash") == Some(&Value::Bool(true)),
            data: value.get("data") == Some(&Value::Bool(true)),
        }));
    }
    if value.get("dropped").is_some() {
        return Ok(Line::Dropped(fields.number("dropped")?));
    }
    if value.get("paused").is_some() {
        return Ok(Line::Paused);
    }
    let operation = Operation::from_name(fields.text("op")?).ok_or(TraceError::Field("op"))?;
    let record = Record {
        seq: fields.number("seq")?,
        done: fields.number("done")?,
        after: fields.number("after")?,
        operation,
        offset: fields.number("offset")?,
        bytes: fields.number("bytes")?,
        flags: flags(&value)?,
        submit_ns: fields.number("submit_ns")?,
        complete_ns: fields.number("complete_ns")?,
        outcome: outcome(&value)?,
        crc32c: match value.get("crc32c") {
            Some(sum) => Some(
                sum.as_str().and_then(|sum| u32::from_str_radix(sum, 16).ok()).ok_or(TraceError::Field("crc32c"))?,
            ),
            None => None,
        },
    };
    let data = match value.get("data") {
        Some(data) => {
            let data = data.as_str().and_then(|data| STANDARD.decode(data).ok()).ok_or(TraceError::Field("data"))?;
            if data.len() as u64 != record.bytes {
                return Err(TraceError::Field("data"));
            }
            Some(data)
        }
        None => None,
    };
    let client = value.get("client").and_then(Value::as_str).map(str::to_owned);
    Ok(Line::Request { record, client, data })
}

fn flags(value: &Value) -> Result<TraceFlags, TraceError> {
    let mut flags = TraceFlags::empty();
    let Some(list) = value.get("flags") else { return Ok(flags) };
    for name in list.as_array().ok_or(TraceError::Field("flags"))? {
        let known = FLAGS.iter().find(|(_, known)| name.as_str() == Some(known));
        flags |= known.ok_or(TraceError::Field("flags"))?.0;
    }
    Ok(flags)
}

fn outcome(value: &Value) -> Result<Outcome, TraceError> {
    let wrong = || TraceError::Field("outcome");
    let outcome = value.get("outcome").ok_or_else(wrong)?;
    match outcome.as_str() {
        Some("ok") => return Ok(Outcome::Done),
        Some("cancelled") => return Ok(Outcome::Cancelled),
        _ => {}
    }
    let fields = Fields(outcome);
    let failure = Failure::parse(fields.text("error").map_err(|_| wrong())?).map_err(|_| wrong())?;
    let errno = fields.number("errno").ok().and_then(|number| i32::try_from(number).ok()).ok_or_else(wrong)?;
    let text = |name| outcome.get(name).and_then(Value::as_str).map(Box::<str>::from);
    Ok(Outcome::Failed(Box::new(IoError {
        first_bad: outcome.get("first_bad").and_then(Value::as_u64).map(ByteOffset),
        device: failure.device,
        gone: outcome.get("gone") == Some(&Value::Bool(true)),
        injected_by: text("rule").map(RuleId),
        detail: text("detail"),
        ..IoError::new(Errno(errno))
    })))
}

struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn number(&self, name: &'static str) -> Result<u64, TraceError> {
        self.0.get(name).and_then(Value::as_u64).ok_or(TraceError::Field(name))
    }

    fn text(&self, name: &'static str) -> Result<&'a str, TraceError> {
        self.0.get(name).and_then(Value::as_str).ok_or(TraceError::Field(name))
    }
}

#[cfg(test)]
mod tests {
    use blkproof_block::DeviceError;

    use super::*;

    fn record() -> Record {
        Record {
            seq: 7,
            done: 5,
            after: 3,
            operation: Operation::Write,
            offset: 1 << 40,
            bytes: 3,
            flags: TraceFlags::FUA | TraceFlags::COMPRESSED,
            submit_ns: 10,
            complete_ns: u64::MAX,
            outcome: Outcome::Done,
            crc32c: Some(0x0badcafe),
        }
    }

    #[test]
    fn lines_lead_back_to_what_they_were_written_from() {
        let sense = IoError {
            device: Some(DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 }),
            injected_by: Some(RuleId("bad \"50\"\n".into())),
            ..IoError::new(Errno::IO).at(512 * 50).detail("medium\u{1}error")
        };
        for (record, client, data) in [
            (record(), None, None),
            (record(), Some("client \"1\""), Some(&[0, 255, 10][..])),
            (Record { outcome: Outcome::Cancelled, flags: TraceFlags::empty(), crc32c: None, ..record() }, None, None),
            (Record { outcome: Outcome::Failed(Box::new(sense)), ..record() }, None, None),
            (Record { outcome: Outcome::Failed(Box::new(IoError::new(Errno(999)))), ..record() }, None, None),
            (Record { outcome: Outcome::Failed(Box::new(IoError::gone())), ..record() }, None, None),
        ] {
            let mut line = String::new();
            write_request(&record, client, data, &mut line);
            assert!(!line.contains('\n'), "{line}");
            let want = Line::Request { record, client: client.map(str::to_owned), data: data.map(<[u8]>::to_vec) };
            assert_eq!(parse(&line).unwrap(), want, "{line}");
        }
        let head = Head { node: "a\"b".into(), size: 5, unix_ns: 6, hash: true, data: false };
        let mut line = String::new();
        write_head(&head, &mut line);
        assert_eq!(parse(&line).unwrap(), Line::Head(head));
        line.clear();
        write_dropped(17, &mut line);
        assert_eq!(parse(&line).unwrap(), Line::Dropped(17));
        line.clear();
        write_paused(&mut line);
        assert_eq!(parse(&line).unwrap(), Line::Paused);
    }

    #[test]
    fn what_is_no_line_is_refused_by_its_field() {
        let mut good = String::new();
        write_request(&record(), None, Some(&[1, 2, 3]), &mut good);
        for (from, to, want) in [
            ("\"seq\":7", "\"seq\":-7", "'seq' is missing or wrong"),
            ("\"op\":\"write\"", "\"op\":\"wrote\"", "'op' is missing or wrong"),
            ("\"fua\"", "\"fast\"", "'flags' is missing or wrong"),
            ("\"ok\"", "\"fine\"", "'outcome' is missing or wrong"),
            ("\"ok\"", "{\"errno\":5}", "'outcome' is missing or wrong"),
            ("\"bytes\":3", "\"bytes\":4", "'data' is missing or wrong"),
            ("0badcafe", "0badcafeff", "'crc32c' is missing or wrong"),
            (
                "{\"seq\"",
                "{\"schema\":\"blkproof.trace/2\",\"seq\"",
                "schema 'blkproof.trace/2' is not blkproof.trace/1",
            ),
            ("{\"seq\"", "[{\"seq\"", "no JSON object"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            let error = parse(&bad).unwrap_err().to_string();
            assert!(error.starts_with(want), "{bad}: {error}");
        }
        assert!(parse("[]").is_err() && parse("").is_err() && parse("7").is_err());
    }
}
