//! `blkdebug` as users name it: `blkdebug:CONF:IMAGE`, or
//! `driver=blkdebug,image.filename=a.qcow2,inject-error.0.event=…`.
//!
//! Options: `image` (node), `config` (a file), `inject-error`, `set-state` (lists), `align`, `max-transfer`,
//! `opt-write-zero`, `max-write-zero`, `opt-discard`, `max-discard`, `node-name`; `take-child-perms` and
//! `unshare-child-perms` are taken and have no effect, for nobody shares nodes here. A `filename` of the node itself is
//! the image's, as in QEMU.

use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{BlockDevice as _, Event, IoError, LocalBoxFuture, Node};

use super::breaks::{Breaks, Say};
use super::config::{self, Config, InjectError, SetState};
use super::limits::LimitOptions;
use super::node::{Blkdebug, Handle};
use super::rules::rule_set;
use crate::filter::Faults;
use crate::lab::{Lab, Part};
use crate::power::Switch;

/// The driver's name, and the prefix of its filenames.
const NAME: &str = "blkdebug";

/// Reads a configuration file. Files belong to whoever registers the driver.
pub type ConfigReader = Rc<dyn Fn(&str) -> Result<String, IoError>>;

/// The driver.
#[derive(Clone)]
pub struct BlkdebugDriver {
    lab: Rc<Lab>,
    read: ConfigReader,
    say: Say,
}

impl std::fmt::Debug for BlkdebugDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlkdebugDriver")
    }
}

impl BlkdebugDriver {
    /// Nodes are made known to `lab`, and what happens at their breakpoints to its listeners alone.
    pub fn new(lab: &Rc<Lab>, read: ConfigReader) -> Self {
        Self { lab: Rc::clone(lab), read, say: Rc::new(|_| {}) }
    }

    /// Says to `say`, line by line, what happens at breakpoints.
    #[must_use]
    pub fn say(self, say: impl Fn(&str) + 'static) -> Self {
        Self { say: Rc::new(say), ..self }
    }

    async fn open_node(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let file = options.take_text("config")?.filter(|file| !file.is_empty());
        let from_file = match &file {
            Some(file) => {
                let text = (self.read)(file)
                    .map_err(|error| OpenError::io(format!("Could not read blkdebug config file '{file}'"), error))?;
                config::parse(file, &text).map_err(|error| OpenError::Usage(error.to_string()))?
            }
            None => Config::default(),
        };
        let from_options = rules_of(&mut options)?;
        let limits = LimitOptions::take(&mut options)?;
        permissions(&mut options, "take-child-perms")?;
        permissions(&mut options, "unshare-child-perms")?;
        let wanted = options.take_text("node-name")?;
        let image = image(&mut options)?;
        options.finish(NAME)?;

        let before = self.lab.switches();
        let child = context.open(image).await?;
        limits.check(&child.info().limits)?;
        let (rules, immediate) = rule_set(file.as_deref().map(|file| (file, &from_file)), &from_options);
        let name = self.lab.name(NAME, wanted);
        let faults =
            Faults::new(Rc::clone(&name), rules, &self.lab).map_err(|error| OpenError::Usage(error.to_string()))?;
        let below = |switch: &Switch| before.iter().all(|other| other.name != switch.name);
        let disks = self.lab.switches().into_iter().filter(below).rev().collect();
        faults.set_disks(disks).map_err(|error| OpenError::Usage(error.to_string()))?;
        let breaks = Breaks::new(Rc::clone(&name), self.lab.notices().clone(), Rc::clone(&self.say));
        let handle = Rc::new(Handle { faults, breaks });
        let registered = self.lab.register(&name, Part::Blkdebug(Rc::clone(&handle)));
        let registered = registered.map_err(|error| OpenError::Usage(error.to_string()))?;
        let node = Blkdebug::new(child, handle, limits, immediate)
            .no_flush(context.flags.cache.no_flush)
            .registered(registered);
        // Rules on `none` are active before the first request.
        node.raise(Event::None).await;
        Ok(Node::new(node))
    }
}

/// The options of the child.
fn image(options: &mut Options) -> Result<Options, OpenError> {
    let filename = options.take_text("filename")?;
    match (options.take_child("image"), filename) {
        (Some(image), None) => Ok(image),
        // Put under its name, so that messages about it say `image.…`.
        (None, Some(filename)) => {
            let named = Options::new().with_child("image", Options::new().with("filename", filename));
            let mut all = options.clone().or(named);
            all.take_child("image").ok_or_else(|| missing(options))
        }
        (Some(_), Some(_)) => {
            Err(OpenError::Usage("options 'filename' and 'image' name the same image; give one of them".into()))
        }
        (None, None) => Err(missing(options)),
    }
}

fn missing(options: &Options) -> OpenError {
    OptionError::Missing { option: options.full_name("image"), driver: NAME.into() }.into()
}

/// Takes a list of permissions, which mean nothing here.
fn permissions(options: &mut Options, name: &'static str) -> Result<(), OptionError> {
    const WORDS: [&str; 4] = ["consistent-read", "write", "write-unchanged", "resize"];
    let Some(list) = options.take_child(name) else { return Ok(()) };
    for (index, value) in list.iter() {
        let known = matches!(value, blkproof_block::graph::Value::Text(word) if WORDS.contains(&word.as_str()));
        if !known {
            let expected = "one of consistent-read, write, write-unchanged and resize".to_owned();
            let value = list.text(index).unwrap_or("a group of options").to_owned();
            return Err(OptionError::Value { option: list.full_name(index), expected, value });
        }
    }
    Ok(())
}

/// The rules given as options.
fn rules_of(options: &mut Options) -> Result<Config, OptionError> {
    let mut config = Config::default();
    for mut group in options.take_list("inject-error")? {
        let event = need_event(&mut group)?;
        let plain = InjectError::new(event);
        let errno = number(&mut group, "errno", 4095)?.and_then(|errno| i32::try_from(errno).ok());
        let sector = if group.text("sector") == Some("-1") {
            group.take_text("sector")?;
            None
        } else {
            number(&mut group, "sector", (1 << 55) - 2)?
        };
        let iotype = match group.take_text("iotype")? {
            Some(word) => Some(config::iotype(&word).map_err(|words| wrong(&group, "iotype", words))?),
            None => None,
        };
        config.inject_error.push(InjectError {
            state: state(&mut group, "state")?.unwrap_or(0),
            errno: errno.unwrap_or(plain.errno),
            sector,
            iotype,
            once: group.take_bool("once")?.unwrap_or(false),
            immediately: group.take_bool("immediately")?.unwrap_or(false),
            ..plain
        });
        group.finish(NAME)?;
    }
    for mut group in options.take_list("set-state")? {
        let event = need_event(&mut group)?;
        let new_state = state(&mut group, "new_state")?
            .ok_or_else(|| OptionError::Missing { option: group.full_name("new_state"), driver: NAME.into() })?;
        let state = state(&mut group, "state")?.unwrap_or(0);
        config.set_state.push(SetState { event, state, new_state, line: 0 });
        group.finish(NAME)?;
    }
    Ok(config)
}

fn need_event(group: &mut Options) -> Result<Event, OptionError> {
    let name = group.need_text("event", NAME)?;
    config::event(&name).map_err(|words| wrong(group, "event", words))
}

fn state(group: &mut Options, key: &'static str) -> Result<Option<u32>, OptionError> {
    let number = number(group, key, u64::from(i32::MAX.unsigned_abs()))?;
    Ok(number.and_then(|number| u32::try_from(number).ok()))
}

fn number(group: &mut Options, key: &'static str, max: u64) -> Result<Option<u64>, OptionError> {
    match group.take_u64(key)? {
        Some(number) if number > max => {
            Err(wrong(group, key, format!("{number} is too large for it, numbers end at {max}")))
        }
        number => Ok(number),
    }
}

fn wrong(group: &Options, key: &str, words: String) -> OptionError {
    OptionError::Syntax(format!("option '{}': {words}", group.full_name(key)))
}

impl Driver for BlkdebugDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Filter
    }

    fn wants_node_name(&self) -> bool {
        true
    }

    /// Split at the first colon after the prefix: CONF can not contain one and may be empty, IMAGE may be any name.
    fn parse_filename(&self, filename: &str) -> Option<Result<Options, OptionError>> {
        let rest = filename.strip_prefix(NAME)?.strip_prefix(':')?;
        let Some((config, image)) = rest.split_once(':') else {
            return Some(Err(OptionError::Syntax("blkdebug requires both config file and image path".into())));
        };
        let options = if config.is_empty() { Options::new() } else { Options::new().with("config", config) };
        Some(Ok(options.with_child("image", Options::new().with("filename", image))))
    }

    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(self.open_node(options, context))
    }
}
