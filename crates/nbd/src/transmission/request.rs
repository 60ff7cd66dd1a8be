//! Requests: what a client asks.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::{FromBytes, IntoBytes};

use crate::handshake::Mode;
use crate::wire::{
    CommandFlags, EXTENDED_REQUEST_MAGIC, ExtendedRequestHeader, ProtocolError, REQUEST_MAGIC, RequestHeader, command,
};

/// The head of a request, in either layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// One of [`command`], or something unknown.
    pub kind: u16,
    /// As sent.
    pub flags: CommandFlags,
    /// Names the request until it is answered.
    pub cookie: u64,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes of the export that are meant. A request whose length counts payload of another meaning (block status with
    /// a list of contexts) has 0 here.
    pub length: u64,
    /// Bytes of payload that follow.
    pub payload: u64,
}

impl Request {
    /// Takes a request off the front of `input`, with the number of bytes it takes; `None` if it is not complete.
    ///
    /// # Errors
    /// [`ProtocolError::Magic`].
    pub fn decode(mode: Mode, input: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        if mode == Mode::Extended {
            let Ok((header, _)) = ExtendedRequestHeader::ref_from_prefix(input) else { return Ok(None) };
            check_magic(header.magic.get(), EXTENDED_REQUEST_MAGIC)?;
            let flags = CommandFlags::from_bits_retain(header.flags.get());
            let (kind, length) = (header.kind.get(), header.length.get());
            // A write has to carry PAYLOAD_LEN, but QEMU's client (10.0) does not set it and sends the payload all the
            // same; a write without payload makes no sense, so taking the flag as set is the only useful reading.
            let has_payload = flags.contains(CommandFlags::PAYLOAD_LEN) || kind == command::WRITE;
            let request = Self {
                kind,
                flags,
                cookie: header.cookie.get(),
                offset: header.offset.get(),
                length: if has_payload && kind != command::WRITE { 0 } else { length },
                payload: if has_payload { length } else { 0 },
            };
            return Ok(Some((request, size_of::<ExtendedRequestHeader>())));
        }
        let Ok((header, _)) = RequestHeader::ref_from_prefix(input) else { return Ok(None) };
        check_magic(header.magic.get(), REQUEST_MAGIC)?;
        let (kind, length) = (header.kind.get(), u64::from(header.length.get()));
        let request = Self {
            kind,
            flags: CommandFlags::from_bits_retain(header.flags.get()),
            cookie: header.cookie.get(),
            offset: header.offset.get(),
            length,
            payload: if kind == command::WRITE { length } else { 0 },
        };
        Ok(Some((request, size_of::<RequestHeader>())))
    }

    /// Appends the request; the payload is up to the caller. A write gets `PAYLOAD_LEN` where the layout wants it.
    ///
    /// `length` beyond 32 bits needs extended headers; it saturates otherwise, which callers rule out before.
    pub fn encode(&self, mode: Mode, out: &mut Vec<u8>) {
        if mode == Mode::Extended {
            let mut flags = self.flags;
            flags.set(CommandFlags::PAYLOAD_LEN, self.payload > 0);
            let header = ExtendedRequestHeader {
                magic: EXTENDED_REQUEST_MAGIC.into(),
                flags: flags.bits().into(),
                kind: self.kind.into(),
                cookie: self.cookie.into(),
                offset: self.offset.into(),
                length: (if self.payload > 0 { self.payload } else { self.length }).into(),
            };
            out.extend_from_slice(header.as_bytes());
            return;
        }
        let header = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: self.flags.bits().into(),
            kind: self.kind.into(),
            cookie: self.cookie.into(),
            offset: self.offset.into(),
            length: u32::try_from(self.length).unwrap_or(u32::MAX).into(),
        };
        out.extend_from_slice(header.as_bytes());
    }
}

fn check_magic(got: u32, want: u32) -> Result<(), ProtocolError> {
    if got == want { Ok(()) } else { Err(ProtocolError::Magic { expected: "a request", got: got.into() }) }
}
