//! qcheck's presets and letters. Their order on the command line counts, so this reads clap's matches itself.

use blkproof_report::qcheck::{LETTERS, Preset, Streams};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

/// The streams chosen, if any option of qcheck's was given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Letters(Option<Streams>);

impl Letters {
    /// The streams; `None` for the human report.
    pub(super) fn streams(self) -> Option<Streams> {
        self.0
    }
}

/// What these options stand under in the help.
const HEADING: &str = "Output of qcheck";

const PRESETS: &[(&str, char, &str, Preset)] = &[
    ("silent", 's', "No stream: the exit status alone", Preset::Silent),
    ("quiet", 'q', "Streams f w: errors of reading alone", Preset::Quiet),
    ("basic", 'b', "Streams f w s e h i H L R: summaries, header, L1 and refcount table", Preset::Basic),
    ("verbose", 'v', "Basic, and p c: each problem and each test passed", Preset::Verbose),
    ("deluge", 'x', "Every stream but d", Preset::Deluge),
];

impl clap::Args for Letters {
    fn augment_args(command: Command) -> Command {
        let mut command = command.next_help_heading(HEADING);
        for (name, short, help, _) in PRESETS {
            let others: Vec<_> = PRESETS.iter().map(|(name, ..)| *name).filter(|other| other != name).collect();
            let preset = Arg::new(*name).short(*short).long(*name).help(*help).action(ArgAction::SetTrue);
            command = command.arg(preset.conflicts_with_all(others));
        }
        let debug = "Stream d too, beside any preset: debugging";
        let log = "Add streams by letter; a preset after it starts afresh";
        let exclude = "Leave out streams by letter; a preset after it starts afresh";
        let letters = |name: &'static str, short, help: &'static str| {
            let arg = Arg::new(name).short(short).long(name).value_name("LETTERS").help(help);
            arg.action(ArgAction::Append).value_parser(parse)
        };
        command
            .arg(Arg::new("debug").short('d').long("debug").help(debug).action(ArgAction::SetTrue))
            .arg(letters("log", 'l', log))
            .arg(letters("exclude", 'e', exclude))
            .next_help_heading(None)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Letters {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        enum Step<'a> {
            Preset(Preset),
            Debug,
            Add(&'a str),
            Remove(&'a str),
        }
        let mut steps: Vec<(usize, Step<'_>)> = Vec::new();
        let flag = |name: &str| matches.get_flag(name).then(|| matches.index_of(name).unwrap_or(0));
        for (name, _, _, preset) in PRESETS {
            steps.extend(flag(name).map(|at| (at, Step::Preset(*preset))));
        }
        steps.extend(flag("debug").map(|at| (at, Step::Debug)));
        for (name, step) in [("log", Step::Add as fn(_) -> _), ("exclude", Step::Remove)] {
            let places = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<String>(name).into_iter().flatten();
            steps.extend(places.zip(values.map(|letters| step(letters.as_str()))));
        }
        steps.sort_by_key(|(at, _)| *at);
        if steps.is_empty() {
            return Ok(Self(None));
        }
        let mut streams = Streams::preset(Preset::Basic);
        let mut debug = false;
        for (_, step) in steps {
            match step {
                Step::Preset(preset) => streams = Streams::preset(preset),
                Step::Debug => debug = true,
                Step::Add(letters) => streams = streams.with(letters),
                Step::Remove(letters) => {
                    streams = streams.without(letters);
                    debug &= !letters.contains('d');
                }
            }
        }
        Ok(Self(Some(if debug { streams.with("d") } else { streams })))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn parse(letters: &str) -> Result<String, String> {
    match Streams::unknown(letters) {
        Some(letter) => Err(format!("'{letter}' is no stream; the letters are {LETTERS}")),
        None => Ok(letters.to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Args as _;

    fn read(words: &[&str]) -> Result<Option<String>, String> {
        let command = Letters::augment_args(Command::new("check").no_binary_name(true));
        let matches = command.try_get_matches_from(words).map_err(|error| error.to_string())?;
        let streams = Letters::from_arg_matches(&matches).unwrap().streams();
        Ok(streams.map(|streams| LETTERS.chars().filter(|letter| streams.has(*letter)).collect()))
    }

    #[test]
    fn order_counts() {
        for (words, letters) in [
            (&[][..], None),
            (&["-s"], Some("")),
            (&["-q"], Some("fw")),
            (&["-b"], Some("fweshiHLR")),
            (&["-d"], Some("fweshidHLR")),
            (&["-xd"], Some(LETTERS)),
            (&["-d", "-s"], Some("d")),
            (&["-s", "-l", "ME"], Some("ME")),
            (&["-l", "ME", "-s"], Some("")),
            (&["-q", "--log=p", "--exclude", "w"], Some("fp")),
            (&["-e", "HLR"], Some("fweshi")),
            (&["-v", "-e", "HLRfwehi", "-l", "h"], Some("shpc")),
            (&["-d", "-e", "d", "-e", "fweshiHLR"], Some("")),
        ] {
            assert_eq!(read(words), Ok(letters.map(str::to_owned)), "{words:?}");
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        assert!(read(&["-l", "pZ"]).unwrap_err().contains("'Z' is no stream; the letters are fweship"));
        for pair in [["-s", "-q"], ["-b", "-x"], ["-v", "-b"]] {
            assert!(read(&pair).unwrap_err().contains("cannot be used with"), "{pair:?}");
        }
    }
}
