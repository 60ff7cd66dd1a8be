//! Linux' dm-dust: what `listbadblocks` prints, or a script of `dmsetup` that makes a dust device and its bad blocks.
//!
//! Reads of a bad block fail with EIO until the block is written. With a write fail count, so many writes fail first.

use std::collections::BTreeMap;

use blkproof_block::ByteRange;

use super::{Draft, EIO, Options, Wrong, c_unsigned, until_rewritten};
use crate::file::RANGES_MAX;
use crate::file::read::merged;
use crate::request::Operations;
use crate::rule::{Action, Done, Life, On, Until};

/// Sectors of rules end here, blocks of dust at 2^30.
const LBA_MAX: u64 = 65_536;

pub(super) fn read(text: &str, options: &Options, draft: &mut Draft) -> Result<(), Wrong> {
    let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
    let mut block_size: Option<u64> = options.lba_size.map(u64::from);
    let (mut enabled, mut messages) = (false, false);
    let mut ignored = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let clean = line.replace(['"', '\'', ',', ';', ':'], " ");
        let words: Vec<&str> = clean.split_ascii_whitespace().collect();
        let block = |text: Option<&&str>| {
            text.and_then(|text| c_unsigned(text))
                .ok_or_else(|| (number, "the number of the block is missing".to_owned()))
        };
        let at = |word: &str| words.iter().position(|known| *known == word);
        let after = |index: usize, steps: usize| index.checked_add(steps).and_then(|index| words.get(index));
        if let Some(index) = at("addbadblock") {
            messages = true;
            let fails = match after(index, 2) {
                Some(count) => {
                    c_unsigned(count).ok_or_else(|| (number, format!("'{count}' is no count of failing writes")))?
                }
                None => 0,
            };
            blocks.insert(block(after(index, 1))?, fails);
        } else if let Some(index) = at("removebadblock") {
            messages = true;
            blocks.remove(&block(after(index, 1))?);
        } else if at("clearbadblocks").is_some() {
            messages = true;
            blocks.clear();
        } else if at("enable").is_some() {
            enabled = true;
        } else if at("disable").is_some() {
            enabled = false;
        } else if let Some(index) = line.find("badblock added at block ") {
            // What dm-dust tells in the kernel's log.
            let found = line.get(index..).unwrap_or_default().split_ascii_whitespace().nth(4);
            let found = found.map(|text| text.trim_end_matches(|letter: char| !letter.is_ascii_digit()));
            let fails =
                line.split_once("with write fail count ").map_or(Some(0), |(_, count)| c_unsigned(count.trim()));
            let fails = fails.ok_or_else(|| (number, "the count of failing writes is no number".to_owned()))?;
            blocks.insert(block(found.as_ref())?, fails);
        } else if let Some(index) = at("dust").filter(|_| at("message").is_none()) {
            // The table line: START LENGTH dust DEVICE OFFSET BLOCKSIZE.
            let size = after(index, 3).and_then(|size| c_unsigned(size));
            let size = size.filter(|size| size.is_power_of_two() && (512..=1 << 30).contains(size));
            block_size = Some(size.ok_or_else(|| {
                (
                    number,
                    "a table line is START LENGTH dust DEVICE OFFSET BLOCKSIZE, with a power of two from 512"
                        .to_owned(),
                )
            })?);
        } else if words.iter().all(|word| c_unsigned(word).is_some()) {
            blocks.extend(words.iter().filter_map(|word| c_unsigned(word)).map(|block| (block, 0)));
        } else if words.iter().any(|word| ["null", "quiet", "queryblock", "countbadblocks"].contains(word)) {
            messages = true;
        } else {
            ignored.push(number);
        }
    }
    if let Some(first) = ignored.first() {
        if blocks.is_empty() && !messages && block_size.is_none() {
            let words = "this is neither a list of blocks, nor a message such as addbadblock 60, nor a table line";
            return Err((*first, words.to_owned()));
        }
        let lines = ignored.iter().take(10).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        draft.lost(format!("{} lines that say nothing of blocks, beginning with {lines}", ignored.len()));
    }
    let block_size = block_size.unwrap_or(512);
    draft.note(format!("Blocks of {block_size} bytes."));
    draft.rules.lba_size = u32::try_from(block_size.min(LBA_MAX)).unwrap_or(512);
    if block_size > LBA_MAX {
        draft.lost(format!(
            "a write cures the sectors of {LBA_MAX} bytes that it covers; under dm-dust it cures the whole block of \
             {block_size} bytes"
        ));
    }
    if block_size > 512 && !blocks.is_empty() {
        draft.lost("dm-dust cures a block at any write that touches it; here a write has to cover it whole");
    }
    if messages && !enabled {
        draft.note("The device was not enabled at the end of the script; the rules are armed from the start.");
    }
    let mut by_fails: BTreeMap<u64, Vec<ByteRange>> = BTreeMap::new();
    for (block, fails) in blocks {
        let range =
            block.checked_mul(block_size).zip(block.checked_add(1).and_then(|next| next.checked_mul(block_size)));
        let (start, end) = range.ok_or_else(|| (1, format!("block {block} lies beyond 2^64 bytes")))?;
        by_fails.entry(fails).or_default().push(ByteRange { start, end });
    }
    let every: Vec<ByteRange> = merged(by_fails.values().flatten().copied().collect());
    for (fails, ranges) in by_fails.into_iter().filter(|(fails, _)| *fails > 0) {
        for (number, ranges) in (1..).zip(merged(ranges).chunks(RANGES_MAX)) {
            let on = On {
                operations: Operations::WRITE | Operations::WRITE_ZEROES,
                ranges: ranges.to_vec(),
                ..On::default()
            };
            let notes = vec![format!("blocks whose first {fails} writes fail")];
            let action = Action::Fail { error: EIO, done: Done::None, wait: None };
            draft.rule(format!("write-fails-{fails}-{number}"), on, action, notes).life =
                Some(Life { until: Until::Accesses(fails.min(i64::MAX.unsigned_abs())), ..Life::default() });
        }
    }
    let several = every.len() > RANGES_MAX;
    for (number, ranges) in (1..).zip(every.chunks(RANGES_MAX)) {
        let id = if several { format!("bad-{number}") } else { "bad".to_owned() };
        let on = On { operations: Operations::READ, ranges: ranges.to_vec(), ..On::default() };
        let action = Action::Fail { error: EIO, done: Done::None, wait: None };
        draft.rule(id, on, action, Vec::new()).life = Some(until_rewritten());
    }
    Ok(())
}
