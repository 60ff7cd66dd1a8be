//! Drivers by name, and the opening of a graph.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::graph::{OptionError, Options};
use crate::node::{LocalBoxFuture, Node};
use crate::{Errno, IoError};

/// Where a driver may stand in a graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverKind {
    /// An end: it has no children (`file`, `memory`, `nbd`).
    Protocol,
    /// A node that interprets what its `file` child holds (`qcow2`, `vdi`, `raw`).
    Format,
    /// A node that passes requests on (`blkverify`, `blkdebug`).
    Filter,
}

/// How the host's caches are used; the words are QEMU's (`-t`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheMode {
    /// Bypass the page cache (`O_DIRECT`).
    pub direct: bool,
    /// Flushes are ignored.
    pub no_flush: bool,
    /// Writes complete before they are durable; off, every write acts as FUA.
    pub writeback: bool,
}

impl CacheMode {
    /// `none`, `writeback`, `writethrough`, `directsync` or `unsafe`.
    pub fn from_name(name: &str) -> Option<Self> {
        let (direct, no_flush, writeback) = match name {
            "none" | "off" => (true, false, true),
            "writeback" => (false, false, true),
            "writethrough" => (false, false, false),
            "directsync" => (true, false, false),
            "unsafe" => (false, true, true),
            _ => return None,
        };
        Some(Self { direct, no_flush, writeback })
    }
}

/// What holds for a whole graph while it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenFlags {
    /// No node may write.
    pub read_only: bool,
    /// Host caches.
    pub cache: CacheMode,
    /// Discards reach the host; otherwise they complete and do nothing.
    pub unmap: bool,
    /// Backing and data files named inside an image may be opened.
    pub allow_backing: bool,
    /// Do not lock the file against other programs (`-U`); read-only graphs only.
    pub force_share: bool,
    /// How many nodes stand above the one being opened; kept by [`OpenContext::open`], 0 at the top.
    pub depth: u32,
}

impl Default for OpenFlags {
    fn default() -> Self {
        Self {
            read_only: false,
            cache: CacheMode { direct: false, no_flush: false, writeback: true },
            unmap: true,
            allow_backing: false,
            force_share: false,
            depth: 0,
        }
    }
}

/// Why a graph could not be opened or an image not be created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// No driver of that name.
    #[error("unknown driver '{name}'{}{}", option.as_ref().map(|o| format!(" in option '{o}'")).unwrap_or_default(), nearest.as_ref().map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    UnknownDriver {
        /// The name asked for.
        name: String,
        /// The option that named it, with its full path.
        option: Option<String>,
        /// The nearest one there is.
        nearest: Option<String>,
    },
    /// The device below failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to which file.
        what: String,
        /// The failure.
        source: IoError,
    },
    /// Another program uses the file.
    #[error(
        "Could not open '{filename}': failed to get {lock} lock: another process is using the file\n\
         hint: end that process first; a file that is written to can be read with -U (force-share)"
    )]
    Locked {
        /// The file.
        filename: String,
        /// What could not be had, in QEMU's words: `"write"`, `shared "write"`, `"consistent read"`.
        lock: String,
    },
    /// A file that the image needs, such as its backing file, could not be opened.
    #[error("could not open the {role}: {source}")]
    Needed {
        /// What it is to the image: `backing file`, `data file`.
        role: &'static str,
        /// Why it could not be opened.
        source: Box<OpenError>,
    },
    /// The image is not what the driver takes: damaged, unsupported, or something else altogether.
    #[error("{0}")]
    Image(String),
    /// An image without a stated format is in none that is known, and is to be written.
    #[error(
        "'{title}' is in no format known here, and is not guessed to be raw for writing: whoever writes a raw disk could \
         plant the header of another format in it\nhint: say so with -f raw, or {option}=raw among the options; or open \
         it read-only"
    )]
    Unrecognised {
        /// The image.
        title: String,
        /// The option that would state its format, with its full path.
        option: String,
    },
    /// The request makes no sense as it stands.
    #[error("{0}")]
    Usage(String),
}

impl OpenError {
    /// A failure below, with what was being done.
    pub fn io(what: impl Into<String>, source: impl Into<IoError>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    /// The same failure, said of a file that an image needs.
    ///
    /// What asks for another way of opening (a format to be stated, a graph too deep) stays as it is: it names the
    /// option that is meant, and would be said once for each image of a chain.
    #[must_use]
    pub fn needed(self, role: &'static str) -> Self {
        match self {
            Self::Unrecognised { .. } | Self::Usage(_) | Self::Option(_) => self,
            source => Self::Needed { role, source: Box::new(source) },
        }
    }

    /// The error number nearest to the cause.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io { source, .. } => source.errno,
            Self::Needed { source, .. } => source.errno(),
            Self::UnknownDriver { .. } => Errno::NOENT,
            Self::Locked { .. } => Errno::AGAIN,
            Self::Option(_) | Self::Image(_) | Self::Unrecognised { .. } | Self::Usage(_) => Errno::INVAL,
        }
    }
}

/// A kind of node: how it is named, recognised, opened and created.
pub trait Driver {
    /// The value of the `driver` option.
    fn name(&self) -> &'static str;

    /// Where it may stand.
    fn kind(&self) -> DriverKind;

    /// Takes a filename that belongs to this driver (`nbd://…`, `blkverify:A:B`) apart; `None` if it does not.
    ///
    /// # Errors
    /// If the filename is this driver's but malformed. The `driver` option is set by the caller.
    fn parse_filename(&self, filename: &str) -> Option<Result<Options, OptionError>> {
        let _ = filename;
        None
    }

    /// Whether the driver wants to know what its node is called: [`Driver::open`] then finds `node-name` among its
    /// options if the user gave one. Others never see it.
    fn wants_node_name(&self) -> bool {
        false
    }

    /// Whether an image that begins with `head` (up to 4 KiB) is in this format.
    fn probe(&self, head: &[u8]) -> bool {
        let _ = head;
        false
    }

    /// Opens a node. `options` no longer holds `driver`; the driver takes the rest and calls [`Options::finish`].
    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>>;

    /// Creates an image of `size` bytes at `filename`, truncating what is there, and returns QEMU's description of the
    /// options used (`cluster_size=65536 …`).
    fn create<'a>(
        &'a self,
        filename: &'a str,
        size: Option<u64>,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<String, OpenError>> {
        let _ = (filename, size, options, context);
        let error = OpenError::Usage(format!("driver '{}' can not create images", self.name()));
        Box::pin(std::future::ready(Err(error)))
    }
}

/// The drivers a program knows.
#[derive(Clone, Default)]
pub struct Registry {
    drivers: BTreeMap<&'static str, Rc<dyn Driver>>,
}

impl Registry {
    /// No drivers at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a driver, replacing one of the same name.
    pub fn add(&mut self, driver: impl Driver + 'static) {
        self.drivers.insert(driver.name(), Rc::new(driver));
    }

    /// The driver of that name.
    ///
    /// # Errors
    /// [`OpenError::UnknownDriver`], with the nearest name.
    pub fn driver(&self, name: &str) -> Result<&dyn Driver, OpenError> {
        self.drivers.get(name).map(Rc::as_ref).ok_or_else(|| OpenError::UnknownDriver {
            name: name.to_owned(),
            option: None,
            nearest: crate::graph::nearest(name, self.drivers.keys().copied()),
        })
    }

    /// The driver that the group `options` names.
    pub(super) fn driver_of(&self, name: &str, options: &Options) -> Result<&dyn Driver, OpenError> {
        self.driver(name).map_err(|error| match error {
            OpenError::UnknownDriver { name, nearest, .. } if !options.path().is_empty() => {
                OpenError::UnknownDriver { name, option: Some(options.full_name("driver")), nearest }
            }
            error => error,
        })
    }

    /// Every driver, by name.
    pub fn drivers(&self) -> impl Iterator<Item = &dyn Driver> {
        self.drivers.values().map(Rc::as_ref)
    }
}

/// What a driver needs to open its children.
#[derive(Clone, Copy)]
pub struct OpenContext<'a> {
    /// Every driver there is.
    pub registry: &'a Registry,
    /// What holds for the graph.
    pub flags: OpenFlags,
}
