//! `open`, `close` and `reopen`.

use std::rc::Rc;

use blkproof_block::graph::{CacheMode, DriverKind, Options, Registry, Value};

use super::{Command, Outcome, arguments, disk};
use crate::io::getopt::{Item, parse};
use crate::io::open::{self, OpenSpec};
use crate::io::reply::Reply;
use crate::io::session::Disk;
use crate::io::shell::Shell;

pub(super) const OPEN: Command = Command {
    name: "open",
    alias: Some("o"),
    words_min: 1,
    words_max: None,
    args: Some("[-rsCnkU] [-t cache] [-d discard] [-o options] [path]"),
    summary: "open the file specified by path",
    help: "
 Opens an image for the commands that follow. The options of the program itself have no effect here.

 Example:
 'open -n -o driver=raw /tmp/data' - opens raw data past the page cache

 -r           read-only
 -s           writes go to a temporary overlay, dropped at the end
 -C           copy on read (not supported)
 -n           bypass the page cache, short for -t none
 -U           although other programs hold the image; read-only
 -k           the kernel's own asynchronous I/O, short for -i native
 -i MODE      threads, native or io_uring
 -t MODE      writeback, writethrough, none, directsync or unsafe
 -d MODE      ignore or unmap: whether discards go through
 -o OPTIONS   options of the driver, separated by commas
",
    needs_file: false,
    writes: false,
    run: |shell, words, reply| Box::pin(open(shell, words, reply)),
};

pub(super) const CLOSE: Command = Command {
    name: "close",
    alias: Some("c"),
    words_min: 0,
    words_max: Some(0),
    args: None,
    summary: "close the current open file",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, _, reply| {
        Box::pin(async move {
            let clean = shell.close(reply).await;
            // qemu-io says so, and does not count it.
            Outcome::from_success(clean || reply.as_qemu_io())
        })
    },
};

pub(super) const REOPEN: Command = Command {
    name: "reopen",
    alias: None,
    words_min: 0,
    words_max: None,
    args: Some("[(-r|-w)] [-c cache] [-o options]"),
    summary: "reopens an image with new options",
    help: "
 Changes how the open image is open.

 Example:
 'reopen -o lazy-refcounts=on' - lets a qcow2 image write its refcounts late

 -r           read-only
 -w           read-write
 -c MODE      writeback, writethrough, none, directsync or unsafe
 -o OPTIONS   options of the driver, separated by commas
",
    needs_file: true,
    writes: false,
    run: |shell, words, reply| Box::pin(reopen(shell, words, reply)),
};

async fn open(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let mut spec = OpenSpec { flags: open::default_flags(shell.allow_backing), ..OpenSpec::default() };
    let mut options: Vec<String> = Vec::new();
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "snCro:ki:t:d:U", &[]);
    for item in parsed.items {
        let done = match item {
            Item::Flag('r') => {
                spec.flags.read_only = true;
                Ok(())
            }
            Item::Flag('s') => {
                spec.snapshot = true;
                Ok(())
            }
            Item::Flag('C') => {
                spec.copy_on_read = true;
                Ok(())
            }
            Item::Flag('U') => {
                spec.flags.force_share = true;
                Ok(())
            }
            Item::Flag('n') => open::cache_mode("none").map(|mode| spec.flags.cache = mode),
            Item::Flag('k') => {
                spec.native_aio = true;
                Ok(())
            }
            Item::Value('i', mode) => open::aio_mode(&mode).map(|native| spec.native_aio = native),
            Item::Value('t', mode) => open::cache_mode(&mode).map(|mode| spec.flags.cache = mode),
            Item::Value('d', mode) => open::discard_mode(&mode).map(|unmap| spec.flags.unmap = unmap),
            Item::Value('o', text) => {
                options.push(text);
                Ok(())
            }
            Item::Flag(_) | Item::Value(..) => Ok(()),
            Item::Wrong(text) => {
                reply.err(&text);
                return Outcome::Usage;
            }
        };
        if let Err(message) = done {
            reply.complain(&message);
            return Outcome::Failed;
        }
    }
    match parsed.operands.as_slice() {
        [] => {}
        [list] if shell.image_opts => options.push(list.clone()),
        [name] => spec.name = Some(name.clone()),
        _ => return Outcome::Usage,
    }
    if shell.image_opts && parsed.operands.len() == 1 && options.len() > 1 {
        reply.complain("Can't use 'open -o' together with --image-opts and a list of options");
        return Outcome::Failed;
    }
    if !options.is_empty() {
        spec.options = Some(options.join(","));
    }
    if shell.disk.is_some() {
        reply.complain("file open already, try 'help close'");
        return Outcome::Failed;
    }
    let registry = shell.registry.clone();
    match open::open(spec, &registry, reply).await {
        Some(disk) => {
            shell.disk = Some(Rc::new(disk));
            Outcome::Done
        }
        None => Outcome::Failed,
    }
}

/// What `reopen` is asked to change.
#[derive(Default)]
struct Change {
    read_only: Option<bool>,
    cache: Option<CacheMode>,
    options: Option<String>,
}

async fn reopen(shell: &mut Shell, words: &[String], reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let mut change = Change::default();
    let mut list: Vec<String> = Vec::new();
    let parsed = parse(words.first().map_or("", String::as_str), arguments(words), "c:o:rw", &[]);
    for item in parsed.items {
        match item {
            Item::Flag('r' | 'w') if change.read_only.is_some() => {
                reply.complain("Only one -r/-w option may be given");
                return Outcome::Failed;
            }
            Item::Flag(letter) => change.read_only = Some(letter == 'r'),
            Item::Value('c', mode) => match open::cache_mode(&mode) {
                Ok(cache) => change.cache = Some(cache),
                Err(message) => {
                    reply.complain(&message);
                    return Outcome::Failed;
                }
            },
            Item::Value(_, text) => list.push(text),
            Item::Wrong(text) => {
                reply.err(&text);
                return Outcome::Usage;
            }
        }
    }
    if !parsed.operands.is_empty() {
        return Outcome::Usage;
    }
    if !list.is_empty() {
        change.options = Some(list.join(","));
    }
    drop(disk);
    match apply(shell, change, reply).await {
        Ok(()) => Outcome::Done,
        Err(message) => {
            reply.complain(&message);
            Outcome::Failed
        }
    }
}

/// Makes the change, without opening anything anew where that is not needed: a disk in memory would forget its content.
async fn apply(shell: &mut Shell, mut change: Change, reply: &mut Reply) -> Result<(), String> {
    let Some(disk) = disk(shell) else { return Ok(()) };
    // As it is now, which an earlier `reopen` may have changed.
    let mut spec = disk.spec.clone();
    spec.flags.read_only = disk.is_read_only();
    spec.flags.cache.writeback = disk.is_writeback();
    let options = match &change.options {
        Some(text) => {
            let text = changes(&open::spelled_out(text, reply), &spec, &disk)?;
            let options = Options::from_image_opts(&text).map_err(|error| error.to_string())?;
            change.options = Some(text.clone()).filter(|text| !text.is_empty());
            Some(options).filter(|_| !text.is_empty())
        }
        None => None,
    };
    if let Some(options) = &options {
        check_options(options, &change)?;
    }
    if let Some(read_only) = change.read_only {
        spec.flags.read_only = read_only;
    }
    if let Some(cache) = change.cache {
        spec.flags.cache = cache;
    }
    let same_host_flags = {
        let (old, new) = (disk.spec.flags.cache, spec.flags.cache);
        (old.direct, old.no_flush) == (new.direct, new.no_flush)
    };
    shell.finish_requests().await;
    if options.is_none() && same_host_flags && disk.set_read_only(spec.flags.read_only) {
        disk.set_writeback(spec.flags.cache.writeback);
        // What was promised by the old mode is kept before the new one begins.
        return if disk.info().read_only {
            Ok(())
        } else {
            disk.flush().await.map_err(|error| error.errno.to_string())
        };
    }
    if spec.snapshot {
        return Err("a temporary snapshot would be lost: it can not be opened anew".into());
    }
    // Opened anew: the old node has to let go of its locks first, and comes back if the new one can not be had.
    let (was_read_only, was_writeback) = (disk.is_read_only(), disk.is_writeback());
    let old = disk.spec.clone();
    drop(disk);
    shell.close(reply).await;
    let merged = match (&old.options, &change.options) {
        (Some(old), Some(new)) => Some(format!("{old},{new}")),
        (old, new) => old.clone().or_else(|| new.clone()),
    };
    spec.options = merged;
    let registry = shell.registry.clone();
    let mut discarded = Reply::new(&shell.console, &[]);
    match open::open_quietly(spec, &registry, reply).await {
        Ok(disk) => {
            shell.disk = Some(Rc::new(disk));
            Ok(())
        }
        Err(reason) => {
            if let Ok(disk) = open::open_quietly(old, &registry, &mut discarded).await {
                disk.set_read_only(was_read_only);
                disk.set_writeback(was_writeback);
                shell.disk = Some(Rc::new(disk));
            }
            Err(not_changeable(reason, reply))
        }
    }
}

/// The part of a list of options that would change something. Drivers and node names may be repeated, not changed.
fn changes(text: &str, spec: &OpenSpec, disk: &Disk) -> Result<String, String> {
    let opened = spec.options.as_deref().and_then(|text| Options::from_image_opts(text).ok()).unwrap_or_default();
    let mut rest: Vec<&str> = Vec::new();
    for item in text.split_inclusive(',') {
        let (path, value) = item.trim_end_matches(',').split_once('=').unwrap_or((item, ""));
        let option = path.rsplit('.').next().unwrap_or(path);
        let same = match option {
            "node-name" => at_path(&opened, path) == Some(value.to_owned()),
            "driver" => match at_path(&opened, path) {
                Some(driver) => driver == value,
                None => is_driver_of(disk, path, value),
            },
            _ => {
                rest.push(item);
                continue;
            }
        };
        if !same {
            return Err(format!("Cannot change the option '{option}'"));
        }
    }
    Ok(rest.concat().trim_end_matches(',').to_owned())
}

/// Whether the node at `path` (`driver`, `file.driver`, `backing.driver`) can be one of that driver, as far as we know
/// from here: the image itself, files below it, images behind it.
fn is_driver_of(disk: &Disk, path: &str, driver: &str) -> bool {
    let kind = |registry: &Registry| registry.driver(driver).ok().map(|driver| driver.kind());
    match path {
        "driver" => disk.info().driver == driver,
        "backing.driver" => kind(disk.registry()) == Some(DriverKind::Format),
        _ => kind(disk.registry()) == Some(DriverKind::Protocol),
    }
}

/// The text at a dotted path.
fn at_path(options: &Options, path: &str) -> Option<String> {
    let (key, rest) = path.split_once('.').map_or((path, None), |(key, rest)| (key, Some(rest)));
    match (options.iter().find(|(name, _)| *name == key)?.1, rest) {
        (Value::Text(text), None) => Some(text.clone()),
        (Value::Tree(group), Some(rest)) => at_path(group, rest),
        _ => None,
    }
}

/// Options that say the same as another part of the command, or can not be changed.
fn check_options(options: &Options, change: &Change) -> Result<(), String> {
    if change.read_only.is_some() && options.text("read-only").is_some() {
        return Err("Cannot set both -r/-w and 'read-only'".into());
    }
    if change.cache.is_some() && options.iter().any(|(key, _)| key == "cache") {
        return Err("Cannot set both -c and the cache options".into());
    }
    if options.iter().any(|(key, _)| key == "file") {
        return Err("Cannot change the option 'filename'".into());
    }
    Ok(())
}

/// What QEMU says here of an option that the driver does not know.
fn not_changeable(reason: String, reply: &Reply) -> String {
    let option = reason.split_once("does not support the option '").and_then(|(_, rest)| rest.split_once('\''));
    match option {
        Some((option, _)) if reply.as_qemu_io() => format!("Cannot change the option '{option}'"),
        _ => reason,
    }
}
