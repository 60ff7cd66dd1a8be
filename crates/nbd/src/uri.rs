//! Where a server is, in the ways people write it.
//!
//! - `nbd://HOST[:PORT][/EXPORT]`, `nbd+unix:///[EXPORT]?socket=PATH` (the NBD project's URI specification)
//! - `nbd:unix:PATH[:exportname=EXPORT]`, `nbd:HOST:PORT[:exportname=EXPORT]` (QEMU before URIs)

use std::fmt;

/// A place to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A Unix socket.
    Unix(String),
    /// A host and a port.
    Tcp(String, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => f.write_str(path),
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// One export of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Where the server is.
    pub address: Address,
    /// Name of the export, empty for the default one.
    pub export: String,
}

/// The port NBD has at IANA.
pub const DEFAULT_PORT: u16 = 10809;

/// A name that means no server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{name}': {why}")]
pub struct UriError {
    /// What was given.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Whether `name` looks like one of ours; [`parse`] may still refuse it.
pub fn is_nbd(name: &str) -> bool {
    ["nbd:", "nbd+", "nbds:", "nbds+"].iter().any(|prefix| name.starts_with(prefix))
}

/// Takes a name apart.
///
/// # Errors
/// [`UriError`], also for the schemes that are not served: TLS and vsock.
pub fn parse(name: &str) -> Result<Target, UriError> {
    let parsed = match name.split_once("://") {
        Some((scheme, rest)) => parse_uri(scheme, rest),
        None => parse_legacy(name),
    };
    parsed.map_err(|why| UriError { name: name.to_owned(), why })
}

fn parse_uri(scheme: &str, rest: &str) -> Result<Target, &'static str> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = percent_decode(export).ok_or("a '%' without two hexadecimal digits, or no UTF-8")?;
    let address = match scheme {
        "nbd" | "nbd+tcp" => {
            if query.split('&').any(|part| part.starts_with("socket=")) {
                return Err("'socket' belongs to nbd+unix://");
            }
            host_and_port(authority)?
        }
        "nbd+unix" => {
            if !authority.is_empty() {
                return Err("nbd+unix:// is followed by a third '/', and the socket is '?socket=PATH'");
            }
            let socket = query.split('&').find_map(|part| part.strip_prefix("socket="));
            let path = socket.filter(|path| !path.is_empty()).ok_or("nbd+unix:// needs '?socket=PATH'")?;
            Address::Unix(percent_decode(path).ok_or("a '%' without two hexadecimal digits, or no UTF-8")?)
        }
        "nbds" | "nbds+tcp" | "nbds+unix" => return Err("TLS is not supported on this side"),
        _ => return Err("no such transport; there are nbd:// and nbd+unix://"),
    };
    Ok(Target { address, export })
}

fn host_and_port(authority: &str) -> Result<Address, &'static str> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(port) => port.parse().map_err(|_| "a port is a number up to 65535")?,
    };
    Ok(Address::Tcp(if host.is_empty() { "localhost".to_owned() } else { host.to_owned() }, port))
}

fn parse_legacy(name: &str) -> Result<Target, &'static str> {
    let rest = name.strip_prefix("nbd:").ok_or("not an NBD name")?;
    let (rest, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
    let address = match rest.strip_prefix("unix:") {
        Some("") => return Err("'nbd:unix:' is followed by the path of a socket"),
        Some(path) => Address::Unix(path.to_owned()),
        None => {
            let (host, port) = rest.rsplit_once(':').ok_or("'nbd:HOST:PORT' needs a port")?;
            let port = port.parse().map_err(|_| "a port is a number up to 65535")?;
            Address::Tcp(host.trim_start_matches('[').trim_end_matches(']').to_owned(), port)
        }
    };
    Ok(Target { address, export: export.to_owned() })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers() {
        let unix = |path: &str| Address::Unix(path.to_owned());
        let tcp = |host: &str, port| Address::Tcp(host.to_owned(), port);
        let cases = [
            ("nbd://localhost", tcp("localhost", 10809), ""),
            ("nbd://example.org:99/disk", tcp("example.org", 99), "disk"),
            ("nbd://[::1]:7/a%2fb%20c", tcp("::1", 7), "a/b c"),
            ("nbd://[::1]", tcp("::1", 10809), ""),
            ("nbd://", tcp("localhost", 10809), ""),
            ("nbd+tcp://h/", tcp("h", 10809), ""),
            ("nbd://h//x", tcp("h", 10809), "/x"),
            ("nbd+unix:///?socket=/run/a%20b", unix("/run/a b"), ""),
            ("nbd+unix:///disk?socket=rel", unix("rel"), "disk"),
            ("nbd:unix:/run/s", unix("/run/s"), ""),
            ("nbd:unix:/run/s:exportname=a:b", unix("/run/s"), "a:b"),
            ("nbd:host:1234", tcp("host", 1234), ""),
            ("nbd:[::1]:1234:exportname=x", tcp("::1", 1234), "x"),
        ];
        for (name, address, export) in cases {
            assert_eq!(parse(name), Ok(Target { address, export: export.to_owned() }), "{name}");
            assert!(is_nbd(name), "{name}");
        }
        for name in [
            "nbd:",
            "nbd:host",
            "nbd:host:port",
            "nbd:unix:",
            "nbd://h:70000",
            "nbd://h/%zz",
            "nbd://h/%+1",
            "nbd://h/%f",
            "nbd://h/?socket=x",
            "nbd+unix:///",
            "nbd+unix:///?socket=",
            "nbd+unix://path",
            "nbd+vsock://1",
            "nbds://h",
            "nbds+unix:///?socket=x",
        ] {
            assert!(parse(name).is_err(), "{name}");
        }
    }
}
