//! Figures as a table for people.

use std::fmt;

use crate::shell;

#[derive(Default)]
pub(super) struct Report {
    tables: Vec<Table>,
}

/// One race: what each contender reached in each round. The first contender is ours.
pub(super) struct Table {
    title: String,
    unit: &'static str,
    rows: Vec<Row>,
    notes: Vec<String>,
}

struct Row {
    name: &'static str,
    command: String,
    figures: Vec<f64>,
}

impl Table {
    pub(super) fn new(
        title: &str,
        unit: &'static str,
        contenders: impl Iterator<Item = (&'static str, String)>,
    ) -> Self {
        let rows = contenders.map(|(name, command)| Row { name, command, figures: Vec::new() }).collect();
        Self { title: title.to_owned(), unit, rows, notes: Vec::new() }
    }

    pub(super) fn record(&mut self, place: usize, figure: f64) {
        self.rows[place].figures.push(figure);
    }

    /// Adds a sentence below the figures.
    pub(super) fn note(&mut self, sentence: String) {
        self.notes.push(sentence);
    }

    /// Median, over the rounds, of ours divided by theirs in the same round.
    fn ratio(&self, row: &Row) -> f64 {
        median(self.rows[0].figures.iter().zip(&row.figures).map(|(ours, theirs)| ours / theirs).collect())
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => figures[n / 2],
        n => f64::midpoint(figures[n / 2 - 1], figures[n / 2]),
    }
}

impl Report {
    pub(super) fn add(&mut self, table: Table) {
        self.tables.push(table);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// The page `docs/benchmarks.md`.
    pub(super) fn page(&self) -> anyhow::Result<String> {
        let versions = [
            shell::output("qemu-nbd", &["--version"])?,
            shell::output("nbdkit", &["--version"])?,
            shell::output("fio", &["--version"])?,
            shell::output("rustc", &["--version"])?,
        ];
        let versions: Vec<&str> = versions.iter().filter_map(|text| text.lines().next()).collect();
        Ok(format!(
            "# Benchmarks\n\n\
             Written by `cargo xtask bench`: every contender in turn in each round, medians over the rounds, ratios taken\n\
             inside a round and then their median. All images lie in the page cache. Figures of a shared machine with two\n\
             cores: trust the ratios, and run it on yours.\n\n\
             Peers: {}.\n\n{self}",
            versions.join("; ")
        ))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            writeln!(f, "## {}\n", table.title)?;
            writeln!(f, "| contender | {} (median) | min | max | ours is |", table.unit)?;
            writeln!(f, "|---|---|---|---|---|")?;
            for row in &table.rows {
                let min = row.figures.iter().copied().fold(f64::INFINITY, f64::min);
                let max = row.figures.iter().copied().fold(0.0, f64::max);
                let digits = if max < 100.0 { 2 } else { 0 };
                write!(
                    f,
                    "| {} | {:.digits$} | {min:.digits$} | {max:.digits$} | ",
                    row.name,
                    median(row.figures.clone())
                )?;
                writeln!(f, "{:.2} times |", table.ratio(row))?;
            }
            if !table.notes.is_empty() {
                writeln!(f, "\n{}", table.notes.join(" "))?;
            }
            writeln!(f, "\n```sh")?;
            for row in &table.rows {
                writeln!(f, "{}", row.command)?;
            }
            writeln!(f, "```\n")?;
        }
        Ok(())
    }
}
