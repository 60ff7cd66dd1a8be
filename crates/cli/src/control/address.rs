//! Where a control socket is, as users write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `PATH`, `unix:PATH`, `tcp:PORT` (loopback) or `tcp:HOST:PORT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP: host and port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(place) = text.strip_prefix("tcp:") {
            let place = place.strip_prefix(':').unwrap_or(place);
            let (host, port) = place.rsplit_once(':').unwrap_or(("127.0.0.1", place));
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(format!("'{text}' is no address; write a path, tcp:PORT or tcp:HOST:PORT"));
            }
            return Ok(Self::Tcp(format!("{host}:{port}")));
        }
        match text.strip_prefix("unix:").unwrap_or(text) {
            "" => Err("an empty path; write the path of a socket, tcp:PORT or tcp:HOST:PORT".to_owned()),
            path => Ok(Self::Unix(PathBuf::from(path))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Address;

    #[test]
    fn addresses_are_paths_unless_they_say_tcp() {
        for (text, want) in [
            ("a/b.sock", "a/b.sock"),
            ("unix:tcp:1", "tcp:1"),
            ("tcp:4444", "tcp:127.0.0.1:4444"),
            ("tcp::0", "tcp:127.0.0.1:0"),
            ("tcp:[::1]:80", "tcp:[::1]:80"),
            ("tcp:0.0.0.0:80", "tcp:0.0.0.0:80"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), want, "{text}");
        }
        for text in ["", "unix:", "tcp:", "tcp:x", "tcp:host:", "tcp:1:70000"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
