//! `life`: how sectors fall ill and recover.

use super::{Field, Reader};
use crate::file::fields;
use crate::file::mistake::nearest;
use crate::file::preset::{self, Meaning};
use crate::file::tree::Value;
use crate::rule::{Growth, Life, Rot, Until};

impl<'a> Reader<'a> {
    pub(super) fn life(&mut self, field: &Field<'a>) -> Option<Meaning> {
        if matches!(field.tree.value, Value::Text(_)) {
            return self.preset(field);
        }
        let wanted = "write a word such as \"until-rewritten\", or a table";
        let given = self.table(field, fields::LIFE, wanted)?;
        let get = |name: &str| given.iter().find(|(key, _)| *key == name).map(|(_, field)| field);
        let mut meaning = Meaning { life: Life::default(), operations: None, action: None };
        if let Some(field) = get("preset") {
            meaning = self.preset(field)?;
        }
        if let Some(field) = get("until") {
            let words = [("never", Until::Never), ("rewritten", Until::Rewrite), ("reassigned", Until::Reassign)];
            meaning.life.until = self.word(field, &words)?;
        }
        if let Some(accesses) = get("accesses") {
            if get("until").is_some() {
                return self.wrong(accesses, "a life ends in one way; leave 'until' or 'accesses' out");
            }
            meaning.life.until = Until::Accesses(self.count(accesses)?);
        }
        if let Some(field) = get("growth") {
            meaning.life.growth = Some(self.growth(field)?);
        }
        if let Some(field) = get("rot") {
            meaning.life.rot = Some(self.rot(field)?);
        }
        Some(meaning)
    }

    fn preset(&mut self, field: &Field<'a>) -> Option<Meaning> {
        let words = || preset::ALL.iter().map(|preset| preset.word);
        let text = self.text(field, &format!("write one of {}", words().collect::<Vec<_>>().join(", ")))?;
        let meaning = preset::meaning(text);
        if meaning.is_none() {
            let hint = match nearest(text, words()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("there are {}", words().collect::<Vec<_>>().join(", ")),
            };
            return self.wrong(field, format!("'{}' is no life; {hint}", text.escape_debug()));
        }
        meaning
    }

    fn growth(&mut self, field: &Field<'a>) -> Option<Growth> {
        let wanted = "write both, as in { each = \"1h\", limit = 100 }";
        let given = self.table(field, fields::GROWTH, wanted)?;
        let get = |name: &str| given.iter().find(|(key, _)| *key == name).map(|(_, field)| field);
        let (Some(each), Some(limit)) = (get("each"), get("limit")) else {
            return self.wrong(field, wanted);
        };
        Some(Growth { each: self.some_time(each)?, limit: self.count(limit)? })
    }

    fn rot(&mut self, field: &Field<'a>) -> Option<Rot> {
        let wanted = "write the time in which half of the sectors fall, as in { half = \"30d\" }";
        let given = self.table(field, fields::ROT, wanted)?;
        match given.first() {
            Some((_, half)) => Some(Rot { half: self.some_time(half)? }),
            None => self.wrong(field, wanted),
        }
    }
}
