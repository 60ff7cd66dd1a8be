//! QMP on the wire, apart from any socket: bytes in, commands out; replies and events out as lines.
//!
//! Source: QEMU's documentation "QEMU Machine Protocol Specification", and what QEMU 10.0.2 answers.
//!
//! - [`Session`]: what one client may say, and when: the greeting, the negotiation, commands.
//! - [`encode`]: one message as it goes out.
//! - [`Limits`]: how large a message may be.
mod json;
mod output;
mod session;

pub use self::json::{Limits, SyntaxError};
pub use self::output::encode;
pub(crate) use self::output::encode_in_turns;
pub(crate) use self::session::version;
pub use self::session::{Command, Input, Session, event, failure, success};
