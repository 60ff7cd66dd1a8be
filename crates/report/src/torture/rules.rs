//! The rules that findings break (CM 5.7), and how bad that is (CM 12.1).

/// How bad a finding is; the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Data that the driver had acknowledged is gone.
    LostData,
    /// The client reads what it must not.
    WrongData,
    /// The image file is damaged.
    Corrupt,
    /// The image does not open, or the driver dies.
    Unavailable,
    /// A request does not end.
    Hang,
    /// An error where none may be, or none where one must be.
    ErrorContract,
    /// Space or something else is not given back.
    Leak,
    /// Something is wrong with the test, not with the driver.
    Test,
}

impl Severity {
    /// In words, as reports say it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LostData => "lost acknowledged data",
            Self::WrongData => "wrong data",
            Self::Corrupt => "format corrupt",
            Self::Unavailable => "unavailable",
            Self::Hang => "hang",
            Self::ErrorContract => "error contract",
            Self::Leak => "leak",
            Self::Test => "test",
        }
    }
}

/// What a code stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The code.
    pub code: &'static str,
    /// The section of the correctness model.
    pub section: &'static str,
    /// How bad it is to break it.
    pub severity: Severity,
    /// What must hold.
    pub holds: &'static str,
}

/// All of them, in the order of the model.
pub static ALL: &[Rule] = &{
    use Severity::*;
    [
        rule("foreign", "CM 3.2", WrongData, "only what was written to a place is read there"),
        rule("read", "CM 4.2", LostData, "a read finds the last content that was acknowledged, or one under way"),
        rule("inversion", "CM 4.2 (2)", WrongData, "a later read finds nothing older than an earlier read"),
        rule("error-contract", "CM 4.2 (5)", ErrorContract, "requests fail if and only if something below them failed"),
        rule("failed-write", "CM 4.3", WrongData, "a failed write was done or not, and stays so once it was seen"),
        rule("overlap", "CM 4.4", WrongData, "of writes that overlap in time and place, one of the last is read"),
        rule(
            "cancel",
            "CM 4.5",
            WrongData,
            "a dropped request lands in its own range, before the next drain, or never",
        ),
        rule(
            "flush",
            "CM 4.6, 4.7",
            LostData,
            "what completed before a flush was sent survives once that flush succeeded",
        ),
        rule("fua", "CM 4.8", LostData, "a request with FUA is durable when it completes"),
        rule("discard", "CM 4.10", WrongData, "what was discarded reads as before or as zeroes, and then stays so"),
        rule("zero", "CM 4.11", WrongData, "what was zeroed reads as zeroes"),
        rule(
            "resize",
            "CM 4.12",
            WrongData,
            "what a resize adds reads as zeroes, and what it cut off does not come back",
        ),
        rule("map", "CM 4.13", WrongData, "what is said to be zero reads as zeroes"),
        rule("reopen", "CM 4.14", LostData, "closing and opening an image changes nothing"),
        rule("leak", "CM 4.15", Leak, "nothing is left over when all is done"),
        rule("hang", "CM 4.15", Hang, "every request ends"),
        rule("panic", "CM 9.2 (4)", Unavailable, "the driver does not panic"),
        rule("open", "CM 4.14", Unavailable, "an image that was closed opens again"),
        rule("I1", "CM 5.7, I1", Unavailable, "after a power cut the image opens"),
        rule("I2", "CM 5.7, I2", Corrupt, "the format check finds no damage"),
        rule("I3", "CM 5.7, I3", LostData, "after a power cut what was durable is read, and nothing older"),
        rule("I6", "CM 5.7, I6", WrongData, "after a power cut reads agree, across closing and opening too"),
        rule("I7", "CM 5.7, I7", Corrupt, "an image that was closed needs no repair"),
        rule("I8", "CM 5.7, I8", Unavailable, "after a power cut the image can be written"),
        rule("I9", "CM 5.7, I9", Corrupt, "after a power cut the image has a size that it was given"),
        rule("I10", "CM 5.7, I10", Corrupt, "an image that is opened to be read is not changed"),
        rule("nondeterminism", "CM 9.3", Test, "one plan makes one run"),
        rule("create", "CM 13", Test, "the image can be made"),
        rule("plan", "CM 8", Test, "a plan names what there is"),
    ]
};

/// A code that nobody here knows.
pub(super) static OTHER: Rule =
    rule("other", "CM 5.7", Severity::WrongData, "what the target declared beyond the rules for all");

const fn rule(code: &'static str, section: &'static str, severity: Severity, holds: &'static str) -> Rule {
    Rule { code, section, severity, holds }
}

/// The rule of that code.
#[must_use]
pub fn of(code: &str) -> &'static Rule {
    ALL.iter().find(|rule| rule.code == code).unwrap_or(&OTHER)
}
