//! The server's side of negotiation.
//!
//! Every length is checked before a byte of what it describes is kept: an option of more than [`MAX_OPTION`] bytes is
//! skipped as it arrives and answered `TOO_BIG`; one of more than [`MAX_SKIP`] ends the connection, and so does a peer
//! that sends more than [`MAX_OPTIONS`] of them.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::{FromBytes, IntoBytes};

use crate::handshake::{Agreed, BlockSize, Mode};
use crate::wire::{
    BASE_ALLOCATION, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Fields, Greeting, HANDSHAKE_FLAGS, MAX_STRING, NBD_MAGIC,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, OptionReplyHeader, ProtocolError, TransmissionFlags, info, option,
    reply,
};

/// Longest option that is looked at, in bytes.
pub const MAX_OPTION: usize = 64 << 10;
/// Longest option that is skipped, in bytes.
pub const MAX_SKIP: u32 = 32 << 20;
/// Most options one client may send.
pub const MAX_OPTIONS: u32 = 8192;
/// Most metadata queries in one option.
const MAX_QUERIES: u32 = 1024;

/// What the server has to offer, asked for as clients ask.
pub trait Catalogue {
    /// Names and descriptions, in the order to list them.
    fn list(&self) -> Vec<(&str, &str)>;

    /// The export of that name; the empty name stands for the default one.
    fn find(&self, name: &str) -> Option<Offer<'_>>;
}

/// One export as negotiation sees it.
#[derive(Clone, Debug)]
pub struct Offer<'a> {
    /// Which one, in the catalogue's own count.
    pub index: usize,
    /// Canonical name.
    pub name: &'a str,
    /// For people; may be empty.
    pub description: &'a str,
    /// Bytes.
    pub size: u64,
    /// Without what depends on negotiation (`DF`, `BLOCK_STATUS_PAYLOAD`).
    pub flags: TransmissionFlags,
    /// Size constraints.
    pub block_size: BlockSize,
}

/// Whether a client may, or has to, use TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TlsPolicy {
    /// Not offered.
    #[default]
    Off,
    /// Offered.
    On,
    /// Nothing else is answered before it (FORCEDTLS).
    Require,
}

/// What to do after the bytes fed so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Feed more.
    Continue,
    /// Send what was written, then run the TLS handshake and start over behind it.
    StartTls,
    /// Send what was written, then serve this export.
    Go {
        /// In the catalogue's count.
        index: usize,
        /// How.
        agreed: Agreed,
    },
    /// Send what was written, then close.
    Close,
}

/// A negotiation in progress.
#[derive(Debug)]
pub struct Handshake {
    tls: TlsPolicy,
    encrypted: bool,
    shutting_down: bool,
    client_flags: Option<u32>,
    options: u32,
    skip: u32,
    mode: Mode,
    /// Export for which `base:allocation` was selected.
    selected: Option<usize>,
}

/// Answers one option.
struct Answer<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Answer<'_> {
    fn send(&mut self, kind: u32, parts: &[&[u8]]) {
        // Every part is one of our own strings or numbers, far below 4 GiB in sum.
        let length = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        let header = OptionReplyHeader {
            magic: OPTION_REPLY_MAGIC.into(),
            option: self.option.into(),
            kind: kind.into(),
            length: u32::try_from(length).unwrap_or(u32::MAX).into(),
        };
        self.out.extend_from_slice(header.as_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    fn ack(&mut self) {
        self.send(reply::ACK, &[]);
    }

    fn fail(&mut self, kind: u32, words: &str) {
        self.send(kind, &[words.as_bytes()]);
    }
}

impl Handshake {
    /// A negotiation on a fresh plain connection.
    pub fn new(tls: TlsPolicy) -> Self {
        Self {
            tls,
            encrypted: false,
            shutting_down: false,
            client_flags: None,
            options: 0,
            skip: 0,
            mode: Mode::Simple,
            selected: None,
        }
    }

    /// What the server says first.
    pub fn greet(&self, out: &mut Vec<u8>) {
        let greeting = Greeting { magic: NBD_MAGIC.into(), style: OPTION_MAGIC.into(), flags: HANDSHAKE_FLAGS.into() };
        out.extend_from_slice(greeting.as_bytes());
    }

    /// Goes on behind a finished TLS handshake. Nothing agreed on before it counts (`NBD_OPT_STARTTLS`).
    pub fn encrypted(&mut self) {
        self.encrypted = true;
        self.mode = Mode::Simple;
        self.selected = None;
    }

    /// From now on every option is answered `SHUTDOWN`.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Looks at the bytes received and not yet consumed, at most one option of them; appends the answer to `out`.
    ///
    /// Returns how many bytes are consumed. `Continue` with 0 consumed asks for more input.
    ///
    /// # Errors
    /// [`ProtocolError`] if the connection has to end without an answer.
    pub fn feed(
        &mut self,
        input: &[u8],
        exports: &dyn Catalogue,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Step), ProtocolError> {
        if self.skip > 0 {
            let skipped = u32::try_from(input.len()).unwrap_or(u32::MAX).min(self.skip);
            self.skip = self.skip.saturating_sub(skipped);
            return Ok((skipped as usize, Step::Continue));
        }
        let Some(client_flags) = self.client_flags else {
            let mut fields = Fields(input);
            let Some(flags) = fields.u32() else { return Ok((0, Step::Continue)) };
            if flags & !(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                return Err(ProtocolError::broken(format!("unknown client flags {flags:#x}")));
            }
            self.client_flags = Some(flags);
            return Ok((4, Step::Continue));
        };
        let Ok((header, rest)) = OptionHeader::ref_from_prefix(input) else { return Ok((0, Step::Continue)) };
        if header.magic.get() != OPTION_MAGIC {
            return Err(ProtocolError::Magic { expected: "an option", got: header.magic.get() });
        }
        let (option, length) = (header.option.get(), header.length.get());
        if client_flags & FLAG_FIXED_NEWSTYLE == 0 && option != option::EXPORT_NAME {
            return Err(ProtocolError::broken(format!("option {option} from a client without fixed newstyle")));
        }
        let header_len = size_of::<OptionHeader>();
        if length as usize > MAX_OPTION {
            if length > MAX_SKIP || option == option::EXPORT_NAME {
                let limit = if option == option::EXPORT_NAME { MAX_STRING as u64 } else { u64::from(MAX_SKIP) };
                return Err(ProtocolError::TooLong { what: "an option", length: length.into(), limit });
            }
            self.count_option()?;
            Answer { option, out }.fail(reply::ERR_TOO_BIG, "the option is too long");
            self.skip = length;
            return Ok((header_len, Step::Continue));
        }
        let Some(data) = rest.get(..length as usize) else { return Ok((0, Step::Continue)) };
        self.count_option()?;
        let step = self.answer(option, data, client_flags, exports, out)?;
        Ok((header_len.saturating_add(data.len()), step))
    }

    fn count_option(&mut self) -> Result<(), ProtocolError> {
        self.options = self.options.saturating_add(1);
        if self.options > MAX_OPTIONS {
            return Err(ProtocolError::broken(format!("more than {MAX_OPTIONS} options")));
        }
        Ok(())
    }

    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        client_flags: u32,
        exports: &dyn Catalogue,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        let mut answer = Answer { option, out };
        let plain_but_required = self.tls == TlsPolicy::Require && !self.encrypted;
        match option {
            option::ABORT => {
                answer.ack();
                return Ok(Step::Close);
            }
            option::EXPORT_NAME => return self.export_name(data, client_flags, plain_but_required, exports, out),
            _ if self.shutting_down => answer.fail(reply::ERR_SHUTDOWN, "the server is shutting down"),
            option::STARTTLS => return Ok(self.start_tls(data, &mut answer)),
            _ if plain_but_required => answer.fail(reply::ERR_TLS_REQD, "TLS has to be started first"),
            option::LIST if data.is_empty() => {
                for (name, description) in exports.list() {
                    let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
                    answer.send(reply::SERVER, &[&length, name.as_bytes(), description.as_bytes()]);
                }
                answer.ack();
            }
            option::STRUCTURED_REPLY if data.is_empty() => match self.mode {
                Mode::Extended => {
                    answer.fail(reply::ERR_EXT_HEADER_REQD, "extended headers were agreed on already");
                }
                Mode::Simple | Mode::Structured => {
                    self.mode = Mode::Structured;
                    answer.ack();
                }
            },
            option::EXTENDED_HEADERS if data.is_empty() => {
                self.mode = Mode::Extended;
                answer.ack();
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                answer.fail(reply::ERR_INVALID, "this option takes no data");
            }
            option::INFO | option::GO => return Ok(self.info(data, exports, &mut answer)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(data, exports, &mut answer),
            _ => answer.fail(reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Step::Continue)
    }

    fn start_tls(&self, data: &[u8], answer: &mut Answer<'_>) -> Step {
        if !data.is_empty() {
            answer.fail(reply::ERR_INVALID, "this option takes no data");
        } else if self.encrypted {
            answer.fail(reply::ERR_INVALID, "TLS was started already");
        } else if self.tls == TlsPolicy::Off {
            answer.fail(reply::ERR_POLICY, "TLS is not configured");
        } else {
            answer.ack();
            return Step::StartTls;
        }
        Step::Continue
    }

    /// The one option that can not fail: whatever is wrong ends the session.
    fn export_name(
        &self,
        data: &[u8],
        client_flags: u32,
        plain_but_required: bool,
        exports: &dyn Catalogue,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        if self.shutting_down {
            return Ok(Step::Close);
        }
        if plain_but_required {
            return Err(ProtocolError::broken("NBD_OPT_EXPORT_NAME before TLS, which is required"));
        }
        if self.mode == Mode::Extended {
            return Err(ProtocolError::broken("NBD_OPT_EXPORT_NAME after extended headers were agreed on"));
        }
        let name = export_name(data).ok_or_else(|| ProtocolError::broken("a malformed export name"))?;
        let offer = exports.find(name).ok_or_else(|| ProtocolError::broken(format!("no export is named '{name}'")))?;
        let agreed = self.agree(&offer, false);
        out.extend_from_slice(&agreed.size.to_be_bytes());
        out.extend_from_slice(&agreed.flags.bits().to_be_bytes());
        if client_flags & FLAG_NO_ZEROES == 0 {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Step::Go { index: offer.index, agreed })
    }

    fn info(&self, data: &[u8], exports: &dyn Catalogue, answer: &mut Answer<'_>) -> Step {
        let mut fields = Fields(data);
        let parsed = (|| {
            let name = fields.string()?;
            let count = fields.u16()?;
            let wanted: Option<Vec<u16>> = (0..count).map(|_| fields.u16()).collect();
            fields.is_empty().then_some((name, wanted?))
        })();
        let Some((name, wanted)) = parsed else {
            answer.fail(reply::ERR_INVALID, "malformed option");
            return Step::Continue;
        };
        if name.len() > MAX_STRING {
            answer.fail(reply::ERR_TOO_BIG, "the export name is too long");
            return Step::Continue;
        }
        let Some(offer) = export_name(name).and_then(|name| exports.find(name)) else {
            answer.fail(reply::ERR_UNKNOWN, "no such export");
            return Step::Continue;
        };
        let constrained = wanted.contains(&info::BLOCK_SIZE);
        let agreed = self.agree(&offer, constrained);
        let send = |answer: &mut Answer<'_>, kind: u16, parts: [&[u8]; 3]| {
            let [a, b, c] = parts;
            answer.send(reply::INFO, &[&kind.to_be_bytes(), a, b, c]);
        };
        let flags = agreed.flags.bits().to_be_bytes();
        send(answer, info::EXPORT, [&agreed.size.to_be_bytes(), &flags, &[]]);
        if wanted.contains(&info::NAME) {
            send(answer, info::NAME, [offer.name.as_bytes(), &[], &[]]);
        }
        if wanted.contains(&info::DESCRIPTION) && !offer.description.is_empty() {
            send(answer, info::DESCRIPTION, [offer.description.as_bytes(), &[], &[]]);
        }
        if constrained {
            let BlockSize { minimum, preferred, maximum } = offer.block_size;
            let [minimum, preferred, maximum] = [minimum, preferred, maximum].map(u32::to_be_bytes);
            send(answer, info::BLOCK_SIZE, [&minimum, &preferred, &maximum]);
        }
        answer.ack();
        if answer.option == option::GO { Step::Go { index: offer.index, agreed } } else { Step::Continue }
    }

    fn agree(&self, offer: &Offer<'_>, constrained: bool) -> Agreed {
        let allocation = (self.mode >= Mode::Structured && self.selected == Some(offer.index)).then_some(0);
        let mut flags = offer.flags;
        flags.set(TransmissionFlags::DF, self.mode >= Mode::Structured);
        flags.set(TransmissionFlags::BLOCK_STATUS_PAYLOAD, self.mode == Mode::Extended && allocation.is_some());
        Agreed {
            mode: self.mode,
            size: offer.size,
            flags,
            allocation,
            block_size: constrained.then_some(offer.block_size),
        }
    }

    fn meta_context(&mut self, data: &[u8], exports: &dyn Catalogue, answer: &mut Answer<'_>) {
        let set = answer.option == option::SET_META_CONTEXT;
        if set {
            // Even a request that fails clears the selection (NBD_OPT_SET_META_CONTEXT).
            self.selected = None;
        }
        if self.mode == Mode::Simple {
            return answer.fail(reply::ERR_INVALID, "structured replies have to be agreed on first");
        }
        let mut fields = Fields(data);
        let Some((name, count)) = fields.string().and_then(|name| Some((name, fields.u32()?))) else {
            return answer.fail(reply::ERR_INVALID, "malformed option");
        };
        if name.len() > MAX_STRING || count > MAX_QUERIES {
            return answer.fail(reply::ERR_TOO_BIG, "too long a name, or too many queries");
        }
        let mut matches = !set && count == 0;
        for _ in 0..count {
            let Some(query) = fields.string() else {
                return answer.fail(reply::ERR_INVALID, "malformed option");
            };
            if query.len() > MAX_STRING {
                return answer.fail(reply::ERR_TOO_BIG, "a query is too long");
            }
            matches |= query == BASE_ALLOCATION.as_bytes() || (!set && query == b"base:");
        }
        if !fields.is_empty() {
            return answer.fail(reply::ERR_INVALID, "malformed option");
        }
        let Some(offer) = export_name(name).and_then(|name| exports.find(name)) else {
            return answer.fail(reply::ERR_UNKNOWN, "no such export");
        };
        if matches {
            answer.send(reply::META_CONTEXT, &[&[0; 4], BASE_ALLOCATION.as_bytes()]);
        }
        if set && matches {
            self.selected = Some(offer.index);
        }
        answer.ack();
    }
}

/// A name as the protocol wants it: UTF-8, at most [`MAX_STRING`] bytes, no NUL.
fn export_name(bytes: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(bytes).ok()?;
    (name.len() <= MAX_STRING && !name.contains('\0')).then_some(name)
}
