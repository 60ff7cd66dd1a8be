//! From a tree to rules. Nothing stops at the first mistake: each is noted, and what can be read goes on being read.

mod action;
mod lab;
mod life;
mod on;

pub(super) use self::lab::file as lab_file;
pub(super) use self::on::merged;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::RuleId;

use super::fields;
use super::mistake::{Mistake, Mistakes, bounded, nearest};
use super::sense::{self, Remark};
use super::tree::{Lines, Tree, Value};
use super::words;
use super::{FILE_MAX, NAME_MAX, RULES_MAX, Read};
use crate::rule::{Action, Rule, RuleSet, Then};

pub(super) fn file(file: &str, text: &str) -> Result<Read, Mistakes> {
    if text.len() > FILE_MAX {
        let words = format!("the file has {} bytes; {FILE_MAX} at most are read", text.len());
        let list = vec![Mistake { place: None, rule: None, field: String::new(), words }];
        return Err(Mistakes { file: file.to_owned(), list, more: 0 });
    }
    let lines = Lines::new(text);
    let tree = Tree::from_toml(text, &lines).map_err(|list| Mistakes { file: file.to_owned(), list, more: 0 })?;
    let mut reader = Reader::new(Some(&lines));
    let (rules, trees) = reader.rule_set(&tree);
    // What makes no sense is looked for in rules that could be read whole: else one mistake would be told twice.
    if reader.mistakes.is_empty() {
        reader.make_sense(&rules, &trees, &tree);
    }
    reader.finish(file).map(|warnings| Read { rules, warnings })
}

pub(super) fn rule(value: &serde_json::Value, lba_size: u32, id: &str) -> Result<(Rule, Vec<Mistake>), Mistakes> {
    let tree = Tree::from_json(value);
    let mut reader = Reader::new(None);
    reader.lba_size = lba_size;
    let rule = reader.rule(&tree, id);
    if let Some(rule) = rule.as_ref().filter(|_| reader.mistakes.is_empty()) {
        for remark in sense::rule(rule, lba_size) {
            reader.remark(&remark, &tree);
        }
    }
    let warnings = reader.finish("")?;
    // Without a mistake there is a rule.
    rule.map(|rule| (rule, warnings)).ok_or_else(|| Mistakes { file: String::new(), list: Vec::new(), more: 0 })
}

/// A value and the name it is found under.
#[derive(Clone)]
struct Field<'a> {
    path: String,
    tree: &'a Tree,
}

struct Reader<'a> {
    lines: Option<&'a Lines<'a>>,
    lba_size: u32,
    /// The rule being read.
    rule: Option<String>,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
    more: usize,
}

impl<'a> Reader<'a> {
    fn new(lines: Option<&'a Lines<'a>>) -> Self {
        Self { lines, lba_size: 512, rule: None, mistakes: Vec::new(), warnings: Vec::new(), more: 0 }
    }

    fn finish(mut self, file: &str) -> Result<Vec<Mistake>, Mistakes> {
        // As they stand in the file, whatever order they were found in.
        self.mistakes.sort_by_key(|mistake| mistake.place);
        if self.mistakes.is_empty() {
            return Ok(self.warnings);
        }
        Err(Mistakes { file: file.to_owned(), list: self.mistakes, more: self.more })
    }

    fn mistake(&mut self, at: Option<usize>, field: &str, words: impl Into<String>) {
        if self.mistakes.len() >= Mistakes::MAX {
            self.more = self.more.saturating_add(1);
            return;
        }
        let mistake = self.told(at, field, words.into());
        self.mistakes.push(mistake);
    }

    fn told(&self, at: Option<usize>, field: &str, words: String) -> Mistake {
        let place = self.lines.zip(at).map(|(lines, at)| lines.place(at));
        Mistake { place, rule: self.rule.clone(), field: field.to_owned(), words: bounded(&words) }
    }

    fn remark(&mut self, remark: &Remark, tree: &Tree) {
        let at = tree.place_of(remark.field);
        if remark.refuses {
            self.mistake(at, remark.field, remark.words.clone());
        } else if self.warnings.len() < Mistakes::MAX {
            let warning = self.told(at, remark.field, remark.words.clone());
            self.warnings.push(warning);
        }
    }

    /// A mistake of a field; `None` for a caller that returns what it could read.
    fn wrong<T>(&mut self, field: &Field<'_>, words: impl Into<String>) -> Option<T> {
        self.mistake(field.tree.at, &field.path, words);
        None
    }

    fn wants<T>(&mut self, field: &Field<'_>, wanted: &str) -> Option<T> {
        let kind = field.tree.value.kind();
        self.wrong(field, format!("this is {kind}; {wanted}"))
    }

    /// The fields of a table. Unknown ones are mistakes.
    fn table<'t>(&mut self, field: &Field<'t>, known: &[&str], wanted: &str) -> Option<Vec<(&'t str, Field<'t>)>> {
        let Value::Table(entries) = &field.tree.value else {
            return self.wants(field, wanted);
        };
        let mut found: Vec<(&str, Field<'t>)> = Vec::new();
        for entry in entries {
            let path = join(&field.path, &entry.key);
            if known.contains(&entry.key.as_str()) {
                found.push((entry.key.as_str(), Field { path, tree: &entry.value }));
            } else {
                self.mistake(entry.at, &path, unknown(&entry.key, known));
            }
        }
        Some(found)
    }

    fn text(&mut self, field: &Field<'a>, wanted: &str) -> Option<&'a str> {
        match &field.tree.value {
            Value::Text(text) => Some(text),
            _ => self.wants(field, wanted),
        }
    }

    /// A name that goes into messages and events.
    fn name(&mut self, field: &Field<'a>, what: &str) -> Option<Rc<str>> {
        let text = match &field.tree.value {
            Value::Integer(number) if what == STATE => return Some(Rc::from(number.to_string())),
            _ => self.text(field, &format!("write {what}"))?,
        };
        match text.chars().count() {
            0 => self.wrong(field, format!("'' is no name; write {what}")),
            len if len > NAME_MAX => self.wrong(field, format!("names have {NAME_MAX} letters at most")),
            _ if text.chars().any(char::is_control) => self.wrong(field, "there are control characters in it"),
            _ => Some(Rc::from(text)),
        }
    }

    fn boolean(&mut self, field: &Field<'_>) -> Option<bool> {
        match &field.tree.value {
            Value::Boolean(value) => Some(*value),
            _ => self.wants(field, "write true or false"),
        }
    }

    /// A number from 1 that fits TOML.
    fn count(&mut self, field: &Field<'_>) -> Option<u64> {
        match &field.tree.value {
            Value::Integer(number) => match u64::try_from(*number) {
                Ok(count) if count > 0 && count <= i64::MAX.unsigned_abs() => Some(count),
                _ => self.wrong(field, format!("{number} is out of range; write a number from 1 to 2^63 - 1")),
            },
            _ => self.wants(field, "write a number from 1"),
        }
    }

    fn time(&mut self, field: &Field<'a>) -> Option<Duration> {
        let text = self.text(field, "write a time with its unit, as in \"10s\"")?;
        match words::duration(text) {
            Ok(time) => Some(time),
            Err(words) => self.wrong(field, words),
        }
    }

    /// As [`time`](Self::time), and not empty.
    fn some_time(&mut self, field: &Field<'a>) -> Option<Duration> {
        let time = self.time(field)?;
        if time.is_zero() { self.wrong(field, "a time of nothing; write one above 0") } else { Some(time) }
    }

    /// A probability, `Some(None)` for always.
    #[allow(clippy::option_option, reason = "the outer one says whether it could be read")]
    fn share(&mut self, field: &Field<'_>) -> Option<Option<u32>> {
        let read = match &field.tree.value {
            Value::Text(text) => words::probability(text),
            Value::Float(share) => words::share_of(*share).map_err(|why| format!("{share} {why}")),
            Value::Integer(1) => Ok(None),
            Value::Integer(number) => Err(format!("{number} is no probability; write 0.01, \"1%\" or \"1:100\"")),
            _ => return self.wants(field, "write 0.01, \"1%\" or \"1:100\""),
        };
        match read {
            Ok(share) => Some(share),
            Err(words) => self.wrong(field, words),
        }
    }

    /// One of a few words.
    fn word<T: Copy>(&mut self, field: &Field<'a>, words: &[(&'static str, T)]) -> Option<T> {
        let list = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let text = self.text(field, &format!("write one of {}", list()))?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => {
                let near = nearest(text, words.iter().map(|(word, _)| *word));
                let hint =
                    near.map_or_else(|| format!("there are {}", list()), |near| format!("did you mean '{near}'?"));
                self.wrong(field, format!("'{text}' is not known here; {hint}"))
            }
        }
    }

    fn make_sense(&mut self, rules: &RuleSet, trees: &[&Tree], whole: &Tree) {
        for remark in sense::set(rules) {
            let index = remark.rule.unwrap_or(usize::MAX);
            self.rule = rules.rules.get(index).map(|rule| rule.id.to_string());
            self.remark(&remark, trees.get(index).copied().unwrap_or(whole));
        }
        self.rule = None;
    }

    fn rule_set(&mut self, tree: &'a Tree) -> (RuleSet, Vec<&'a Tree>) {
        let top = Field { path: String::new(), tree };
        match self.table(&top, fields::FILE, "a rule file is a table") {
            Some(fields) => self.rules_of(&fields),
            None => (RuleSet::default(), Vec::new()),
        }
    }

    /// The rules in the fields of a rule file, which may have others beside them.
    fn rules_of(&mut self, fields: &[(&str, Field<'a>)]) -> (RuleSet, Vec<&'a Tree>) {
        let mut set = RuleSet::default();
        let mut trees = Vec::new();
        let field = |name: &str| fields.iter().find(|(key, _)| *key == name).map(|(_, field)| field);
        // The sectors that all rules count in come first.
        if let Some(size) = field("lba-size").and_then(|field| self.lba_size(field)) {
            set.lba_size = size;
            self.lba_size = size;
        }
        if let Some(seed) = field("seed").and_then(|field| self.seed(field)) {
            set.seed = seed;
        }
        if let Some(state) = field("state").and_then(|field| self.name(field, STATE)) {
            set.state = state;
        }
        let Some(rules) = field("rule") else {
            return (set, trees);
        };
        let Value::List(list) = &rules.tree.value else {
            self.wants::<()>(rules, "rules are written [[rule]], with two brackets");
            return (set, trees);
        };
        if list.len() > RULES_MAX {
            self.wrong::<()>(rules, format!("there are {} rules; {RULES_MAX} at most are read", list.len()));
            return (set, trees);
        }
        let mut ids = BTreeSet::new();
        for (number, tree) in (1..).zip(list) {
            self.rule = None;
            let id = format!("rule-{number}");
            if let Some(rule) = self.rule(tree, &id) {
                if !ids.insert(rule.id.0.clone()) {
                    let at = tree.get("id").map_or(tree.at, |id| id.at);
                    self.mistake(at, "id", "there is a rule of that id already; ids differ");
                }
                set.rules.push(rule);
                trees.push(tree);
            }
        }
        self.rule = None;
        (set, trees)
    }

    fn lba_size(&mut self, field: &Field<'_>) -> Option<u32> {
        const WANTED: &str = "write a power of two from 512 to 65536";
        match &field.tree.value {
            Value::Integer(size) => match u32::try_from(*size) {
                Ok(size) if size.is_power_of_two() && (512..=65536).contains(&size) => Some(size),
                _ => self.wrong(field, format!("{size} is no sector size; {WANTED}")),
            },
            _ => self.wants(field, WANTED),
        }
    }

    fn seed(&mut self, field: &Field<'_>) -> Option<u64> {
        const WANTED: &str = "write a number from 0 to 2^64 - 1, as 7 or as \"0x7\"";
        let seed = match &field.tree.value {
            Value::Integer(seed) => u64::try_from(*seed).ok(),
            Value::Text(text) => words::number(text).filter(|_| !text.is_empty()),
            _ => return self.wants(field, WANTED),
        };
        if seed.is_none() { self.wrong(field, format!("this is no seed; {WANTED}")) } else { seed }
    }

    /// One rule; `None` only where something is wrong with it.
    fn rule(&mut self, tree: &'a Tree, id: &str) -> Option<Rule> {
        let before = (self.mistakes.len(), self.more);
        let top = Field { path: String::new(), tree };
        // The id first: all that is said of the rule names it.
        let written = tree.get("id").map(|tree| Field { path: "id".to_owned(), tree });
        self.rule = Some(match written.as_ref().map(|field| &field.tree.value) {
            Some(Value::Text(id)) if good_id(id) => id.clone(),
            _ => id.to_owned(),
        });
        if let Some(field) = written {
            let text = self.text(&field, "write a name, as in \"bad-50\"");
            if text.is_some_and(|text| !good_id(text)) {
                self.wrong::<()>(
                    &field,
                    format!(
                        "an id has 1 to {NAME_MAX} letters, digits and '-', '_', '.', ':', and begins with a \
                             letter or digit"
                    ),
                );
            }
        }
        let fields = self.table(&top, fields::RULE, "a rule is a table")?;
        let field = |name: &str| fields.iter().find(|(key, _)| *key == name).map(|(_, field)| field);
        let life = field("life").and_then(|field| self.life(field));
        let given = life.as_ref().and_then(|meaning| meaning.action.clone());
        let action = match field("do") {
            Some(field) => self.action(field),
            None => Some(given.unwrap_or(Action::None)),
        };
        let possible = action.as_ref().map_or(crate::request::Operations::DATA, sense::possible);
        let operations = match life.as_ref().and_then(|meaning| meaning.operations) {
            // What a preset means by itself, if the action can be done to it.
            Some(operations) if possible.contains(operations) => operations,
            _ => crate::request::Operations::DATA.intersection(possible),
        };
        let on = self.on(field("on"), operations);
        let then = field("then").map_or(Some(Then::default()), |field| self.then(field));
        let life = life.map(|meaning| meaning.life);
        let id = RuleId(self.rule.clone().unwrap_or_default().into_boxed_str());
        let rule = Rule { id, on: on?, action: action?, then: then?, life };
        ((self.mistakes.len(), self.more) == before).then_some(rule)
    }

    fn then(&mut self, field: &Field<'a>) -> Option<Then> {
        let mut then = Then::default();
        let wanted = "write a table, as in { state = \"x\", disarm = true, cure = true }";
        for (key, field) in self.table(field, fields::THEN, wanted)? {
            match key {
                "state" => then.state = self.name(&field, STATE),
                "disarm" => then.disarm = self.boolean(&field).unwrap_or_default(),
                _ => then.cure = self.boolean(&field).unwrap_or_default(),
            }
        }
        Some(then)
    }
}

/// What is asked for where a state is wrong; states are the names that may be numbers.
const STATE: &str = "a state: a text such as \"broken\", or a number";

fn good_id(id: &str) -> bool {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | ':');
    (1..=NAME_MAX).contains(&id.len())
        && id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.chars().all(fine)
}

fn join(path: &str, key: &str) -> String {
    // A key may be anything, and as long as the file.
    let key: String = key.chars().take(NAME_MAX).collect::<String>().escape_debug().collect();
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

fn unknown(key: &str, known: &[&str]) -> String {
    let short: String = key.chars().take(NAME_MAX).collect();
    match nearest(&short, known.iter().copied()) {
        Some(near) => format!("no such field; did you mean '{near}'?"),
        None if known.is_empty() => "no such field; there are none here".to_owned(),
        None => format!("no such field; there are {}", known.join(", ")),
    }
}
