//! What a finding's code is: a stable name, what it means, and where the specification says so; and the codes every
//! format shares. Each format declares its own, [`crate::catalogue`] lists them all.

use std::fmt;

/// What a finding means for the one who owns the data. Ordered: the worst is greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing, entirely legal.
    Note,
    /// Against the specification or a trap for other programs; no data is lost by it.
    Warning,
    /// Space that nothing refers to.
    Leak,
    /// Data is lost or wrong, or will be by the next write.
    Corruption,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Leak => "leak",
            Self::Corruption => "corruption",
        })
    }
}

/// A kind of finding. Two codes are the same if their names are.
#[derive(Debug)]
pub struct Code {
    /// `FORMAT-WHERE-WHAT`, upper case; never renamed, never used for anything else.
    pub name: &'static str,
    /// How bad it is unless the finding itself says otherwise.
    pub severity: Severity,
    /// One line: what was seen.
    pub title: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// What most often causes it.
    pub cause: &'static str,
    /// The next safe step.
    pub next: &'static str,
    /// The specification's section.
    pub spec: &'static str,
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Code {}

impl PartialOrd for Code {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Code {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name.cmp(other.name)
    }
}

/// Declares the codes of one format: a constant each, and `ALL`, a slice of them in the order written.
macro_rules! codes {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $severity:ident,
        title: $title:literal, why: $why:literal, cause: $cause:literal, next: $next:literal, spec: $spec:literal;)*) => {
        $(
            $(#[$doc])*
            #[doc = $title]
            #[allow(unreachable_pub, reason = "a format's codes are reached through the catalogue, the shared ones by name")]
            pub const $id: &crate::code::Code = &crate::code::Code {
                name: $name,
                severity: crate::code::Severity::$severity,
                title: $title,
                why: $why,
                cause: $cause,
                next: $next,
                spec: $spec,
            };
        )*
        /// Every code of this format.
        #[allow(unreachable_pub, reason = "as above")]
        pub const ALL: &[&crate::code::Code] = &[$($id),*];
    };
}
pub(crate) use codes;

/// Codes every format shares.
pub mod general {
    codes! {
        UNREADABLE = "IMAGE-UNREADABLE", Corruption,
            title: "a part of the image file can not be read",
            why: "whatever lies there is lost unless the medium recovers; what depends on it could not be checked",
            cause: "a failing disk, a broken network file system",
            next: "copy the image with ddrescue to a sound disk and check the copy",
            spec: "none: the operating system reported it";
        SHRANK = "IMAGE-CHANGED", Warning,
            title: "the image changed while it was read",
            why: "tables read at different moments do not fit together: findings may be of that making",
            cause: "a virtual machine or another program has the image open for writing",
            next: "stop the writer, or check a snapshot of the image",
            spec: "none: the file's length or time of change moved";
        IN_USE = "IMAGE-IN-USE", Warning,
            title: "another process holds the image open for writing",
            why: "what it has in memory is not in the file yet: leaks and stale counts are normal in this state",
            cause: "a running virtual machine",
            next: "stop the writer, or check a snapshot of the image",
            spec: "none: a lock is held on the file";
        POLICY_REFERENCE = "IMAGE-POLICY-REFERENCE", Warning,
            title: "an image of unknown origin names another file",
            why: "a program that opens it reads, or writes, whatever file of the host stands behind that name (CVE-2024-32498, CVE-2014-0134)",
            cause: "an overlay that was handed over without its parent, or an attempt to read the host's files",
            next: "do not attach it; ask for an image without a parent, or flatten it where the parent is known",
            spec: "none: security practice";
        LOOKS_LIKE = "RAW-LOOKS-LIKE-IMAGE", Warning,
            title: "a disk stated to be raw begins with the magic of an image format",
            why: "a guest can write that itself; a host that guesses the format then opens whatever the guest names (CVE-2026-27211, CVE-2008-2004)",
            cause: "a guest's doing, or an image of that format whose format was stated wrongly",
            next: "always state the format when this disk is attached",
            spec: "none: security practice";
    }
}
