//! Replies: what a server answers.
//!
//! Encoding is by [`Head`]s, small byte strings on the stack that a server puts in front of data already in place.
//! Decoding is by [`ReplyDecoder`], which hands data on as it arrives.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::{FromBytes, IntoBytes};

use crate::handshake::Mode;
use crate::wire::{
    EXTENDED_REPLY_MAGIC, ExtendedReplyHeader, Fields, MAX_PAYLOAD, MAX_STRING, ProtocolError, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, SimpleReplyHeader, StructuredReplyHeader, chunk,
};

/// Longest [`Head`]: an extended header and the fields of a hole.
pub const HEAD_MAX: usize = 48;

/// The bytes of a reply that come before its data.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; HEAD_MAX],
    len: usize,
}

impl std::ops::Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

impl Head {
    fn new(parts: &[&[u8]]) -> Self {
        let mut head = Self { bytes: [0; HEAD_MAX], len: 0 };
        for part in parts {
            let end = head.len.saturating_add(part.len());
            // All layouts put together below fit: the longest is 32 + 12 bytes.
            if let Some(slot) = head.bytes.get_mut(head.len..end) {
                slot.copy_from_slice(part);
                head.len = end;
            }
        }
        head
    }

    /// A simple reply.
    pub fn simple(cookie: u64, error: u32) -> Self {
        let header = SimpleReplyHeader { magic: SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie: cookie.into() };
        Self::new(&[header.as_bytes()])
    }

    /// A chunk of `length` bytes of payload, of which `fields` come with the head. `offset` is the request's.
    fn chunk(mode: Mode, cookie: u64, offset: u64, (kind, done): (u16, bool), length: u32, fields: &[&[u8]]) -> Self {
        let flags = if done { chunk::FLAG_DONE } else { 0 };
        let [first, second] = [0, 1].map(|n| fields.get(n).copied().unwrap_or_default());
        if mode == Mode::Extended {
            let header = ExtendedReplyHeader {
                magic: EXTENDED_REPLY_MAGIC.into(),
                flags: flags.into(),
                kind: kind.into(),
                cookie: cookie.into(),
                offset: offset.into(),
                length: u64::from(length).into(),
            };
            return Self::new(&[header.as_bytes(), first, second]);
        }
        let header = StructuredReplyHeader {
            magic: STRUCTURED_REPLY_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            length: length.into(),
        };
        Self::new(&[header.as_bytes(), first, second])
    }

    /// A chunk without content that ends a reply.
    pub fn none(mode: Mode, cookie: u64, offset: u64) -> Self {
        Self::chunk(mode, cookie, offset, (chunk::NONE, true), 0, &[])
    }

    /// Success without data, in the shortest form the mode allows for commands other than read and block status.
    pub fn done(mode: Mode, cookie: u64, offset: u64) -> Self {
        match mode {
            Mode::Extended => Self::none(mode, cookie, offset),
            Mode::Simple | Mode::Structured => Self::simple(cookie, 0),
        }
    }

    /// The head of `len` bytes of data from `at`, in reply to a read at `offset`. In simple mode it is the reply's only
    /// head, and `at` and `done` have no meaning.
    pub fn data(mode: Mode, cookie: u64, offset: u64, at: u64, len: u32, done: bool) -> Self {
        if mode == Mode::Simple {
            return Self::simple(cookie, 0);
        }
        let length = len.saturating_add(8);
        Self::chunk(mode, cookie, offset, (chunk::OFFSET_DATA, done), length, &[&at.to_be_bytes()])
    }

    /// How many bytes [`Head::data`] takes.
    pub fn data_len(mode: Mode) -> usize {
        match mode {
            Mode::Simple => size_of::<SimpleReplyHeader>(),
            Mode::Structured => size_of::<StructuredReplyHeader>().saturating_add(8),
            Mode::Extended => size_of::<ExtendedReplyHeader>().saturating_add(8),
        }
    }

    /// `len` zero bytes from `at`; not for simple replies.
    pub fn hole(mode: Mode, cookie: u64, offset: u64, at: u64, len: u32, done: bool) -> Self {
        let fields: [&[u8]; 2] = [&at.to_be_bytes(), &len.to_be_bytes()];
        Self::chunk(mode, cookie, offset, (chunk::OFFSET_HOLE, done), 12, &fields)
    }
}

/// Appends an error that ends a reply. Without structured replies only the number is sent; with them the words go
/// along, and the place if there is one.
pub fn encode_error(
    mode: Mode,
    (cookie, offset): (u64, u64),
    error: u32,
    words: &str,
    place: Option<u64>,
    out: &mut Vec<u8>,
) {
    if mode == Mode::Simple {
        out.extend_from_slice(&Head::simple(cookie, error));
        return;
    }
    let words = words.as_bytes();
    let words = words.get(..words.len().min(MAX_STRING)).unwrap_or_default();
    let words_len = u16::try_from(words.len()).unwrap_or(0);
    let kind = if place.is_some() { chunk::ERROR_OFFSET } else { chunk::ERROR };
    let length = u32::from(words_len).saturating_add(if place.is_some() { 14 } else { 6 });
    let fields: [&[u8]; 2] = [&error.to_be_bytes(), &words_len.to_be_bytes()];
    out.extend_from_slice(&Head::chunk(mode, cookie, offset, (kind, true), length, &fields));
    out.extend_from_slice(words);
    if let Some(place) = place {
        out.extend_from_slice(&place.to_be_bytes());
    }
}

/// Appends a block status chunk that ends a reply: `(length, flags)` of consecutive extents.
///
/// In the 32-bit form lengths saturate; callers keep them below 4 GiB.
pub fn encode_status(
    mode: Mode,
    (cookie, offset): (u64, u64),
    context: u32,
    extents: &[(u64, u32)],
    out: &mut Vec<u8>,
) {
    let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
    if mode == Mode::Extended {
        let length = count.saturating_mul(16).saturating_add(8);
        let fields: [&[u8]; 2] = [&context.to_be_bytes(), &count.to_be_bytes()];
        out.extend_from_slice(&Head::chunk(mode, cookie, offset, (chunk::BLOCK_STATUS_EXT, true), length, &fields));
        for (len, flags) in extents {
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&u64::from(*flags).to_be_bytes());
        }
        return;
    }
    let length = count.saturating_mul(8).saturating_add(4);
    out.extend_from_slice(&Head::chunk(
        mode,
        cookie,
        offset,
        (chunk::BLOCK_STATUS, true),
        length,
        &[&context.to_be_bytes()],
    ));
    for (len, flags) in extents {
        out.extend_from_slice(&u32::try_from(*len).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
    }
}

/// One step of a reply, as it comes in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplyEvent<'a> {
    /// Data of a read: bytes from this offset of the export.
    Data {
        /// The request.
        cookie: u64,
        /// Where the bytes belong.
        at: u64,
        /// The bytes; one chunk may come in several events.
        bytes: &'a [u8],
    },
    /// Zeroes of a read.
    Hole {
        /// The request.
        cookie: u64,
        /// Where they begin.
        at: u64,
        /// How many.
        len: u32,
    },
    /// Extents of one metadata context.
    Status {
        /// The request.
        cookie: u64,
        /// The context.
        context: u32,
        /// Lengths and flags.
        extents: Vec<(u64, u64)>,
    },
    /// The request failed; more may follow until `Done`.
    Error {
        /// The request.
        cookie: u64,
        /// Number on the wire, not 0.
        error: u32,
        /// Words for people.
        message: String,
        /// The place, if the server told it.
        place: Option<u64>,
    },
    /// The reply is complete.
    Done {
        /// The request.
        cookie: u64,
    },
}

#[derive(Debug)]
enum State {
    Head,
    /// Data of a read, passed on as it comes.
    Data {
        cookie: u64,
        at: u64,
        left: u64,
        done: bool,
    },
    /// A chunk that is read whole.
    Chunk {
        cookie: u64,
        kind: u16,
        left: u64,
        done: bool,
        body: Vec<u8>,
    },
    /// The head is consumed, the last event of the reply is still to be told.
    Done {
        cookie: u64,
    },
}

/// Takes replies apart.
#[derive(Debug)]
pub struct ReplyDecoder {
    mode: Mode,
    state: State,
}

impl ReplyDecoder {
    /// A decoder at the start of the transmission phase.
    pub fn new(mode: Mode) -> Self {
        Self { mode, state: State::Head }
    }

    /// Looks at the bytes received and not yet consumed; returns how many of them are consumed, and an event if there
    /// is one. No event and nothing consumed asks for more input.
    ///
    /// `expect` tells offset and length of the read with a cookie, 0 bytes for any other request in flight, and `None`
    /// for a cookie nobody sent: only so can a simple reply be understood.
    ///
    /// # Errors
    /// [`ProtocolError`]; the decoder is of no use afterwards.
    pub fn feed<'a>(
        &mut self,
        input: &'a [u8],
        mut expect: impl FnMut(u64) -> Option<(u64, u64)>,
    ) -> Result<(usize, Option<ReplyEvent<'a>>), ProtocolError> {
        match &mut self.state {
            State::Head => self.head(input, &mut expect),
            State::Done { cookie } => {
                let cookie = *cookie;
                self.state = State::Head;
                Ok((0, Some(ReplyEvent::Done { cookie })))
            }
            State::Data { cookie, at, left, done } => {
                let (cookie, here, done) = (*cookie, *at, *done);
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                let Some(bytes) = input.get(..take).filter(|bytes| !bytes.is_empty()) else { return Ok((0, None)) };
                *at = at.saturating_add(take as u64);
                *left = left.saturating_sub(take as u64);
                if *left == 0 {
                    self.state = if done { State::Done { cookie } } else { State::Head };
                }
                Ok((take, Some(ReplyEvent::Data { cookie, at: here, bytes })))
            }
            State::Chunk { cookie, kind, left, done, body } => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                body.extend_from_slice(input.get(..take).unwrap_or_default());
                *left = left.saturating_sub(take as u64);
                if *left > 0 {
                    return Ok((take, None));
                }
                let (cookie, kind, done, body) = (*cookie, *kind, *done, std::mem::take(body));
                self.state = if done { State::Done { cookie } } else { State::Head };
                Ok((take, Some(parse_chunk(cookie, kind, &body)?)))
            }
        }
    }

    fn head<'a>(
        &mut self,
        input: &'a [u8],
        expect: &mut dyn FnMut(u64) -> Option<(u64, u64)>,
    ) -> Result<(usize, Option<ReplyEvent<'a>>), ProtocolError> {
        let Some(magic) = Fields(input).u32() else { return Ok((0, None)) };
        let unknown = |cookie: u64| ProtocolError::broken(format!("a reply to no request (cookie {cookie:#x})"));
        let (flags, kind, cookie, length, consumed) = match (self.mode, magic) {
            (Mode::Simple | Mode::Structured, SIMPLE_REPLY_MAGIC) => {
                let Ok((header, _)) = SimpleReplyHeader::ref_from_prefix(input) else { return Ok((0, None)) };
                let (cookie, error) = (header.cookie.get(), header.error.get());
                let (at, length) = expect(cookie).ok_or_else(|| unknown(cookie))?;
                self.state = State::Done { cookie };
                let event = if error != 0 {
                    Some(ReplyEvent::Error { cookie, error, message: String::new(), place: None })
                } else if length > 0 && self.mode == Mode::Structured {
                    return Err(ProtocolError::broken(
                        "a simple reply to a read, although structured ones were agreed",
                    ));
                } else if length > 0 {
                    self.state = State::Data { cookie, at, left: length, done: true };
                    None
                } else {
                    None
                };
                return Ok((size_of::<SimpleReplyHeader>(), event));
            }
            (Mode::Structured, STRUCTURED_REPLY_MAGIC) => {
                let Ok((header, _)) = StructuredReplyHeader::ref_from_prefix(input) else { return Ok((0, None)) };
                let length = u64::from(header.length.get());
                let size = size_of::<StructuredReplyHeader>();
                (header.flags.get(), header.kind.get(), header.cookie.get(), length, size)
            }
            (Mode::Extended, EXTENDED_REPLY_MAGIC) => {
                let Ok((header, _)) = ExtendedReplyHeader::ref_from_prefix(input) else { return Ok((0, None)) };
                let size = size_of::<ExtendedReplyHeader>();
                (header.flags.get(), header.kind.get(), header.cookie.get(), header.length.get(), size)
            }
            _ => return Err(ProtocolError::Magic { expected: "a reply", got: magic.into() }),
        };
        expect(cookie).ok_or_else(|| unknown(cookie))?;
        let done = flags & chunk::FLAG_DONE != 0;
        let limit = match kind {
            chunk::NONE => 0,
            chunk::OFFSET_DATA => u64::from(MAX_PAYLOAD).saturating_add(8),
            chunk::OFFSET_HOLE => 12,
            // 2^20 extents are the most a server should send (NBD_REPLY_TYPE_BLOCK_STATUS).
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => (16 << 20) + 8,
            _ if kind & chunk::ERROR_BIT != 0 => 1 << 16,
            _ => return Err(ProtocolError::broken(format!("a reply chunk of unknown type {kind}"))),
        };
        if length > limit {
            return Err(ProtocolError::TooLong { what: "a reply chunk", length, limit });
        }
        match kind {
            chunk::NONE if !done => return Err(ProtocolError::broken("an empty chunk that does not end its reply")),
            chunk::NONE => self.state = State::Done { cookie },
            chunk::OFFSET_DATA => {
                let Some((left, rest)) = length.checked_sub(8).filter(|&left| left > 0).zip(input.get(consumed..))
                else {
                    return Err(ProtocolError::broken("a data chunk without data"));
                };
                let Some(at) = Fields(rest).u64() else { return Ok((0, None)) };
                self.state = State::Data { cookie, at, left, done };
                return Ok((consumed.saturating_add(8), None));
            }
            _ => self.state = State::Chunk { cookie, kind, left: length, done, body: Vec::new() },
        }
        Ok((consumed, None))
    }
}

fn parse_chunk<'a>(cookie: u64, kind: u16, body: &[u8]) -> Result<ReplyEvent<'a>, ProtocolError> {
    let mut fields = Fields(body);
    let parsed = match kind {
        chunk::OFFSET_HOLE => (|| {
            let (at, len) = (fields.u64()?, fields.u32()?);
            (len > 0).then_some(ReplyEvent::Hole { cookie, at, len })
        })(),
        chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => (|| {
            let wide = kind == chunk::BLOCK_STATUS_EXT;
            let context = fields.u32()?;
            let told = if wide { Some(fields.u32()?) } else { None };
            let mut extents = Vec::new();
            while !fields.is_empty() {
                let (len, flags) = match wide {
                    true => (fields.u64()?, fields.u64()?),
                    false => (u64::from(fields.u32()?), u64::from(fields.u32()?)),
                };
                if len == 0 {
                    return None;
                }
                extents.push((len, flags));
            }
            let count_fits = told.is_none_or(|told| told as usize == extents.len());
            (count_fits && !extents.is_empty()).then_some(ReplyEvent::Status { cookie, context, extents })
        })(),
        // An error, known or not: all begin alike.
        _ => (|| {
            let (error, words) = (fields.u32()?, fields.u16()?);
            let message = String::from_utf8_lossy(fields.bytes(words.into())?).into_owned();
            let place = if kind == chunk::ERROR_OFFSET { Some(fields.u64()?) } else { None };
            (error != 0).then_some(ReplyEvent::Error { cookie, error, message, place })
        })(),
    };
    parsed.ok_or_else(|| ProtocolError::broken(format!("a malformed reply chunk of type {kind:#x}")))
}
