//! A finding as it is kept and handed on: JSON, with the plan in it, so that one file is enough to see it again.

use blkproof_block::ByteRange;
use serde_json::{Map, Value, json};

use crate::campaign::Found;
use crate::finding::SignatureError;
use crate::plan::{OpId, Plan, PlanError};
use crate::run::{Finding, Settings, run};
use crate::shrink::Shrunk;
use crate::target::Target;

/// The schema's name. Its number grows when a key changes its meaning or goes; new keys may come at any time.
pub const SCHEMA: &str = "blkproof.finding/1";

/// A finding, and how to see it again.
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    /// What a run of the plan says.
    pub finding: Finding,
    /// The least plan that shows it.
    pub plan: Plan,
    /// Where it came from, if it did not come from a plan.
    pub origin: Option<Origin>,
}

/// How a campaign came to a finding.
#[derive(Clone, PartialEq, Debug)]
pub struct Origin {
    /// The seed that found it first.
    pub seed: u64,
    /// How much was spent on a seed.
    pub profile: String,
    /// Seeds that found it.
    pub times: u64,
    /// Client requests until it was found.
    pub ops: u64,
    /// Ops of the plan that the seed made.
    pub plan_ops: u64,
    /// How that plan became the least one; empty if it was not shrunk.
    pub shrunk: String,
}

/// A text that is no record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// It is no JSON.
    #[error("this is no JSON: {0}")]
    Json(String),
    /// A key is not there, or holds something else.
    #[error("'{0}' is not there, or not what it has to be")]
    Key(&'static str),
    /// It is of another schema.
    #[error("its schema is '{0}', not '{SCHEMA}'")]
    Schema(String),
    /// The signature is none.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The plan is none.
    #[error("its plan: {0}")]
    Plan(#[from] PlanError),
}

impl Record {
    /// What a campaign found. The plan is run once more, so that what is said is about it and not about what it was
    /// before it was shrunk.
    pub fn of(found: &Found, profile: &str, target: &dyn Target, settings: &Settings) -> Self {
        let plan = found.least().clone();
        let again = found.shrunk.as_ref().and_then(|_| {
            let findings = run(&plan, target, settings).findings;
            findings.into_iter().find(|finding| finding.signature == found.finding.signature)
        });
        let origin = Origin {
            seed: found.seed,
            profile: profile.to_owned(),
            times: found.times,
            ops: found.ops,
            plan_ops: found.plan.ops.len() as u64,
            shrunk: found.shrunk.as_ref().map(shrunk_words).unwrap_or_default(),
        };
        Self { finding: again.unwrap_or_else(|| found.finding.clone()), plan, origin: Some(origin) }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let Finding { signature, text, op, range, allowed, step, cut } = &self.finding;
        let mut json = json!({
            "schema": SCHEMA,
            "target": self.plan.target.name,
            "signature": signature.to_string(),
            "code": signature.code,
            "class": signature.class,
            "phase": signature.phase,
            "site": signature.site,
            "text": text,
            "op": op,
            "range": range.map(|range| json!({"offset": range.start, "length": range.len()})),
            "allowed": allowed,
            "step": step,
            "cut": cut.as_ref().map(|(point, state)| json!({"point": point.to_string(), "state": state.to_string()})),
            "ops": self.plan.ops.len(),
            "plan": self.plan.to_string(),
        });
        if let (Some(origin), Value::Object(map)) = (&self.origin, &mut json) {
            let Origin { seed, profile, times, ops, plan_ops, shrunk } = origin;
            let origin = json!({
                "seed": format!("{seed:#x}"), "profile": profile, "times": times, "operations": ops, "plan-ops": plan_ops,
                "shrunk": shrunk,
            });
            map.insert("origin".to_owned(), origin);
        }
        json
    }

    /// Reads a record.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        let json: Value = serde_json::from_str(text).map_err(|error| RecordError::Json(error.to_string()))?;
        Self::from_json(&json)
    }

    /// Reads a record that is JSON already.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn from_json(json: &Value) -> Result<Self, RecordError> {
        let map = json.as_object().ok_or(RecordError::Key("schema"))?;
        let schema = text(map, "schema")?;
        if schema != SCHEMA {
            return Err(RecordError::Schema(schema.to_owned()));
        }
        let allowed = match map.get("allowed") {
            Some(Value::Array(all)) => {
                let all: Option<Vec<String>> = all.iter().map(|one| one.as_str().map(str::to_owned)).collect();
                all.ok_or(RecordError::Key("allowed"))?
            }
            None | Some(Value::Null) => Vec::new(),
            Some(_) => return Err(RecordError::Key("allowed")),
        };
        let finding = Finding {
            signature: text(map, "signature")?.parse()?,
            text: text(map, "text")?.to_owned(),
            op: optional(map, "op", |op| op.as_u64().and_then(|op| OpId::try_from(op).ok()))?,
            range: optional(map, "range", |range| {
                let (start, length) = (range.get("offset")?.as_u64()?, range.get("length")?.as_u64()?);
                Some(ByteRange { start, end: start.checked_add(length)? })
            })?,
            allowed,
            step: optional(map, "step", Value::as_u64)?.unwrap_or_default(),
            cut: optional(map, "cut", |cut| {
                let (point, state) = (cut.get("point")?.as_str()?, cut.get("state")?.as_str()?);
                Some((point.parse().ok()?, state.parse().ok()?))
            })?,
        };
        let origin = match map.get("origin") {
            None | Some(Value::Null) => None,
            Some(origin) => Some(origin_of(origin).ok_or(RecordError::Key("origin"))?),
        };
        Ok(Self { finding, plan: Plan::parse(text(map, "plan")?)?, origin })
    }
}

fn origin_of(json: &Value) -> Option<Origin> {
    let number = |key: &str| json.get(key)?.as_u64();
    let text = |key: &str| Some(json.get(key)?.as_str()?.to_owned());
    Some(Origin {
        // In text: not every reader of JSON has whole numbers of 64 bits.
        seed: u64::from_str_radix(text("seed")?.strip_prefix("0x")?, 16).ok()?,
        profile: text("profile")?,
        times: number("times")?,
        ops: number("operations")?,
        plan_ops: number("plan-ops")?,
        shrunk: text("shrunk")?,
    })
}

fn text<'a>(map: &'a Map<String, Value>, key: &'static str) -> Result<&'a str, RecordError> {
    map.get(key).and_then(Value::as_str).ok_or(RecordError::Key(key))
}

fn optional<T>(
    map: &Map<String, Value>,
    key: &'static str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<Option<T>, RecordError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value).map(Some).ok_or(RecordError::Key(key)),
    }
}

fn shrunk_words(shrunk: &Shrunk) -> String {
    let minimal = if shrunk.minimal { ", and no single part of it can be left away" } else { "" };
    let again = match shrunk.verified {
        (_, 0) => String::new(),
        (failed, of) => format!("; of {of} further runs {failed} failed in the same way"),
    };
    format!("{} runs: {}{minimal}{again}", shrunk.runs, shrunk.limit.name())
}
