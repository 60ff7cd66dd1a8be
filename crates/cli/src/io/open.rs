//! Opening an image: qemu-io's modes, and QEMU's words for what goes wrong.

use blkproof_block::graph::{CacheMode, OpenContext, OpenError, OpenFlags, OptionError, Options, Registry, Value};
use blkproof_block::{BlockDevice as _, Node};

use super::reply::Reply;
use super::session::Disk;

/// An image as a command line or an `open` command names it.
#[derive(Clone, Default)]
pub(super) struct OpenSpec {
    /// The filename.
    pub(super) name: Option<String>,
    /// Options as `key=value` list.
    pub(super) options: Option<String>,
    /// Format, from `-f`.
    pub(super) format: Option<String>,
    /// Read-only, cache mode, discard and so on.
    pub(super) flags: OpenFlags,
    /// `-i native`, which QEMU only takes together with `O_DIRECT`.
    pub(super) native_aio: bool,
    /// `-s`.
    pub(super) snapshot: bool,
    /// `-C`.
    pub(super) copy_on_read: bool,
}

/// What qemu-io starts from: discards go through, and every write is durable when it completes.
pub(super) fn default_flags(allow_backing: bool) -> OpenFlags {
    OpenFlags {
        cache: CacheMode { direct: false, no_flush: false, writeback: false },
        unmap: true,
        allow_backing,
        ..OpenFlags::default()
    }
}

/// The cache mode of that name.
///
/// # Errors
/// The message to print.
pub(super) fn cache_mode(name: &str) -> Result<CacheMode, String> {
    CacheMode::from_name(name).ok_or_else(|| format!("Invalid cache option: {name}"))
}

/// Whether discards go through in the mode of that name.
///
/// # Errors
/// The message to print.
pub(super) fn discard_mode(name: &str) -> Result<bool, String> {
    match name {
        "on" | "unmap" => Ok(true),
        "off" | "ignore" => Ok(false),
        _ => Err(format!("Invalid discard option: {name}")),
    }
}

/// Whether the mode of that name is the kernel's own asynchronous I/O.
///
/// # Errors
/// The message to print.
pub(super) fn aio_mode(name: &str) -> Result<bool, String> {
    match name {
        "threads" | "io_uring" => Ok(false),
        "native" => Ok(true),
        _ => Err(format!("Invalid aio option: {name}")),
    }
}

/// Opens what `spec` names, or says why not.
pub(super) async fn open(spec: OpenSpec, registry: &Registry, reply: &mut Reply) -> Option<Disk> {
    match try_open(&spec, registry, reply).await {
        Ok((node, guessed_raw)) => Some(Disk::new(node, spec, registry.clone(), guessed_raw)),
        Err(reason) => {
            match &spec.name {
                Some(name) => reply.complain(&format!("can't open device {name}: {reason}")),
                None => reply.complain(&format!("can't open: {reason}")),
            }
            None
        }
    }
}

/// Opens what `spec` names, and leaves it to the caller to say why not.
///
/// # Errors
/// The reason.
pub(super) async fn open_quietly(spec: OpenSpec, registry: &Registry, reply: &mut Reply) -> Result<Disk, String> {
    let (node, guessed_raw) = try_open(&spec, registry, reply).await?;
    Ok(Disk::new(node, spec, registry.clone(), guessed_raw))
}

/// The node, and whether it is raw for want of anything better.
async fn try_open(spec: &OpenSpec, registry: &Registry, reply: &mut Reply) -> Result<(Node, bool), String> {
    let options = match &spec.options {
        Some(text) => {
            let text = spelled_out(text, reply);
            Options::from_image_opts(&text).map_err(|error| words(&error.into(), spec, reply))?
        }
        None => Options::new(),
    };
    check_modes(spec, &options)?;
    // The disk itself makes every write durable in writethrough mode, so that `reopen -c` can change its mind.
    let cache = CacheMode { writeback: true, ..spec.flags.cache };
    let context = OpenContext { registry, flags: OpenFlags { cache, ..spec.flags } };
    let options = match &spec.format {
        Some(format) => options.with("driver", format.as_str()),
        None => options,
    };
    let qemu_probes = reply.as_qemu_io() && options.text("driver").is_none();
    let options = match &spec.name {
        Some(name) => match name.strip_prefix("json:") {
            // `-f` may repeat the driver or overrule it; this program by its own name asks which of the two is meant.
            Some(text) if reply.as_qemu_io() => {
                options.joined(Options::from_json(text).map_err(|error| words(&error.into(), spec, reply))?)
            }
            _ => named(options, name, &context, qemu_probes).map_err(|error| words(&error, spec, reply))?,
        },
        None => options,
    };
    if spec.snapshot {
        return open_snapshot(&context, options, spec, reply).await.map(|node| (node, false));
    }
    open_guessing(&context, options, spec.name.as_deref(), reply).await.map_err(|error| words(&error, spec, reply))
}

/// The image under a temporary overlay, which takes every write and is gone when the node is.
async fn open_snapshot(
    context: &OpenContext<'_>,
    options: Options,
    spec: &OpenSpec,
    reply: &mut Reply,
) -> Result<Node, String> {
    // Once alone: its size is that of the overlay, and its format need not be found a second time.
    let below = context.read_only();
    let base = open_guessing(&below, options.clone(), spec.name.as_deref(), reply).await;
    let (base, _) = base.map_err(|error| words(&error, spec, reply))?;
    let info = base.info();
    base.close().await.map_err(|error| error.to_string())?;
    drop(base);
    let options = if options.text("driver").is_none() { options.with("driver", info.driver) } else { options };

    // An overlay may become as large as the disk, too large for a /tmp in memory.
    let directory = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
    let could_not = |error: std::io::Error| format!("Could not create temporary overlay: {error}");
    let file = tempfile::Builder::new().prefix("blkproof-").tempfile_in(directory).map_err(could_not)?;
    let path = file.path().to_string_lossy().into_owned();
    let overlay = async {
        // Even what nobody may write to has to be made.
        let making = OpenContext { flags: OpenFlags::default(), ..*context };
        context.registry.driver("qcow2")?.create(&path, Some(info.size), Options::new(), &making).await?;
        let file = Options::new().with("driver", "file").with("filename", path.as_str());
        let options = Options::new().with("driver", "qcow2").with_child("file", file).with_child("backing", options);
        // Nobody will ever look at it again, so nothing has to be durable.
        let cache = CacheMode { direct: false, no_flush: true, writeback: true };
        let context = OpenContext { flags: OpenFlags { cache, ..context.flags }, ..*context };
        context.open(options).await
    };
    overlay.await.map_err(|error| words(&error, spec, reply))
    // The name goes away here, the file with its last descriptor.
}

/// Opens a graph. QEMU guesses raw for an image in no format it knows, even for writing, and says so; we only do as
/// QEMU. For reading alone raw is a harmless guess, and nobody is warned. Whether the top of the graph was guessed is
/// returned with it.
async fn open_guessing(
    context: &OpenContext<'_>,
    mut options: Options,
    name: Option<&str>,
    reply: &mut Reply,
) -> Result<(Node, bool), OpenError> {
    let mut guessed: Vec<String> = Vec::new();
    let mut top = false;
    let done = loop {
        match context.open(options.clone()).await {
            Err(OpenError::Unrecognised { title, option }) if reply.as_qemu_io() => {
                let is_top = option == "driver";
                top |= is_top;
                guessed.push(name.filter(|name| is_top && !name.starts_with("json:")).map_or(title, str::to_owned));
                options = with_option(options, &option, "raw");
            }
            done => break done,
        }
    };
    // We ask from the top, QEMU from the bottom.
    for title in guessed.into_iter().rev() {
        reply.err(&format!(
            "WARNING: Image format was not specified for '{title}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
             restricted.\n         \
             Specify the 'raw' format explicitly to remove the restrictions."
        ));
    }
    done.map(|node| (node, top))
}

/// Sets an option by its full path, as in `file.test.driver`.
fn with_option(options: Options, path: &str, value: &str) -> Options {
    let Some((group, rest)) = path.split_once('.') else { return options.with(path, value) };
    let inner = options.iter().find_map(|(key, inner)| match inner {
        Value::Tree(inner) if key == group => Some(inner.clone()),
        Value::Text(name) if key == group => Some(Options::new().with("filename", name.as_str())),
        _ => None,
    });
    options.with_child(group, with_option(inner.unwrap_or_default(), rest, value))
}

/// What can not be done, and what QEMU does not let be combined.
fn check_modes(spec: &OpenSpec, options: &Options) -> Result<(), String> {
    if spec.flags.force_share && !spec.flags.read_only {
        return Err("force-share=on can only be used with read-only images".into());
    }
    if spec.native_aio && !spec.flags.cache.direct {
        return Err("aio=native was specified, but it requires cache.direct=on, which was not specified.".into());
    }
    if spec.copy_on_read && spec.flags.read_only {
        return Err("Can't use copy-on-read on read-only device".into());
    }
    if spec.copy_on_read {
        return Err("copy-on-read (-C) is not supported".into());
    }
    if !spec.flags.read_only && matches!(options.text("read-only"), Some("on" | "yes" | "true")) {
        return Err("Block node is read-only".into());
    }
    Ok(())
}

/// Adds the filename. QEMU also probes what a `nbd://` name holds, our graph does not.
fn named(options: Options, name: &str, context: &OpenContext<'_>, qemu_probes: bool) -> Result<Options, OpenError> {
    if qemu_probes && !name.starts_with("json:") {
        let given = options.iter().find(|(key, _)| *key == "file").map(|(_, value)| value.clone());
        let below = match given {
            None => Some(Options::from_filename(name, context.registry)?),
            // What stands there besides the driver is about the node that the name means.
            Some(Value::Tree(file)) if file.text("driver").is_none() && file.text("filename").is_none() => {
                Some(file.joined(Options::from_filename(name, context.registry)?))
            }
            Some(_) => None,
        };
        if let Some(file) = below {
            return Ok(options.with_child("file", file));
        }
    }
    context.with_filename(options, name)
}

/// The file an option tree is about.
fn filename(options: &Options) -> Option<String> {
    if let Some(name) = options.text("filename") {
        return Some(name.to_owned());
    }
    options.iter().find_map(|(key, value)| match value {
        Value::Tree(file) if key == "file" => filename(file),
        Value::Text(name) if key == "file" => Some(name.clone()),
        _ => None,
    })
}

/// QEMU takes an option without a value for a boolean and complains; our parser takes the first one for a filename.
pub(super) fn spelled_out(text: &str, reply: &mut Reply) -> String {
    if !reply.as_qemu_io() {
        return text.to_owned();
    }
    let mut items: Vec<String> = Vec::new();
    for item in text.replace(",,", "\0").split(',') {
        if item.contains('=') || item.is_empty() {
            items.push(item.to_owned());
            continue;
        }
        let name = item.replace('\0', ",");
        reply
            .complain(&format!("warning: short-form boolean option '{name}' deprecated\nPlease use {name}=on instead"));
        items.push(format!("{item}=on"));
    }
    items.join(",").replace('\0', ",,")
}

/// QEMU's words where they are known and wanted; otherwise ours, which say more.
fn words(error: &OpenError, spec: &OpenSpec, reply: &mut Reply) -> String {
    if !reply.as_qemu_io() {
        return error.to_string();
    }
    if let Some(words) = blkdebug_words(error) {
        return words;
    }
    match error {
        OpenError::UnknownDriver { name, .. } => format!("Unknown driver '{name}'"),
        OpenError::Option(error) => option_words(error),
        OpenError::Locked { filename, lock } => {
            format!("Failed to get {lock} lock\nIs another process using the image [{filename}]?")
        }
        OpenError::Usage(text) if text.starts_with("the node needs a ") => "Must specify either driver or file".into(),
        OpenError::Io { what, source } if what.starts_with("nbd server ") => {
            let server = what.strip_prefix("nbd server ").unwrap_or(what);
            format!("Failed to connect to '{server}': {}", source.errno)
        }
        OpenError::Needed { role: "backing file", source } => {
            format!("Could not open backing file: {}", words(source, &OpenSpec::default(), reply))
        }
        OpenError::Needed { source, .. } => words(source, &OpenSpec::default(), reply),
        OpenError::Io { what, source } if what.starts_with("Could not open '") => {
            format!("{what}: {}", source.errno)
        }
        OpenError::Io { source, .. } if spec.name.as_deref().is_none_or(|name| !name.contains("://")) => {
            let name = spec
                .name
                .clone()
                .or_else(|| spec.options.as_deref().and_then(|text| filename(&Options::from_image_opts(text).ok()?)));
            format!("Could not open '{}': {}", name.unwrap_or_default(), source.errno)
        }
        _ => {
            let text = error.to_string();
            match text.split_once("' is ") {
                Some((name, "a directory, neither a regular file nor a block device")) if !spec.flags.read_only => {
                    format!("Could not open {name}': Is a directory")
                }
                Some((name, what)) if what.ends_with("neither a regular file nor a block device") => {
                    format!("'file' driver requires {name}' to be a regular file")
                }
                _ => image_words(&text).map_or_else(|| capital(text), str::to_owned),
            }
        }
    }
}

/// QEMU's words for what is wrong with a blkdebug node: ours begin with them, behind the place, and end with advice.
fn blkdebug_words(error: &OpenError) -> Option<String> {
    const WORDS: [&str; 9] = [
        "Invalid parameter '",
        "invalid parameter value: ",
        "There is no option group '",
        "Duplicate ID '",
        "no group defined",
        "parse error",
        "Missing event name for rule",
        "Parameter '",
        "Cannot meet constraints with ",
    ];
    const ADVICE: [&str; 7] = ["; ", " (", "\nhint", " [", ": the ", ": no ", ": a line"];
    let text = match error {
        OpenError::Option(OptionError::Missing { option, .. }) if option.ends_with(".event") => {
            return Some("Missing event name for rule".into());
        }
        OpenError::Option(OptionError::Syntax(text)) | OpenError::Usage(text) => text,
        OpenError::Io { what, source } if what.starts_with("Could not read blkdebug config file") => {
            return Some(format!("Could not read blkdebug config file: {}", source.errno));
        }
        _ => return None,
    };
    let (at, _) = WORDS
        .iter()
        .filter_map(|words| Some((text.find(words)?, words)))
        .find(|(at, _)| *at == 0 || text.get(..*at).is_some_and(|before| before.ends_with(": ")))?;
    let text = text.get(at..)?;
    let end = ADVICE.iter().filter_map(|advice| text.find(advice)).min().unwrap_or(text.len());
    text.get(..end).map(str::to_owned)
}

/// QEMU's words for a damaged image, which name the place and nothing more.
fn image_words(text: &str) -> Option<&'static str> {
    const WORDS: [(&str, &str); 20] = [
        ("image is not in qcow2 format", "Image is not in qcow2 format"),
        ("image does not contain a", "Image does not contain a reference count table"),
        ("qcow2 header length", "qcow2 header exceeds cluster size"),
        ("invalid backing file offset", "Invalid backing file offset"),
        ("backing file name too long", "Backing file name too long"),
        ("backing file name reaches", "Backing file name too long"),
        ("header extension", "Header extension too large"),
        ("reference count table too large", "Reference count table too large"),
        ("invalid reference count table", "Reference count table offset invalid"),
        ("reference count entry width", "Reference count entry width too large; may not exceed 64 bits"),
        ("snapshot table too large", "Snapshot table too large"),
        ("invalid snapshot table offset", "Snapshot table offset invalid"),
        ("active L1 table too large", "Active L1 table too large"),
        ("invalid active L1 table offset", "Active L1 table offset invalid"),
        ("L1 table at ", "Could not read L1 table: Input/output error"),
        ("L1 table is too small", "L1 table is too small"),
        ("virtual size ", "Image is too big"),
        ("compression type 1 without", "qcow2: Compression type incompatible feature bit must be set"),
        ("unsupported qcow2 compression type 0", "qcow2: Compression type incompatible feature bit must not be set"),
        ("'data-file' is required", "'data-file' is required for this image"),
    ];
    WORDS.into_iter().find(|(ours, _)| text.starts_with(ours)).map(|(_, theirs)| theirs)
}

/// Much of what QEMU says is what we say, as a sentence.
fn capital(text: String) -> String {
    let sentence = ["unsupported ", "unknown incompatible"].iter().any(|start| text.starts_with(start));
    if sentence { text.replacen('u', "U", 1) } else { text }
}

/// QEMU's words for a wrong option.
fn option_words(error: &OptionError) -> String {
    match error {
        OptionError::Unknown { option, driver, .. } => {
            format!("Block format '{driver}' does not support the option '{option}'")
        }
        OptionError::Value { option, expected, .. } if expected.starts_with("a size") => format!(
            "Parameter '{option}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means \
             kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
        ),
        OptionError::Value { option, expected, .. } => format!("Parameter '{option}' expects {expected}"),
        OptionError::Missing { option, .. } if matches!(option.rsplit('.').next(), Some("file" | "image")) => {
            let child = option.rsplit('.').next().unwrap_or_default();
            format!("A block device must be specified for \"{child}\"")
        }
        OptionError::Missing { option, .. } => format!("Parameter '{option}' is missing"),
        OptionError::Syntax(text) => {
            match text.strip_prefix("unknown protocol '").and_then(|rest| rest.split_once('\'')) {
                Some((protocol, _)) => format!("Unknown protocol '{protocol}'"),
                None => text.clone(),
            }
        }
    }
}
