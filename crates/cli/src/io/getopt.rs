//! Options as the C library's `getopt_long` reads them, with its words for what is wrong.
//!
//! Scripts for qemu-io lean on all of it: options after operands, `-qP 7`, `--cac=none`, and the texts on stderr.

/// An option with a long name.
pub(super) struct Long {
    /// The name, without dashes.
    pub(super) name: &'static str,
    /// Whether it takes a value.
    pub(super) takes_value: bool,
    /// The letter it is reported as.
    pub(super) letter: char,
}

/// One thing found, in the order of the words.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// An option without a value.
    Flag(char),
    /// An option and its value.
    Value(char, String),
    /// A mistake, in getopt's words, with the program's name in front.
    Wrong(String),
}

/// What became of the words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    /// Options and mistakes.
    pub(super) items: Vec<Item>,
    /// What is no option.
    pub(super) operands: Vec<String>,
    /// All words, options first: getopt moves them so, and some messages show it.
    pub(super) permuted: Vec<String>,
}

/// Reads `words`. In `short`, a letter followed by a colon takes a value; without `long` options, a word that begins
/// with two dashes is a cluster of letters like any other.
pub(super) fn parse(program: &str, words: &[String], short: &str, long: &[Long]) -> Parsed {
    let mut parsed = Parsed::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if word == "--" {
            parsed.permuted.push(word.clone());
            parsed.operands.extend(rest.cloned());
            break;
        }
        if word == "-" || !word.starts_with('-') {
            parsed.operands.push(word.clone());
            continue;
        }
        parsed.permuted.push(word.clone());
        let item = match word.strip_prefix("--") {
            Some(name) if !long.is_empty() => long_option(program, name, long, &mut rest),
            _ => {
                letters(program, word, short, &mut rest, &mut parsed);
                continue;
            }
        };
        if let Item::Value(_, value) = &item
            && !word.contains('=')
        {
            parsed.permuted.push(value.clone());
        }
        parsed.items.push(item);
    }
    parsed.permuted.extend(parsed.operands.iter().cloned());
    parsed
}

/// Reads a cluster such as `-qP7`.
fn letters(program: &str, word: &str, short: &str, rest: &mut std::slice::Iter<'_, String>, parsed: &mut Parsed) {
    let mut letters = word.chars();
    letters.next();
    while let Some(letter) = letters.next() {
        let known = (letter != ':').then(|| short.find(letter)).flatten();
        let Some(at) = known else {
            parsed.items.push(Item::Wrong(format!("{program}: invalid option -- '{letter}'")));
            continue;
        };
        if !short.get(at + letter.len_utf8()..).is_some_and(|tail| tail.starts_with(':')) {
            parsed.items.push(Item::Flag(letter));
            continue;
        }
        let glued = letters.as_str();
        if !glued.is_empty() {
            parsed.items.push(Item::Value(letter, glued.to_owned()));
        } else if let Some(value) = rest.next() {
            parsed.permuted.push(value.clone());
            parsed.items.push(Item::Value(letter, value.clone()));
        } else {
            parsed.items.push(Item::Wrong(format!("{program}: option requires an argument -- '{letter}'")));
        }
        return;
    }
}

/// Reads `--name`, `--name=value` or an unambiguous beginning of it.
fn long_option(program: &str, text: &str, long: &[Long], rest: &mut std::slice::Iter<'_, String>) -> Item {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    let found: Vec<&Long> = match long.iter().find(|option| option.name == name) {
        Some(exact) => vec![exact],
        None => long.iter().filter(|option| option.name.starts_with(name)).collect(),
    };
    let option = match found.as_slice() {
        [] => return Item::Wrong(format!("{program}: unrecognized option '--{text}'")),
        [option] => option,
        several => {
            let names: String = several.iter().map(|option| format!(" '--{}'", option.name)).collect();
            return Item::Wrong(format!("{program}: option '--{text}' is ambiguous; possibilities:{names}"));
        }
    };
    match (option.takes_value, value) {
        (false, None) => Item::Flag(option.letter),
        (false, Some(_)) => Item::Wrong(format!("{program}: option '--{}' doesn't allow an argument", option.name)),
        (true, Some(value)) => Item::Value(option.letter, value),
        (true, None) => match rest.next() {
            Some(value) => Item::Value(option.letter, value.clone()),
            None => Item::Wrong(format!("{program}: option '--{}' requires an argument", option.name)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    /// One line per item, then the operands.
    fn shown(text: &str) -> String {
        let long = [
            Long { name: "cache", takes_value: true, letter: 't' },
            Long { name: "copy", takes_value: false, letter: 'C' },
        ];
        let parsed = parse("x", &words(text), "P:qv", if text.contains("long") { &long } else { &[] });
        let items = parsed.items.iter().map(|item| match item {
            Item::Flag(letter) => letter.to_string(),
            Item::Value(letter, value) => format!("{letter}={value}"),
            Item::Wrong(text) => format!("<{text}>"),
        });
        format!("{} | {}", items.collect::<Vec<_>>().join(" "), parsed.operands.join(" "))
    }

    #[test]
    fn words_are_read_as_getopt_reads_them() {
        for (text, want) in [
            ("0 4k", " | 0 4k"),
            ("-q 0 -v 4k", "q v | 0 4k"),
            ("-qP7 0", "q P=7 | 0"),
            ("-qP 7 0", "q P=7 | 0"),
            ("-P -q 0", "P=-q | 0"),
            ("-- -q 0", " | -q 0"),
            ("0 -- -q", " | 0 -q"),
            ("- 0", " | - 0"),
            ("-x -q", "<x: invalid option -- 'x'> q | "),
            ("-: 0", "<x: invalid option -- ':'> | 0"),
            ("-P", "<x: option requires an argument -- 'P'> | "),
            ("--q 0", "<x: invalid option -- '-'> q | 0"),
            ("--cache=a long", "t=a | long"),
            ("--ca a long", "t=a | long"),
            ("--c long", "<x: option '--c' is ambiguous; possibilities: '--cache' '--copy'> | long"),
            ("--copy=1 long", "<x: option '--copy' doesn't allow an argument> | long"),
            ("--foo=1 long", "<x: unrecognized option '--foo=1'> | long"),
            ("long --cache", "<x: option '--cache' requires an argument> | long"),
        ] {
            assert_eq!(shown(text), want, "{text}");
        }
    }

    #[test]
    fn options_move_to_the_front() {
        let parsed = parse("x", &words("a -P 1 b -q"), "P:q", &[]);
        assert_eq!(parsed.permuted, words("-P 1 -q a b"));
    }
}
