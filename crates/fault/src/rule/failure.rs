//! The error a rule injects, in the words of a device.
//!
//! | written | is |
//! |---|---|
//! | `EIO`, `5` | an errno |
//! | `03/1101`, `3/11/01` | SCSI sense: key, ASC and ASCQ in hex (SPC) |
//! | `nvme:2/81`, with `dnr`, `more`, `crd=1` behind it | NVMe status: SCT and SC in hex (NVMe Base, "Status Field") |
//! | `ata:UNC`, `ata:IDNF`, `ata:ABRT`, `ata:51/40` | ATA status and error registers in hex (ACS) |

use std::fmt;

use blkproof_block::{ByteOffset, DeviceError, Errno, IoError, RuleId};

/// An error to be injected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What every front end can say.
    pub errno: Errno,
    /// What a device of some kind says; front ends of another kind translate it.
    pub device: Option<DeviceError>,
}

/// A text that names no error.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{text}' is no error: {why}")]
pub struct FailureError {
    text: String,
    why: String,
}

const ERRNOS: &[(&str, i32)] = &[
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EINTR", 4),
    ("EIO", 5),
    ("ENXIO", 6),
    ("EBADF", 9),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EBUSY", 16),
    ("ENODEV", 19),
    ("EINVAL", 22),
    ("EFBIG", 27),
    ("ENOSPC", 28),
    ("EROFS", 30),
    ("ERANGE", 34),
    ("EBADE", 52),
    ("ENODATA", 61),
    ("ENOLINK", 67),
    ("EREMOTEIO", 121),
    ("EOVERFLOW", 75),
    ("EILSEQ", 84),
    ("EOPNOTSUPP", 95),
    ("ENOTSUP", 95),
    ("ENOTCONN", 107),
    ("ESHUTDOWN", 108),
    ("ETIMEDOUT", 110),
    ("EDQUOT", 122),
    ("ENOMEDIUM", 123),
];

/// Bits of the ATA error register by name (ACS, "Error field").
const ATA_ERRORS: &[(&str, u8)] = &[
    ("ICRC", 0x84),
    ("UNC", 0x40),
    ("MC", 0x20),
    ("IDNF", 0x10),
    ("MCR", 0x08),
    ("ABRT", 0x04),
    ("NM", 0x02),
    ("AMNF", 0x01),
];

/// DRDY and ERR.
const ATA_ERR: u8 = 0x41;

impl Failure {
    /// An errno alone.
    pub const fn errno(errno: Errno) -> Self {
        Self { errno, device: None }
    }

    /// What a device said, with the errno that Linux makes of it (fault-devices.md 3.3, 3.5).
    pub const fn device(device: DeviceError) -> Self {
        let errno = match device {
            DeviceError::Scsi { key: 3, .. } => Errno::IO,
            DeviceError::Scsi { key: 7, asc: 0x27, ascq: 7 } => Errno::NOSPC,
            DeviceError::Scsi { key: 7, .. } => Errno::PERM,
            DeviceError::Scsi { key: 5, .. } => Errno::INVAL,
            DeviceError::Scsi { key: 2, asc: 0x3a, .. } => Errno::NOMEDIUM,
            DeviceError::Nvme { sct: 0, sc: 0x81, .. } => Errno::NOSPC,
            DeviceError::Nvme { sct: 0, sc: 0x20, .. } | DeviceError::Nvme { sct: 1, sc: 0x82, .. } => Errno::PERM,
            DeviceError::Nvme { sct: 0, sc: 0x01 | 0x02 | 0x80, .. } => Errno::INVAL,
            _ => Errno::IO,
        };
        Self { errno, device: Some(device) }
    }

    /// Reads an error as it is written in rule files and commands: `EIO`, `28`, `03/1101`, `nvme:2/81 dnr`, `ata:UNC`.
    ///
    /// # Errors
    /// With what would have been right.
    pub fn parse(text: &str) -> Result<Self, FailureError> {
        let fail = |why: &str| FailureError { text: text.to_owned(), why: why.to_owned() };
        let words = text.trim();
        if let Some(rest) = words.strip_prefix("nvme:") {
            return nvme(rest).map(Self::device).ok_or_else(|| {
                fail("NVMe status is written nvme:SCT/SC in hex, with dnr, more and crd=0..3 behind it, as in nvme:2/81 dnr")
            });
        }
        if let Some(rest) = words.strip_prefix("ata:") {
            return ata(rest).map(Self::device).ok_or_else(|| {
                fail("ATA registers are written ata:STATUS/ERROR in hex, or as ata:UNC, IDNF, ABRT, AMNF, ICRC")
            });
        }
        if words.contains('/') {
            return scsi(words)
                .map(Self::device)
                .ok_or_else(|| fail("sense is written KEY/ASC/ASCQ or KEY/ASCASCQ in hex, as in 03/1101"));
        }
        if let Some(&(_, number)) = ERRNOS.iter().find(|(name, _)| name.eq_ignore_ascii_case(words)) {
            return Ok(Self::errno(Errno(number)));
        }
        match words.parse::<i32>() {
            Ok(number @ 1..=4095) => Ok(Self::errno(Errno(number))),
            Ok(_) => Err(fail("error numbers go from 1 to 4095")),
            Err(_) => Err(fail("write an errno (EIO, 28), SCSI sense (03/1101), nvme:2/81 or ata:UNC")),
        }
    }

    /// The error a client gets, with its rule, and its place if there is one.
    pub fn error(self, rule: &RuleId, first_bad: Option<u64>) -> IoError {
        IoError {
            first_bad: first_bad.map(ByteOffset),
            device: self.device,
            injected_by: Some(rule.clone()),
            ..IoError::new(self.errno)
        }
    }
}

fn hex(text: &str, max: u8) -> Option<u8> {
    // `from_str_radix` takes a sign.
    let number = u8::from_str_radix(text, 16).ok()?;
    (number <= max && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(number)
}

fn scsi(text: &str) -> Option<DeviceError> {
    let (key, rest) = text.split_once('/')?;
    let (asc, ascq) = match rest.split_once('/') {
        Some(parts) => parts,
        None if rest.len() == 4 => rest.split_at_checked(2)?,
        None => return None,
    };
    Some(DeviceError::Scsi { key: hex(key, 0xf)?, asc: hex(asc, 0xff)?, ascq: hex(ascq, 0xff)? })
}

fn nvme(text: &str) -> Option<DeviceError> {
    let mut words = text.split([' ', ',']).filter(|word| !word.is_empty());
    let (sct, sc) = words.next()?.split_once('/')?;
    let (mut dnr, mut more, mut crd) = (false, false, 0);
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "dnr" => dnr = true,
            "more" => more = true,
            word => crd = hex(word.strip_prefix("crd=")?, 3)?,
        }
    }
    Some(DeviceError::Nvme { sct: hex(sct, 7)?, sc: hex(sc, 0xff)?, dnr, crd, more })
}

fn ata(text: &str) -> Option<DeviceError> {
    if let Some((_, error)) = ATA_ERRORS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        return Some(DeviceError::Ata { status: ATA_ERR, error: *error });
    }
    let (status, error) = text.split_once('/')?;
    Some(DeviceError::Ata { status: hex(status, 0xff)?, error: hex(error, 0xff)? })
}

impl fmt::Display for Failure {
    /// As [`parse`](Self::parse) reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            Some(DeviceError::Scsi { key, asc, ascq }) => write!(f, "{key:02x}/{asc:02x}{ascq:02x}"),
            Some(DeviceError::Nvme { sct, sc, dnr, crd, more }) => {
                write!(f, "nvme:{sct:x}/{sc:02x}")?;
                if dnr {
                    write!(f, " dnr")?;
                }
                if more {
                    write!(f, " more")?;
                }
                if crd > 0 {
                    write!(f, " crd={crd}")?;
                }
                Ok(())
            }
            Some(DeviceError::Ata { status, error }) => write!(f, "ata:{status:02x}/{error:02x}"),
            None => match ERRNOS.iter().find(|(_, number)| *number == self.errno.0) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "{}", self.errno.0),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_and_written() {
        let scsi = DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 };
        let nvme = DeviceError::Nvme { sct: 2, sc: 0x81, dnr: true, crd: 2, more: true };
        let ata = DeviceError::Ata { status: 0x41, error: 0x40 };
        for (text, want, shown) in [
            ("EIO", Failure::errno(Errno::IO), "EIO"),
            ("28", Failure::errno(Errno::NOSPC), "ENOSPC"),
            ("999", Failure::errno(Errno(999)), "999"),
            ("03/1101", Failure::device(scsi), "03/1101"),
            ("3/11/1", Failure::device(scsi), "03/1101"),
            ("nvme:2/81 dnr more crd=2", Failure::device(nvme), "nvme:2/81 dnr more crd=2"),
            ("ata:UNC", Failure::device(ata), "ata:41/40"),
        ] {
            let got = Failure::parse(text).unwrap();
            assert_eq!(got, want, "{text}");
            assert_eq!(got.to_string(), shown);
            assert_eq!(Failure::parse(shown).unwrap(), got, "{shown}");
        }
    }

    #[test]
    fn what_is_no_error_is_refused_with_an_example() {
        for text in [
            "",
            "EWHAT",
            "0",
            "-5",
            "4096",
            "03/",
            "13/1101",
            "3/+1/01",
            "3/110",
            "nvme:8/81",
            "nvme:2/81 crd=4",
            "ata:",
            "ata:X",
        ] {
            let error = Failure::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{text}' is no error: ")), "{error}");
        }
    }
}
