//! Linux' scsi_debug: its module parameters (`opts=2 medium_error_start=50 every_nth=5`), or lines for
//! `/sys/kernel/debug/scsi_debug/<h:c:t:l>/error` (`2 -10 0x88 0 0 0x2 0x3 0x11 0x0`).

use std::time::Duration;

use blkproof_block::{ByteRange, DeviceError, Errno};

use super::{Draft, EIO, Options, Wrong, c_number, refusal};
use crate::request::Operations;
use crate::rule::{Action, Delay, Done, Failure, On};

pub(super) fn read(text: &str, options: &Options, draft: &mut Draft) -> Result<(), Wrong> {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let debugfs = first.is_some_and(|line| {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        first == "-" || c_number(first).is_some()
    });
    if debugfs { errors(text, draft) } else { parameters(text, options, draft) }
}

/// Parameters that say nothing of faults, as far as a fault is concerned.
const PLAIN: &[&str] = &[
    "add_host",
    "ato",
    "cdb_len",
    "clustering",
    "dev_size_mb",
    "dix",
    "dsense",
    "guard",
    "host_lock",
    "host_max_queue",
    "lbprz",
    "lowest_aligned",
    "max_luns",
    "max_queue",
    "no_lun_0",
    "num_parts",
    "num_tgts",
    "opt_blks",
    "opt_xferlen_exp",
    "per_host_store",
    "physblk_exp",
    "ptype",
    "removable",
    "scsi_level",
    "statistics",
    "submit_queues",
    "poll_queues",
    "unmap_alignment",
    "unmap_granularity",
    "unmap_max_blocks",
    "unmap_max_desc",
    "uuid_ctl",
    "vpd_use_hostno",
    "write_same_length",
    "lbpu",
    "lbpws",
    "lbpws10",
    "dif",
    "inq_product",
    "inq_rev",
    "inq_vendor",
    "strict",
    "allow_restart",
];

/// Parameters that change what requests meet, unless they are 0, in a way that no rule has.
const LOST: &[(&str, &str)] = &[
    ("fake_rw", "reads and writes that move no data"),
    ("tur_ms_to_ready", "commands refused until the disk is ready"),
    ("virtual_gb", "sectors that wrap around at the end of the store"),
];

/// What a tick of the kernel's clock is taken for, as it is with `CONFIG_HZ_250`.
const JIFFY: Duration = Duration::from_millis(4);

struct Parameters {
    opts: u64,
    every_nth: i64,
    start: u64,
    count: u64,
    sector_size: u32,
    /// Ticks; none, or below 0, is no time worth telling.
    delay: i64,
    /// Nanoseconds, instead of ticks.
    ndelay: u64,
    /// Delays are anything up to that.
    random: bool,
    write_protected: bool,
}

fn parameters(text: &str, options: &Options, draft: &mut Draft) -> Result<(), Wrong> {
    let mut is = Parameters {
        opts: 0,
        every_nth: 0,
        start: 0x1234,
        count: 10,
        sector_size: options.lba_size.unwrap_or(512),
        delay: 0,
        ndelay: 0,
        random: false,
        write_protected: false,
    };
    let mut found = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            let wrong = || (number, format!("'{value}' is no value for {key}"));
            let figure = c_number(value);
            let flag = || match value {
                "1" | "y" | "Y" => Ok(true),
                "0" | "n" | "N" => Ok(false),
                _ => Err(wrong()),
            };
            let natural = || figure.and_then(|figure| u64::try_from(figure).ok()).ok_or_else(wrong);
            match key.strip_prefix("scsi_debug.").unwrap_or(key) {
                "opts" => is.opts = natural()?,
                "every_nth" => is.every_nth = figure.and_then(|figure| i64::try_from(figure).ok()).ok_or_else(wrong)?,
                "medium_error_start" => is.start = natural()?,
                "medium_error_count" => is.count = natural()?,
                "sector_size" => {
                    let size = natural()?;
                    let size = u32::try_from(size).ok().filter(|size| [512, 1024, 2048, 4096].contains(size));
                    is.sector_size = size.ok_or_else(wrong)?;
                }
                "delay" => is.delay = figure.and_then(|figure| i64::try_from(figure).ok()).ok_or_else(wrong)?,
                "ndelay" => is.ndelay = natural()?,
                "random" => is.random = flag()?,
                "wp" => is.write_protected = flag()?,
                known if PLAIN.contains(&known) => {}
                key => match LOST.iter().find(|(lost, _)| *lost == key) {
                    Some(_) if natural()? == 0 => {}
                    Some((_, words)) => draft.lost(format!("{key}={value}: {words}")),
                    None => draft.lost(format!("the parameter {key}, which is not known here")),
                },
            }
            found = true;
        }
    }
    if !found {
        return Err((1, "these are neither module parameters such as opts=2 nor lines for the file error".to_owned()));
    }
    draft.rules.lba_size = is.sector_size;
    slow(&is, draft);
    protected(&is, draft);
    gated(&is, draft);
    medium(&is, draft)
}

/// How long each command takes. It comes before the others: a delay goes on to the next rule.
fn slow(is: &Parameters, draft: &mut Draft) {
    let ticks = u32::try_from(is.delay).unwrap_or(if is.delay > 0 { u32::MAX } else { 0 });
    let (longest, written) = match is.ndelay {
        0 => (JIFFY.saturating_mul(ticks), format!("delay={}", is.delay)),
        ns => (Duration::from_nanos(ns), format!("ndelay={ns}")),
    };
    if longest.is_zero() {
        if is.random {
            draft.lost("random=1 without a delay: how long a command takes by itself");
        }
        return;
    }
    if is.ndelay == 0 {
        draft.lost("delay counts ticks of the kernel's clock; here each is taken for 4 ms (HZ=250)");
    }
    let delay = if is.random { Delay::Uniform(Duration::ZERO, longest) } else { Delay::Fixed(longest) };
    let note = if is.random { format!("{written} random=1") } else { written };
    draft.rule("delay", On { operations: Operations::DATA, ..On::default() }, Action::Delay(delay), vec![note]);
}

/// A disk that is write protected.
fn protected(is: &Parameters, draft: &mut Draft) {
    if is.write_protected {
        let operations = Operations::WRITE | Operations::WRITE_ZEROES | Operations::DISCARD;
        let error = Failure::device(DeviceError::Scsi { key: 7, asc: 0x27, ascq: 2 });
        draft.rule("write-protected", On { operations, ..On::default() }, refusal(error), vec!["wp=1".to_owned()]);
    }
}

const MEDIUM: u64 = 2;

/// Bits of `opts` that are no faults: what is logged, and that there is no write cache.
const HARMLESS: u64 = 1 | 0x200 | 0x1000 | 0x2000 | 0x4000;

/// A bit of `opts`, its name, and the sense of the error it makes, if it has one.
type Bit = (u64, &'static str, Option<(u8, u8, u8)>);

const OPTIONS: [Bit; 9] = [
    (4, "timeout", None),
    (8, "recovered", Some((1, 0x5d, 0))),
    (0x10, "transport", Some((0xb, 0x4b, 3))),
    (0x20, "dif", Some((0xb, 0x10, 1))),
    (0x40, "dix", Some((5, 0x10, 1))),
    (0x80, "mac-timeout", None),
    (0x100, "short", None),
    (0x8000, "busy", None),
    (0x10000, "abort", None),
];

/// What happens to each n-th command.
fn gated(is: &Parameters, draft: &mut Draft) {
    let named = OPTIONS.iter().fold(HARMLESS | MEDIUM, |all, (bit, _, _)| all | bit);
    if is.opts & !named != 0 {
        draft.lost(format!("opts {:#x}, which is not known here", is.opts & !named));
    }
    let wanted = || OPTIONS.iter().filter(|(bit, _, _)| is.opts & bit != 0);
    if wanted().next().is_none() {
        return;
    }
    if is.every_nth == 0 {
        draft.note("every_nth is 0: of opts only the medium error takes effect.");
        return;
    }
    draft.lost("every_nth counts commands of every kind; here only requests for data are counted");
    for (_, name, sense) in wanted() {
        let error = sense.map(|(key, asc, ascq)| Failure::device(DeviceError::Scsi { key, asc, ascq }));
        let action = match (*name, error) {
            ("timeout", _) => Action::Hang,
            ("busy", _) => {
                draft.lost("opts 0x8000: the status BUSY is told as the error EBUSY");
                refusal(Failure::errno(Errno(16)))
            }
            ("recovered", Some(error)) => Action::Recovered(error),
            (_, Some(error)) => refusal(error),
            ("short", None) => {
                draft.lost("opts 0x100: a short transfer with status GOOD and a residual");
                continue;
            }
            ("abort", None) => {
                draft.lost("opts 0x10000: commands that the host aborts");
                continue;
            }
            _ => {
                draft.lost("opts 0x80: timeouts of MEDIUM ACCESS commands");
                continue;
            }
        };
        let operations = if sense.is_some() { Operations::READ | Operations::WRITE } else { Operations::DATA };
        let every = is.every_nth.unsigned_abs();
        // Below 0: the n-th command, and each one behind it.
        let (nth, every) = if is.every_nth < 0 { (Some(every), Some(1)) } else { (None, Some(every)) };
        let on = On { operations, nth, every, ..On::default() };
        draft.rule(*name, on, action, vec![format!("opts={:#x} every_nth={}", is.opts, is.every_nth)]);
    }
}

/// The medium error, which `every_nth` has no part in.
fn medium(is: &Parameters, draft: &mut Draft) -> Result<(), Wrong> {
    if is.opts & MEDIUM == 0 || is.count == 0 {
        return Ok(());
    }
    let size = u64::from(is.sector_size);
    let end = is.start.checked_add(is.count).and_then(|end| end.checked_mul(size));
    let range = is.start.checked_mul(size).zip(end).map(|(start, end)| ByteRange { start, end });
    let range = range.ok_or_else(|| (1, "the medium error lies beyond 2^64 bytes".to_owned()))?;
    let on = On { operations: Operations::READ, ranges: vec![range], ..On::default() };
    let error = Failure::device(DeviceError::Scsi { key: 3, asc: 0x11, ascq: 0 });
    let notes = vec!["medium error; where scsi_debug transfers nothing, what lies before it is read here".to_owned()];
    draft.rule("medium-error", on, Action::Fail { error, done: Done::Prefix, wait: None }, notes);
    Ok(())
}

/// Lines `type count opcode …`; `- type opcode` takes one back.
fn errors(text: &str, draft: &mut Draft) -> Result<(), Wrong> {
    let mut lines: Vec<(usize, Vec<i128>)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace().peekable();
        let removes = words.next_if_eq(&"-").is_some();
        let mut figures = Vec::new();
        for (at, word) in words.enumerate() {
            // The opcode and what follows are hexadecimal, with 0x or without.
            let hexadecimal = at >= if removes { 1 } else { 2 };
            let figure = match word.strip_prefix("0x") {
                None if hexadecimal => i128::from_str_radix(word, 16).ok(),
                _ => c_number(word),
            };
            figures.push(figure.ok_or_else(|| (number, format!("'{word}' is no number")))?);
        }
        match figures.as_slice() {
            [] => {}
            [kind, opcode] if removes => {
                lines.retain(|(_, old)| (old.first(), old.get(2)) != (Some(kind), Some(opcode)));
            }
            [_, _, _, ..] if !removes => lines.push((number, figures)),
            _ => return Err((number, "a line is TYPE COUNT OPCODE …, or - TYPE OPCODE".to_owned())),
        }
    }
    for (number, figures) in lines {
        error(number, &figures, draft)?;
    }
    Ok(())
}

fn error(number: usize, figures: &[i128], draft: &mut Draft) -> Result<(), Wrong> {
    let (Some(kind), Some(count), Some(opcode)) = (figures.first(), figures.get(1), figures.get(2)) else {
        return Ok(());
    };
    if *count == 0 {
        return Ok(());
    }
    let operations = match opcode {
        0x08 | 0x28 | 0xa8 | 0x88 => Operations::READ,
        0x0a | 0x2a | 0xaa | 0x8a => Operations::WRITE,
        0x41 | 0x93 => Operations::WRITE_ZEROES,
        0x42 => Operations::DISCARD,
        0x35 | 0x91 => Operations::FLUSH,
        0xff => {
            draft.lost("the opcode 0xff is every command; here it is every request for data");
            Operations::DATA
        }
        _ => {
            draft.lost(format!("line {number}: commands with opcode {opcode:#x}, which no request here stands for"));
            return Ok(());
        }
    };
    let action = match kind {
        0 => Action::Hang,
        1 => {
            draft.lost(format!("line {number}: what queuecommand returns is between the kernel and its driver"));
            return Ok(());
        }
        2 => match figures.get(3..9) {
            Some([host, _, status, key, asc, ascq]) => {
                refusal(sense(number, [*host, *status, *key, *asc, *ascq], draft)?)
            }
            _ => {
                let words = "a line of type 2 is 2 COUNT OPCODE HOST_BYTE DRIVER_BYTE STATUS KEY ASC ASCQ";
                return Err((number, words.to_owned()));
            }
        },
        3 | 4 => {
            draft.lost(format!("line {number}: aborts and resets that fail are no requests"));
            return Ok(());
        }
        _ => return Err((number, format!("there is no type {kind}; types go from 0 to 4"))),
    };
    let times = (*count < 0).then(|| u64::try_from(count.unsigned_abs()).unwrap_or(u64::MAX));
    let times = times.map(|times| times.min(i64::MAX.unsigned_abs()));
    let on = On { operations, times, ..On::default() };
    draft.rule(format!("line-{number}"), on, action, Vec::new());
    Ok(())
}

fn sense(number: usize, [host, status, key, asc, ascq]: [i128; 5], draft: &mut Draft) -> Result<Failure, Wrong> {
    if host != 0 || status != 2 {
        draft.lost(format!(
            "line {number}: host byte {host:#x} and status {status:#x} are told as EIO; only a check condition has \
             sense"
        ));
        return Ok(EIO);
    }
    let byte = |figure: i128, max: u8| u8::try_from(figure).ok().filter(|byte| *byte <= max);
    match (byte(key, 0xf), byte(asc, 0xff), byte(ascq, 0xff)) {
        (Some(key), Some(asc), Some(ascq)) => Ok(Failure::device(DeviceError::Scsi { key, asc, ascq })),
        _ => Err((number, "sense is a key up to 0xf, ASC and ASCQ up to 0xff".to_owned())),
    }
}
