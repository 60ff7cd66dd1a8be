//! How graphs are named: the three syntaxes, what is probed, and what the refusals say.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_block::graph::{
    CacheMode, Driver, DriverKind, OpenContext, OpenError, OpenFlags, OptionError, Options, Registry, Value,
};
use blkproof_block::nodes::memory::Memory;
use blkproof_block::{LocalBoxFuture, Node};
use futures_lite::future::block_on;

// ---------------------------------------------------------------------------------------------------------------------
// Drivers that store nothing and tell what they were asked.

type Journal = Rc<RefCell<Vec<String>>>;

/// Opens children named in `children`, notes itself with what it was given.
struct Fake {
    name: &'static str,
    kind: DriverKind,
    prefix: Option<&'static str>,
    children: &'static [&'static str],
    magic: Option<&'static [u8]>,
    content: &'static [(&'static str, &'static [u8])],
    journal: Journal,
}

impl Driver for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> DriverKind {
        self.kind
    }

    fn parse_filename(&self, filename: &str) -> Option<Result<Options, OptionError>> {
        let rest = filename.strip_prefix(self.prefix?)?;
        if self.name != "blkverify" {
            return Some(Ok(Options::new().with("address", rest)));
        }
        Some(match rest.split_once(':') {
            Some((raw, test)) => Ok(Options::new()
                .with_child("raw", Options::new().with("filename", raw))
                .with_child("test", Options::new().with("filename", test))),
            None => Err(OptionError::Syntax("blkverify requires raw copy and original image path".into())),
        })
    }

    fn probe(&self, head: &[u8]) -> bool {
        self.magic.is_some_and(|magic| head.starts_with(magic))
    }

    fn open<'a>(
        &'a self,
        mut options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move {
            let mut parts = Vec::new();
            let mut content = Vec::new();
            for key in ["filename", "address"] {
                if self.kind == DriverKind::Protocol
                    && let Some(text) = options.take_text(key)?
                {
                    content =
                        self.content.iter().find(|(name, _)| *name == text).map_or(vec![0; 512], |c| c.1.to_vec());
                    parts.push(text);
                }
            }
            let mut below = None;
            for &key in self.children {
                let child = options
                    .take_child(key)
                    .ok_or_else(|| OptionError::Missing { option: options.full_name(key), driver: self.name.into() })?;
                below = Some(context.open(child).await?);
            }
            options.take_size("size")?;
            options.finish(self.name)?;
            let OpenFlags { read_only, cache: CacheMode { direct, no_flush, .. }, unmap, .. } = context.flags;
            for (set, letter) in [(read_only, "ro"), (direct, "direct"), (no_flush, "no-flush"), (!unmap, "keep")] {
                if set {
                    parts.push(letter.into());
                }
            }
            self.journal.borrow_mut().push(format!("{}({})", self.name, parts.join(",")));
            Ok(below.unwrap_or_else(|| Node::new(Memory::with_content(&content))))
        })
    }
}

fn registry() -> (Registry, Journal) {
    let journal = Journal::default();
    let fake = |name, kind, prefix, children, magic| Fake {
        name,
        kind,
        prefix,
        children,
        magic,
        content: &[("a.qcow2", b"QFI\xfb and more"), ("tiny", b"Q"), ("empty", b"")],
        journal: journal.clone(),
    };
    let mut registry = Registry::new();
    registry.add(fake("file", DriverKind::Protocol, None, &[], None));
    registry.add(fake("nbd", DriverKind::Protocol, Some("nbd://"), &[], None));
    registry.add(fake("raw", DriverKind::Format, None, &["file"], None));
    registry.add(fake("qcow2", DriverKind::Format, None, &["file"], Some(b"QFI\xfb")));
    registry.add(fake("blkverify", DriverKind::Filter, Some("blkverify:"), &["raw", "test"], None));
    registry.add(fake("blkdebug", DriverKind::Filter, Some("blkdebug:"), &["image"], None));
    (registry, journal)
}

fn open(flags: OpenFlags, name: &str, format: Option<&str>, image_opts: bool) -> Result<String, String> {
    let (registry, journal) = registry();
    let context = OpenContext { registry: &registry, flags };
    block_on(context.open_image(name, format, image_opts)).map_err(|error| error.to_string())?;
    let journal = journal.borrow();
    Ok(journal.join(" "))
}

const READ: fn() -> OpenFlags = || OpenFlags { read_only: true, ..OpenFlags::default() };

// ---------------------------------------------------------------------------------------------------------------------
// Syntax.

/// Prints a tree on one line, so that tables of expectations stay readable.
fn print(options: &Options) -> String {
    let parts: Vec<String> = options
        .iter()
        .map(|(key, value)| match value {
            Value::Text(text) => format!("{key}={text}"),
            Value::Tree(tree) => format!("{key}{{{}}}", print(tree)),
        })
        .collect();
    parts.join(" ")
}

fn outcome(result: Result<Options, OptionError>) -> String {
    result.map_or_else(|error| format!("error: {error}"), |options| print(&options))
}

#[test]
fn image_opts_as_qemu_takes_them() {
    let table = [
        ("", ""),
        ("driver=qcow2,file.filename=a.qcow2", "driver=qcow2 file{filename=a.qcow2}"),
        (
            "driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2",
            "driver=qcow2 file{driver=blkdebug image{filename=a.qcow2}}",
        ),
        ("a.qcow2", "file=a.qcow2"),
        ("a,,b.qcow2,read-only=on", "file=a,b.qcow2 read-only=on"),
        ("file.filename=a,,b,,,,c,driver=raw", "driver=raw file{filename=a,b,,c}"),
        ("driver=raw,read-only", "driver=raw read-only=on"),
        ("driver=raw,driver=qcow2", "driver=qcow2"),
        ("driver=raw,", "driver=raw"),
        ("filename=a=b", "filename=a=b"),
        ("filename=", "filename="),
        ("inject-error.0.event=l2_load,inject-error.1.errno=5", "inject-error{0{event=l2_load} 1{errno=5}}"),
        ("a.b=1,a=2", "error: option 'a' is given both as a value and as a group of options"),
        ("a=2,a.b=1", "error: option 'a.b' is given both as a value and as a group of options"),
        ("=x", "error: '' is no option name"),
        ("a..b=x", "error: 'a..b' is no option name"),
        (".a=x", "error: '.a' is no option name"),
    ];
    for (text, want) in table {
        assert_eq!(outcome(Options::from_image_opts(text)), want, "{text}");
    }
    let deep = format!("{}=1", vec!["a"; 33].join("."));
    assert_eq!(outcome(Options::from_image_opts(&deep)), "error: options are nested more than 32 deep");
    let endless = format!("{}=1", vec!["a"; 1_000_000].join("."));
    assert_eq!(outcome(Options::from_image_opts(&endless)), "error: options are nested more than 32 deep");
}

#[test]
fn json_as_qemu_takes_it() {
    let table = [
        ("{}", ""),
        (r#"{"driver":"raw","offset":512,"size":"1k","read-only":true}"#, "driver=raw offset=512 read-only=on size=1k"),
        (
            "{'driver':'qcow2','file.driver':'file','file.filename':'a.qcow2'}",
            "driver=qcow2 file{driver=file filename=a.qcow2}",
        ),
        (r#"{"file":{"driver":"file"},"file.filename":"a"}"#, "file{driver=file filename=a}"),
        (r#"{"file.driver":"file","file":{"filename":"a"}}"#, "file{driver=file filename=a}"),
        (r#"{"inject-error":[{"event":"read_aio"},{"once":false}]}"#, "inject-error{0{event=read_aio} 1{once=off}}"),
        (r#"{"backing":null}"#, "backing="),
        (r#"{'filename':'it\'s \"a\" \\ \u00e9 "b"'}"#, r#"filename=it's "a" \ é "b""#),
        (r#"{"filename":"it's"}"#, "filename=it's"),
        (r#"{"a":{"b":1},"a":2}"#, "a=2"),
        (r#"{"a.b":1,"a":2}"#, "error: option 'a' is given both as a value and as a group of options"),
        ("[]", r#"error: options have to be a JSON object, as in json:{"driver":"raw"}"#),
    ];
    for (text, want) in table {
        assert_eq!(outcome(Options::from_json(text)), want, "{text}");
    }
    for broken in ["", "{", "{'a':'}", "{\"a\"}", "nul", "{'a\\"] {
        assert!(outcome(Options::from_json(broken)).starts_with("error: options are no valid JSON: "), "{broken}");
    }
    let deep = format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100));
    assert_eq!(outcome(Options::from_json(&deep)), "error: options are nested more than 32 deep");
    let endless = format!("{}1", "{\"a\":".repeat(1_000_000));
    assert!(outcome(Options::from_json(&endless)).starts_with("error: "));
}

#[test]
fn filenames_as_qemu_takes_them() {
    let (registry, _) = registry();
    let table = [
        ("a.qcow2", "driver=file filename=a.qcow2"),
        ("/images/a:b", "driver=file filename=/images/a:b"),
        ("./x:y", "driver=file filename=./x:y"),
        ("file:a.qcow2", "driver=file filename=a.qcow2"),
        ("file:x:y", "driver=file filename=x:y"),
        ("nbd://host:10809/export", "address=host:10809/export driver=nbd"),
        ("blkverify:a:b", "driver=blkverify raw{filename=a} test{filename=b}"),
        ("blkverify:a", "error: blkverify requires raw copy and original image path"),
        ("json:{'driver':'raw','file.filename':'x'}", "driver=raw file{filename=x}"),
        ("x:y", "error: unknown protocol 'x' in 'x:y'; for a file of that name write './x:y'"),
        (":b", "error: unknown protocol '' in ':b'; for a file of that name write './:b'"),
        ("qcow2:a", "error: unknown protocol 'qcow2' in 'qcow2:a'; for a file of that name write './qcow2:a'"),
        ("file:", "error: 'file:' names no file"),
        ("", "error: the name of the image is empty"),
    ];
    for (name, want) in table {
        assert_eq!(outcome(Options::from_filename(name, &registry)), want, "{name}");
    }
}

#[test]
fn lists_with_and_without_numbers() {
    let table = [
        ("driver=x", "0:"),
        ("l.event=a", "1: event=a"),
        ("l.0.event=a,l.1.event=b", "2: event=a | event=b"),
        (
            "l.0.event=a,l.2.event=b",
            "error: option 'l' expects a list numbered from 0 without gaps, got 'one with a gap'",
        ),
        ("l=a,x=1", "error: option 'l' expects a list of groups of options, got 'a'"),
        ("l.0=a", "error: option 'l.0' expects a group of options, got 'a'"),
    ];
    for (text, want) in table {
        let got = match Options::from_image_opts(text).unwrap().take_list("l") {
            Ok(list) => {
                let items: Vec<String> = list.iter().map(print).collect();
                format!("{}: {}", list.len(), items.join(" | ")).trim_end().to_owned()
            }
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(got, want, "{text}");
    }
    let eleven: Vec<String> = (0..11).map(|i| format!("l.{i}.n={i}")).collect();
    let list = Options::from_image_opts(&eleven.join(",")).unwrap().take_list("l").unwrap();
    let numbers: Vec<String> = list.iter().map(print).collect();
    assert_eq!(numbers.last().unwrap(), "n=10", "numbers are numbers, not words");
}

// ---------------------------------------------------------------------------------------------------------------------
// Opening.

#[test]
fn names_open_what_they_say() {
    let table: &[(&str, Option<&str>, bool, &str)] = &[
        // A path is probed (the first `file` is the probe, read-only), unless the format is stated.
        ("a.qcow2", None, false, "file(a.qcow2,ro) file(a.qcow2) qcow2()"),
        ("file:a.qcow2", None, false, "file(a.qcow2,ro) file(a.qcow2) qcow2()"),
        ("a.qcow2", Some("qcow2"), false, "file(a.qcow2) qcow2()"),
        ("a.qcow2", Some("raw"), false, "file(a.qcow2) raw()"),
        ("blank", Some("raw"), false, "file(blank) raw()"),
        ("a.qcow2", Some("file"), false, "file(a.qcow2)"),
        ("file:a.qcow2", Some("file"), false, "file(a.qcow2)"),
        ("nbd://h", Some("raw"), false, "nbd(h) raw()"),
        // Other names are taken as they stand.
        ("nbd://h", None, false, "nbd(h)"),
        ("blkverify:r:a.qcow2", None, false, "file(r) file(a.qcow2,ro) file(a.qcow2) qcow2() blkverify()"),
        ("blkverify:r:a.qcow2", Some("raw"), false, "file(r) file(a.qcow2,ro) file(a.qcow2) qcow2() blkverify() raw()"),
        ("json:{'driver':'raw','file.filename':'a.qcow2'}", None, false, "file(a.qcow2) raw()"),
        ("json:{'driver':'file','filename':'a.qcow2'}", None, false, "file(a.qcow2)"),
        ("json:{'driver':'file','filename':'a.qcow2'}", Some("qcow2"), false, "file(a.qcow2) qcow2()"),
        ("json:{'file.filename':'a.qcow2'}", None, false, "file(a.qcow2,ro) file(a.qcow2) qcow2()"),
        ("json:{'file.filename':'a.qcow2'}", Some("raw"), false, "file(a.qcow2) raw()"),
        ("json:{'filename':'a.qcow2'}", None, false, "file(a.qcow2,ro) file(a.qcow2) qcow2()"),
        // Options.
        ("driver=qcow2,file.filename=a.qcow2", None, true, "file(a.qcow2) qcow2()"),
        ("driver=qcow2,file=a.qcow2", None, true, "file(a.qcow2) qcow2()"),
        ("driver=qcow2,filename=a.qcow2", None, true, "file(a.qcow2) qcow2()"),
        ("driver=qcow2,file.driver=blkdebug,file.image.filename=x", None, true, "file(x) blkdebug() qcow2()"),
        (
            "file.driver=blkdebug,file.image=a.qcow2",
            None,
            true,
            "file(a.qcow2,ro) blkdebug(ro) file(a.qcow2) blkdebug() qcow2()",
        ),
        ("a.qcow2", None, true, "file(a.qcow2,ro) file(a.qcow2) qcow2()"),
        ("filename=json:{'driver':'raw',,'file':'b'}", None, true, "file(b) raw()"),
        ("driver=raw,file.filename=json:{'driver':'nbd',,'address':'q'}", None, true, "nbd(q) raw()"),
    ];
    for (name, format, image_opts, want) in table {
        assert_eq!(open(OpenFlags::default(), name, *format, *image_opts).as_deref(), Ok(*want), "{name} {format:?}");
    }
}

#[test]
fn a_writable_image_is_never_guessed_to_be_raw() {
    for name in ["blank", "tiny", "empty", "json:{'filename':'blank'}", "blkverify:r:blank"] {
        let error = open(OpenFlags::default(), name, None, false).unwrap_err();
        assert!(error.contains("is not guessed to be raw for writing") && error.contains("-f raw"), "{name}: {error}");
        assert!(open(READ(), name, None, false).unwrap().contains("raw(ro)"), "{name}");
    }
    let error = open(OpenFlags::default(), "blkverify:r:blank", None, false).unwrap_err();
    assert!(error.contains("test.driver=raw"), "the option is named with its path: {error}");
}

#[test]
fn common_options_are_inherited_and_can_be_narrowed() {
    let table = [
        ("driver=raw,file.filename=x,read-only=on", "file(x,ro) raw(ro)"),
        ("driver=raw,file.filename=x,file.read-only=on", "file(x,ro) raw()"),
        ("driver=raw,file.filename=x,cache.direct=on,discard=ignore", "file(x,direct,keep) raw(direct,keep)"),
        ("driver=raw,file.filename=x,cache.no-flush=on,file.cache.no-flush=off", "file(x) raw(no-flush)"),
        ("driver=raw,file.filename=x,discard=off,file.discard=unmap", "file(x) raw(keep)"),
        ("driver=raw,node-name=top,auto-read-only=on,detect-zeroes=off,force-share=on,file=x", "file(x) raw()"),
    ];
    for (options, want) in table {
        assert_eq!(open(OpenFlags::default(), options, None, true).as_deref(), Ok(want), "{options}");
    }
    let below_read_only = "driver=raw,file.filename=x,read-only=off,file.read-only=off";
    assert_eq!(open(READ(), below_read_only, None, true).as_deref(), Ok("file(x,ro) raw(ro)"));
}

#[test]
fn refusals_name_the_option_with_its_path() {
    let table: &[(&str, Option<&str>, bool, &str)] = &[
        ("a", Some("qcow3"), false, "unknown driver 'qcow3'; did you mean 'qcow2'?"),
        (
            "driver=raw,file.driver=fiel,file.filename=a",
            None,
            true,
            "unknown driver 'fiel' in option 'file.driver'; did you mean 'file'?",
        ),
        (
            "driver=raw,file.filename=a,sise=5",
            None,
            true,
            "unknown option 'sise' for driver 'raw'; did you mean 'size'?",
        ),
        (
            "driver=qcow2,file.driver=blkdebug,file.image.filename=a,file.image.sise=1",
            None,
            true,
            "unknown option 'file.image.sise' for driver 'file'; did you mean 'size'?",
        ),
        (
            "driver=raw,file.filename=a,file.read-only=maybe",
            None,
            true,
            "option 'file.read-only' expects 'on' or 'off', got 'maybe'",
        ),
        (
            "driver=raw,file.filename=a,file.cache.direkt=on",
            None,
            true,
            "unknown option 'file.cache.direkt' for driver 'any node'; did you mean 'direct'?",
        ),
        (
            "driver=raw,cache=none,file=a",
            None,
            true,
            "option 'cache' expects cache.direct and cache.no-flush, got 'none'",
        ),
        (
            "driver=raw,filename=a,file.filename=b",
            None,
            true,
            "options 'filename' and 'file' name the same thing; give one of them",
        ),
        ("driver=raw", None, true, "driver 'raw' needs the option 'file'"),
        ("driver=blkdebug,image.driver=raw", None, true, "driver 'raw' needs the option 'image.file'"),
        (
            "driver=blkverify,raw.filename=a,test.size=1",
            None,
            true,
            "the node needs a 'test.driver', a 'test.filename' or a 'test.file'",
        ),
        ("filename.x=a", None, true, "option 'filename' expects a filename, got 'a group of options'"),
        ("filename=a,file.filename=b", None, true, "'filename' and 'file' name two images; give one of them"),
        ("driver=raw", Some("raw"), true, "a list of options names its driver itself; leave -f out"),
        (
            "json:{'driver':'qcow2','file':'a'}",
            Some("raw"),
            false,
            "'json:{'driver':'qcow2','file':'a'}' names its driver itself; leave the format out, or give the options of 'file' alone",
        ),
    ];
    for (name, format, image_opts, want) in table {
        assert_eq!(open(OpenFlags::default(), name, *format, *image_opts), Err((*want).to_owned()), "{name}");
    }
}

#[test]
fn a_filename_finds_its_place_among_options() {
    let table = [
        ("", "a.qcow2", "file{driver=file filename=a.qcow2}"),
        ("read-only=on", "a.qcow2", "file{driver=file filename=a.qcow2} read-only=on"),
        ("driver=qcow2", "a.qcow2", "driver=qcow2 file{driver=file filename=a.qcow2}"),
        ("file.driver=blkdebug,file.align=4k", "a.qcow2", "file{align=4k driver=blkdebug filename=a.qcow2}"),
        (
            "driver=raw,file.driver=blkverify,file.raw.filename=R",
            "T",
            "driver=raw file{driver=blkverify filename=T raw{filename=R}}",
        ),
        ("read-only=on", "blkverify:R:T", "driver=blkverify raw{filename=R} read-only=on test{filename=T}"),
        ("driver=qcow2,file.read-only=on", "nbd://h", "driver=qcow2 file{address=h driver=nbd read-only=on}"),
    ];
    let (registry, _) = registry();
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    for (given, name, want) in table {
        let got = context.with_filename(Options::from_image_opts(given).unwrap(), name).unwrap();
        assert_eq!(print(&got), want, "{given} + {name}");
    }
}

/// A driver over itself, without end.
struct Ouroboros;

impl Driver for Ouroboros {
    fn name(&self) -> &'static str {
        "ouroboros"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Filter
    }

    fn open<'a>(&'a self, _: Options, context: &'a OpenContext<'a>) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(context.open(Options::new().with("driver", "ouroboros")))
    }
}

#[test]
fn a_chain_that_runs_in_a_circle_ends() {
    let mut registry = Registry::new();
    registry.add(Ouroboros);
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let error = block_on(context.open(Options::new().with("driver", "ouroboros"))).unwrap_err();
    assert!(error.to_string().contains("does a backing chain run in a circle?"), "{error}");
}
