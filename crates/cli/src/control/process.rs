//! What control commands can do to this process.

use std::fs::File;
use std::path::Path;

use blkproof_block::graph::{OpenContext, OpenFlags, Options};
use blkproof_block::{LocalBoxFuture, Node};
use blkproof_control::{Draft, Host, NewImage, OVERLAY_SECTOR};
use tokio::sync::Notify;

use super::OwnFile;
use crate::graph::registry;
use crate::messages::without_number;

/// Bytes of the largest overlay: qcow2's tables for clusters of [`OVERLAY_SECTOR`] bytes reach no further.
const OVERLAY_MAX: u64 = 64 << 30;

/// This process.
#[derive(Debug, Default)]
pub(crate) struct Process {
    quit: Notify,
}

impl Process {
    /// Completes when a client has said `quit`.
    pub(crate) async fn told_to_quit(&self) {
        self.quit.notified().await;
    }

    async fn create_image(image: NewImage<'_>) -> Result<Box<dyn Draft>, String> {
        let NewImage { file, format, size, backing } = image;
        if backing.is_some() && size > OVERLAY_MAX {
            return Err(format!(
                "an overlay holds at most {} GiB; save a whole image, which is sparse",
                OVERLAY_MAX >> 30
            ));
        }
        let registry = registry();
        let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
        let driver = registry.driver(format).map_err(|error| error.to_string())?;
        let made = File::create_new(file).and_then(|made| made.metadata()).map_err(|error| {
            let words = error.to_string();
            format!("could not create '{file}': {}", without_number(&words))
        })?;
        let made = OwnFile::new(Path::new(file), &made);
        let options = match backing {
            Some((name, format)) => Options::new()
                .with("backing_file", name)
                .with("backing_fmt", format)
                .with("cluster_size", OVERLAY_SECTOR.to_string()),
            None => Options::new(),
        };
        let opened = async {
            driver.create(file, Some(size), options, &context).await?;
            let options = Options::new()
                .with("driver", format)
                .with_child("file", Options::new().with("driver", "file").with("filename", file));
            // Sectors are written whole: what the backing file holds is never needed.
            let options = if backing.is_some() { options.with("backing", "none") } else { options };
            context.open(options).await
        };
        match opened.await {
            Ok(node) => Ok(Box::new(DraftFile { node, file: made })),
            Err(error) => Err(format!("could not create '{file}': {error}")),
        }
    }
}

/// An image whose file goes unless it is kept.
struct DraftFile {
    node: Node,
    file: OwnFile,
}

impl Draft for DraftFile {
    fn node(&self) -> &Node {
        &self.node
    }

    fn keep(self: Box<Self>) {
        self.file.keep();
    }
}

impl Host for Process {
    fn quit(&self) {
        self.quit.notify_one();
    }

    fn create<'a>(&'a self, image: NewImage<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Draft>, String>> {
        Box::pin(Self::create_image(image))
    }
}
