//! Watching a check: progress on a terminal, and the printer of qcheck's streams.

use std::io::{BufWriter, IsTerminal as _, LineWriter, Stderr, Stdout};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use blkproof_check::Report;
use blkproof_check::watch::{Event, Progress, Wants, Watch};
use blkproof_report::qcheck::{Printer, Streams};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::messages::print_error;
use crate::stop::Stop;

/// Long enough that a bar is no flicker.
const PATIENCE: Duration = Duration::from_millis(400);

pub(super) struct Watcher<'a> {
    stop: &'a Stop,
    printer: Option<Printer<BufWriter<Stdout>, LineWriter<Stderr>>>,
    /// Made when it is first drawn: most checks are over by then.
    bar: OnceLock<ProgressBar>,
    started: Instant,
    /// Somebody looks.
    seen: bool,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(stop: &'a Stop, streams: Option<Streams>) -> Self {
        let printer = streams.map(|streams| {
            Printer::new(streams, BufWriter::new(std::io::stdout()), LineWriter::new(std::io::stderr()))
        });
        // With streams every line is wanted as it is.
        let seen = printer.is_none() && std::io::stderr().is_terminal();
        Self { stop, printer, bar: OnceLock::new(), started: Instant::now(), seen }
    }

    /// A check of this image begins.
    pub(super) fn start(&self, image: &Path) {
        self.stop.busy();
        if let Some(printer) = &self.printer {
            printer.start(&image.display().to_string(), &timestamp(SystemTime::now()));
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }

    /// A message of stream `f`.
    pub(super) fn fatal(&self, words: &str) {
        if let Some(printer) = &self.printer {
            printer.message('f', words);
        }
    }

    /// Takes the bar away, and prints the rest of the streams; whether there are any.
    pub(super) fn finish(&self, report: &Report) -> bool {
        self.clear();
        let Some(printer) = &self.printer else { return false };
        match printer.finish(report) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                print_error(&anyhow::Error::new(error).context("writing the streams"));
            }
            _ => {}
        }
        true
    }
}

impl Watch for Watcher<'_> {
    fn wants(&self) -> Wants {
        self.printer.as_ref().map_or(Wants::empty(), Watch::wants)
    }

    fn event(&self, event: &Event<'_>) {
        if let Some(printer) = &self.printer {
            printer.event(event);
        }
    }

    fn progress(&self, progress: Progress) {
        if let Some(printer) = &self.printer {
            return printer.progress(progress);
        }
        if !self.seen || self.started.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_init(bar);
        // Each change draws: what stays the same is not set again. Threads may overtake each other, the bar only goes
        // on.
        let total = progress.total.max(progress.done);
        if bar.length() != Some(total) {
            bar.set_length(total);
        }
        if bar.message() != progress.phase {
            bar.set_message(progress.phase);
            bar.set_position(progress.done);
            bar.reset_eta();
        } else if bar.position() < progress.done {
            bar.set_position(progress.done);
        }
    }

    fn stop(&self) -> bool {
        self.stop.asked() || self.printer.as_ref().is_some_and(Watch::stop)
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{msg} {bar:30} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A moment as `2018-02-13 12:00:00`, in UTC.
fn timestamp(now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a number of days since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (17_575, (2018, 2, 13)),
            (20_778, (2026, 11, 21)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
        assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1_518_523_200)), "2018-02-13 12:00:00");
    }
}
