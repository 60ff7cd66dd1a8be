//! `blkproof create`: make an empty image.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_block::BlockDevice as _;
use blkproof_block::graph::{OpenContext, OpenFlags, Options};

use crate::graph::{parse_size, registry};
use crate::messages::print_error;
use crate::runtime;

/// Create an empty image
///
/// Options are those of `qemu-img create`: `cluster_size`, `refcount_bits`, `compat`, `extended_l2`, `preallocation`,
/// `backing_file`, `backing_fmt` and others for qcow2; `static` for vdi. An unknown one is refused by name.
///
/// Example: `blkproof create -f qcow2 -o cluster_size=4k,lazy_refcounts=on disk.qcow2 10G`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Format: raw, qcow2 or vdi
    #[arg(short = 'f', long, value_name = "FMT", default_value = "raw")]
    image_format: String,

    /// Options of the format, comma separated; may be repeated
    #[arg(short = 'o', long, value_name = "OPTIONS")]
    options: Vec<String>,

    /// Overwrite an image that is there already
    #[arg(long)]
    force: bool,

    /// Say nothing on success
    #[arg(short, long)]
    quiet: bool,

    /// The file to create
    file: String,

    /// Size of the disk; may be left out with a backing file
    #[arg(value_parser = parse_size)]
    size: Option<u64>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let created = runtime::block_on(create(&args)).flatten();
    match created {
        Ok(description) => {
            if !args.quiet {
                println!("Formatting '{}', fmt={} {description}", args.file, args.image_format);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn create(args: &Args) -> anyhow::Result<String> {
    let registry = registry();
    let context = OpenContext { registry: &registry, flags: OpenFlags { allow_backing: true, ..OpenFlags::default() } };
    let driver = registry.driver(&args.image_format).with_context(|| format!("could not create '{}'", args.file))?;
    let options = match args.options.join(",") {
        text if text.is_empty() => Options::new(),
        text => Options::from_image_opts(&text)?,
    };
    if !args.force && holds_something(&args.file) {
        anyhow::bail!(
            "'{}' exists and is not empty; nothing was changed\nhint: give --force to overwrite it",
            args.file
        );
    }
    if let (Some(_), Some(backing)) = (args.size, options.text("backing_file")) {
        // Without a size the driver opens it to learn one; with a size nobody would see the misspelt name.
        let format = options.text("backing_fmt");
        check_backing(&args.file, backing, format, &context)
            .await
            .with_context(|| format!("could not create '{}': could not open '{backing}'", args.file))?;
    }
    let fresh = FreshFile::reserve(&args.file);
    let created = driver.create(&args.file, args.size, options, &context).await;
    if created.is_err() {
        fresh.remove();
    }
    created.with_context(|| format!("could not create '{}'", args.file))
}

/// A file that was not there before; what a failed creation left of it can go.
struct FreshFile<'a>(Option<(&'a Path, Metadata)>);

impl<'a> FreshFile<'a> {
    /// Makes `file` if it is a plain path to nothing. A path that leads nowhere is for the driver to refuse.
    fn reserve(file: &'a str) -> Self {
        let made = (!file.contains(':')).then(|| File::create_new(file).and_then(|made| made.metadata()));
        Self(made.and_then(Result::ok).map(|made| (Path::new(file), made)))
    }

    /// Removes the file, unless another stands in its place by now.
    fn remove(self) {
        let Some((path, made)) = self.0 else { return };
        if std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (made.dev(), made.ino())) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opens and closes the backing file, which is named as seen from the folder of `file`.
async fn check_backing(
    file: &str,
    backing: &str,
    format: Option<&str>,
    context: &OpenContext<'_>,
) -> anyhow::Result<()> {
    let place = match Path::new(file).parent() {
        Some(folder) if !backing.contains(':') => folder.join(backing).to_string_lossy().into_owned(),
        _ => backing.to_owned(),
    };
    let node = context.read_only().open_image(&place, format, false).await?;
    Ok(node.close().await?)
}

fn holds_something(file: &str) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.len() > 0)
}
