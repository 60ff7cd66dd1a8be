//! The client's side of negotiation.
//!
//! It asks, in this order, for extended headers, else structured replies, then `base:allocation`, then the export with
//! its size constraints, and takes what it gets. Servers without `NBD_OPT_GO`, and such as are not even fixed newstyle,
//! are asked by `NBD_OPT_EXPORT_NAME`.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::{FromBytes, IntoBytes};

use crate::handshake::{Agreed, BlockSize, Mode};
use crate::wire::{
    BASE_ALLOCATION, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Fields, Greeting, MAX_PAYLOAD, NBD_MAGIC, OLDSTYLE_MAGIC,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, OptionReplyHeader, ProtocolError, TransmissionFlags, info, option,
    reply,
};

/// Longest option reply in bytes: a name and a description, with room.
const MAX_REPLY: u32 = 16 << 10;
/// Most replies to one option.
const MAX_REPLIES: u32 = 1024;

/// What to ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Name of the export; empty for the default one.
    pub export: String,
    /// The best layout to agree on.
    pub mode: Mode,
    /// Whether to ask for `base:allocation`.
    pub allocation: bool,
}

impl Wanted {
    /// Everything there is, of that export.
    pub fn new(export: impl Into<String>) -> Self {
        Self { export: export.into(), mode: Mode::Extended, allocation: true }
    }
}

/// Why negotiation came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// The server broke the protocol.
    #[error("protocol violation by the server: {0}")]
    Protocol(#[from] ProtocolError),
    /// The server is not one we can talk to.
    #[error("the server speaks {0}")]
    Style(&'static str),
    /// The server said no.
    #[error("the server refused: {reason}{}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Refused {
        /// Reply type.
        kind: u32,
        /// What it means.
        reason: &'static str,
        /// The server's words.
        message: String,
    },
}

/// What to do after the bytes fed so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Send what was written, feed more.
    Continue,
    /// Transmission begins behind the bytes consumed.
    Done(Agreed),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Greeting,
    /// The reply to this option is awaited.
    Option(u32),
    /// The answer to `EXPORT_NAME`, which is none of the usual replies.
    ExportName,
}

/// A negotiation in progress.
#[derive(Debug)]
pub struct Handshake {
    wanted: Wanted,
    state: State,
    no_zeroes: bool,
    replies: u32,
    mode: Mode,
    allocation: Option<u32>,
    export: Option<(u64, TransmissionFlags)>,
    block_size: Option<BlockSize>,
}

impl Handshake {
    /// A negotiation on a fresh connection.
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            state: State::Greeting,
            no_zeroes: false,
            replies: 0,
            mode: Mode::Simple,
            allocation: None,
            export: None,
            block_size: None,
        }
    }

    /// Looks at the bytes received and not yet consumed, appends what to send to `out`, and returns how many are
    /// consumed. `Continue` with 0 consumed asks for more input.
    ///
    /// # Errors
    /// [`NegotiationError`]; the connection is of no use afterwards.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Progress), NegotiationError> {
        match self.state {
            State::Greeting => self.greeting(input, out),
            State::ExportName => self.export_name(input),
            State::Option(option) => self.reply(option, input, out),
        }
    }

    fn greeting(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Progress), NegotiationError> {
        let mut fields = Fields(input);
        let Some(magic) = fields.u64() else { return Ok((0, Progress::Continue)) };
        if magic != NBD_MAGIC {
            return Err(ProtocolError::Magic { expected: "an NBD server", got: magic }.into());
        }
        let Some(style) = fields.u64() else { return Ok((0, Progress::Continue)) };
        match style {
            OPTION_MAGIC => {}
            OLDSTYLE_MAGIC => return Err(NegotiationError::Style("oldstyle NBD, which is not supported")),
            got => return Err(ProtocolError::Magic { expected: "a newstyle server", got }.into()),
        }
        let Ok((greeting, _)) = Greeting::ref_from_prefix(input) else { return Ok((0, Progress::Continue)) };
        let flags = u32::from(greeting.flags.get());
        self.no_zeroes = flags & FLAG_NO_ZEROES != 0;
        out.extend_from_slice(&(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).to_be_bytes());
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            self.ask_export_name(out);
        } else {
            match self.wanted.mode {
                Mode::Extended => self.ask(option::EXTENDED_HEADERS, &[], out),
                Mode::Structured => self.ask(option::STRUCTURED_REPLY, &[], out),
                Mode::Simple => self.ask_go(out),
            }
        }
        Ok((size_of::<Greeting>(), Progress::Continue))
    }

    fn ask(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let header = OptionHeader { magic: OPTION_MAGIC.into(), option: option.into(), length: length.into() };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(data);
        self.state = State::Option(option);
        self.replies = 0;
    }

    fn ask_export_name(&mut self, out: &mut Vec<u8>) {
        let name = self.wanted.export.clone();
        self.ask(option::EXPORT_NAME, name.as_bytes(), out);
        self.state = State::ExportName;
    }

    fn ask_context(&mut self, out: &mut Vec<u8>) {
        if self.mode == Mode::Simple || !self.wanted.allocation {
            return self.ask_go(out);
        }
        let mut data = string(&self.wanted.export);
        data.extend_from_slice(&1_u32.to_be_bytes());
        data.extend_from_slice(&string(BASE_ALLOCATION));
        self.ask(option::SET_META_CONTEXT, &data, out);
    }

    fn ask_go(&mut self, out: &mut Vec<u8>) {
        let mut data = string(&self.wanted.export);
        data.extend_from_slice(&1_u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.ask(option::GO, &data, out);
    }

    fn export_name(&self, input: &[u8]) -> Result<(usize, Progress), NegotiationError> {
        let mut fields = Fields(input);
        let zeroes = if self.no_zeroes { 0 } else { 124 };
        let Some((size, flags)) =
            (|| Some((fields.u64()?, fields.u16()?)))().filter(|_| fields.bytes(zeroes).is_some())
        else {
            return Ok((0, Progress::Continue));
        };
        let flags = TransmissionFlags::from_bits_retain(flags);
        let agreed = self.agreed(checked_size(size)?, flags);
        Ok((input.len().saturating_sub(fields.0.len()), Progress::Done(agreed)))
    }

    fn agreed(&self, size: u64, flags: TransmissionFlags) -> Agreed {
        Agreed { mode: self.mode, size, flags, allocation: self.allocation, block_size: self.block_size }
    }

    fn reply(&mut self, option: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Progress), NegotiationError> {
        let Ok((header, rest)) = OptionReplyHeader::ref_from_prefix(input) else {
            return Ok((0, Progress::Continue));
        };
        if header.magic.get() != OPTION_REPLY_MAGIC {
            return Err(ProtocolError::Magic { expected: "an option reply", got: header.magic.get() }.into());
        }
        if header.option.get() != option {
            let words = format!("a reply to option {}, while {option} was asked", header.option.get());
            return Err(ProtocolError::broken(words).into());
        }
        let (kind, length) = (header.kind.get(), header.length.get());
        if length > MAX_REPLY {
            let limit = MAX_REPLY.into();
            return Err(ProtocolError::TooLong { what: "an option reply", length: length.into(), limit }.into());
        }
        let Some(data) = rest.get(..length as usize) else { return Ok((0, Progress::Continue)) };
        let consumed = size_of::<OptionReplyHeader>().saturating_add(data.len());
        self.replies = self.replies.saturating_add(1);
        if self.replies > MAX_REPLIES {
            return Err(ProtocolError::broken(format!("more than {MAX_REPLIES} replies to option {option}")).into());
        }
        match (option, kind) {
            (option::EXTENDED_HEADERS, reply::ACK) => {
                self.mode = Mode::Extended;
                self.ask_context(out);
            }
            (option::STRUCTURED_REPLY, reply::ACK) => {
                self.mode = Mode::Structured;
                self.ask_context(out);
            }
            (option::SET_META_CONTEXT, reply::META_CONTEXT) => {
                let mut fields = Fields(data);
                if let Some(id) = fields.u32().filter(|_| fields.0 == BASE_ALLOCATION.as_bytes()) {
                    self.allocation = Some(id);
                }
            }
            (option::SET_META_CONTEXT, reply::ACK) => self.ask_go(out),
            (option::GO, reply::INFO) => self.info(data)?,
            (option::GO, reply::ACK) => {
                let (size, flags) = self.export.ok_or_else(|| ProtocolError::broken("an export without its size"))?;
                return Ok((consumed, Progress::Done(self.agreed(size, flags))));
            }
            // A server that knows nothing of an option is asked for less.
            (option::EXTENDED_HEADERS, reply::ERR_UNSUP | reply::ERR_INVALID | reply::ERR_POLICY) => {
                self.ask(option::STRUCTURED_REPLY, &[], out);
            }
            (option::STRUCTURED_REPLY, reply::ERR_UNSUP | reply::ERR_INVALID | reply::ERR_POLICY) => self.ask_go(out),
            (option::SET_META_CONTEXT, _) if kind & reply::ERROR_BIT != 0 && kind != reply::ERR_TLS_REQD => {
                // What is wrong with the export, if anything, is better said in reply to GO.
                self.allocation = None;
                self.ask_go(out);
            }
            (option::GO, reply::ERR_UNSUP) if self.mode != Mode::Extended => self.ask_export_name(out),
            _ if kind & reply::ERROR_BIT != 0 => {
                let message = String::from_utf8_lossy(data).into_owned();
                return Err(NegotiationError::Refused { kind, reason: reason(kind), message });
            }
            _ => return Err(ProtocolError::broken(format!("reply {kind} to option {option}")).into()),
        }
        Ok((consumed, Progress::Continue))
    }

    fn info(&mut self, data: &[u8]) -> Result<(), NegotiationError> {
        let mut fields = Fields(data);
        let malformed = || ProtocolError::broken("a malformed information about the export");
        match fields.u16().ok_or_else(malformed)? {
            info::EXPORT => {
                let export = (|| Some((fields.u64()?, fields.u16()?)))().ok_or_else(malformed)?;
                self.export = Some((checked_size(export.0)?, TransmissionFlags::from_bits_retain(export.1)));
            }
            info::BLOCK_SIZE => {
                let sizes = (|| Some((fields.u32()?, fields.u32()?, fields.u32()?)))().ok_or_else(malformed)?;
                let (minimum, preferred, maximum) = sizes;
                if !minimum.is_power_of_two() || minimum > 1 << 16 || preferred < minimum || maximum < minimum {
                    let words = format!("block sizes of {minimum}, {preferred} and {maximum} bytes");
                    return Err(ProtocolError::broken(words).into());
                }
                self.block_size = Some(BlockSize { minimum, preferred, maximum: maximum.min(MAX_PAYLOAD) });
            }
            _ => {}
        }
        Ok(())
    }
}

/// Offsets are signed in every system there is; what is larger is no disk, and would overflow in the layers above.
fn checked_size(size: u64) -> Result<u64, ProtocolError> {
    let limit = i64::MAX.unsigned_abs();
    if size > limit { Err(ProtocolError::TooLong { what: "an export", length: size, limit }) } else { Ok(size) }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn reason(kind: u32) -> &'static str {
    match kind {
        reply::ERR_UNSUP => "the option is not supported",
        reply::ERR_POLICY => "its policy forbids it",
        reply::ERR_INVALID => "the option is invalid",
        reply::ERR_PLATFORM => "its platform can not do it",
        reply::ERR_TLS_REQD => "it wants TLS",
        reply::ERR_UNKNOWN => "it has no export of that name",
        reply::ERR_SHUTDOWN => "it is shutting down",
        reply::ERR_BLOCK_SIZE_REQD => "it wants its block sizes to be honoured",
        reply::ERR_TOO_BIG => "the request is too big",
        reply::ERR_EXT_HEADER_REQD => "it wants extended headers",
        _ => "an unknown error",
    }
}
