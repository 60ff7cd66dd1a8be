//! What commands do, a file for each subject. Each answers when its effect holds.

pub(crate) mod ask;
pub(crate) mod breaks;
pub(crate) mod disk;
pub(crate) mod fault;
pub(crate) mod log;
pub(crate) mod process;
pub(crate) mod stats;
pub(crate) mod trace;

mod nodes;
mod rules;

use std::rc::Rc;

use blkproof_fault::ask::Asked;
use blkproof_fault::lab::Lab;
use serde_json::Value;

use crate::arguments::check;
use crate::error::{Class, Error};
use crate::host::Host;
use crate::schema;
use crate::wire::Command;

/// What the commands of one client work on.
pub(crate) struct Context {
    pub(crate) lab: Rc<Lab>,
    pub(crate) host: Rc<dyn Host>,
    /// The client, where it answers questions.
    pub(crate) me: Asked,
}

impl Context {
    pub(crate) fn new(lab: &Rc<Lab>, host: &Rc<dyn Host>) -> Self {
        Self { lab: Rc::clone(lab), host: Rc::clone(host), me: lab.asks().newcomer() }
    }

    /// The client answers no more: it has sent its last byte, or is gone. What it was asked gets its default.
    pub(crate) fn falls_silent(&self) {
        self.lab.asks().gone(self.me);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.falls_silent();
    }
}

/// Does a command.
pub(crate) async fn execute(context: &Context, command: Command) -> Result<Value, Error> {
    let Some(declared) = schema::find(&command.name) else { return Err(unknown(&command.name)) };
    if command.oob && !declared.oob {
        return Err(Error::generic(format!("The command {} does not support OOB", declared.name)));
    }
    let arguments = check(declared, command.arguments)?;
    (declared.run)(context, arguments).await
}

/// The refusal of a command that there is not, with the nearest one there is.
pub(crate) fn unknown(name: &str) -> Error {
    let name: String = name.chars().take(60).collect();
    let nearest = blkproof_block::graph::nearest(&name, schema::COMMANDS.iter().map(|command| command.name));
    let hint = nearest.map(|nearest| format!("; did you mean '{nearest}'?")).unwrap_or_default();
    Error::new(Class::CommandNotFound, format!("The command {name} has not been found{hint}"))
}

/// What a command answers that has nothing to say.
pub(crate) fn done() -> Result<Value, Error> {
    Ok(Value::Object(serde_json::Map::new()))
}
