//! What a server offers: devices under names.

use std::rc::Rc;

use blkproof_block::{BlockDevice, Capabilities, Node};
use tokio::sync::watch;

use crate::handshake::BlockSize;
use crate::handshake::server::{Catalogue, Offer};
use crate::wire::{MAX_PAYLOAD, MAX_STRING, TransmissionFlags};

/// One device under a name. Clones are the same export: [`end`](Self::end) and [`sever`](Self::sever) are for the
/// clients of all of them.
#[derive(Clone, Debug)]
pub struct Export {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) node: Node,
    pub(super) read_only: bool,
    pub(super) block_size: BlockSize,
    pub(super) wish: Rc<watch::Sender<Wish>>,
}

/// What the clients of an export are to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Wish {
    /// They are to leave.
    pub(super) ended: bool,
    /// How often they were thrown out. Whoever comes later stays.
    pub(super) severed: u64,
}

/// An export that can not be offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Longer than 4096 bytes, or with a NUL byte.
    #[error("export names and descriptions have at most 4096 bytes and no NUL")]
    Text,
    /// Two of one name.
    #[error("there are two exports named '{0}'")]
    Duplicate(String),
    /// A default that is not there.
    #[error("no export is named '{0}'")]
    Unknown(String),
    /// A size constraint the protocol does not allow.
    #[error("a minimum block size of {0} is not a power of two up to 65536")]
    BlockSize(u32),
}

impl Export {
    /// Offers `node` as `name`, writable unless the node is not.
    pub fn new(name: impl Into<String>, node: Node) -> Self {
        let info = node.info();
        let preferred = info.limits.preferred_transfer.clamp(4096, MAX_PAYLOAD).next_power_of_two();
        Self {
            name: name.into(),
            description: String::new(),
            node,
            read_only: info.read_only,
            block_size: BlockSize { preferred, ..BlockSize::default() },
            wish: Rc::new(watch::Sender::new(Wish::default())),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Lets every client of it finish what is in flight, answers everything else with `ESHUTDOWN`, and ends: the export
    /// is going away. Who negotiates for it meanwhile gets the same answer.
    pub fn end(&self) {
        self.wish.send_modify(|wish| wish.ended = true);
    }

    /// Completes when no client uses it, and nothing that one asked for is under way.
    pub async fn unused(&self) {
        self.wish.closed().await;
    }

    /// Ends every connection to it at once and without an answer, as a host that lost its power does. Requests in
    /// flight are dropped. Clients may connect again.
    pub fn sever(&self) {
        self.wish.send_modify(|wish| wish.severed = wish.severed.wrapping_add(1));
    }

    /// Says what it is, for people.
    #[must_use]
    pub fn description(mut self, words: impl Into<String>) -> Self {
        self.description = words.into();
        self
    }

    /// Refuses writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Holds clients that ask for size constraints to multiples of `minimum` bytes. The last piece of a device whose
    /// size is no multiple is then out of their reach.
    ///
    /// # Errors
    /// [`ExportError::BlockSize`].
    pub fn minimum_block(mut self, minimum: u32) -> Result<Self, ExportError> {
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            return Err(ExportError::BlockSize(minimum));
        }
        self.block_size.minimum = minimum;
        self.block_size.preferred = self.block_size.preferred.max(minimum);
        Ok(self)
    }

    fn flags(&self) -> TransmissionFlags {
        let capabilities = self.node.info().capabilities;
        let mut flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::FLUSH | TransmissionFlags::FUA;
        flags |= TransmissionFlags::CACHE;
        flags.set(TransmissionFlags::READ_ONLY, self.read_only);
        flags.set(TransmissionFlags::ROTATIONAL, capabilities.contains(Capabilities::ROTATIONAL));
        flags.set(TransmissionFlags::CAN_MULTI_CONN, capabilities.contains(Capabilities::MULTI_CONN));
        if !self.read_only {
            flags |= TransmissionFlags::WRITE_ZEROES;
            flags.set(TransmissionFlags::TRIM, capabilities.contains(Capabilities::DISCARD));
            flags.set(TransmissionFlags::FAST_ZERO, capabilities.contains(Capabilities::FAST_ZERO));
        }
        flags
    }
}

/// Everything a server offers.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    pub(super) list: Vec<Export>,
    default: Option<usize>,
}

impl Exports {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One device, under the empty name.
    pub fn single(node: Node) -> Self {
        Self { list: vec![Export::new("", node)], default: None }
    }

    /// Adds an export.
    ///
    /// # Errors
    /// If its name is taken or is no name.
    pub fn add(&mut self, export: Export) -> Result<(), ExportError> {
        let text_ok = |text: &str| text.len() <= MAX_STRING && !text.contains('\0');
        if !text_ok(&export.name) || !text_ok(&export.description) {
            return Err(ExportError::Text);
        }
        if self.list.iter().any(|other| other.name == export.name) {
            return Err(ExportError::Duplicate(export.name));
        }
        self.list.push(export);
        Ok(())
    }

    /// Makes a client that names no export get this one.
    ///
    /// # Errors
    /// [`ExportError::Unknown`].
    pub fn set_default(&mut self, name: &str) -> Result<(), ExportError> {
        let index = self.list.iter().position(|export| export.name == name);
        self.default = Some(index.ok_or_else(|| ExportError::Unknown(name.to_owned()))?);
        Ok(())
    }

    /// Every export's node, in order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.list.iter().map(|export| &export.node)
    }
}

impl Catalogue for Exports {
    fn list(&self) -> Vec<(&str, &str)> {
        self.list.iter().map(|export| (export.name.as_str(), export.description.as_str())).collect()
    }

    fn find(&self, name: &str) -> Option<Offer<'_>> {
        let by_name = self.list.iter().position(|export| export.name == name);
        let index = by_name.or(if name.is_empty() { self.default } else { None })?;
        let export = self.list.get(index)?;
        Some(Offer {
            index,
            name: &export.name,
            description: &export.description,
            size: export.node.info().size,
            flags: export.flags(),
            block_size: export.block_size,
        })
    }
}
