//! Commands about rules and what they hold.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, RuleId};
use blkproof_fault::engine::RuleStatus;
use blkproof_fault::file::Mistake;
use blkproof_fault::filter::Faults;
use futures_lite::future::or;
use serde_json::{Map, Value, json};

use super::{Context, done, nodes, rules};
use crate::arguments::Arguments;
use crate::error::Error;

/// How long `fault-wait` and `wait-break` wait where nothing is said.
pub(super) const WAIT: Duration = Duration::from_secs(60);

/// Rules read or listed between two turns of the I/O.
const BURST: usize = 64;

/// What ids of `device-error` begin with.
const DEVICE_ERROR: &str = "device-error";

type Answer = Result<Value, Error>;

pub(crate) async fn add(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    let given = match arguments.take("rule") {
        Some(Value::Array(list)) => list,
        Some(rule) => vec![rule],
        None => Vec::new(),
    };
    let (mut rules, mut told) = (Vec::with_capacity(given.len()), Told::default());
    for (at, rule) in given.iter().enumerate() {
        // What mistakes call it; its real id follows when it is armed.
        let stand_in = format!("rule-{}", at.saturating_add(1));
        let (read, warnings) = rules::read(rule, faults.lba_size(), &stand_in)?;
        if rule.get("id").is_none() {
            told.unnamed.insert(at);
        }
        rules.push(read);
        told.warnings.extend(warnings.into_iter().map(|warning| (at, warning)));
        if at % BURST == BURST - 1 {
            futures_lite::future::yield_now().await;
        }
    }
    // From here on nobody else has a turn: ids that are free stay free.
    let ids = faults.add_naming(rules, &told.unnamed, "rule");
    told.answer(&ids.map_err(|error| Error::generic(error.to_string()))?)
}

/// What there is to say about rules beside their ids.
#[derive(Default)]
struct Told {
    /// The places of those without an id.
    unnamed: BTreeSet<usize>,
    /// Warnings, with the places of their rules.
    warnings: Vec<(usize, Mistake)>,
}

impl Told {
    fn answer(self, ids: &[RuleId]) -> Answer {
        let mut answer = json!({ "rules": ids.iter().map(ToString::to_string).collect::<Vec<_>>() });
        if !self.warnings.is_empty() {
            let words = self.warnings.into_iter().map(|(at, warning)| {
                let rule = ids.get(at).map(ToString::to_string).filter(|_| self.unnamed.contains(&at));
                Mistake { rule: rule.or(warning.rule), ..warning }.to_string()
            });
            answer["warnings"] = words.collect();
        }
        Ok(answer)
    }
}

pub(crate) async fn remove(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    let all = arguments.take_flag("all").unwrap_or(false);
    match (arguments.take_text("rule"), all) {
        (Some(rule), false) if faults.remove(&rule) => done(),
        (Some(rule), false) => Err(unknown(&faults, &rule)),
        (None, true) => {
            faults.clear();
            done()
        }
        _ => Err(Error::generic("fault-remove takes either 'rule', or 'all' as true")),
    }
}

pub(crate) async fn list(context: &Context, mut arguments: Arguments) -> Answer {
    let found = nodes::some::<Rc<Faults>>(context, &mut arguments)?;
    let mut nodes = Vec::with_capacity(found.len());
    for (name, faults) in &found {
        nodes.push(describe(name, faults).await);
    }
    Ok(Value::Array(nodes))
}

/// A node and its rules. They may be thousands: others have their turns in between.
async fn describe(name: &str, faults: &Faults) -> Value {
    let list = faults.list();
    let mut rules = Vec::with_capacity(list.len());
    for burst in list.chunks(BURST) {
        rules.extend(burst.iter().map(|rule| status(rule, faults.lba_size())));
        futures_lite::future::yield_now().await;
    }
    let held: Vec<Value> =
        faults.held().iter().map(|(tag, count)| json!({ "tag": &**tag, "requests": count })).collect();
    json!({
        "node": name,
        "state": &*faults.state(),
        "stopped": faults.is_stopped(),
        "lba-size": faults.lba_size(),
        "rules": rules,
        "held": held,
    })
}

fn status(status: &RuleStatus, lba_size: u32) -> Value {
    let mut it = Map::new();
    let mut put = |key: &str, value: Value| it.insert(key.to_owned(), value);
    put("id", json!(status.rule.id.to_string()));
    put("armed", json!(status.armed));
    put("fired", json!(status.fired));
    put("seen", json!(status.seen));
    if status.rule.on.event.is_some() {
        put("primed", json!(status.primed));
    }
    if let Some(bad) = status.bad {
        put("bad-sectors", json!(bad));
    }
    put("damaged-sectors", json!(status.damaged));
    put("rule", rules::show(&status.rule, lba_size));
    Value::Object(it)
}

pub(crate) async fn reset(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    let rule = arguments.take_text("rule");
    match rule {
        Some(rule) if !faults.reset(Some(&rule)) => Err(unknown(&faults, &rule)),
        Some(_) => done(),
        None => {
            faults.reset(None);
            done()
        }
    }
}

pub(crate) async fn set_armed(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    let armed = arguments.take_flag("armed").unwrap_or(true);
    let rule = arguments.take_text("rule").unwrap_or_default();
    if faults.set_armed(&rule, armed) { done() } else { Err(unknown(&faults, &rule)) }
}

pub(crate) async fn set_state(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    faults.set_state(Rc::from(arguments.take_text("state").unwrap_or_default()));
    done()
}

pub(crate) async fn wait(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    let rule = arguments.take_text("rule").unwrap_or_default();
    let count = arguments.take_count("count").unwrap_or(1);
    let timeout = arguments.take_time("timeout").unwrap_or(WAIT);
    let waited = async { Some(faults.wait_fired(&rule, count).await) };
    let late = async {
        context.lab.clock().sleep(timeout).await;
        None
    };
    match (or(waited, late).await, faults.fired(&rule)) {
        (Some(true), Some(fired)) => Ok(json!({ "fired": fired })),
        (_, None) => Err(unknown(&faults, &rule)),
        (_, Some(fired)) => Err(Error::generic(format!(
            "rule '{rule}' fired {fired} of {count} times within {} s",
            timeout.as_secs_f64()
        ))),
    }
}

pub(crate) async fn hold(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    let tag = arguments.take_text("tag").unwrap_or_default();
    let mut on = match arguments.take("on") {
        Some(Value::Object(on)) => on,
        _ => Map::new(),
    };
    on.entry("times").or_insert_with(|| json!(1));
    let rule = json!({ "id": tag, "on": on, "do": { "hold": tag } });
    let (rule, warnings) = rules::read(&rule, faults.lba_size(), &tag)?;
    let ids = faults.add_naming(vec![rule], &BTreeSet::new(), "rule");
    let told = Told { warnings: warnings.into_iter().map(|warning| (0, warning)).collect(), ..Told::default() };
    told.answer(&ids.map_err(|error| Error::generic(error.to_string()))?)
}

pub(crate) async fn release(context: &Context, mut arguments: Arguments) -> Answer {
    let found = nodes::some::<Rc<Faults>>(context, &mut arguments)?;
    let count = arguments.take_count("count").map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let tag = arguments.take_text("tag");
    let (mut left, mut parked) = (count, Vec::new());
    for (_, faults) in &found {
        for (held, _) in faults.held() {
            if tag.as_deref().is_none_or(|tag| tag == &*held) {
                left = left.saturating_sub(faults.release(&held, left));
            }
            parked.push(format!("'{held}'"));
        }
    }
    let released = count.saturating_sub(left);
    match tag {
        Some(tag) if released == 0 && count > 0 => {
            parked.dedup();
            let parked = if parked.is_empty() { "nothing".to_owned() } else { parked.join(", ") };
            Err(Error::generic(format!("nothing is parked under '{tag}'; parked is {parked}")))
        }
        _ => Ok(json!({ "released": released })),
    }
}

pub(crate) async fn reassign(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    let lba = arguments.take_count("lba").unwrap_or(0);
    let count = arguments.take_count("count").unwrap_or(1);
    let size = u64::from(faults.lba_size());
    let range = ByteRange::at(lba.saturating_mul(size), count.saturating_mul(size));
    Ok(json!({ "rules": faults.reassign(range) }))
}

pub(crate) async fn device_error(context: &Context, mut arguments: Arguments) -> Answer {
    let (_, faults) = nodes::one::<Rc<Faults>>(context, &mut arguments)?;
    let mut on = Map::new();
    if let Some(operation) = arguments.take("operation") {
        on.insert("op".to_owned(), operation);
    }
    if let Some(lba) = arguments.take("lba") {
        on.insert("lba".to_owned(), lba);
    }
    on.insert("times".to_owned(), arguments.take("times").unwrap_or_else(|| json!(1)));
    let error = arguments.take("error").unwrap_or_else(|| json!("EIO"));
    let rule = json!({ "on": on, "do": { "fail": error } });
    let (rule, warnings) = rules::read(&rule, faults.lba_size(), DEVICE_ERROR)?;
    let ids = faults.add_passing(rule, DEVICE_ERROR);
    let warnings = warnings.into_iter().map(|warning| (0, warning)).collect();
    let told = Told { warnings, unnamed: BTreeSet::from([0]) };
    told.answer(&ids.map_err(|error| Error::generic(error.to_string()))?)
}

pub(crate) async fn stop(context: &Context, arguments: Arguments) -> Answer {
    each(context, arguments, Faults::stop)
}

pub(crate) async fn cont(context: &Context, arguments: Arguments) -> Answer {
    each(context, arguments, Faults::cont)
}

fn each(context: &Context, mut arguments: Arguments, does: fn(&Faults)) -> Answer {
    for (_, faults) in nodes::some::<Rc<Faults>>(context, &mut arguments)? {
        does(&faults);
    }
    done()
}

fn unknown(faults: &Faults, rule: &str) -> Error {
    let list = faults.list();
    let shown: String = rule.chars().take(60).collect();
    let nearest = blkproof_block::graph::nearest(&shown, list.iter().map(|status| &*status.rule.id.0));
    let hint = nearest.map(|nearest| format!("; did you mean '{nearest}'?")).unwrap_or_default();
    Error::generic(format!("node '{}' has no rule '{shown}'{hint}", faults.name()))
}
