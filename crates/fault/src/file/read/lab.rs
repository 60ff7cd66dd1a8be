//! Lab files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use blkproof_block::graph::{CacheMode, Options};

use super::{Field, Reader};
use crate::disk::{DiskOptions, parse_options, take_options};
use crate::file::FILE_MAX;
use crate::file::fields;
use crate::file::lab::{EXPORTS_MAX, ExportEntry, LabFile, Written};
use crate::file::mistake::{Mistake, Mistakes};
use crate::file::tree::{Lines, Tree, Value};
use crate::rule::RuleSet;

/// Bytes of the longest name, or description, NBD knows.
const EXPORT_NAME_MAX: usize = 4096;

pub(in crate::file) fn file(file: &str, text: &str) -> Result<LabFile, Mistakes> {
    if text.len() > FILE_MAX {
        let words = format!("the file has {} bytes; {FILE_MAX} at most are read", text.len());
        let list = vec![Mistake { place: None, rule: None, field: String::new(), words }];
        return Err(Mistakes { file: file.to_owned(), list, more: 0 });
    }
    let lines = Lines::new(text);
    let tree = Tree::from_toml(text, &lines).map_err(|list| Mistakes { file: file.to_owned(), list, more: 0 })?;
    let mut reader = Reader::new(Some(&lines));
    let read = reader.lab(&tree);
    let warnings = reader.finish(file)?;
    // Without a mistake there is a lab.
    let read = read.ok_or_else(|| Mistakes { file: file.to_owned(), list: Vec::new(), more: 0 })?;
    Ok(LabFile { warnings, ..read })
}

impl<'a> Reader<'a> {
    fn lab(&mut self, tree: &'a Tree) -> Option<LabFile> {
        let mut lab = LabFile::default();
        let top = Field { path: String::new(), tree };
        let mut exports = None;
        for (key, field) in self.table(&top, fields::LAB, "a lab file is a table")? {
            match key {
                "listen" => lab.listen = self.addresses(&field),
                "control" => lab.control = self.written(&field, "write an address, as in \"lab.ctl\""),
                "prometheus" => lab.prometheus = self.written(&field, "write an address, as in \"127.0.0.1:9100\""),
                "on-mismatch" => lab.on_mismatch = self.written(&field, "write report, fail, exit or repair-view"),
                "seed" => lab.seed = self.seed(&field),
                "max-connections" => lab.max_connections = self.count(&field),
                "max-in-flight" => lab.max_in_flight = self.size(&field),
                _ => exports = Some(field),
            }
        }
        let Some(exports) = exports else {
            return self.wrong(&top, "there is no [[export]] in it");
        };
        let Value::List(list) = &exports.tree.value else {
            return self.wants(&exports, "exports are written [[export]], with two brackets");
        };
        if list.len() > EXPORTS_MAX {
            return self.wrong(&exports, format!("there are {}; {EXPORTS_MAX} at most are served", list.len()));
        }
        let mut names = BTreeSet::new();
        let mut written = BTreeMap::new();
        for tree in list {
            self.own_files(tree, &mut written);
            let field = Field { path: "export".to_owned(), tree };
            let Some(export) = self.export(&field) else { continue };
            if !names.insert(export.name.value.clone()) {
                let at = tree.get("name").map_or(tree.at, |name| name.at);
                self.mistake(at, "export.name", "there is an export of that name already; names differ");
            }
            lab.exports.push(export);
        }
        Some(lab)
    }

    /// A log or a trace that two exports write would be neither one's. `written` are those before, and where they stand.
    fn own_files(&mut self, tree: &'a Tree, written: &mut BTreeMap<PathBuf, (&'static str, Option<usize>)>) {
        for field in ["export.log", "export.trace"] {
            let Some(file) = field.strip_prefix("export.").and_then(|key| tree.get(key)) else { continue };
            let Value::Text(name) = &file.value else { continue };
            // Neither '.' nor a doubled '/' makes another file.
            let path: PathBuf = Path::new(name).components().filter(|part| *part != Component::CurDir).collect();
            if let Some((other, at)) = written.get(&path) {
                let place = self.lines.zip(*at).map(|(lines, at)| lines.place(at));
                let place = place.map(|place| format!(", {}:{}", place.line, place.column));
                let words = format!(
                    "'{name}' is written already ({other}{}); every log and trace has a file of its own",
                    place.unwrap_or_default()
                );
                self.mistake(file.at, field, words);
            } else {
                written.insert(path, (field, file.at));
            }
        }
    }

    fn export(&mut self, field: &Field<'a>) -> Option<ExportEntry> {
        let known: Vec<&str> = fields::EXPORT.iter().chain(fields::FILE).copied().collect();
        let before = (self.mistakes.len(), self.more);
        let found = self.table(field, &known, "an export is a table")?;
        let get = |name: &str| found.iter().find(|(key, _)| *key == name).map(|(_, field)| field);
        let name = match get("name") {
            Some(name) => self.written(name, "write a name, as in \"disk0\""),
            None => self.wrong(field, "an export has a 'name'; one alone may have the empty one"),
        };
        if name
            .as_ref()
            .is_some_and(|name| name.value.len() > EXPORT_NAME_MAX || name.value.chars().any(char::is_control))
        {
            let place = get("name").unwrap_or(field);
            let words = format!("export names have {EXPORT_NAME_MAX} bytes at most, and no control characters");
            return self.wrong(place, words);
        }
        let graph = match get("graph") {
            Some(graph) => self.written(graph, "write what is served, as in \"disk.qcow2\""),
            None => self.wrong(field, "an export has a 'graph': what is served"),
        };
        let mut text = |name: &str| get(name).and_then(|field| self.text(field, "write a text").map(str::to_owned));
        let (description, format) = (text("description"), text("format"));
        let (log, trace) = (text("log"), text("trace"));
        if description.as_ref().is_some_and(|words| words.len() > EXPORT_NAME_MAX || words.contains('\0')) {
            let place = get("description").unwrap_or(field);
            return self.wrong(place, format!("descriptions have {EXPORT_NAME_MAX} bytes at most, and no NUL"));
        }
        let mut on = |name: &str| get(name).and_then(|field| self.boolean(field)).unwrap_or_default();
        let (image_opts, allow_backing) = (on("image-opts"), on("allow-backing"));
        let (read_only, force_share, stats) = (on("read-only"), on("force-share"), on("stats"));
        if let (true, Some(field)) = (image_opts, get("format")) {
            self.wrong::<()>(field, "with 'image-opts' the graph names its driver itself; leave 'format' out");
        }
        let cache = get("cache").and_then(|field| self.cache(field));
        let disk = get("disk").and_then(|field| self.disk(field));
        let rules_file = get("rules").and_then(|field| self.written(field, "write the name of a rule file"));
        for also in fields::FILE {
            if let (Some(_), Some(field)) = (&rules_file, get(also)) {
                self.wrong::<()>(field, "the rules stand in the file that 'rules' names; write them there, or here");
            }
        }
        let rules = self.rules_here(&found, field.tree);
        let whole = (self.mistakes.len(), self.more) == before;
        let entry = ExportEntry {
            name: name?,
            description,
            graph: graph?,
            format,
            image_opts,
            allow_backing,
            read_only,
            force_share,
            cache,
            disk_seeded: disk.as_ref().is_some_and(|(_, seeded)| *seeded),
            disk: disk.map(|(disk, _)| disk),
            log,
            trace,
            stats,
            rules_file,
            rules,
            rules_seeded: get("seed").is_some(),
        };
        whole.then_some(entry)
    }

    /// The rules that stand in an export. Each export counts its sectors itself.
    fn rules_here(&mut self, found: &[(&str, Field<'a>)], tree: &Tree) -> RuleSet {
        let before = (self.mistakes.len(), self.more);
        self.lba_size = RuleSet::default().lba_size;
        let (rules, trees) = self.rules_of(found);
        if (self.mistakes.len(), self.more) == before && !trees.is_empty() {
            self.make_sense(&rules, &trees, tree);
        }
        rules
    }

    fn written(&mut self, field: &Field<'a>, wanted: &str) -> Option<Written<String>> {
        let value = self.text(field, wanted)?.to_owned();
        let place = self.lines.zip(field.tree.at).map(|(lines, at)| lines.place(at));
        Some(Written { value, place, field: field.path.clone() })
    }

    fn addresses(&mut self, field: &Field<'a>) -> Vec<Written<String>> {
        const WANTED: &str = "write an address, as in \"127.0.0.1:10809\" or \"unix:lab.sock\", or a list of them";
        match &field.tree.value {
            Value::List(list) => {
                let each = list.iter().map(|tree| Field { path: field.path.clone(), tree });
                each.filter_map(|one| self.written(&one, WANTED)).collect()
            }
            _ => self.written(field, WANTED).into_iter().collect(),
        }
    }

    fn size(&mut self, field: &Field<'a>) -> Option<u64> {
        match &field.tree.value {
            Value::Text(text) => match blkproof_block::graph::parse_size(text) {
                Some(size) if size > 0 => Some(size),
                _ => self
                    .wrong(field, format!("'{text}' is no size; write a number, or one with a suffix, as in \"64M\"")),
            },
            _ => self.count(field),
        }
    }

    fn cache(&mut self, field: &Field<'a>) -> Option<CacheMode> {
        const WANTED: &str = "write writeback, writethrough, none, directsync or unsafe";
        let text = self.text(field, WANTED)?;
        match CacheMode::from_name(text) {
            Some(mode) => Some(mode),
            None => self.wrong(field, format!("'{text}' is no cache mode; {WANTED}")),
        }
    }

    /// `"liar:profile=torn"` or `{ kind = "liar", profile = "torn" }`, and whether it names a seed.
    fn disk(&mut self, field: &Field<'a>) -> Option<(DiskOptions, bool)> {
        let (read, seeded) = match &field.tree.value {
            Value::Text(text) => (parse_options(text), text.contains("seed=")),
            Value::Table(entries) => {
                let mut options = Options::new();
                for entry in entries {
                    let value = match &entry.value.value {
                        Value::Text(text) => text.clone(),
                        Value::Integer(number) => number.to_string(),
                        Value::Boolean(on) => if *on { "on" } else { "off" }.to_owned(),
                        other => {
                            let words = format!("this is {}; write a text, a number, or true or false", other.kind());
                            self.mistake(entry.value.at, &super::join(&field.path, &entry.key), words);
                            return None;
                        }
                    };
                    options = options.with(&entry.key, value);
                }
                let read = take_options(&mut options).and_then(|how| options.finish("disk").map(|()| how));
                (read, field.tree.get("seed").is_some())
            }
            _ => return self.wants(field, "write a kind, as in \"honest\" or \"liar:profile=torn\""),
        };
        match read {
            Ok(how) => Some((how, seeded)),
            Err(error) => self.wrong(field, error.to_string()),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]
mod tests {
    use blkproof_block::choice::hash;

    use crate::disk::{Kind, Profile};
    use crate::file::lab;

    const GOOD: &str = r#"
listen = "0"
control = "lab.ctl"
seed = 7
max-in-flight = "64M"

[[export]]
name = "a"
graph = "a.qcow2"
disk = "liar:profile=torn,seed=3"
rules = "bad.toml"

[[export]]
name = "b"
graph = "b.raw"
format = "raw"
disk = { kind = "honest", cache-size = "1M", stay-off = true }
read-only = false
lba-size = 4096

[[export.rule]]
id = "bad-50"
on = { op = "read", lba = 50 }
do = { fail = "03/1101" }
"#;

    #[test]
    fn a_whole_file() {
        let lab = lab::read("lab.toml", GOOD).unwrap();
        let [a, b] = lab.exports.as_slice() else { panic!("two exports") };
        assert_eq!((lab.seed, lab.max_in_flight, lab.listen.len()), (Some(7), Some(64 << 20), 1));
        let disk = a.disk.unwrap();
        assert_eq!((disk.kind, disk.profile, disk.seed, a.disk_seeded), (Kind::Liar, Profile::Torn, 3, true));
        assert_eq!((b.disk.unwrap().cache_size, b.disk.unwrap().stay_off, b.disk_seeded), (1 << 20, true, false));
        assert_eq!((b.rules.lba_size, b.rules.rules.len()), (4096, 1));
        assert_eq!(b.rules.rules[0].on.ranges[0].start, 50 * 4096);
        assert_eq!(a.rules_file.as_ref().unwrap().mistake("x").to_string(), "11:9: export.rules: x");
    }

    #[test]
    fn mistakes_have_their_places() {
        for (from, to, says) in [
            ("seed = 7", "sede = 7", "lab.toml:4:1: sede: no such field; did you mean 'seed'?"),
            ("graph = \"a", "grpah = \"a", "lab.toml:9:1: export.grpah: no such field; did you mean 'graph'?"),
            ("profile=torn", "profile=tron", "lab.toml:10:8: export.disk: "),
            ("\"b\"", "\"a\"", "lab.toml:14:8: export.name: there is an export of that name already"),
            ("[[export.rule]]", "rules = \"x\"\n[[export.rule]]", "the rules stand in the file that 'rules' names"),
            ("lba = 50", "lba = \"fifty\"", "rule 'bad-50': on.lba: "),
            ("kind = \"honest\"", "kin = \"honest\"", "lab.toml:17:8: export.disk: "),
            (
                "graph = \"a.qcow2\"",
                "graph = \"a.qcow2\"\ndescription = \"a\\u0000b\"",
                "export.description: descriptions have",
            ),
            (
                "rules = \"bad.toml\"\n\n[[export]]\n",
                "trace = \"./t\"\n\n[[export]]\ntrace = \"t\"\n",
                "lab.toml:14:9: export.trace: 't' is written already (export.trace, 11:9); every log and trace has",
            ),
            (
                "rules = \"bad.toml\"",
                "log = \"t\"\ntrace = \"t\"",
                "lab.toml:12:9: export.trace: 't' is written already (export.log, 11:7); every log",
            ),
            ("64M", "64Q", "lab.toml:5:17: max-in-flight: '64Q' is no size"),
            (
                "control = \"lab.ctl\"",
                "control = 5",
                "lab.toml:3:11: control: this is a whole number; write an address",
            ),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let mistakes = lab::read("lab.toml", &text).unwrap_err().to_string();
            assert!(mistakes.contains(says), "{to}: {mistakes}");
        }
        for text in
            ["", "seed = 1", "export = 5", "export = [5]", "[export]\nname = \"a\"", "[[export]]", "x = [", "\u{0}"]
        {
            assert!(lab::read("lab.toml", text).is_err(), "{text:?}");
        }
    }

    /// Nothing in a file ends the program, or takes long.
    #[test]
    fn damaged_files_are_read_to_their_end() {
        let mut refused = 0;
        for seed in 0..10_000_u64 {
            let mut bytes = GOOD.as_bytes().to_vec();
            for cut in 0..=seed % 3 {
                let at = usize::try_from(hash(seed, cut) % bytes.len().max(1) as u64).unwrap();
                match hash(seed, cut + 10) % 4 {
                    0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = (hash(seed, cut + 20) % 128) as u8),
                    1 => {
                        bytes = [bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default()].concat()
                    }
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.extend_from_within(at / 2..at),
                }
            }
            let text = String::from_utf8(bytes).unwrap();
            if let Err(mistakes) = lab::read("lab.toml", &text) {
                refused += 1;
                assert!(
                    !mistakes.list.is_empty() && mistakes.to_string().starts_with("lab.toml"),
                    "{seed}: {mistakes}"
                );
            }
        }
        assert!(refused > 5_000, "{refused}");
    }

    /// The schema names the fields the reader knows, and no others.
    #[test]
    fn the_schema_has_every_field() {
        let schema: serde_json::Value = serde_json::from_str(lab::SCHEMA).unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        let sorted = |list: &[&str]| {
            let mut list: Vec<String> = list.iter().map(|&word| word.to_owned()).collect();
            list.sort();
            list
        };
        assert_eq!(keys(&schema["properties"]), sorted(crate::file::fields::LAB));
        let export = &schema["properties"]["export"]["items"]["properties"];
        assert_eq!(keys(export), sorted(&[crate::file::fields::EXPORT, crate::file::fields::FILE].concat()));
    }
}
