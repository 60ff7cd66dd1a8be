//! `on`: when a rule fires.

use blkproof_block::{ByteRange, Event};

use super::{Field, Reader, STATE};
use crate::file::mistake::nearest;
use crate::file::tree::Value;
use crate::file::{RANGES_MAX, fields, words};
use crate::request::{Operation, Operations};
use crate::rule::On;

const OPERATIONS: &str = "write \"read\", or a list such as [\"read\", \"write\"]";

impl<'a> Reader<'a> {
    /// Reads `on`; where it names no operation, `operations` are meant.
    pub(super) fn on(&mut self, field: Option<&Field<'a>>, operations: Operations) -> Option<On> {
        let mut on = On { operations, ..On::default() };
        let Some(field) = field else {
            return Some(on);
        };
        let fields = self.table(field, fields::ON, "write a table, as in { op = \"read\", lba = 50 }")?;
        let mut named = false;
        for (key, field) in &fields {
            match *key {
                "op" => {
                    named = true;
                    on.operations = self.operations(field).unwrap_or(Operations::DATA);
                }
                "lba" => self.ranges(field, &mut on.ranges, Self::lba),
                "bytes" => self.ranges(field, &mut on.ranges, Self::bytes),
                "event" => on.event = self.event(field),
                "nth" => on.nth = self.count(field),
                "every" => on.every = self.count(field),
                "probability" => on.probability = self.share(field).flatten(),
                "times" => on.times = self.count(field),
                "state" => on.state = self.name(field, STATE),
                "after" => on.after = self.time(field),
                "before" => on.before = self.some_time(field),
                "slower-than" => on.slower_than = self.time(field),
                _ => on.faster_than = self.some_time(field),
            }
        }
        if on.event.is_some() && !named {
            on.operations = Operations::empty();
        }
        on.ranges = merged(on.ranges);
        Some(on)
    }

    fn operations(&mut self, field: &Field<'a>) -> Option<Operations> {
        let mut operations = Operations::empty();
        match &field.tree.value {
            Value::Text(_) => operations = self.operation(field)?.set(),
            Value::List(list) if list.is_empty() => {
                return self.wrong(field, "the list is empty; leave 'op' out for every request for data");
            }
            Value::List(list) => {
                for (number, tree) in list.iter().enumerate() {
                    let item = Field { path: format!("{}[{number}]", field.path), tree };
                    operations |= self.operation(&item)?.set();
                }
            }
            _ => return self.wants(field, OPERATIONS),
        }
        Some(operations)
    }

    fn operation(&mut self, field: &Field<'a>) -> Option<Operation> {
        let words = Operation::ALL.map(|operation| (operation.name(), operation));
        self.word(field, &words)
    }

    fn event(&mut self, field: &Field<'a>) -> Option<Event> {
        let text = self.text(field, "write the name of an event, as in \"l2_update\"")?;
        if text == Event::None.name() {
            return self
                .wrong(field, "no driver announces 'none'; leave 'event' out for a rule that is armed from the start");
        }
        let event = Event::from_name(text);
        if event.is_none() {
            let near = nearest(text, Event::ALL.iter().map(|event| event.name()));
            let hint = near.map_or_else(|| "see docs/faults.md".to_owned(), |near| format!("did you mean '{near}'?"));
            return self.wrong(field, format!("'{}' is no event; {hint}", text.escape_debug()));
        }
        event
    }

    /// One range or a list of them.
    fn ranges(
        &mut self,
        field: &Field<'a>,
        ranges: &mut Vec<ByteRange>,
        read: fn(&mut Self, &Field<'a>) -> Option<ByteRange>,
    ) {
        let Value::List(list) = &field.tree.value else {
            ranges.extend(read(self, field));
            return;
        };
        if list.is_empty() {
            self.wrong::<()>(field, "the list is empty: such a rule would never fire; leave it out for any place");
        }
        if list.len() > RANGES_MAX {
            self.wrong::<()>(field, format!("the list has {} ranges; a rule has {RANGES_MAX} at most", list.len()));
            return;
        }
        for (number, tree) in list.iter().enumerate() {
            let item = Field { path: format!("{}[{number}]", field.path), tree };
            ranges.extend(read(self, &item));
        }
    }

    fn lba(&mut self, field: &Field<'a>) -> Option<ByteRange> {
        let lba_size = self.lba_size;
        let read = match &field.tree.value {
            Value::Text(text) => words::lba_range(text, lba_size),
            Value::Integer(lba) => match u64::try_from(*lba) {
                Ok(lba) => words::lbas(lba, lba.checked_add(1), lba_size).map_err(|why| format!("{lba} {why}")),
                Err(_) => Err(format!("{lba} is no sector; they count from 0")),
            },
            _ => return self.wants(field, "write a sector or a range of them, as in 50, \"50..60\" or \"50+8\""),
        };
        match read {
            Ok(range) => Some(range),
            Err(words) => self.wrong(field, words),
        }
    }

    fn bytes(&mut self, field: &Field<'a>) -> Option<ByteRange> {
        let text = self.text(field, "write a range of bytes, as in \"1M+4k\" or \"0x1000..0x2000\"")?;
        match words::byte_range(text, self.lba_size) {
            Ok(range) => Some(range),
            Err(words) => self.wrong(field, words),
        }
    }
}

/// Sorted, and those that overlap or touch made one.
pub(in crate::file) fn merged(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable();
    let mut merged: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
