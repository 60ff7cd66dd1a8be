//! One check from start to end: recognise, analyse, notice a live image, conclude.

use crate::budget::Budget;
use crate::bytes::printable;
use crate::code::general;
use crate::context::Context;
use crate::finding::Finding;
use crate::probe::{Format, Probe, probe};
use crate::report::{Report, Verdict};
use crate::source::Source;
use crate::watch::Watch;
use crate::{Assume, Options, parallels, qcow2, qed, vdi, verdict, vhd, vhdx, vmdk};

/// Checks one image. Nothing about the image makes this fail: whatever is wrong is in the report.
pub fn check(image: &dyn Source, options: &Options, watch: &dyn Watch) -> Report {
    let budget = Budget::new(options.memory);
    let mut cx = Context::new(image, options, watch, &budget);
    let before = image.stamp();

    let (format, probed, named) = match (options.format, probe(image)) {
        (Some(format), found) => {
            warn_of_raw(&mut cx, format, &found);
            (Some(format), false, None)
        }
        (None, Probe::Known(format)) => (Some(format), true, None),
        (None, Probe::Named(name)) => (None, true, Some(name)),
        (None, Probe::Unknown) => (None, true, None),
    };
    match format {
        Some(Format::Qcow2) => qcow2::analyse(&mut cx),
        Some(Format::Vdi) => vdi::analyse(&mut cx),
        Some(Format::Vmdk) => vmdk::analyse(&mut cx),
        Some(Format::Vhd) => vhd::analyse(&mut cx),
        Some(Format::Vhdx) => vhdx::analyse(&mut cx),
        Some(Format::Parallels) => parallels::analyse(&mut cx),
        Some(Format::Qed) => qed::analyse(&mut cx),
        Some(Format::Raw) => cx.could_not("raw disks have no structure of their own: there is nothing to check"),
        None => {
            let words = match named {
                Some(name) => format!("this is a {name} image; that format is recognised but not checked"),
                None => "no known image format: a raw disk, or a header that is gone; state the format with -f if you know it"
                    .to_owned(),
            };
            cx.could_not(words);
        }
    }

    tell_assumed(&mut cx, format);
    apply_policy(&mut cx, format);

    let stopped = watch.stop();
    if stopped {
        cx.could_not("the check was stopped before its end");
    }
    let live = notice_live(&mut cx, before);
    conclude(cx, format, probed, stopped, live)
}

/// What the user supplied was believed. qcow2 weighs each value against the header by itself.
fn tell_assumed(cx: &mut Context<'_>, format: Option<Format>) {
    let Some(format) = format.filter(|format| *format != Format::Qcow2) else { return };
    let known = Assume::known(format);
    let names: Vec<&str> = cx.options.assume.names().filter(|name| known.contains(name)).collect();
    if !names.is_empty() {
        cx.not_checked(format!("whether what was assumed is true: {}", names.join(", ")));
    }
}

/// Of an image of unknown origin every name of another file is told. qcow2 and VMDK look closer at their names
/// themselves.
fn apply_policy(cx: &mut Context<'_>, format: Option<Format>) {
    if !cx.options.untrusted || matches!(format, Some(Format::Qcow2 | Format::Vmdk)) {
        return;
    }
    let found: Vec<Finding> = cx
        .references
        .iter()
        .map(|other| {
            let words = format!("names its {}: '{}'", other.role, printable(other.name.as_bytes(), 1024));
            Finding::new(general::POLICY_REFERENCE, words)
        })
        .collect();
    found.into_iter().for_each(|finding| cx.find(finding));
}

/// A guest that owns a raw disk may write an image header into it.
fn warn_of_raw(cx: &mut Context<'_>, format: Format, found: &Probe) {
    let looks_like = match found {
        Probe::Known(other) => other.name(),
        Probe::Named(name) => name,
        Probe::Unknown => return,
    };
    if format == Format::Raw && looks_like != "raw" {
        let words = format!("stated to be raw, but it begins with the magic of {looks_like}");
        cx.find(Finding::new(general::LOOKS_LIKE, words).host(0..cx.file_len().min(512)));
    }
}

/// Whether somebody writes to the image: what was read at different moments may not fit together.
fn notice_live(cx: &mut Context<'_>, before: Option<crate::source::Stamp>) -> bool {
    let mut live = false;
    if let Some(writer) = cx.image.writer() {
        cx.find(Finding::new(general::IN_USE, format!("held open for writing by {writer}")));
        live = true;
    }
    if let (Some(before), Some(after)) = (before, cx.image.stamp())
        && before != after
    {
        let words = if before.len == after.len {
            "the file was written to while it was read".to_owned()
        } else {
            format!("the file's length went from {} to {} while it was read", before.len, after.len)
        };
        cx.find(Finding::new(general::SHRANK, words));
        live = true;
    }
    live
}

fn conclude(mut cx: Context<'_>, format: Option<Format>, probed: bool, stopped: bool, live: bool) -> Report {
    let verdict = match format {
        None | Some(Format::Raw) => Verdict::Unsupported,
        Some(_) => verdict::verdict(&cx.findings, cx.complete),
    };
    verdict::fill_causes(&mut cx);
    verdict::fill_next(&mut cx, verdict);
    let lost = cx.lost();
    cx.numbers.corruptions = cx.findings.errors(crate::code::Severity::Corruption);
    cx.numbers.leaks = cx.findings.errors(crate::code::Severity::Leak);
    Report {
        image: cx.image.name(),
        format,
        probed,
        verdict,
        lost,
        causes: cx.causes,
        sums: cx.findings.sums().collect(),
        findings: cx.findings.into_kept(),
        not_checked: cx.not_checked,
        next: cx.next,
        facts: cx.facts,
        references: cx.references,
        numbers: cx.numbers,
        host: cx.host,
        guest: cx.guest,
        stopped,
        live,
    }
}
