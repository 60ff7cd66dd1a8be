//! Commands of programs that decide about requests.

use std::rc::Rc;

use blkproof_fault::ask::Answer;
use blkproof_fault::filter::Faults;
use blkproof_fault::rule::Failure;
use serde_json::Value;

use super::{Context, done, nodes};
use crate::arguments::Arguments;
use crate::error::Error;

/// What somebody wants to be asked about; anything where a name is missing.
struct Subject {
    node: Option<Rc<str>>,
    rule: Option<Rc<str>>,
}

/// The rule need not be there yet, the node has to.
fn subject(context: &Context, arguments: &mut Arguments) -> Result<Subject, Error> {
    let node = match arguments.take_text("node") {
        Some(name) => Some(nodes::named::<Rc<Faults>>(context, &name)?.0),
        None => None,
    };
    Ok(Subject { node, rule: arguments.take_text("rule").map(Rc::from) })
}

pub(crate) async fn register(context: &Context, mut arguments: Arguments) -> Result<Value, Error> {
    let Subject { node, rule } = subject(context, &mut arguments)?;
    context.lab.asks().register(context.me, node, rule);
    done()
}

pub(crate) async fn unregister(context: &Context, mut arguments: Arguments) -> Result<Value, Error> {
    let Subject { node, rule } = subject(context, &mut arguments)?;
    if context.lab.asks().unregister(context.me, node.as_deref(), rule.as_deref()) {
        done()
    } else {
        Err(Error::generic("this client has not registered for that"))
    }
}

pub(crate) async fn answer(context: &Context, mut arguments: Arguments) -> Result<Value, Error> {
    let ask = arguments.take_count("ask").unwrap_or(0);
    let data = arguments.take_data("data");
    let error = arguments.take_text("error");
    let word = arguments.take_text("answer").unwrap_or_default();
    let answer = match (word.as_str(), data, error) {
        ("proceed", None, None) => Answer::Proceed,
        ("proceed", Some(data), None) => Answer::Data(data),
        ("fail", None, error) => {
            let text = error.as_deref().unwrap_or("EIO");
            Answer::Fail(Failure::parse(text).map_err(|error| Error::generic(error.to_string()))?)
        }
        ("succeed", None, None) => Answer::Succeed,
        (word, Some(_), _) => return Err(Error::generic(format!("'data' goes with 'proceed', not with '{word}'"))),
        (word, _, Some(_)) => return Err(Error::generic(format!("'error' goes with 'fail', not with '{word}'"))),
        (word, ..) => return Err(Error::generic(format!("'{word}' is no answer"))),
    };
    context.lab.asks().answer(ask, answer).map_err(|error| Error::generic(error.to_string()))?;
    done()
}
