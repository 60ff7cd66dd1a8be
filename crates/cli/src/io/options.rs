//! The program's own options.

use std::process::ExitCode;

use blkproof_fault::trace::Speed;

use super::console::Console;
use super::getopt::{Item, Long, parse};
use super::open::{self, OpenSpec};
use super::replay::Replay;

const SHORT: &str = "hVc:d:f:rsnCmki:t:T:U";

/// In the order in which getopt names them when a beginning fits several.
const LONG: [Long; 17] = [
    long("help", false, 'h'),
    long("version", false, 'V'),
    long("cmd", true, 'c'),
    long("format", true, 'f'),
    long("read-only", false, 'r'),
    long("snapshot", false, 's'),
    long("nocache", false, 'n'),
    long("copy-on-read", false, 'C'),
    long("misalign", false, 'm'),
    long("native-aio", false, 'k'),
    long("aio", true, 'i'),
    long("discard", true, 'd'),
    long("cache", true, 't'),
    long("trace", true, 'T'),
    long("force-share", false, 'U'),
    long("object", true, OBJECT),
    long("image-opts", false, IMAGE_OPTS),
];

/// What this program adds under its own name, where `--format` is the shape of the output.
const OURS: [Long; 6] = [
    long("format", true, OUTPUT),
    long("image-format", true, 'f'),
    long("allow-backing", false, ALLOW_BACKING),
    long("replay", true, REPLAY),
    long("speed", true, SPEED),
    long("as-fast-as-possible", false, FAST),
];

const OBJECT: char = '1';
const IMAGE_OPTS: char = '2';
const OUTPUT: char = '3';
const ALLOW_BACKING: char = '4';
const REPLAY: char = '5';
const SPEED: char = '6';
const FAST: char = '7';

const fn long(name: &'static str, takes_value: bool, letter: char) -> Long {
    Long { name, takes_value, letter }
}

/// What a command line asks for.
pub(super) struct Options {
    /// The image to begin with.
    pub(super) image: Option<OpenSpec>,
    /// `-c`, in order.
    pub(super) commands: Vec<String>,
    /// Images are named by lists of options.
    pub(super) image_opts: bool,
    /// Files that an image names may be opened.
    pub(super) allow_backing: bool,
    /// `--replay`, in place of commands.
    pub(super) replay: Option<Replay>,
}

/// What to do next.
pub(super) enum Request {
    /// Nothing: all is said.
    Exit(ExitCode),
    /// Run commands.
    Run(Box<Options>),
}

/// Reads the words after the program's name, which was called as `invoked`.
pub(super) fn read(invoked: &str, words: &[String], as_qemu_io: bool, console: &mut Console) -> Request {
    let long: Vec<Long> = match as_qemu_io {
        true => LONG.into(),
        false => LONG.into_iter().filter(|option| option.name != "format").chain(OURS).collect(),
    };
    let parsed = parse(invoked, words, SHORT, &long);
    let mut asked = Asked {
        // QEMU opens what an image names; this program only if told to.
        spec: OpenSpec { flags: open::default_flags(as_qemu_io), ..OpenSpec::default() },
        commands: Vec::new(),
        image_opts: false,
        replay: None,
        speed: None,
    };
    for item in parsed.items {
        match item {
            Item::Wrong(text) => {
                console.error_line(&text);
                return misuse(console);
            }
            Item::Flag('h') => {
                console.write(&usage(console));
                return Request::Exit(ExitCode::SUCCESS);
            }
            Item::Flag('V') => {
                let version = env!("CARGO_PKG_VERSION");
                let name = if as_qemu_io { "qemu-io version 10.0.2 as spoken by blkproof" } else { "blkproof io" };
                console.write(&format!("{name} {version}\n"));
                return Request::Exit(ExitCode::SUCCESS);
            }
            Item::Value(OUTPUT, shape) => match shape.as_str() {
                "human" => console.json = false,
                "json" | "jsonl" => console.json = true,
                _ => {
                    let text = format!("--format takes human, json or jsonl, not '{shape}'; the image's format is -f");
                    return refuse(console, &text);
                }
            },
            Item::Flag(letter) => {
                if let Err(text) = asked.flag(letter) {
                    return refuse(console, &text);
                }
            }
            Item::Value(letter, value) => {
                if let Err(text) = asked.value(letter, value) {
                    return refuse(console, &text);
                }
            }
        }
    }
    let replay = match asked.replay() {
        Ok(replay) => replay,
        Err(text) => return refuse(console, text),
    };
    let Asked { mut spec, commands, image_opts, .. } = asked;
    if image_opts && spec.format.is_some() {
        return refuse(console, "--image-opts and -f are mutually exclusive");
    }
    let allow_backing = spec.flags.allow_backing;
    let image = match parsed.operands.as_slice() {
        [] => None,
        [list] if image_opts => {
            spec.options = Some(list.clone());
            Some(spec)
        }
        [name] => {
            spec.name = Some(name.clone());
            Some(spec)
        }
        _ => return misuse(console),
    };
    if replay.is_some() && image.is_none() {
        return refuse(console, "--replay needs an image to send the requests to");
    }
    Request::Run(Box::new(Options { image, commands, image_opts, allow_backing, replay }))
}

struct Asked {
    spec: OpenSpec,
    commands: Vec<String>,
    image_opts: bool,
    replay: Option<String>,
    speed: Option<Speed>,
}

impl Asked {
    fn replay(&self) -> Result<Option<Replay>, &'static str> {
        let Some(file) = self.replay.clone() else {
            return match self.speed {
                Some(_) => Err("--speed and --as-fast-as-possible go with --replay"),
                None => Ok(None),
            };
        };
        if !self.commands.is_empty() {
            return Err("--replay and -c are mutually exclusive");
        }
        Ok(Some(Replay { file, speed: self.speed.unwrap_or(Speed::Times(1.0)) }))
    }

    fn flag(&mut self, letter: char) -> Result<(), String> {
        match letter {
            'r' => self.spec.flags.read_only = true,
            's' => self.spec.snapshot = true,
            'n' => self.spec.flags.cache = open::cache_mode("none")?,
            'C' => self.spec.copy_on_read = true,
            'k' => self.spec.native_aio = true,
            'U' => self.spec.flags.force_share = true,
            IMAGE_OPTS => self.image_opts = true,
            ALLOW_BACKING => self.spec.flags.allow_backing = true,
            FAST => self.speed = Some(Speed::AsFastAsPossible),
            // -m asks for badly aligned buffers; ours are as they come.
            _ => {}
        }
        Ok(())
    }

    fn value(&mut self, letter: char, value: String) -> Result<(), String> {
        match letter {
            'c' => self.commands.push(value),
            'f' => self.spec.format = Some(value),
            'd' => self.spec.flags.unmap = open::discard_mode(&value)?,
            't' => self.spec.flags.cache = open::cache_mode(&value)?,
            'i' => self.spec.native_aio = open::aio_mode(&value)?,
            REPLAY => self.replay = Some(value),
            SPEED => {
                let speed = value.parse().ok().filter(|speed: &f64| speed.is_finite() && *speed > 0.0);
                let speed =
                    speed.ok_or_else(|| format!("--speed takes a number above 0, such as 0.5 or 10, not '{value}'"))?;
                self.speed = Some(Speed::Times(speed));
            }
            OBJECT => return Err(format!("--object {value}: objects are not supported")),
            // -T: there is nothing to trace by QEMU's names.
            _ => {}
        }
        Ok(())
    }
}

fn refuse(console: &Console, text: &str) -> Request {
    console.error_line(&console.message(text));
    Request::Exit(ExitCode::FAILURE)
}

fn misuse(console: &Console) -> Request {
    console.write(&usage(console));
    Request::Exit(ExitCode::FAILURE)
}

fn usage(console: &Console) -> String {
    let (name, format, more) = if console.as_qemu_io {
        ("qemu-io", "-f, --format FMT", "")
    } else {
        (
            "blkproof io",
            "-f, --image-format FMT",
            "      --allow-backing    open the files that the image itself names\n      \
             --format SHAPE     human, or json: one object for each command\n      \
             --replay TRACE     in place of commands, send the requests of a trace\n                         \
             again, with their times and overlaps, and tell what differs\n      \
             --speed X          replay X times as fast\n      \
             --as-fast-as-possible\n                         \
             replay without waiting for the recorded times\n",
        )
    };
    format!(
        "Usage: {name} [OPTIONS] [-c COMMAND]... [IMAGE]\n\
         Reads and writes an image, one command at a time\n\
         \n  \
         -c, --cmd COMMAND      run this command; may be given several times. Without\n                         \
         it, commands are read from standard input\n  \
         {format:<22} format of the image\n      \
         --image-opts       the image is a list of options\n  \
         -r, --read-only        open read-only\n  \
         -U, --force-share      open although others hold the image (with -r)\n  \
         -t, --cache MODE       writethrough (the default), writeback, none,\n                         \
         directsync or unsafe\n  \
         -n, --nocache          the same as -t none\n  \
         -d, --discard MODE     unmap (the default) or ignore\n  \
         -i, --aio MODE         threads, native or io_uring; no effect\n  \
         -k, --native-aio       the same as -i native\n  \
         -m, --misalign         no effect\n  \
         -T, --trace SPEC       no effect\n  \
         -s, --snapshot         writes go to a temporary overlay, dropped at the end\n  \
         -C, --copy-on-read     not supported\n      \
         --object DEF       not supported\n\
         {more}  \
         -h, --help             show this text\n  \
         -V, --version          show the version\n\
         \n\
         '{name} -c help' lists the commands.\n"
    )
}
