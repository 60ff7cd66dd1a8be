//! Runs that do not end.

use std::fmt;

use crate::key::Owner;

/// Why a run can not go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stuck {
    /// Tasks wait, and nothing is left that could wake them: a lock never released, a request never answered.
    Deadlock {
        /// Whose tasks.
        owners: Vec<Owner>,
    },
    /// Tasks wait that could go on: what they waited for has come, and nobody woke them.
    LostWakeUp {
        /// Whose tasks.
        owners: Vec<Owner>,
    },
    /// No end in sight.
    BusyLoop {
        /// Moves taken.
        steps: u64,
        /// Whose tasks are running.
        owners: Vec<Owner>,
    },
}

impl Stuck {
    /// Whose tasks wait.
    pub fn owners(&self) -> &[Owner] {
        match self {
            Self::Deadlock { owners } | Self::LostWakeUp { owners } | Self::BusyLoop { owners, .. } => owners,
        }
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owners: Vec<_> = self.owners().iter().map(|owner| owner.0.to_string()).collect();
        let owners = owners.join(", ");
        match self {
            Self::Deadlock { .. } => write!(f, "deadlock: {owners} wait, and nothing is left that could wake them"),
            Self::LostWakeUp { .. } => write!(f, "lost wake-up: {owners} could go on, and nobody woke them"),
            Self::BusyLoop { steps, .. } => write!(f, "busy loop: after {steps} moves {owners} are still running"),
        }
    }
}

impl std::error::Error for Stuck {}
