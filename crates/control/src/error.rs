//! What a command answers that could not be done.

use blkproof_block::IoError;

/// The kind of a failure, in QMP's words. Programs look at this and not at the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Anything else.
    GenericError,
    /// There is no such command, or not yet.
    CommandNotFound,
    /// There is no node of that name.
    DeviceNotFound,
    /// The node is not in a state for it: its power is off, it records nothing.
    DeviceNotActive,
}

impl Class {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
        }
    }
}

/// A command that could not be done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{desc}")]
pub struct Error {
    /// Its kind.
    pub class: Class,
    /// What is wrong, for people.
    pub desc: String,
}

impl Error {
    /// One of no special kind.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: Class::GenericError, desc: desc.into() }
    }

    /// One of a kind.
    pub fn new(class: Class, desc: impl Into<String>) -> Self {
        Self { class, desc: desc.into() }
    }
}

impl From<IoError> for Error {
    fn from(error: IoError) -> Self {
        Self::generic(error.to_string())
    }
}
