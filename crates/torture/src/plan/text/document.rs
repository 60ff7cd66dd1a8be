//! A plan's document, read.

use blkproof_fault::disk::{FlushError, Kind, Profile};
use blkproof_sim::{Hold, Schedule};
use toml::de::{DeTable, DeValue};

use super::print::SCHEMA;
use super::sizes::{number, size};
use super::words::{Words, named, shown, unknown};
use super::{PlanError, crash, fault, op};
use crate::plan::validate::{Spot, check};
use crate::plan::{CrashPlan, DiskSpec, Faults, Plan, RandomFaults, TargetSpec};

/// Bytes of the longest text that is read.
const TEXT_MAX: usize = 256 << 20;

/// A place in the text: byte offset and field.
#[derive(Clone, Debug)]
struct At {
    byte: usize,
    field: String,
}

struct Wrong {
    at: At,
    words: String,
}

type Result<T, E = Wrong> = std::result::Result<T, E>;

pub(super) fn plan(text: &str) -> Result<Plan, PlanError> {
    if text.len() > TEXT_MAX {
        return Err(PlanError::new("", format!("the plan has {} bytes; {TEXT_MAX} at most are read", text.len())));
    }
    let lines = |byte: usize| text.get(..byte).unwrap_or(text).bytes().filter(|byte| *byte == b'\n').count();
    let at_line = |byte: usize, field: &str, words: String| PlanError {
        line: Some(lines(byte).saturating_add(1)),
        field: field.to_owned(),
        words,
    };
    let document = DeTable::parse(text).map_err(|error| {
        at_line(error.span().map_or(0, |span| span.start), "", format!("no TOML: {}", error.message()))
    })?;
    let root = Section { table: document.get_ref(), at: 0, name: "" };
    let read = read(&root).and_then(|(plan, marks)| match check(&plan) {
        Ok(()) => Ok(plan),
        Err((spot, words)) => Err(Wrong { at: marks.find(&root, &spot), words }),
    });
    read.map_err(|wrong| at_line(wrong.at.byte, &wrong.at.field, wrong.words))
}

/// Where the lines of the lists are.
struct Marks {
    ops: Vec<usize>,
    faults: Vec<usize>,
    holds: Vec<usize>,
}

impl Marks {
    fn find(&self, root: &Section<'_>, spot: &Spot) -> At {
        let marks = match spot {
            Spot::Op(index) => self.ops.get(*index),
            Spot::Fault(index) => self.faults.get(*index),
            Spot::Hold(index) => self.holds.get(*index),
            Spot::Field(path) => return At { byte: root.find(path), field: (*path).to_owned() },
        };
        At { byte: marks.copied().unwrap_or(0), field: spot.to_string() }
    }
}

/// A table and its place.
struct Section<'a> {
    table: &'a DeTable<'a>,
    at: usize,
    name: &'static str,
}

/// A value and its place.
struct Field<'a> {
    value: &'a DeValue<'a>,
    at: At,
}

impl<'a> Section<'a> {
    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Where the value of that path begins, or what there is of the path.
    fn find(&self, path: &str) -> usize {
        let (mut table, mut at) = (Some(self.table), self.at);
        for key in path.split('.') {
            let Some((_, value)) =
                table.and_then(|table| table.iter().find(|(name, _)| name.get_ref().as_ref() == key))
            else {
                break;
            };
            at = value.span().start;
            table = match value.get_ref() {
                DeValue::Table(below) => Some(below),
                _ => None,
            };
        }
        at
    }

    /// No others than these.
    fn only(&self, known: &[&str]) -> Result<()> {
        // The first in the text, whatever the order of the table.
        let strange = self.table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref()));
        let Some((key, _)) = strange.min_by_key(|(key, _)| key.span().start) else { return Ok(()) };
        let at = At { byte: key.span().start, field: self.path(&shown(key.get_ref())) };
        let words = unknown(if self.name.is_empty() { "part of a plan" } else { "field" }, key.get_ref(), {
            known.iter().copied()
        });
        Err(Wrong { at, words })
    }

    fn get(&self, key: &str) -> Option<Field<'a>> {
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
        Some(Field { value: value.get_ref(), at: At { byte: value.span().start, field: self.path(key) } })
    }

    fn need(&self, key: &str, example: &str) -> Result<Field<'a>> {
        self.get(key).ok_or_else(|| Wrong {
            at: At { byte: self.at, field: self.path(key) },
            words: format!("is missing; write {key} = {example}"),
        })
    }

    fn section(&self, name: &'static str) -> Result<Option<Section<'a>>> {
        let Some(field) = self.get(name.rsplit('.').next().unwrap_or(name)) else { return Ok(None) };
        match field.value {
            DeValue::Table(table) => Ok(Some(Section { table, at: field.at.byte, name })),
            _ => Err(field.wrong(format!("this is {}; a table is wanted, such as [{name}]", kind(field.value)))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        self.get(key).map(|field| field.number()).transpose()
    }

    fn short(&self, key: &str) -> Result<Option<u32>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        let number = field.number()?;
        u32::try_from(number).map(Some).map_err(|_| field.wrong(format!("{number} is too large: below 2^32")))
    }

    fn size(&self, key: &str) -> Result<Option<u64>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        match field.value {
            DeValue::String(text) => size(text).map(Some).ok_or_else(|| {
                field.wrong(format!("'{}' is no size: write it as \"4096\", \"64K\" or \"1M\"", shown(text)))
            }),
            _ => field.number().map(Some),
        }
    }

    fn word<T: Copy>(&self, key: &str, names: &[(&str, T)]) -> Result<Option<T>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        let text = field.text("a word")?;
        named(key, text, names).map(Some).map_err(|words| field.wrong(words))
    }

    /// A list of lines, each read by `read`, with their places.
    fn lines<T>(
        &self,
        key: &str,
        read: impl Fn(&mut Words<'_>, &str) -> std::result::Result<T, String>,
    ) -> Result<(Vec<T>, Vec<usize>)> {
        let Some(field) = self.get(key) else { return Ok((Vec::new(), Vec::new())) };
        let DeValue::Array(items) = field.value else {
            return Err(field.wrong(format!("this is {}; a list of texts is wanted", kind(field.value))));
        };
        let (mut values, mut marks) = (Vec::new(), Vec::new());
        for (index, item) in items.iter().enumerate() {
            let byte = item.span().start;
            let line = Field { value: item.get_ref(), at: At { byte, field: format!("{}[{index}]", self.path(key)) } };
            let text = line.text("a text, one line,")?;
            let mut words = Words::new(text);
            let value = read(&mut words, text).and_then(|value| words.end().map(|()| value));
            values.push(value.map_err(|words| line.wrong(words))?);
            marks.push(byte);
        }
        Ok((values, marks))
    }
}

impl Field<'_> {
    fn wrong(&self, words: impl Into<String>) -> Wrong {
        Wrong { at: self.at.clone(), words: words.into() }
    }

    fn text(&self, wanted: &str) -> Result<&str> {
        match self.value {
            DeValue::String(text) => Ok(text),
            other => Err(self.wrong(format!("this is {}; {wanted} is wanted", kind(other)))),
        }
    }

    fn boolean(&self) -> Result<bool> {
        match self.value {
            DeValue::Boolean(value) => Ok(*value),
            other => Err(self.wrong(format!("this is {}; true or false is wanted", kind(other)))),
        }
    }

    /// A number, or a text with one: TOML's numbers end at 2^63.
    fn number(&self) -> Result<u64> {
        let read = match self.value {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            DeValue::String(text) => number(text),
            other => return Err(self.wrong(format!("this is {}; a number is wanted", kind(other)))),
        };
        read.ok_or_else(|| self.wrong("this is no number from 0 to 2^64 - 1; write 17, 0x11, or \"0x11\""))
    }
}

/// What a value is, in messages.
const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn read(root: &Section<'_>) -> Result<(Plan, Marks)> {
    let schema = root.need("schema", &format!("\"{SCHEMA}\""))?;
    let version = schema.text("a text")?;
    if version != SCHEMA {
        return Err(schema.wrong(format!("'{}' is no plan this program reads; it reads {SCHEMA}", shown(version))));
    }
    root.only(&["schema", "seed", "crash", "ops", "faults", "target", "disk", "random-faults", "schedule"])?;
    let crash = match root.get("crash") {
        None => CrashPlan::None,
        Some(field) => {
            let mut words = Words::new(field.text("a text")?);
            let crash = crash::read_plan(&mut words).and_then(|crash| words.end().map(|()| crash));
            crash.map_err(|words| field.wrong(words))?
        }
    };
    root.need("ops", "[\"1 write 0+4K\"]")?;
    let (ops, op_marks) = root.lines("ops", |words, _| op::read(words))?;
    let (named, fault_marks) = root.lines("faults", |words, _| fault::read(words))?;
    root.need("target", "a table, [target]")?;
    let target = match root.section("target")? {
        Some(section) => read_target(&section)?,
        None => TargetSpec { name: String::new(), options: Vec::new(), size: 0, base: None },
    };
    let disk = root.section("disk")?.map_or(Ok(DiskSpec::default()), |section| read_disk(&section))?;
    let random = root.section("random-faults")?.map_or(Ok(RandomFaults::default()), |section| read_random(&section))?;
    let (schedule, hold_marks) =
        root.section("schedule")?.map_or(Ok((Schedule::default(), Vec::new())), |section| read_schedule(&section))?;
    let seed = root.number("seed")?.unwrap_or(0);
    let plan = Plan { seed, target, disk, ops, faults: Faults { named, random }, schedule, crash };
    Ok((plan, Marks { ops: op_marks, faults: fault_marks, holds: hold_marks }))
}

fn read_target(section: &Section<'_>) -> Result<TargetSpec> {
    section.only(&["name", "size", "base", "options"])?;
    let name = section.need("name", "\"qcow2\"")?.text("a text")?.to_owned();
    section.need("size", "\"64M\"")?;
    let mut options = Vec::new();
    if let Some(below) = section.section("target.options")? {
        for (key, value) in below.table {
            let name = key.get_ref().to_string();
            let at = At { byte: value.span().start, field: below.path(&shown(&name)) };
            let field = Field { value: value.get_ref(), at };
            options.push((name, field.text("a text, such as \"4K\",")?.to_owned()));
        }
    }
    options.sort();
    Ok(TargetSpec { name, options, size: section.size("size")?.unwrap_or(0), base: section.size("base")? })
}

fn read_disk(section: &Section<'_>) -> Result<DiskSpec> {
    section.only(&["block", "profile", "kind", "flush-error", "seed"])?;
    let plain = DiskSpec::default();
    let block = section.size("block")?.unwrap_or(u64::from(plain.block));
    Ok(DiskSpec {
        block: u32::try_from(block).unwrap_or(u32::MAX),
        profile: section.word("profile", Profile::NAMES)?.unwrap_or(plain.profile),
        kind: section.word("kind", Kind::NAMES)?.unwrap_or(plain.kind),
        flush_error: section.word("flush-error", FlushError::NAMES)?.unwrap_or(plain.flush_error),
        seed: section.number("seed")?.unwrap_or(0),
    })
}

fn read_random(section: &Section<'_>) -> Result<RandomFaults> {
    section.only(&["rate", "immediate", "partial", "spare-open", "seed"])?;
    Ok(RandomFaults {
        seed: section.number("seed")?.unwrap_or(0),
        rate: section.short("rate")?.unwrap_or(0),
        immediate: section.short("immediate")?.unwrap_or(0),
        partial: section.short("partial")?.unwrap_or(0),
        spare_open: section.get("spare-open").map_or(Ok(false), |field| field.boolean())?,
    })
}

fn read_schedule(section: &Section<'_>) -> Result<(Schedule, Vec<usize>)> {
    section.only(&["strategy", "seed", "holds"])?;
    let strategy = match section.get("strategy") {
        None => blkproof_sim::Strategy::Fifo,
        Some(field) => {
            let text = field.text("a text")?;
            let short: String = shown(text);
            text.parse().map_err(|_| {
                let words = ["fifo", "random", "delays:200", "pct:3:1000"];
                field.wrong(unknown("strategy", &short, words.into_iter()))
            })?
        }
    };
    let (holds, marks) = section.lines("holds", |words, text| {
        while words.peek().is_some() {
            words.next("")?;
        }
        text.parse::<Hold>()
            .map_err(|_| format!("'{}' is no hold: write two moves, as in '7#2.effect until 9#1.done'", shown(text)))
    })?;
    Ok((Schedule { strategy, seed: section.number("seed")?.unwrap_or(0), holds }, marks))
}
