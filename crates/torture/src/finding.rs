//! What tells findings apart.

use std::fmt;
use std::str::FromStr;

/// Two findings with equal signatures are one bug (CM 10.1). Written `code:class:phase:site`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Signature {
    /// The invariant's or the finding's code (CM 5.7).
    pub code: String,
    /// The metadata class of what is wrong, in the format's words; empty if it is none.
    pub class: String,
    /// When it showed: while the plan ran, at a reopen, after a power cut.
    pub phase: String,
    /// Where the driver panicked, without what changes from build to build; empty if it did not.
    pub site: String,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.code, &self.class, &self.phase] {
            // The site comes last and may have colons, as a file and a line do; in the others they are escaped.
            escape(f, part, true)?;
            f.write_str(":")?;
        }
        escape(f, &self.site, false)
    }
}

fn escape(f: &mut fmt::Formatter<'_>, part: &str, colons: bool) -> fmt::Result {
    part.chars().try_for_each(|c| match c {
        ':' if colons => f.write_str("%3A"),
        '%' => f.write_str("%25"),
        '\n' => f.write_str("%0A"),
        c => write!(f, "{c}"),
    })
}

/// A text that is no signature.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no signature; one looks like this: read:L2:reopen:")]
pub struct SignatureError(pub String);

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let wrong = || SignatureError(text.to_owned());
        let mut parts = text.splitn(4, ':').map(|part| unescape(part).ok_or_else(wrong));
        let mut next = || parts.next().unwrap_or_else(|| Err(wrong()));
        Ok(Self { code: next()?, class: next()?, phase: next()?, site: next()? })
    }
}

fn unescape(part: &str) -> Option<String> {
    let mut pieces = part.split('%');
    let mut text = pieces.next()?.to_owned();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        text.push(match code {
            "3A" => ':',
            "25" => '%',
            "0A" => '\n',
            _ => return None,
        });
        text.push_str(rest);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_read_as_it_is_written() {
        let odd = Signature {
            code: "a:b%3A".to_owned(),
            class: String::new(),
            phase: "two\nlines".to_owned(),
            site: "src/map.rs:12:é%".to_owned(),
        };
        for signature in [Signature::default(), odd] {
            assert_eq!(signature.to_string().parse::<Signature>().unwrap(), signature);
        }
        assert_eq!("panic::run:src/a.rs:1".parse::<Signature>().unwrap().site, "src/a.rs:1");
        for text in ["", "read", "a:b:c", "a%:b:c:d", "a%4:b:c:d", "a%40:b:c:d"] {
            assert!(text.parse::<Signature>().is_err(), "{text}");
        }
    }
}
