//! The timeline as a picture that stands alone: no script, no font, no reference to anything outside.
//!
//! A lane for each queue, and as many for the disk as it had requests at one time. Colours follow the reader's scheme.

use std::fmt::Write as _;

use super::{Bar, Class, Lane, Timeline, timeline};
use crate::map::{cut, markup};
use crate::torture::Case;
use crate::torture::text::Detail;

const STYLE: &str = include_str!("svg.css");

/// Pixels: lanes' names, the margin on the right, a lane, the picture, a column, a letter.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 56.0;
const LANE: f64 = 26.0;
const WIDTH: f64 = 1080.0;
const COLUMN_MAX: f64 = 48.0;
const LETTER: f64 = 6.6;
/// Lanes for the disk.
const DISK_LANES_MAX: usize = 24;

/// The timeline as an SVG document; empty if the run's events were not kept.
#[must_use]
pub fn svg(case: &Case<'_>) -> String {
    match timeline(case, Detail::Full) {
        Some(timeline) if !timeline.bars.is_empty() => Picture::new(&timeline).draw(&case.sentence()),
        _ => String::new(),
    }
}

struct Picture<'a> {
    timeline: &'a Timeline,
    column: f64,
    /// Names of lanes, and the first of a group.
    lanes: Vec<(String, bool)>,
    /// The lane of each bar; `None`: there was no room.
    places: Vec<Option<usize>>,
    /// Where parts of the run are named: which line, which column, what.
    parts: Vec<(usize, usize, &'static str)>,
    top: f64,
}

impl<'a> Picture<'a> {
    fn new(timeline: &'a Timeline) -> Self {
        let column = ((WIDTH - LEFT - RIGHT) / timeline.width() as f64).min(COLUMN_MAX);
        let (mut lanes, mut places) = (Vec::new(), vec![None; timeline.bars.len()]);
        let mut kinds: Vec<_> = timeline.bars.iter().map(|bar| bar.lane).collect();
        kinds.sort_by_key(|lane| match lane {
            Lane::Image => (0, 0),
            Lane::Queue(queue) => (1, *queue),
            Lane::Disk => (2, 0),
        });
        kinds.dedup();
        for kind in kinds {
            // The first lane of its kind that is free by then.
            let begin = lanes.len();
            let mut ends: Vec<usize> = Vec::new();
            for (bar, place) in timeline.bars.iter().zip(&mut places).filter(|(bar, _)| bar.lane == kind) {
                let end = timeline.end(bar);
                let free = ends.iter().position(|until| *until < bar.from);
                let lane = free.unwrap_or(ends.len());
                if lane >= DISK_LANES_MAX {
                    continue;
                }
                match ends.get_mut(lane) {
                    Some(until) => *until = end,
                    None => {
                        ends.push(end);
                        let name = match (kind, lane) {
                            (Lane::Image, 0) => "image".to_owned(),
                            (Lane::Queue(queue), 0) => format!("queue {queue}"),
                            (Lane::Disk, 0) => "disk".to_owned(),
                            _ => String::new(),
                        };
                        lanes.push((name, lane == 0));
                    }
                }
                *place = Some(begin.saturating_add(lane));
            }
        }
        let mut picture = Self { timeline, column, lanes, places, parts: Vec::new(), top: 0.0 };
        picture.name_parts();
        picture
    }

    /// Gives each part of the run a line above the lanes where its name runs into no other.
    fn name_parts(&mut self) {
        let mut ends: Vec<f64> = Vec::new();
        for &(from, part) in &self.timeline.parts {
            let x = self.x_of_name(from, part);
            let end = x + part.chars().count() as f64 * LETTER + 12.0;
            let line = ends.iter().position(|until| *until < x).unwrap_or(ends.len());
            match ends.get_mut(line) {
                Some(until) => *until = end,
                None => ends.push(end),
            }
            self.parts.push((line, from, part));
        }
        self.top = 8.0 + ends.len() as f64 * 15.0 + 6.0;
    }

    fn x(&self, column: usize) -> f64 {
        LEFT + column as f64 * self.column
    }

    /// Where the name of a part begins: right of its line, as long as it ends within the picture.
    fn x_of_name(&self, column: usize, part: &str) -> f64 {
        (self.x(column) + 4.0).min(WIDTH - 8.0 - part.chars().count() as f64 * LETTER)
    }

    fn y(&self, lane: usize) -> f64 {
        self.top + lane as f64 * LANE
    }

    fn draw(&self, title: &str) -> String {
        let bottom = self.y(self.lanes.len());
        let height = bottom + 66.0;
        let mut out = String::new();
        let _ = write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"tl\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n<rect class=\"tl-ground\" \
             width=\"100%\" height=\"100%\"/>\n",
            markup(&cut(title, 400))
        );
        for (number, (name, first)) in self.lanes.iter().enumerate() {
            let y = self.y(number);
            if *first {
                let _ = writeln!(out, "<path class=\"tl-rule\" d=\"M8 {y}H{}\"/>", WIDTH - 8.0);
            }
            let _ = writeln!(out, "<text class=\"tl-lane\" x=\"8\" y=\"{}\">{name}</text>", y + 17.0);
        }
        for (line, from, part) in &self.parts {
            let (x, y) = (self.x(*from), 17.0 + *line as f64 * 15.0);
            let _ = writeln!(
                out,
                "<path class=\"tl-part\" d=\"M{x:.1} {:.1}V{bottom:.1}\"/><text class=\"tl-soft\" x=\"{:.1}\" y=\"{y}\">{}</text>",
                y - 9.0,
                self.x_of_name(*from, part),
                markup(part)
            );
        }
        self.flushes(bottom, &mut out);
        for (bar, place) in self.timeline.bars.iter().zip(&self.places) {
            if let Some(lane) = place {
                self.bar(bar, *lane, &mut out);
            }
        }
        for &at in &self.timeline.cuts {
            let x = self.x(at) + self.column;
            let _ = writeln!(
                out,
                "<path class=\"tl-cut\" d=\"M{x:.1} {:.1}V{bottom:.1}\"/><text class=\"tl-cut-name\" x=\"{x:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">power cut</text>",
                self.top - 4.0,
                bottom + 28.0
            );
        }
        self.axis(bottom, &mut out);
        self.legend(bottom + 52.0, &mut out);
        out.push_str("</svg>\n");
        out
    }

    /// From when on a flush of the client holds.
    fn flushes(&self, bottom: f64, out: &mut String) {
        for bar in &self.timeline.bars {
            let (Lane::Queue(_), Class::Flush, Some(to), false) =
                (bar.lane, bar.class, bar.to, bar.failed || bar.dropped)
            else {
                continue;
            };
            let x = self.x(to) + self.column;
            let _ = writeln!(out, "<path class=\"tl-flushed\" d=\"M{x:.1} {:.1}V{bottom:.1}\"/>", self.top);
        }
    }

    fn bar(&self, bar: &Bar, lane: usize, out: &mut String) {
        let (x, y) = (self.x(bar.from) + 1.0, self.y(lane) + 5.0);
        let columns = self.timeline.end(bar).saturating_sub(bar.from).saturating_add(1);
        let width = (columns as f64 * self.column - 2.0).max(2.0);
        let class = match bar.class {
            Class::Read => "read",
            Class::Write => "write",
            Class::Flush => "flush",
            Class::Other => "other",
        };
        let mut classes = format!("tl-bar tl-{class}");
        for (is, name) in [
            (bar.failed, " tl-failed"),
            (bar.dropped, " tl-dropped"),
            (bar.to.is_none(), " tl-open"),
            (bar.guilty, " tl-guilty"),
        ] {
            classes.push_str(if is { name } else { "" });
        }
        let _ = write!(
            out,
            "<g><title>{}</title><rect class=\"{classes}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"16\" rx=\"2\"/>",
            markup(&format!("{} {}: {}", bar.name, bar.what, bar.how))
        );
        if let Some(moved) = bar.moved {
            let x = self.x(moved) + self.column / 2.0;
            let _ = write!(out, "<circle class=\"tl-moved\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"2\"/>", y + 18.5);
        }
        let mark = if bar.failed {
            " ✗"
        } else if bar.dropped {
            " ╳"
        } else {
            ""
        };
        let name = format!("{}{mark}", bar.name);
        if name.chars().count() as f64 * LETTER + 2.0 <= width {
            let _ = write!(
                out,
                "<text class=\"tl-name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x + width / 2.0,
                y + 11.5,
                markup(&name)
            );
        }
        if let Some(fate) = bar.fate {
            let _ = write!(
                out,
                "<text class=\"tl-fate\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + width + 5.0,
                y + 12.0,
                fate.name()
            );
        }
        out.push_str("</g>\n");
    }

    /// Moves, as many as there is room for.
    fn axis(&self, bottom: f64, out: &mut String) {
        let every = (28.0 / self.column).ceil().max(1.0);
        let _ = writeln!(out, "<path class=\"tl-rule\" d=\"M8 {bottom}H{}\"/>", WIDTH - 8.0);
        let _ = writeln!(out, "<text class=\"tl-soft\" x=\"8\" y=\"{:.1}\">move</text>", bottom + 14.0);
        let mut next = 0.0;
        for (number, at) in self.timeline.moves.iter().enumerate() {
            if number as f64 >= next {
                next = number as f64 + every;
                let x = self.x(number) + self.column / 2.0;
                let _ = writeln!(
                    out,
                    "<text class=\"tl-soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at}</text>",
                    bottom + 14.0
                );
            }
        }
    }

    fn legend(&self, y: f64, out: &mut String) {
        let any = |test: &dyn Fn(&Bar) -> bool| self.timeline.bars.iter().any(test);
        let mut x = LEFT;
        for (class, words, is) in [
            ("tl-write", "write", any(&|bar| bar.class == Class::Write)),
            ("tl-read", "read", any(&|bar| bar.class == Class::Read)),
            ("tl-flush", "flush; line: it holds from here on", any(&|bar| bar.class == Class::Flush)),
            ("tl-other", "other", any(&|bar| bar.class == Class::Other)),
            ("tl-write tl-guilty", "touches the wrong bytes, or sent for a request that does", any(&|bar| bar.guilty)),
            ("tl-write tl-open", "not answered", any(&|bar| bar.to.is_none())),
        ] {
            if !is {
                continue;
            }
            let _ = writeln!(
                out,
                "<rect class=\"tl-bar {class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"14\" height=\"11\" rx=\"2\"/><text class=\"tl-soft\" \
                 x=\"{:.1}\" y=\"{y:.1}\">{words}</text>",
                y - 10.0,
                x + 20.0
            );
            x += 42.0 + words.chars().count() as f64 * LETTER;
        }
        let _ = writeln!(
            out,
            "<circle class=\"tl-moved\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"/><text class=\"tl-soft\" x=\"{:.1}\" y=\"{y:.1}\">its \
             data moved</text>",
            x + 7.0,
            y - 4.0,
            x + 16.0
        );
    }
}
