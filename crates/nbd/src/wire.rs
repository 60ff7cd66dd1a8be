//! Numbers and layouts of the NBD protocol, and nothing that acts on them.
//!
//! Source: the protocol document of the NBD project (`doc/proto.md`) with its extended header extension. Sections are
//! cited by their headings. Every field is big-endian; unknown values survive being read, because the types that
//! carry them are open numbers and not enums.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bitflags::bitflags;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First eight bytes a server sends: `NBDMAGIC`.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle server, and the head of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second eight bytes of an oldstyle server, which is refused.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Head of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Head of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Head of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Head of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Head of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Head of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Longest string of the protocol in bytes (section "Values").
pub const MAX_STRING: usize = 4096;
/// Payload every peer has to take (section "Size constraints"), and the most we take.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Handshake flags of the server: fixed newstyle and no zeroes after `EXPORT_NAME`.
pub const HANDSHAKE_FLAGS: u16 = 0b11;
/// `NBD_FLAG_FIXED_NEWSTYLE`, also `NBD_FLAG_C_FIXED_NEWSTYLE`.
pub const FLAG_FIXED_NEWSTYLE: u32 = 1;
/// `NBD_FLAG_NO_ZEROES`, also `NBD_FLAG_C_NO_ZEROES`.
pub const FLAG_NO_ZEROES: u32 = 2;

/// Options (section "Option types").
pub mod option {
    /// `NBD_OPT_EXPORT_NAME`
    pub const EXPORT_NAME: u32 = 1;
    /// `NBD_OPT_ABORT`
    pub const ABORT: u32 = 2;
    /// `NBD_OPT_LIST`
    pub const LIST: u32 = 3;
    /// `NBD_OPT_STARTTLS`
    pub const STARTTLS: u32 = 5;
    /// `NBD_OPT_INFO`
    pub const INFO: u32 = 6;
    /// `NBD_OPT_GO`
    pub const GO: u32 = 7;
    /// `NBD_OPT_STRUCTURED_REPLY`
    pub const STRUCTURED_REPLY: u32 = 8;
    /// `NBD_OPT_LIST_META_CONTEXT`
    pub const LIST_META_CONTEXT: u32 = 9;
    /// `NBD_OPT_SET_META_CONTEXT`
    pub const SET_META_CONTEXT: u32 = 10;
    /// `NBD_OPT_EXTENDED_HEADERS`
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options (section "Option reply types").
pub mod reply {
    /// `NBD_REP_ACK`
    pub const ACK: u32 = 1;
    /// `NBD_REP_SERVER`
    pub const SERVER: u32 = 2;
    /// `NBD_REP_INFO`
    pub const INFO: u32 = 3;
    /// `NBD_REP_META_CONTEXT`
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// `NBD_REP_ERR_UNSUP`
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// `NBD_REP_ERR_POLICY`
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// `NBD_REP_ERR_INVALID`
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// `NBD_REP_ERR_PLATFORM`
    pub const ERR_PLATFORM: u32 = ERROR_BIT | 4;
    /// `NBD_REP_ERR_TLS_REQD`
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// `NBD_REP_ERR_UNKNOWN`
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// `NBD_REP_ERR_SHUTDOWN`
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// `NBD_REP_ERR_BLOCK_SIZE_REQD`
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// `NBD_REP_ERR_TOO_BIG`
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    /// `NBD_REP_ERR_EXT_HEADER_REQD`
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// Information types (`NBD_REP_INFO`).
pub mod info {
    /// `NBD_INFO_EXPORT`
    pub const EXPORT: u16 = 0;
    /// `NBD_INFO_NAME`
    pub const NAME: u16 = 1;
    /// `NBD_INFO_DESCRIPTION`
    pub const DESCRIPTION: u16 = 2;
    /// `NBD_INFO_BLOCK_SIZE`
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands (section "Request types").
pub mod command {
    /// `NBD_CMD_READ`
    pub const READ: u16 = 0;
    /// `NBD_CMD_WRITE`
    pub const WRITE: u16 = 1;
    /// `NBD_CMD_DISC`
    pub const DISC: u16 = 2;
    /// `NBD_CMD_FLUSH`
    pub const FLUSH: u16 = 3;
    /// `NBD_CMD_TRIM`
    pub const TRIM: u16 = 4;
    /// `NBD_CMD_CACHE`
    pub const CACHE: u16 = 5;
    /// `NBD_CMD_WRITE_ZEROES`
    pub const WRITE_ZEROES: u16 = 6;
    /// `NBD_CMD_BLOCK_STATUS`
    pub const BLOCK_STATUS: u16 = 7;
}

/// Chunks of structured replies (section "Structured reply types").
pub mod chunk {
    /// `NBD_REPLY_TYPE_NONE`
    pub const NONE: u16 = 0;
    /// `NBD_REPLY_TYPE_OFFSET_DATA`
    pub const OFFSET_DATA: u16 = 1;
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`
    pub const OFFSET_HOLE: u16 = 2;
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`
    pub const BLOCK_STATUS: u16 = 5;
    /// `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Set in every error chunk.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// `NBD_REPLY_TYPE_ERROR`
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// `NBD_REPLY_TYPE_ERROR_OFFSET`
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
    /// `NBD_REPLY_FLAG_DONE`
    pub const FLAG_DONE: u16 = 1;
}

/// The one metadata context there is so far.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Bits of `base:allocation`.
pub mod allocation {
    /// `NBD_STATE_HOLE`: no space is taken.
    pub const HOLE: u32 = 1;
    /// `NBD_STATE_ZERO`: reads as zeroes.
    pub const ZERO: u32 = 2;
}

/// The error numbers that may appear on the wire (section "Error values").
pub mod errno {
    /// `NBD_EPERM`
    pub const EPERM: u32 = 1;
    /// `NBD_EIO`
    pub const EIO: u32 = 5;
    /// `NBD_ENOMEM`
    pub const ENOMEM: u32 = 12;
    /// `NBD_EINVAL`
    pub const EINVAL: u32 = 22;
    /// `NBD_ENOSPC`
    pub const ENOSPC: u32 = 28;
    /// `NBD_EOVERFLOW`
    pub const EOVERFLOW: u32 = 75;
    /// `NBD_ENOTSUP`
    pub const ENOTSUP: u32 = 95;
    /// `NBD_ESHUTDOWN`
    pub const ESHUTDOWN: u32 = 108;
}

bitflags! {
    /// What an export offers (section "Transmission flags").
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1;
        /// Writes fail.
        const READ_ONLY = 1 << 1;
        /// `NBD_CMD_FLUSH`
        const FLUSH = 1 << 2;
        /// `NBD_CMD_FLAG_FUA`
        const FUA = 1 << 3;
        /// The medium rotates.
        const ROTATIONAL = 1 << 4;
        /// `NBD_CMD_TRIM`
        const TRIM = 1 << 5;
        /// `NBD_CMD_WRITE_ZEROES`
        const WRITE_ZEROES = 1 << 6;
        /// `NBD_CMD_FLAG_DF`
        const DF = 1 << 7;
        /// Flush and FUA hold across connections.
        const CAN_MULTI_CONN = 1 << 8;
        /// `NBD_CMD_RESIZE`, never offered.
        const RESIZE = 1 << 9;
        /// `NBD_CMD_CACHE`
        const CACHE = 1 << 10;
        /// `NBD_CMD_FLAG_FAST_ZERO`
        const FAST_ZERO = 1 << 11;
        /// `NBD_CMD_BLOCK_STATUS` takes a list of contexts.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
        /// Bits of the future are kept.
        const _ = !0;
    }
}

bitflags! {
    /// How a command is to be done (section "Command flags").
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct CommandFlags: u16 {
        /// `NBD_CMD_FLAG_FUA`
        const FUA = 1;
        /// `NBD_CMD_FLAG_NO_HOLE`
        const NO_HOLE = 1 << 1;
        /// `NBD_CMD_FLAG_DF`
        const DF = 1 << 2;
        /// `NBD_CMD_FLAG_REQ_ONE`
        const REQ_ONE = 1 << 3;
        /// `NBD_CMD_FLAG_FAST_ZERO`
        const FAST_ZERO = 1 << 4;
        /// `NBD_CMD_FLAG_PAYLOAD_LEN`
        const PAYLOAD_LEN = 1 << 5;
        /// Bits nobody knows are kept, so that they can be refused.
        const _ = !0;
    }
}

/// Server greeting, 18 bytes (section "Fixed newstyle negotiation").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct Greeting {
    /// [`NBD_MAGIC`]
    pub magic: U64,
    /// [`OPTION_MAGIC`]
    pub style: U64,
    /// Handshake flags.
    pub flags: U16,
}
const _: () = assert!(size_of::<Greeting>() == 18);

/// Head of an option, 16 bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct OptionHeader {
    /// [`OPTION_MAGIC`]
    pub magic: U64,
    /// One of [`option`].
    pub option: U32,
    /// Bytes of data that follow; bound it before allocating.
    pub length: U32,
}
const _: () = assert!(size_of::<OptionHeader>() == 16);

/// Head of an option reply, 20 bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct OptionReplyHeader {
    /// [`OPTION_REPLY_MAGIC`]
    pub magic: U64,
    /// The option that is answered.
    pub option: U32,
    /// One of [`reply`].
    pub kind: U32,
    /// Bytes of data that follow; bound it before allocating.
    pub length: U32,
}
const _: () = assert!(size_of::<OptionReplyHeader>() == 20);

/// Compact request, 28 bytes (section "Request message").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct RequestHeader {
    /// [`REQUEST_MAGIC`]
    pub magic: U32,
    /// [`CommandFlags`]
    pub flags: U16,
    /// One of [`command`]; unknown ones are kept, then answered with `EINVAL`.
    pub kind: U16,
    /// Echoed in the reply, never interpreted.
    pub cookie: U64,
    /// Bytes from the start of the export.
    pub offset: U64,
    /// Bytes; bound it before allocating.
    pub length: U32,
}
const _: () = assert!(size_of::<RequestHeader>() == 28);

/// Extended request, 32 bytes (section "Request message").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct ExtendedRequestHeader {
    /// [`EXTENDED_REQUEST_MAGIC`]
    pub magic: U32,
    /// [`CommandFlags`]
    pub flags: U16,
    /// One of [`command`].
    pub kind: U16,
    /// Echoed in the reply.
    pub cookie: U64,
    /// Bytes from the start of the export.
    pub offset: U64,
    /// Bytes of payload with `PAYLOAD_LEN`, else bytes of the export.
    pub length: U64,
}
const _: () = assert!(size_of::<ExtendedRequestHeader>() == 32);

/// Simple reply, 16 bytes (section "Simple reply message").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct SimpleReplyHeader {
    /// [`SIMPLE_REPLY_MAGIC`]
    pub magic: U32,
    /// One of [`errno`], 0 for success.
    pub error: U32,
    /// As in the request.
    pub cookie: U64,
}
const _: () = assert!(size_of::<SimpleReplyHeader>() == 16);

/// Structured reply chunk, 20 bytes (section "Structured reply chunk message").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct StructuredReplyHeader {
    /// [`STRUCTURED_REPLY_MAGIC`]
    pub magic: U32,
    /// [`chunk::FLAG_DONE`]
    pub flags: U16,
    /// One of [`chunk`].
    pub kind: U16,
    /// As in the request.
    pub cookie: U64,
    /// Bytes of payload.
    pub length: U32,
}
const _: () = assert!(size_of::<StructuredReplyHeader>() == 20);

/// Extended reply chunk, 32 bytes (section "Extended reply chunk message").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug)]
#[repr(C)]
pub struct ExtendedReplyHeader {
    /// [`EXTENDED_REPLY_MAGIC`]
    pub magic: U32,
    /// [`chunk::FLAG_DONE`]
    pub flags: U16,
    /// One of [`chunk`].
    pub kind: U16,
    /// As in the request.
    pub cookie: U64,
    /// As in the request.
    pub offset: U64,
    /// Bytes of payload.
    pub length: U64,
}
const _: () = assert!(size_of::<ExtendedReplyHeader>() == 32);

/// Takes numbers and strings off the front of a message; `None` once it is too short.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    /// The next 16-bit number.
    pub fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// The next 32-bit number.
    pub fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// The next 64-bit number.
    pub fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// A string behind its 32-bit length.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.bytes(len)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A peer that broke the protocol in a way that leaves no common ground: the connection has to end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A message that does not begin as it must.
    #[error("expected {expected}, got magic {got:#x}")]
    Magic {
        /// What should have come.
        expected: &'static str,
        /// What came.
        got: u64,
    },
    /// A length nobody needs.
    #[error("{what} of {length} bytes; {limit} are allowed")]
    TooLong {
        /// Which field.
        what: &'static str,
        /// Its value.
        length: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// Anything else that can not be answered.
    #[error("{0}")]
    Broken(String),
}

impl ProtocolError {
    /// A violation in words.
    pub fn broken(words: impl Into<String>) -> Self {
        Self::Broken(words.into())
    }
}
