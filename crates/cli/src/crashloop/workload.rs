//! What is run and what checks it: the user's commands, or one of those that come with the program.

use std::path::Path;

use super::program::quoted;

/// A database whose files lie on the disk without a file system.
pub(super) const SQLITE: &str = include_str!("sqlite.py");

/// A workload that comes with the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BuiltIn {
    pub(super) name: &'static str,
    journal: &'static str,
    synchronous: &'static str,
}

const BUILT_IN: &[BuiltIn] = &[
    // FULL does not make the removal of the journal durable, by which a transaction is committed; EXTRA does.
    BuiltIn { name: "sqlite", journal: "delete", synchronous: "EXTRA" },
    BuiltIn { name: "sqlite-full", journal: "delete", synchronous: "FULL" },
    BuiltIn { name: "sqlite-truncate", journal: "truncate", synchronous: "FULL" },
    BuiltIn { name: "sqlite-persist", journal: "persist", synchronous: "FULL" },
    BuiltIn { name: "sqlite-wal", journal: "wal", synchronous: "FULL" },
    // Never flushes: loses data on any disk, which shows that a loss is seen.
    BuiltIn { name: "sqlite-off", journal: "delete", synchronous: "OFF" },
];

impl BuiltIn {
    /// The workload of that name.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        let found = BUILT_IN.iter().find(|workload| workload.name == name);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = BUILT_IN.iter().map(|workload| workload.name).collect();
            format!("'{name}' is no workload; there are {}", names.join(", "))
        })
    }
}

/// Command lines with placeholders.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Workload {
    pub(super) name: String,
    pub(super) setup: Option<String>,
    pub(super) run: String,
    pub(super) check: String,
}

impl Workload {
    /// A built-in one, whose program stands in `dir`.
    pub(super) fn built_in(workload: BuiltIn, setup: Option<String>, dir: &Path) -> Self {
        let BuiltIn { name, journal, synchronous } = workload;
        // The packages it needs are Debian's, and so is the Python that finds them.
        let python = if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
        let script = quoted(&dir.join("sqlite.py").to_string_lossy());
        let common = format!("--uri {{uri}} --seed {{seed}} --journal {journal}");
        Self {
            name: name.to_owned(),
            setup,
            run: format!("exec {python} {script} run {common} --synchronous {synchronous}"),
            check: format!("exec {python} {script} check {common} --acknowledged {{acknowledged}}"),
        }
    }
}

/// What stands for placeholders.
pub(super) struct Values<'a> {
    pub(super) uri: &'a str,
    pub(super) socket: &'a str,
    pub(super) acknowledged: &'a str,
    pub(super) dir: &'a str,
    pub(super) seed: u64,
    pub(super) cut: u64,
}

impl Values<'_> {
    /// The command line with its placeholders replaced, each by one word of the shell.
    pub(super) fn fill(&self, line: &str) -> String {
        let values = [
            ("{uri}", quoted(self.uri)),
            ("{socket}", quoted(self.socket)),
            ("{acknowledged}", quoted(self.acknowledged)),
            ("{dir}", quoted(self.dir)),
            ("{seed}", self.seed.to_string()),
            ("{cut}", self.cut.to_string()),
        ];
        let mut filled = String::new();
        let mut rest = line;
        while let Some(at) = rest.find('{') {
            let (before, here) = rest.split_at(at);
            filled.push_str(before);
            match values.iter().find(|(name, _)| here.starts_with(name)) {
                Some((name, value)) => {
                    filled.push_str(value);
                    rest = here.strip_prefix(name).unwrap_or_default();
                }
                None => {
                    filled.push('{');
                    rest = here.strip_prefix('{').unwrap_or_default();
                }
            }
        }
        filled.push_str(rest);
        filled
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_become_one_word_each() {
        let values = Values {
            uri: "nbd+unix:///?socket=/a b",
            socket: "it's",
            acknowledged: "{uri}",
            dir: "d",
            seed: 7,
            cut: 3,
        };
        for (line, want) in [
            ("x {uri} y", "x 'nbd+unix:///?socket=/a b' y"),
            ("{socket}", r"'it'\''s'"),
            ("{acknowledged}{seed}-{cut}", "'{uri}'7-3"),
            ("awk '{print}' {dir}", "awk '{print}' 'd'"),
            ("${x} {", "${x} {"),
            ("", ""),
        ] {
            assert_eq!(values.fill(line), want, "{line}");
        }
    }

    #[test]
    fn unknown_workloads_are_refused_with_the_known_ones() {
        assert_eq!(BuiltIn::parse("sqlite-wal").unwrap().journal, "wal");
        assert!(BuiltIn::parse("postgres").unwrap_err().contains("there are sqlite, sqlite-full"));
    }
}
