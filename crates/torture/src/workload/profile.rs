//! How much is spent on a seed.

/// How much is spent on a seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// Ops of the shortest plan.
    pub ops_min: u32,
    /// Ops of the longest plan; short ones are the commoner ones.
    pub ops_max: u32,
    /// Of a thousand seeds, those that look for power cuts everywhere.
    pub crash_rate: u32,
    /// States of one moment, at most (CM 5.4).
    pub states: u32,
    /// Of a thousand of those that look for cuts, those that look for cuts during recovery too.
    pub deep_rate: u32,
    /// Cuts during the recovery from a cut, for those that look for them.
    pub depth: u8,
}

impl Profile {
    /// For a test that runs with every build: many short plans.
    pub const QUICK: Self =
        Self { name: "quick", ops_min: 4, ops_max: 80, crash_rate: 400, states: 64, deep_rate: 100, depth: 1 };
    /// For a run at every change.
    pub const CI: Self =
        Self { name: "ci", ops_min: 8, ops_max: 250, crash_rate: 500, states: 256, deep_rate: 200, depth: 1 };
    /// For nights.
    pub const DEEP: Self =
        Self { name: "deep", ops_min: 16, ops_max: 2000, crash_rate: 600, states: 4096, deep_rate: 400, depth: 2 };

    /// The same for a sweep, which runs each plan several times for each request below: so much shorter, and with power
    /// cuts only where there is time for them.
    #[must_use]
    pub fn swept(self) -> Self {
        Self {
            ops_min: 2,
            ops_max: (self.ops_max / 10).clamp(2, 64),
            crash_rate: if self.name == Self::QUICK.name { 0 } else { self.crash_rate / 5 },
            states: (self.states / 16).max(1),
            ..self
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::QUICK, Self::CI, Self::DEEP];

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }
}
