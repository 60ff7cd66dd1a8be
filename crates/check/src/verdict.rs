//! From findings to a verdict, causes and the next step.

use crate::catalogue;
use crate::code::Severity;
use crate::context::Context;
use crate::finding::{Confidence, Findings};
use crate::report::{Cause, Verdict};

pub(crate) fn verdict(findings: &Findings, complete: bool) -> Verdict {
    if findings.errors(Severity::Corruption) > 0 {
        Verdict::Damaged
    } else if !complete {
        Verdict::Undecided
    } else if findings.errors(Severity::Leak) > 0 {
        Verdict::Leaks
    } else {
        Verdict::Healthy
    }
}

/// Every code no cause explains yet becomes a cause of its own: what the catalogue says of it.
pub(crate) fn fill_causes(cx: &mut Context<'_>) {
    let mut rest: Vec<(Severity, Cause)> = Vec::new();
    for (name, severity, sum) in cx.findings.sums() {
        if severity < Severity::Leak || cx.causes.iter().any(|cause| cause.codes.contains(&name)) {
            continue;
        }
        let Some(code) = catalogue::find(name) else { continue };
        let of_code = || cx.findings.iter().filter(|finding| finding.code == code);
        let cause = Cause {
            what: format!("{}; usual cause: {}", code.title, code.cause),
            confidence: Confidence::Possible,
            codes: vec![code.name],
            errors: sum.errors,
            host: of_code().flat_map(|finding| finding.host.first().cloned()).collect(),
            guest: of_code().flat_map(|finding| finding.guest.iter().cloned()).collect(),
        };
        rest.push((severity, cause));
    }
    rest.sort_by_key(|(severity, cause)| std::cmp::Reverse((*severity, cause.errors)));
    cx.causes.extend(rest.into_iter().map(|(_, cause)| cause));
}

/// The next safe steps, if the analyser named none.
pub(crate) fn fill_next(cx: &mut Context<'_>, verdict: Verdict) {
    if !cx.next.is_empty() || matches!(verdict, Verdict::Healthy | Verdict::Unsupported) {
        return;
    }
    if verdict == Verdict::Damaged {
        cx.next.push("keep this file as it is: work on a copy, and do not start the virtual machine on it".to_owned());
    }
    // Beside damage, what nothing refers to may be the very data that is missed: nobody is told to free it.
    let least = if verdict == Verdict::Damaged { Severity::Corruption } else { Severity::Leak };
    let mut codes: Vec<_> = cx.findings.sums().filter(|(_, severity, _)| *severity >= least).collect();
    codes.sort_by_key(|(_, severity, sum)| std::cmp::Reverse((*severity, sum.errors)));
    for (name, _, _) in codes.into_iter().take(3) {
        if let Some(code) = catalogue::find(name)
            && !cx.next.iter().any(|line| line == code.next)
        {
            cx.next.push(code.next.to_owned());
        }
    }
    if verdict == Verdict::Damaged && cx.findings.errors(Severity::Leak) > 0 {
        let words =
            "free no leaked space before the data is safe ('qemu-img check -r leaks' would): it may hold what is lost";
        cx.next.push(words.to_owned());
    }
}
