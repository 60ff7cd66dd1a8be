//! What can lose its power: rules cut it without knowing what a disk is.

use std::rc::Rc;

use blkproof_block::{IoError, LocalBoxFuture};

/// A disk's power switch.
pub trait Power {
    /// Cuts the power. When this completes the disk is in its new state: `state` names it, or the disk's seed picks it.
    /// Requests in flight below have failed. Never waits for requests *above* the disk: one of them may be the caller.
    ///
    /// # Errors
    /// If there is no such state, or the medium fails.
    fn cut<'a>(&'a self, state: Option<&'a str>) -> LocalBoxFuture<'a, Result<(), IoError>>;
}

/// A disk by its node name.
#[derive(Clone)]
pub struct Switch {
    /// The disk's node name.
    pub name: Rc<str>,
    /// Its switch.
    pub power: Rc<dyn Power>,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Switch({})", self.name)
    }
}
