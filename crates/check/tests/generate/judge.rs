//! What holds of every report, whatever the image: the entry point of the fuzz targets, and of the tests over generated
//! images.

use blkproof_check::code::Severity;
use blkproof_check::map::GuestState;
use blkproof_check::source::Source;
use blkproof_check::watch::Silent;
use blkproof_check::{Format, Options, Report, Verdict, check};

use super::seal::seal;
use super::sparse::Sparse;

/// What the fuzz targets ask for: a picture, data looked into, orphans searched, memory short enough to matter.
pub fn options(format: Option<Format>) -> Options {
    Options { format, data: true, memory: 2 << 20, max_findings: 50, cells: 64, untrusted: true, ..Options::default() }
}

/// One input of a fuzzer: decoded, checked as `format`, and by its magic.
pub fn fuzz(format: Format, input: &[u8]) {
    let (mut image, fix) = Sparse::decode(input);
    if fix {
        seal(&mut image);
    }
    judge(&image, &options(Some(format)));
}

/// Checks an image, and the report's own rules.
pub fn judge(image: &dyn Source, options: &Options) -> Report {
    let report = check(image, options, &Silent);
    if let Some(host) = &report.host {
        let total = host.totals.iter().sum::<u64>();
        assert_eq!(total, image.len(), "the map of the file has gaps: {:?}", host.totals);
        if let Some(grid) = &host.grid {
            assert_eq!(grid.cells.iter().flatten().sum::<u64>(), image.len(), "the picture of the file has gaps");
        }
    }
    if let Some(guest) = &report.guest {
        let total = guest.totals.iter().map(|bytes| u128::from(*bytes)).sum::<u128>();
        assert_eq!(total, u128::from(guest.size), "the map of the disk has gaps: {:?}", guest.totals);
        if let Some(grid) = &guest.grid {
            let cells = grid.cells.iter().flatten().map(|bytes| u128::from(*bytes)).sum::<u128>();
            assert_eq!(cells, u128::from(guest.size), "the picture of the disk has gaps");
        }
        assert!(guest.bytes(GuestState::Damaged) <= guest.size);
    }
    let errors = |least: Severity| {
        report.sums.iter().filter(|(_, severity, _)| *severity >= least).fold(0u64, |all, (_, _, sum)| {
            assert!(sum.errors > 0 && sum.findings > 0, "nothing was counted: {sum:?}");
            all.saturating_add(sum.errors)
        })
    };
    match report.verdict {
        Verdict::Healthy => assert_eq!(errors(Severity::Leak), 0, "healthy, with errors"),
        Verdict::Leaks => assert!(errors(Severity::Corruption) == 0 && errors(Severity::Leak) > 0),
        Verdict::Damaged => assert!(errors(Severity::Corruption) > 0),
        Verdict::Undecided => {
            assert_eq!(errors(Severity::Corruption), 0, "damage is known, so there is a verdict");
            assert!(!report.not_checked.is_empty(), "undecided, without a reason");
        }
        Verdict::Unsupported => {}
    }
    if matches!(report.verdict, Verdict::Healthy | Verdict::Leaks) {
        assert!(report.lost.bytes == 0 && report.lost.ranges.is_empty(), "lost data is damage: {:?}", report.lost);
    }
    let sorted = report.lost.ranges.windows(2).all(|pair| pair[0].end < pair[1].start);
    assert!(sorted && report.lost.ranges.iter().all(|range| !range.is_empty()), "{:?}", report.lost.ranges);
    assert!(report.findings.len() <= options.max_findings, "more findings than asked for");
    for finding in &report.findings {
        plain(&finding.what);
        assert!(!finding.what.is_empty() && finding.count > 0, "{finding:?}");
        for range in finding.host.iter().chain(&finding.guest) {
            assert!(range.start <= range.end, "{}: {range:?} runs backwards", finding.what);
        }
    }
    report.causes.iter().for_each(|cause| plain(&cause.what));
    report.not_checked.iter().chain(&report.next).for_each(|line| plain(line));
    report
}

/// Names in images are data: nothing that a terminal obeys gets into a sentence.
fn plain(line: &str) {
    assert!(!line.chars().any(char::is_control), "control characters in {line:?}");
}
