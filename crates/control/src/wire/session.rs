//! What one client may say, and when.
//!
//! A session begins with a greeting and a negotiation: until the client has sent `qmp_capabilities` every other command
//! is refused and no event is sent. Refusals are answered in the order of what was refused, like commands.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::json::{Limits, Parser};
use crate::error::{Class, Error};

/// A command as it came.
#[derive(Clone, PartialEq, Debug)]
pub struct Command {
    /// Its name; nobody has looked whether there is such a command.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
    /// What the reply has to carry.
    pub id: Option<Value>,
    /// Whether it does not wait for the commands before it (`exec-oob`).
    pub oob: bool,
}

/// Something a client said.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// The negotiation succeeded: events flow from now on, and `id` goes with the empty reply.
    Negotiated(Option<Value>),
    /// A command.
    Command(Command),
    /// Something that is answered with this.
    Refused(Option<Value>, Error),
    /// The client speaks another protocol, such as HTTP, in which a web page could smuggle commands: nothing it says is
    /// looked at any more.
    Alien,
}

/// One client's side of the conversation.
#[derive(Debug)]
pub struct Session {
    parser: Parser,
    state: State,
    oob: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Not a byte has come.
    Fresh,
    Greeted,
    Negotiated,
    Alien,
}

impl Session {
    /// A client that has just connected.
    pub fn new(limits: Limits) -> Self {
        Self { parser: Parser::new(limits), state: State::Fresh, oob: false }
    }

    /// The first line of every session.
    pub fn greeting() -> Value {
        json!({ "QMP": { "version": version(), "capabilities": ["oob"] } })
    }

    /// Reads what a client sent; messages it completes are added to `inputs`.
    pub fn feed(&mut self, bytes: &[u8], inputs: &mut Vec<Input>) {
        for byte in bytes {
            match self.state {
                // The request line of HTTP and its like. No QMP message begins so, and neither does what a client sends to
                // reset the parser.
                State::Fresh if byte.is_ascii_uppercase() => {
                    self.state = State::Alien;
                    inputs.push(Input::Alien);
                    return;
                }
                State::Fresh => self.state = State::Greeted,
                State::Alien => return,
                State::Greeted | State::Negotiated => {}
            }
            match self.parser.push(*byte) {
                None => {}
                Some(Ok(Value::Object(message))) => {
                    let input = self.understand(message);
                    inputs.push(input);
                }
                Some(Ok(_)) => inputs.push(Input::Refused(None, Error::generic("QMP input must be a JSON object"))),
                Some(Err(error)) => inputs.push(Input::Refused(None, Error::generic(error.to_string()))),
            }
        }
    }

    /// Whether the client has negotiated.
    pub fn is_negotiated(&self) -> bool {
        self.state == State::Negotiated
    }

    /// Whether the client left off in the middle of a message.
    pub fn is_midway(&self) -> bool {
        self.parser.is_midway()
    }

    fn understand(&mut self, mut message: Map<String, Value>) -> Input {
        let id = message.shift_remove("id");
        match self.command(message) {
            Ok(command) => self.negotiate(Command { id, ..command }),
            Err(error) => Input::Refused(id, error),
        }
    }

    fn command(&self, mut message: Map<String, Value>) -> Result<Command, Error> {
        let in_band = message.shift_remove("execute");
        let out_of_band = if self.oob { message.shift_remove("exec-oob") } else { None };
        let arguments = message.shift_remove("arguments");
        if let Some((key, _)) = message.iter().next() {
            let key: String = key.chars().take(40).collect();
            return Err(Error::generic(format!("QMP input member '{key}' is unexpected")));
        }
        let (name, oob) = match (in_band, out_of_band) {
            (Some(name), None) => (name, false),
            (None, Some(name)) => (name, true),
            (Some(_), Some(_)) => return Err(Error::generic("QMP input has both 'execute' and 'exec-oob'")),
            (None, None) => return Err(Error::generic("QMP input lacks member 'execute'")),
        };
        let Value::String(name) = name else {
            let key = if oob { "exec-oob" } else { "execute" };
            return Err(Error::generic(format!("QMP input member '{key}' must be a string")));
        };
        let arguments = match arguments {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(Error::generic("QMP input member 'arguments' must be an object")),
        };
        Ok(Command { name, arguments, id: None, oob })
    }

    fn negotiate(&mut self, command: Command) -> Input {
        if self.state == State::Negotiated {
            if command.name == "qmp_capabilities" {
                let words = "Capabilities negotiation is already complete, command ignored";
                return Input::Refused(command.id, Error::new(Class::CommandNotFound, words));
            }
            return Input::Command(command);
        }
        if command.name != "qmp_capabilities" {
            let words = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return Input::Refused(command.id, Error::new(Class::CommandNotFound, words));
        }
        match capabilities(&command.arguments) {
            Ok(oob) => {
                self.oob = oob;
                self.state = State::Negotiated;
                Input::Negotiated(command.id)
            }
            Err(error) => Input::Refused(command.id, error),
        }
    }
}

/// Whether `oob` is to be enabled.
fn capabilities(arguments: &Map<String, Value>) -> Result<bool, Error> {
    let mut oob = false;
    for (key, value) in arguments {
        let Some(names) = value.as_array().filter(|_| key == "enable") else {
            return Err(Error::generic("qmp_capabilities takes 'enable', a list of capabilities"));
        };
        for name in names {
            if name != "oob" {
                return Err(Error::generic("there is one capability: 'oob'"));
            }
            oob = true;
        }
    }
    Ok(oob)
}

/// The version in QMP's form, under the name clients look for.
///
/// They read `qemu` to learn what they may expect of QEMU. 0.x says: nothing.
pub(crate) fn version() -> Value {
    let mut numbers = env!("CARGO_PKG_VERSION").split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (major, minor, micro) = (next(), next(), next());
    json!({
        "qemu": { "micro": micro, "minor": minor, "major": major },
        "package": concat!("blkproof ", env!("CARGO_PKG_VERSION")),
    })
}

/// The reply of a command that was done.
pub fn success(id: Option<Value>, result: Value) -> Value {
    reply("return", result, id)
}

/// The reply of a command that was not.
pub fn failure(id: Option<Value>, error: &Error) -> Value {
    reply("error", json!({ "class": error.class.name(), "desc": error.desc }), id)
}

fn reply(kind: &str, value: Value, id: Option<Value>) -> Value {
    let mut message = Map::new();
    message.insert(kind.to_owned(), value);
    if let Some(id) = id {
        message.insert("id".to_owned(), id);
    }
    Value::Object(message)
}

/// An event, at `time` since 1970-01-01 UTC.
pub fn event(time: Duration, name: &str, data: Value) -> Value {
    json!({
        "timestamp": { "seconds": time.as_secs(), "microseconds": time.subsec_micros() },
        "event": name,
        "data": data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(session: &mut Session, text: &[u8]) -> Vec<Input> {
        let mut inputs = Vec::new();
        session.feed(text, &mut inputs);
        inputs
    }

    fn negotiated(oob: bool) -> Session {
        let mut session = Session::new(Limits::default());
        let hello: &[u8] = if oob {
            b"{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}"
        } else {
            b"{'execute':'qmp_capabilities'}"
        };
        assert_eq!(say(&mut session, hello), [Input::Negotiated(None)]);
        session
    }

    #[test]
    fn nothing_works_before_the_negotiation_and_it_works_once() {
        let mut session = Session::new(Limits::default());
        let refused = |got: Vec<Input>| match got.as_slice() {
            [Input::Refused(id, error)] => (id.clone(), error.class, error.desc.clone()),
            other => panic!("{other:?}"),
        };
        let (id, class, _) = refused(say(&mut session, b"{'execute':'query-version','id':7}"));
        assert_eq!((id, class), (Some(json!(7)), Class::CommandNotFound));
        for bad in [
            &b"{'execute':'qmp_capabilities','arguments':{'enable':['x']}}"[..],
            b"{'execute':'qmp_capabilities','arguments':{'enable':'oob'}}",
            b"{'execute':'qmp_capabilities','arguments':{'disable':[]}}",
        ] {
            assert_eq!(refused(say(&mut session, bad)).1, Class::GenericError);
            assert!(!session.is_negotiated());
        }
        assert_eq!(
            say(&mut session, b"{'execute':'qmp_capabilities','id':[1]}"),
            [Input::Negotiated(Some(json!([1])))]
        );
        let (_, class, desc) = refused(say(&mut session, b"{'execute':'qmp_capabilities'}"));
        assert_eq!(class, Class::CommandNotFound);
        assert_eq!(desc, "Capabilities negotiation is already complete, command ignored");
    }

    #[test]
    fn commands_are_taken_apart() {
        let mut session = negotiated(true);
        let got = say(&mut session, b"{'execute':'a'}{'exec-oob':'b','arguments':{'x':1},'id':null}");
        let plain = Command { name: "a".to_owned(), arguments: Map::new(), id: None, oob: false };
        let arguments = json!({"x": 1}).as_object().unwrap().clone();
        let urgent = Command { name: "b".to_owned(), arguments, id: Some(Value::Null), oob: true };
        assert_eq!(got, [Input::Command(plain), Input::Command(urgent)]);
    }

    #[test]
    fn messages_that_are_no_commands_are_refused_with_their_id() {
        for (oob, text, want) in [
            (false, &b"{'id':1}"[..], "QMP input lacks member 'execute'"),
            (false, b"{'execute':12,'id':1}", "QMP input member 'execute' must be a string"),
            (true, b"{'exec-oob':[],'id':1}", "QMP input member 'exec-oob' must be a string"),
            (true, b"{'exec-oob':'a','execute':'b','id':1}", "QMP input has both 'execute' and 'exec-oob'"),
            (false, b"{'exec-oob':'a','id':1}", "QMP input member 'exec-oob' is unexpected"),
            (false, b"{'execute':'a','x':1,'id':1}", "QMP input member 'x' is unexpected"),
            (false, b"{'execute':'a','arguments':[],'id':1}", "QMP input member 'arguments' must be an object"),
        ] {
            let got = say(&mut negotiated(oob), text);
            assert_eq!(got, [Input::Refused(Some(json!(1)), Error::generic(want))], "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_web_page_is_not_listened_to() {
        let mut session = Session::new(Limits::default());
        let post =
            b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}";
        assert_eq!(say(&mut session, post), [Input::Alien]);
        assert_eq!(say(&mut session, b"\n{'execute':'quit'}"), []);
        // Later on the same bytes are just wrong.
        assert!(matches!(say(&mut negotiated(false), b"POST /\n").as_slice(), [Input::Refused(None, _)]));
    }
}
