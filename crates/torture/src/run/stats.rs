//! What was done.

/// Figures of a run, or of many together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Client requests sent.
    pub ops: u64,
    /// Moves taken.
    pub moves: u64,
    /// Requests to the disk below.
    pub ios: u64,
    /// Of these, failed on purpose.
    pub faults: u64,
    /// Client requests dropped.
    pub drops: u64,
    /// Bytes read back and judged.
    pub judged: u64,
    /// Times the image was opened anew.
    pub reopens: u64,
    /// Moments at which power cuts were looked into.
    pub points: u64,
    /// Of these, all states of which were.
    pub exhausted: u64,
    /// States that those moments have, as far as that is a number.
    pub possible: u64,
    /// States built.
    pub states: u64,
    /// States opened and judged: the others were equal to one of these.
    pub distinct: u64,
    /// Format checks made.
    pub checks: u64,
}

impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        let Self {
            ops,
            moves,
            ios,
            faults,
            drops,
            judged,
            reopens,
            points,
            exhausted,
            possible,
            states,
            distinct,
            checks,
        } = other;
        for (sum, more) in [
            (&mut self.ops, ops),
            (&mut self.moves, moves),
            (&mut self.ios, ios),
            (&mut self.faults, faults),
            (&mut self.drops, drops),
            (&mut self.judged, judged),
            (&mut self.reopens, reopens),
            (&mut self.points, points),
            (&mut self.exhausted, exhausted),
            (&mut self.possible, possible),
            (&mut self.states, states),
            (&mut self.distinct, distinct),
            (&mut self.checks, checks),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}
