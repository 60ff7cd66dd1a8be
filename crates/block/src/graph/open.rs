//! Building a graph from its options, leaves first. What a name without a driver means stands in the
//! [module above](super).

use super::syntax::FILE;
use super::write_through::WriteThrough;
use super::{CacheMode, DriverKind, OpenContext, OpenError, OpenFlags, OptionError, Options, Value};
use crate::align::Aligned;
use crate::{BlockDevice, Node};

/// Nodes that may stand on top of each other. A chain of backing images that runs in a circle ends here.
pub const GRAPH_DEPTH_MAX: u32 = 128;

/// Bytes a driver may look at to recognise its format.
const PROBE_LEN: usize = 4096;

/// Children that are the node their filename says: the parent interprets the bytes, nobody else does.
const NEVER_PROBED: [&str; 4] = ["file", "data-file", "image", "raw"];

impl OpenContext<'_> {
    /// Opens what a user named on a command line.
    ///
    /// `name` is an option list if `image_opts` is set, otherwise a filename (see [`Options::from_filename`]).
    /// `format` is the driver to be put on the node that the filename names.
    ///
    /// # Errors
    /// See [`open`](Self::open); also a format given twice.
    pub async fn open_image(&self, name: &str, format: Option<&str>, image_opts: bool) -> Result<Node, OpenError> {
        self.open(self.image_options(name, format, image_opts)?).await
    }

    /// The options that [`open_image`](Self::open_image) opens.
    ///
    /// # Errors
    /// As [`open_image`](Self::open_image), as far as syntax goes.
    pub fn image_options(&self, name: &str, format: Option<&str>, image_opts: bool) -> Result<Options, OpenError> {
        if image_opts {
            if format.is_some() {
                return Err(OpenError::Usage("a list of options names its driver itself; leave -f out".into()));
            }
            return Ok(Options::from_image_opts(name)?);
        }
        let mut options = Options::new();
        if let Some(format) = format {
            options = options.with("driver", format);
        }
        self.with_filename(options, name)
    }

    /// Adds a filename to options given one by one, as `qemu-io`'s `open -o file.driver=blkdebug NAME` does: the name
    /// goes to the lowest `file` that has no place for its bytes yet.
    ///
    /// # Errors
    /// If the filename is malformed, or says something else than the options.
    pub fn with_filename(&self, mut options: Options, name: &str) -> Result<Options, OpenError> {
        let stated = match options.text("driver") {
            Some(name) => Some(self.registry.driver_of(name, &options)?),
            None => None,
        };
        match stated.map(super::Driver::kind) {
            // An end or a filter: the name is its own, with its prefix or without.
            Some(DriverKind::Protocol | DriverKind::Filter) => {
                let driver = stated.map_or("", super::Driver::name);
                let named = match stated.and_then(|driver| driver.parse_filename(name)) {
                    Some(named) => named?,
                    None if driver == FILE => {
                        Options::new().with("filename", name.strip_prefix("file:").unwrap_or(name))
                    }
                    None => Options::new().with("filename", name),
                };
                Ok(options.or(named))
            }
            kind => {
                let named = Options::from_filename(name, self.registry)?;
                // A json: name without a driver of its own describes the same node as the options beside it.
                let describes_this = named.text("driver").is_none();
                let is_path = is_path(name, &named);
                if describes_this || (kind.is_none() && !is_path && options.value(FILE).is_none()) {
                    return Ok(options.or(named));
                }
                if self.registry.driver_of(named.text("driver").unwrap_or_default(), &named)?.kind()
                    == DriverKind::Format
                {
                    return Err(OpenError::Usage(format!(
                        "'{name}' names its driver itself; leave the format out, or give the options of 'file' alone"
                    )));
                }
                let file = match options.remove(FILE) {
                    None => named,
                    Some(Value::Tree(file)) => self.with_filename(file, name)?,
                    Some(Value::Text(other)) => {
                        return Err(OpenError::Usage(format!("the image is named twice, '{name}' and '{other}'")));
                    }
                };
                Ok(options.with_child(FILE, file))
            }
        }
    }

    /// Opens the node that `options` describe, and its children first. See the [module](super) for what is probed.
    ///
    /// Drivers call it for their children: `context.open(options.take_child("file")…)`. A node whose
    /// [`Limits`](crate::Limits) need help comes wrapped in [`Aligned`], so whoever stands above may send any request.
    ///
    /// The options every node has are taken here: `driver`, `node-name`, `read-only`, `auto-read-only`, `force-share`,
    /// `discard`, `detect-zeroes` (`off`), `cache.direct`, `cache.no-flush`. They hold for the node and for what is
    /// below it; `read-only=off` does not make part of a read-only graph writable.
    ///
    /// # Errors
    /// [`OpenError`], naming the option, file or format that is at fault. Without a stated driver, an image in no known
    /// format is an error unless the graph is read-only.
    pub async fn open(&self, mut options: Options) -> Result<Node, OpenError> {
        if self.flags.depth >= GRAPH_DEPTH_MAX {
            return Err(OpenError::Usage(format!(
                "more than {GRAPH_DEPTH_MAX} nodes stand on top of each other; does a backing chain run in a circle?"
            )));
        }
        let probed_names = !options.path().rsplit('.').next().is_some_and(|role| NEVER_PROBED.contains(&role));
        let node_name = options.take_text("node-name")?;
        let here = Self { flags: self.flags.with(&mut options)?, registry: self.registry };
        if options.text("driver").is_none() {
            options = here.choose_driver(options, probed_names).await?;
        }
        let name = options.need_text("driver", "node")?;
        let driver = self.registry.driver_of(&name, &options)?;
        if driver.kind() == DriverKind::Format
            && let Some(filename) = options.take_text("filename")?
        {
            if options.value(FILE).is_some() {
                return Err(OpenError::Usage(format!(
                    "options '{}' and '{}' name the same thing; give one of them",
                    options.full_name("filename"),
                    options.full_name(FILE)
                )));
            }
            options = options.with_child(FILE, Options::from_filename(&filename, self.registry)?);
        }
        if let Some(node_name) = node_name.filter(|_| driver.wants_node_name()) {
            options = options.with("node-name", node_name);
        }
        // The top node alone makes writes durable, once; nodes below need not do it a second time.
        let through = here.flags.depth == 0 && !here.flags.cache.writeback && !here.flags.read_only;
        let cache = CacheMode { writeback: here.flags.cache.writeback || through, ..here.flags.cache };
        let flags = OpenFlags { depth: here.flags.depth.saturating_add(1), cache, ..here.flags };
        let node = Aligned::wrap(driver.open(options, &Self { flags, ..here }).await?);
        Ok(if through { Node::new(WriteThrough(node)) } else { node })
    }

    /// Fills in `driver` for a node that was named without it.
    async fn choose_driver(&self, mut options: Options, probed_names: bool) -> Result<Options, OpenError> {
        let name = match options.remove("filename") {
            None => None,
            Some(Value::Text(name)) => Some(name),
            Some(Value::Tree(_)) => {
                return Err(OpenError::Option(OptionError::Value {
                    option: options.full_name("filename"),
                    expected: "a filename".into(),
                    value: "a group of options".into(),
                }));
            }
        };
        if let Some(name) = name {
            let named = Options::from_filename(&name, self.registry)?;
            let is_path = is_path(&name, &named);
            if named.text("driver").is_some() && !(is_path && probed_names) {
                return Ok(options.or(named));
            }
            if options.value(FILE).is_some() {
                return Err(OpenError::Usage(format!(
                    "'{}' and '{}' name two images; give one of them",
                    options.full_name("filename"),
                    options.full_name(FILE)
                )));
            }
            // A json: name without a driver holds the `file` to be probed; a path is that `file`.
            options = if is_path { options.with_child(FILE, named) } else { options.or(named) };
            if options.text("driver").is_some() {
                return Ok(options);
            }
        }
        let Some(file) = options.value(FILE) else {
            return Err(OpenError::Usage(format!(
                "the node needs a '{}', a '{}' or a '{}'",
                options.full_name("driver"),
                options.full_name("filename"),
                options.full_name(FILE)
            )));
        };
        let file = match file {
            Value::Tree(tree) => tree.clone(),
            Value::Text(name) => Options::from_filename(name, self.registry)?,
        };
        let format = self.probe(file, &options).await?;
        Ok(options.with("driver", format))
    }

    /// Recognises the format of the image in `file`, a child of the node that `parent` describes.
    async fn probe(&self, file: Options, parent: &Options) -> Result<&'static str, OpenError> {
        let title = file.text("filename").map_or_else(|| parent.full_name(FILE), str::to_owned);
        // Opened for reading alone, and closed again: the format opens it for itself.
        let reading = OpenFlags { read_only: true, depth: self.flags.depth.saturating_add(1), ..self.flags };
        let node = Box::pin(Self { flags: reading, ..*self }.open(file)).await?;
        let mut head = [0; PROBE_LEN];
        let len = usize::try_from(node.info().size).map_or(PROBE_LEN, |size| size.min(PROBE_LEN));
        let head = head.get_mut(..len).unwrap_or_default();
        let done = node.read(0, head).await;
        node.close().await.map_err(|error| OpenError::io(format!("closing '{title}' after probing it"), error))?;
        drop(node);
        done.map_err(|error| OpenError::io(format!("reading the start of '{title}' to find its format"), error))?;
        let formats = self.registry.drivers().filter(|driver| driver.kind() == DriverKind::Format);
        match formats.into_iter().find(|driver| driver.probe(head)) {
            Some(driver) => Ok(driver.name()),
            None if self.flags.read_only => Ok("raw"),
            None => Err(OpenError::Unrecognised { title, option: parent.full_name("driver") }),
        }
    }

    /// The same context for a part of the graph that must not be written, such as a backing image.
    #[must_use]
    pub fn read_only(&self) -> Self {
        Self { flags: OpenFlags { read_only: true, ..self.flags }, ..*self }
    }
}

/// Whether `name`, which reads as `named`, is a plain path; JSON that asks for the driver `file` is more than that.
fn is_path(name: &str, named: &Options) -> bool {
    named.text("driver") == Some(FILE) && !name.starts_with("json:")
}

impl OpenFlags {
    /// These flags as changed by the options every node has, which are taken out of `options`.
    fn with(mut self, options: &mut Options) -> Result<Self, OptionError> {
        const ON_OFF: [(&str, bool); 4] = [("unmap", true), ("on", true), ("ignore", false), ("off", false)];
        self.read_only |= options.take_bool("read-only")?.unwrap_or(false);
        // Whether a node that can not be written may be opened read-only instead: here it never is.
        options.take_bool("auto-read-only")?;
        options.take_choice("detect-zeroes", &[("off", ())])?;
        self.force_share |= options.take_bool("force-share")?.unwrap_or(false);
        self.unmap = options.take_choice("discard", &ON_OFF)?.unwrap_or(self.unmap);
        match options.remove("cache") {
            None => {}
            Some(Value::Tree(mut cache)) => {
                self.cache = CacheMode {
                    direct: cache.take_bool("direct")?.unwrap_or(self.cache.direct),
                    no_flush: cache.take_bool("no-flush")?.unwrap_or(self.cache.no_flush),
                    writeback: cache.take_bool("writeback")?.unwrap_or(self.cache.writeback),
                };
                cache.finish("any node")?;
            }
            Some(Value::Text(value)) => {
                return Err(OptionError::Value {
                    option: options.full_name("cache"),
                    expected: "cache.direct and cache.no-flush".into(),
                    value,
                });
            }
        }
        Ok(self)
    }
}
