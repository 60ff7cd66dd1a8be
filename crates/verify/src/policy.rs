//! What is done about a mismatch.

/// What the mirror does about a mismatch, besides telling the [`Sink`](crate::Sink).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum OnMismatch {
    /// Goes on: the client gets what TEST answered.
    #[default]
    Report,
    /// Fails the request with EIO; [`first_bad`](blkproof_block::IoError::first_bad) is the first byte of the first bad
    /// sector.
    Fail,
    /// As `Report`; the program that owns the sink exits with status 1.
    Exit,
    /// The client gets what RAW answered.
    RepairView,
}

impl OnMismatch {
    /// The words of the `on-mismatch` option.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("report", Self::Report), ("fail", Self::Fail), ("exit", Self::Exit), ("repair-view", Self::RepairView)];
}
