//! What commands need of the process around them.

/// The process: it has files and an end, this library has neither.
pub trait Host {
    /// Ends the process as SIGTERM does. Returns at once: the reply goes out first.
    fn quit(&self);
}
