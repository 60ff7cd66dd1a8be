//! VDI in the registry.

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, Options};
use blkproof_block::{BlockDevice, LocalBoxFuture, Node};

use super::Vdi;
use super::create::{CreateOptions, create};
use super::header::SIGNATURE;

const NAME: &str = "vdi";

/// The driver `vdi`.
///
/// Options: `file` (the image). Creation options: `static=on|off`, `preallocation=off|metadata`, `block_size` (1 MiB
/// only), `uuid`, `size`.
#[derive(Clone, Copy, Debug, Default)]
pub struct VdiDriver;

impl Driver for VdiDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn probe(&self, head: &[u8]) -> bool {
        head.get(0x40..0x44) == Some(&SIGNATURE.to_le_bytes())
    }

    fn open<'a>(
        &'a self,
        mut options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move {
            let Some(file) = options.take_child("file") else {
                return Err(OpenError::Usage("driver 'vdi' needs the option 'file'".into()));
            };
            options.finish(NAME)?;
            let file = context.open(file).await?;
            Ok(Node::new(Vdi::open(file, context.flags.read_only).await?))
        })
    }

    fn create<'a>(
        &'a self,
        filename: &'a str,
        size: Option<u64>,
        mut options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<String, OpenError>> {
        Box::pin(async move {
            let stated = options.text("size").is_some();
            let mut wanted = CreateOptions::take(&mut options)?;
            options.finish(NAME)?;
            match size {
                Some(size) => wanted.size = size,
                None if stated => {}
                None => return Err(OpenError::Usage("Image creation needs a size parameter".into())),
            }
            filename.clone_into(&mut wanted.name);
            context.registry.driver("file")?.create(filename, Some(0), Options::new(), context).await?;
            let file = Options::new().with("driver", "file").with("filename", filename);
            let file = context.open(file).await?;
            create(&file, &wanted).await?;
            file.close().await.map_err(|error| OpenError::io(format!("closing '{filename}'"), error))?;
            Ok(wanted.describe())
        })
    }
}
