//! Plants the defects: applies patches, each made against the untouched sources, all together.
//!
//! A patch is a unified diff. Its hunks are placed by the untouched file, never by what another patch made of it, so
//! patches do not depend on each other or on an order; text that two of them insert at one place stands there by the
//! name of the patch. Line numbers are a hint: a hunk whose lines have moved is found if its lines stand in the file
//! once.

use std::collections::BTreeMap;

use diffy::{Hunk, Line, Patch};

/// Files by their path below the source folder.
pub(crate) type Tree = BTreeMap<String, String>;

/// What is wrong with a patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Misfit {
    /// The patch's file name.
    pub(crate) patch: String,
    /// The file it is about, if that is known.
    pub(crate) file: String,
    /// What is wrong, and what to do.
    pub(crate) why: String,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mutants/{} does not apply to crates/formats/src/{}: {}", self.patch, self.file, self.why)
    }
}

/// What is done to one file, by its untouched lines.
#[derive(Default)]
struct Edits<'a> {
    /// Text to stand before a line; the number of lines stands for the end.
    before: BTreeMap<usize, Vec<String>>,
    /// Lines that go, and whose patch removes them.
    gone: BTreeMap<usize, &'a str>,
}

/// Applies `patches` (file name, text) to `tree`. All that is wrong is reported, not only the first thing.
pub(crate) fn apply(tree: &Tree, patches: &BTreeMap<String, String>) -> Result<Tree, Vec<Misfit>> {
    let mut misfits = Vec::new();
    let mut edits: BTreeMap<&str, Edits<'_>> = BTreeMap::new();
    for (name, text) in patches {
        let wrong = |file: &str, why: String| Misfit { patch: name.clone(), file: file.to_owned(), why };
        let parts = parts(text);
        if parts.is_empty() {
            misfits.push(wrong("?", "it holds no `--- a/FILE` line".into()));
        }
        for part in parts {
            let patch = match Patch::from_str(part) {
                Ok(patch) => patch,
                Err(error) => {
                    let file = part.lines().next().unwrap_or_default().trim_start_matches("--- a/");
                    misfits.push(wrong(file, format!("it is no unified diff: {error}")));
                    continue;
                }
            };
            let file = patch.original().unwrap_or_default().trim_start_matches("a/");
            let Some((file, text)) = tree.get_key_value(file) else {
                let why = "there is no such file; if it was renamed, change the patch's `---` and `+++` lines";
                misfits.push(wrong(file, why.into()));
                continue;
            };
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            let edits = edits.entry(file).or_default();
            for hunk in patch.hunks() {
                if let Err(why) = plan(&lines, hunk, name, edits) {
                    misfits.push(wrong(file, why));
                }
            }
        }
    }
    if !misfits.is_empty() {
        return Err(misfits);
    }
    let mut changed = tree.clone();
    for (file, edits) in &edits {
        if let Some(text) = changed.get_mut(*file) {
            *text = carry_out(text, edits);
        }
    }
    Ok(changed)
}

/// The diffs of a patch, one for each file. What stands before the first is commentary.
fn parts(text: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with("--- a/") {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).filter_map(|(&start, end)| text.get(start..end)).collect()
}

/// Finds the place of a hunk and adds what it does to `edits`.
fn plan<'a>(lines: &[&str], hunk: &Hunk<'_, str>, patch: &'a str, edits: &mut Edits<'a>) -> Result<(), String> {
    let wanted: Vec<&str> = hunk
        .lines()
        .iter()
        .filter_map(|line| match line {
            Line::Context(text) | Line::Delete(text) => Some(*text),
            Line::Insert(_) => None,
        })
        .collect();
    let stated = hunk.old_range().start().saturating_sub(1);
    let mut at = place(lines, &wanted, stated)?;
    for line in hunk.lines() {
        match line {
            Line::Context(_) => at += 1,
            Line::Insert(text) => edits.before.entry(at).or_default().push((*text).to_owned()),
            Line::Delete(_) => {
                if let Some(other) = edits.gone.insert(at, patch) {
                    let line = at + 1;
                    return Err(format!("line {line} is removed by mutants/{other} too; one of the two must insert"));
                }
                at += 1;
            }
        }
    }
    Ok(())
}

/// Where `wanted` stands in `lines`: at `stated`, or else at the only place there is.
fn place(lines: &[&str], wanted: &[&str], stated: usize) -> Result<usize, String> {
    let stands = |at: usize| lines.get(at..at + wanted.len()) == Some(wanted);
    if stands(stated) {
        return Ok(stated);
    }
    let places: Vec<usize> = (0..lines.len()).filter(|&at| stands(at)).collect();
    let line = stated + 1;
    let remedy = "make it anew against the driver as it is now (mutants/README.md), and see that its test still fails";
    match places.as_slice() {
        [only] => Ok(*only),
        [] => {
            let first = wanted.iter().find(|wanted| !lines.contains(wanted)).map_or("", |line| line.trim());
            let what = if first.is_empty() {
                "its lines no longer stand next to each other".to_owned()
            } else {
                format!("the driver has no line `{first}` any more")
            };
            Err(format!("the hunk at line {line} finds no place, as {what}; {remedy}"))
        }
        many => Err(format!("the hunk at line {line} fits {} places; give it more context: {remedy}", many.len())),
    }
}

fn carry_out(text: &str, edits: &Edits<'_>) -> String {
    let mut new = String::with_capacity(text.len() + 4096);
    let mut count = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        edits.before.get(&number).into_iter().flatten().for_each(|text| new.push_str(text));
        if !edits.gone.contains_key(&number) {
            new.push_str(line);
        }
        count = number + 1;
    }
    edits.before.get(&count).into_iter().flatten().for_each(|text| new.push_str(text));
    new
}
