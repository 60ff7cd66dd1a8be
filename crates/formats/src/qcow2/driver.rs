//! qcow2 in the registry: options, children, and which of the files named inside an image may be opened.

use std::path::Path;
use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, Options};
use blkproof_block::{BlockDevice, LocalBoxFuture, Node};

use super::create::{CreateOptions, create};
use super::header::{Header, MAGIC};
use super::{OpenOptions, Qcow2};

/// The driver `qcow2`.
///
/// Options: `file` (the image), `backing` (a child, or `none`), `data-file` (a child), `lazy-refcounts`,
/// `l2-cache-size`, `refcount-cache-size`, `cache-size`, `pass-discard-request`, `pass-discard-other`,
/// `pass-discard-snapshot` (nothing here deletes snapshots); `l2-cache-entry-size` and `cache-clean-interval` are
/// checked and have no effect.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qcow2Driver;

const NAME: &str = "qcow2";

impl Driver for Qcow2Driver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn probe(&self, head: &[u8]) -> bool {
        // Version 1 is another format (qcow).
        head.get(..4) == Some(&MAGIC.to_be_bytes())
            && head.get(4..8).is_some_and(|version| version >= &[0, 0, 0, 2][..])
    }

    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move { Ok(Node::new(open(options, context).await?)) })
    }

    fn create<'a>(
        &'a self,
        filename: &'a str,
        size: Option<u64>,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<String, OpenError>> {
        Box::pin(create_named(filename, size, options, context))
    }
}

/// Opens an image and the files it needs.
async fn open(mut options: Options, context: &OpenContext<'_>) -> Result<Qcow2<Node>, OpenError> {
    let defaults = OpenOptions::<Node>::default();
    let pass_discard_request = options.take_bool("pass-discard-request")?.unwrap_or(context.flags.unmap);
    options.take_bool("pass-discard-snapshot")?;
    let pass_discard_other = options.take_bool("pass-discard-other")?.unwrap_or(false);
    let lazy_refcounts = options.take_bool("lazy-refcounts")?;
    let (l2_cache_size, refcount_cache_size) = cache_sizes(&mut options, &defaults)?;
    // Tables are cached whole, and stay until the space is wanted.
    let entry_size = options.take_size("l2-cache-entry-size")?;
    options.take_u64("cache-clean-interval")?;
    let Some(file) = options.take_child("file") else {
        return Err(OpenError::Usage("driver 'qcow2' needs the option 'file'".into()));
    };
    let name = file.text("filename").map(str::to_owned);
    let data_file = options.take_child("data-file");
    let backing = take_backing(&mut options)?;
    options.finish(NAME)?;

    let file = context.open(file).await?;
    let header = Header::load(&file).await?;
    let cluster = header.geometry.cluster_size();
    if entry_size.is_some_and(|size| !size.is_power_of_two() || !(512..=cluster).contains(&size)) {
        return Err(OpenError::Usage(format!(
            "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
        )));
    }

    let data_file = match (data_file, header.geometry.external_data) {
        (Some(child), _) => Some(context.open(child).await.map_err(|error| error.needed("data file"))?),
        (None, false) => None,
        (None, true) => {
            let Some(inside) = &header.data_file_name else {
                return Err(OpenError::Usage("'data-file' is required for this image".into()));
            };
            if !context.flags.allow_backing {
                return Err(not_allowed("data file", inside, "data-file"));
            }
            let child = Options::new().with("driver", "file").with("filename", beside(name.as_deref(), inside));
            Some(context.open(child).await.map_err(|error| error.needed("data file"))?)
        }
    };
    let backing = match (backing, &header.backing_name) {
        (Backing::Nothing, _) | (Backing::AsNamed, None) => None,
        (Backing::Child(child), Some(inside)) if !names_a_file(&child) => {
            Some(as_named(child, inside, &header, name.as_deref(), context)?)
        }
        (Backing::Child(child), _) => Some(child),
        (Backing::AsNamed, Some(inside)) => Some(as_named(Options::new(), inside, &header, name.as_deref(), context)?),
    };
    let backing = match backing {
        Some(child) => Some(context.read_only().open(child).await.map_err(|error| error.needed("backing file"))?),
        None => None,
    };
    let options = OpenOptions {
        read_only: context.flags.read_only,
        backing,
        data_file,
        l2_cache_size,
        refcount_cache_size,
        lazy_refcounts,
        unmap: context.flags.unmap,
        pass_discard_request,
        pass_discard_other,
    };
    Qcow2::open_with(file, header, options).await
}

fn cache_sizes(options: &mut Options, defaults: &OpenOptions<Node>) -> Result<(u64, u64), OpenError> {
    let total = options.take_size("cache-size")?;
    let l2 = options.take_size("l2-cache-size")?;
    let refcount = options.take_size("refcount-cache-size")?;
    match (total, l2, refcount) {
        (Some(_), Some(_), Some(_)) => Err(OpenError::Usage(
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time".into(),
        )),
        (Some(total), Some(l2), None) if l2 > total => {
            Err(OpenError::Usage("l2-cache-size may not exceed cache-size".into()))
        }
        (Some(total), None, Some(refcount)) if refcount > total => {
            Err(OpenError::Usage("refcount-cache-size may not exceed cache-size".into()))
        }
        (Some(total), Some(l2), None) => Ok((l2, total.saturating_sub(l2))),
        (Some(total), None, Some(refcount)) => Ok((total.saturating_sub(refcount), refcount)),
        (Some(total), None, None) => Ok((total.saturating_sub(total / 5), total / 5)),
        (None, l2, refcount) => {
            Ok((l2.unwrap_or(defaults.l2_cache_size), refcount.unwrap_or(defaults.refcount_cache_size)))
        }
    }
}

enum Backing {
    AsNamed,
    Nothing,
    Child(Options),
}

fn take_backing(options: &mut Options) -> Result<Backing, OpenError> {
    let nothing = matches!(options.text("backing"), Some("" | "none" | "null"));
    if nothing {
        options.take_text("backing")?;
        return Ok(Backing::Nothing);
    }
    Ok(options.take_child("backing").map_or(Backing::AsNamed, Backing::Child))
}

/// Whether options of a backing image say where it is. Those that do not (`backing.driver=raw`) add to what the image
/// says of it, and go before it.
fn names_a_file(child: &Options) -> bool {
    child.iter().any(|(key, _)| matches!(key, "file" | "filename" | "server" | "path" | "host"))
}

/// The backing image that `image` names, opened with `options` on top.
fn as_named(
    options: Options,
    inside: &str,
    header: &Header,
    image: Option<&str>,
    context: &OpenContext<'_>,
) -> Result<Options, OpenError> {
    if !context.flags.allow_backing {
        return Err(not_allowed("backing file", inside, "backing.filename"));
    }
    let place = beside(image, inside);
    let options = match (&header.backing_format, options.text("driver")) {
        (Some(format), None) => options.with("driver", format.as_str()),
        _ => options,
    };
    if options.text("driver").is_none() {
        return Ok(options.with("filename", place));
    }
    let named = Options::from_filename(&place, context.registry)?;
    // `json:` may describe the whole backing image, or the file that holds it.
    let is_whole = match named.text("driver") {
        Some(driver) => context.registry.driver(driver)?.kind() == DriverKind::Format,
        None => true,
    };
    Ok(if is_whole { options.joined(named) } else { options.joined(Options::new().with_child("file", named)) })
}

fn not_allowed(what: &str, inside: &str, option: &str) -> OpenError {
    let none = if what == "backing file" { ", or backing=none to read zeroes instead" } else { "" };
    OpenError::Usage(format!(
        "the image names the {what} '{inside}', and files named inside an image are opened only when that is allowed\n\
         hint: allow it with --allow-backing, or name the file with {option}=…{none}"
    ))
}

/// A name from inside an image is relative to the directory of the image.
fn beside(image: Option<&str>, inside: &str) -> String {
    let has_protocol = inside.split_once(':').is_some_and(|(scheme, _)| !scheme.contains('/'));
    if has_protocol || Path::new(inside).is_absolute() {
        return inside.to_owned();
    }
    match image.and_then(|image| Path::new(image).parent()) {
        Some(directory) => directory.join(inside).to_string_lossy().into_owned(),
        None => inside.to_owned(),
    }
}

async fn create_named(
    filename: &str,
    size: Option<u64>,
    mut options: Options,
    context: &OpenContext<'_>,
) -> Result<String, OpenError> {
    let compat = options.text("compat").map(str::to_owned);
    let mut wanted = CreateOptions::take(&mut options)?;
    options.finish(NAME)?;
    wanted.size = match (size, &wanted.backing_file) {
        (Some(size), _) => size,
        (None, Some(inside)) => {
            let place = beside(Some(filename), inside);
            let mut child = Options::from_filename(&place, context.registry)?;
            if let Some(format) = &wanted.backing_format {
                child = Options::new().with("driver", format.as_str()).with_child("file", child);
            }
            let backing = context.read_only().open(child).await?;
            let size = backing.info().size;
            backing.close().await.map_err(|e| OpenError::io(format!("closing the backing file '{inside}'"), e))?;
            size
        }
        (None, None) => return Err(OpenError::Usage("image creation needs a size parameter".into())),
    };
    // QEMU's images are whole sectors long.
    wanted.size = wanted.size.next_multiple_of(512);
    if wanted.backing_file.is_some() && wanted.backing_format.is_none() {
        return Err(OpenError::Usage("backing file specified without backing format; give backing_fmt too".into()));
    }
    let file = create_file(filename, 0, context).await?;
    let data_file = match &wanted.data_file {
        Some(inside) => Some(Rc::new(create_file(&beside(Some(filename), inside), wanted.size, context).await?)),
        None => None,
    };
    let file = Rc::new(file);
    create(Rc::clone(&file), data_file.clone(), &wanted).await?;
    let closed = |e| OpenError::io(format!("closing '{filename}'"), e);
    if let Some(data) = data_file {
        data.close().await.map_err(closed)?;
    }
    file.close().await.map_err(closed)?;
    Ok(wanted.describe_with(compat.as_deref()))
}

/// Creates an empty file of `size` bytes and opens it for writing.
async fn create_file(name: &str, size: u64, context: &OpenContext<'_>) -> Result<Node, OpenError> {
    context.registry.driver("file")?.create(name, Some(size), Options::new(), context).await?;
    let options = Options::new().with("driver", "file").with("filename", name);
    context.open(options).await
}
