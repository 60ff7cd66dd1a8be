//! Every field of a rule file, by the table it stands in. The reader refuses what is not here, the schema is tested
//! against it.

/// Of the file.
pub const FILE: &[&str] = &["lba-size", "seed", "state", "rule"];
/// Of a rule.
pub const RULE: &[&str] = &["id", "on", "do", "then", "life"];
/// Of `on`.
pub const ON: &[&str] = &[
    "op",
    "lba",
    "bytes",
    "event",
    "nth",
    "every",
    "probability",
    "times",
    "state",
    "after",
    "before",
    "slower-than",
    "faster-than",
];
/// Of `then`.
pub const THEN: &[&str] = &["state", "disarm", "cure"];
/// Of `life`.
pub const LIFE: &[&str] = &["preset", "until", "accesses", "growth", "rot"];
/// Of `life.growth`.
pub const GROWTH: &[&str] = &["each", "limit"];
/// Of `life.rot`.
pub const ROT: &[&str] = &["half"];
/// Of a time that is drawn: `do.wait`.
pub const DELAY: &[&str] = &["time", "mean", "deviation"];

/// An action: its name, and the fields it takes beside `action`.
#[derive(Clone, Copy, Debug)]
pub struct ActionFields {
    /// As in `action = "fail"`.
    pub name: &'static str,
    /// The field that `fail = …` in place of `action = "fail"` is the value of.
    pub main: Option<&'static str>,
    /// Every field, the main one included.
    pub fields: &'static [&'static str],
    /// Whether `do = "fail"` says enough.
    pub alone: bool,
}

const fn action(
    name: &'static str,
    main: Option<&'static str>,
    fields: &'static [&'static str],
    alone: bool,
) -> ActionFields {
    ActionFields { name, main, fields, alone }
}

/// Every action.
pub const ACTIONS: &[ActionFields] = &[
    action("none", None, &[], true),
    action("pass", None, &[], true),
    action("fail", Some("error"), &["error", "done", "wait"], true),
    action("short", Some("cut"), &["cut", "error"], true),
    action("torn", Some("cut"), &["cut"], true),
    action("phantom", None, &[], true),
    action("corrupt", Some("how"), &["how", "bits", "bit", "value", "distance", "sectors"], true),
    action("misdirect", Some("by-lba"), &["by-lba", "by-bytes", "to-lba", "to-bytes"], false),
    action("delay", Some("time"), &["time", "mean", "deviation"], false),
    action("hold", Some("tag"), &["tag"], true),
    action("hang", None, &[], true),
    action("disconnect", Some("done"), &["done"], true),
    action("ask", Some("timeout"), &["timeout", "default", "data"], true),
    action("power-cut", Some("state"), &["state", "disk", "done"], true),
    action("recovered", Some("error"), &["error"], true),
];

/// Of a lab file.
pub const LAB: &[&str] =
    &["listen", "control", "prometheus", "seed", "on-mismatch", "max-connections", "max-in-flight", "export"];
/// Of an export in a lab file, beside those of a rule file.
pub const EXPORT: &[&str] = &[
    "name",
    "description",
    "graph",
    "format",
    "image-opts",
    "allow-backing",
    "read-only",
    "force-share",
    "cache",
    "disk",
    "log",
    "trace",
    "stats",
    "rules",
];
