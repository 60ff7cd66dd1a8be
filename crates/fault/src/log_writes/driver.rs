//! `blklogwrites` as users name it: `driver=blklogwrites,file.…,log.…`, with QEMU's options and words.
//!
//! Options: `file`, `log` (nodes), `log-sector-size`, `log-append`, `log-super-update-interval`, and `log-details`,
//! ours.

use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{BlockDevice as _, LocalBoxFuture, Node};

use super::append::{Appender, How, INTERVAL_DEFAULT, Resume};
use super::format::{DETAILS_SECTOR_MIN, SECTOR_DEFAULT, SectorSize};
use super::node::{LogWrites, NAME};
use super::read::{Extent, Fault, Log, LogError, Rest};
use crate::lab::{Lab, Part};

/// The driver; every log it opens is known to the lab.
#[derive(Clone, Debug)]
pub struct LogWritesDriver {
    lab: Rc<Lab>,
}

/// The words of `log-append`: QEMU's, and two that say what is to become of entries the superblock does not count.
const APPEND: &[(&str, Option<Extent>)] = &[
    ("on", Some(Extent::Trusted)),
    ("off", None),
    ("all", Some(Extent::All)),
    ("counted", Some(Extent::Counted)),
    ("true", Some(Extent::Trusted)),
    ("false", None),
    ("yes", Some(Extent::Trusted)),
    ("no", None),
];

/// What the options say.
struct Asked {
    sector: Option<u64>,
    append: Option<Extent>,
    interval: u64,
    details: bool,
}

impl Asked {
    fn take(options: &mut Options) -> Result<Self, OpenError> {
        let sector = options.take_size("log-sector-size")?;
        let append = options.take_choice("log-append", APPEND)?.flatten();
        let interval = options.take_u64("log-super-update-interval")?.unwrap_or(INTERVAL_DEFAULT);
        let details = options.take_bool("log-details")?.unwrap_or(false);
        if append.is_some() && sector.is_some() {
            return Err(OpenError::Usage("log-append and log-sector-size are mutually exclusive".into()));
        }
        if interval == 0 {
            return Err(OpenError::Usage(format!("Invalid log superblock update interval {interval}")));
        }
        Ok(Self { sector, append, interval, details })
    }
}

impl LogWritesDriver {
    /// Logs of this driver are controlled through `lab`.
    pub fn new(lab: &Rc<Lab>) -> Self {
        Self { lab: Rc::clone(lab) }
    }

    async fn open_log(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let missing = |option: &str| OptionError::Missing { option: option.into(), driver: NAME.into() };
        let file = options.take_child("file").ok_or_else(|| missing(&options.full_name("file")))?;
        let log = options.take_child("log").ok_or_else(|| missing(&options.full_name("log")))?;
        let wanted = options.take_text("node-name")?;
        let asked = Asked::take(&mut options)?;
        options.finish(NAME)?;
        let file = context.open(file).await?;
        self.put_over(file, log, wanted, &asked, context).await
    }

    /// Puts a log over `file`, an open node. `log` describes the node that takes the log. It has details: nobody has asked
    /// for the entries of another program, which may read them all the same.
    ///
    /// # Errors
    /// As for opening the driver.
    pub async fn attach(
        &self,
        file: Node,
        log: Options,
        name: Option<String>,
        context: &OpenContext<'_>,
    ) -> Result<Node, OpenError> {
        let asked = Asked { details: true, ..Asked::take(&mut Options::new())? };
        self.put_over(file, log, name, &asked, context).await
    }

    async fn put_over(
        &self,
        file: Node,
        log: Options,
        name: Option<String>,
        asked: &Asked,
        context: &OpenContext<'_>,
    ) -> Result<Node, OpenError> {
        let log = context.open(log_options(log, context)?).await?;
        let appender = self.appender(log, asked, context).await?;
        // Only now: a node of this kind below has its name already.
        let name = self.lab.name(NAME, name);
        let node = LogWrites::new(file, appender, self.lab.clock());
        let known = self.lab.register(&name, Part::Log(node.log()));
        let node = node.owned_by(Rc::new(known.map_err(|error| OpenError::Usage(error.to_string()))?));
        Ok(Node::new(node))
    }

    async fn appender(&self, log: Node, asked: &Asked, context: &OpenContext<'_>) -> Result<Appender, OpenError> {
        let given = asked.sector.unwrap_or(u64::from(SECTOR_DEFAULT));
        let fresh =
            || SectorSize::new(given).ok_or_else(|| OpenError::Usage(format!("Invalid log sector size {given}")));
        let how = |sector| How { sector, interval: asked.interval, details: asked.details };
        let (sector, resume) = match asked.append.filter(|_| log.info().size > 0) {
            Some(extent) => {
                let (sector, resume) = read_log(&log, extent).await?;
                (sector, Some(resume))
            }
            None => (fresh()?, None),
        };
        if asked.details && sector.get() < DETAILS_SECTOR_MIN {
            let bytes = sector.get();
            let words = format!("log-details needs log sectors of at least {DETAILS_SECTOR_MIN} bytes, not {bytes}");
            return Err(OpenError::Usage(words));
        }
        if context.flags.read_only {
            return Ok(Appender::idle(log, how(sector)));
        }
        if resume.is_none() {
            refuse_image(&log, context).await?;
        }
        let how = match resume {
            // A log with details goes on with them.
            Some(Resume { details: true, .. }) => How { details: true, ..how(sector) },
            _ => how(sector),
        };
        Appender::open(log, how, resume).await.map_err(|error| OpenError::io("Could not write log superblock", error))
    }
}

/// A log is what its name says, byte for byte, and is never probed.
fn log_options(mut log: Options, context: &OpenContext<'_>) -> Result<Options, OpenError> {
    if log.text("driver").is_some() {
        return Ok(log);
    }
    match log.take_text("filename")? {
        Some(filename) => Ok(log.or(Options::from_filename(&filename, context.registry)?)),
        None => Ok(log),
    }
}

async fn read_log(log: &Node, extent: Extent) -> Result<(SectorSize, Resume), OpenError> {
    let in_qemus_words = |error: LogError| match error {
        LogError::Entry { index, fault: Fault::Flags(flags), .. } => {
            OpenError::Image(format!("Invalid flags {flags:#x} in log entry {index}"))
        }
        LogError::Entry { index, at, fault } => {
            OpenError::Image(format!("Failed to read log entry {index} at {at}: {fault}"))
        }
        LogError::Read(error) => OpenError::io("Could not read log superblock", error),
        LogError::Superblock(error) => OpenError::Image(error.to_string()),
    };
    let log = Log::open(log.clone()).await.map_err(in_qemus_words)?;
    let (resume, rest) = log.resume(extent).await.map_err(in_qemus_words)?;
    if rest == Rest::Uncounted && extent != Extent::Counted {
        return Err(OpenError::Image(format!(
            "behind the {} entries that its superblock counts, the log has more: its writer was killed, or an older \
             log stood here\nhint: log-append=all goes on behind the last one, log-append=counted overwrites them",
            resume.entries
        )));
    }
    Ok((log.sector(), resume))
}

/// Whoever names an image as the log has mixed up two names; its first bytes would be gone.
async fn refuse_image(log: &Node, context: &OpenContext<'_>) -> Result<(), OpenError> {
    let mut head = vec![0; 4096.min(usize::try_from(log.info().size).unwrap_or(4096))];
    log.read(0, &mut head).await.map_err(|error| OpenError::io("reading the start of the log", error))?;
    let known = context.registry.drivers().filter(|driver| driver.kind() == DriverKind::Format);
    match known.into_iter().find(|driver| driver.probe(&head)) {
        None => Ok(()),
        Some(driver) => Err(OpenError::Usage(format!(
            "the log is a {} image, which would be overwritten\nhint: name an empty file as 'log'",
            driver.name()
        ))),
    }
}

impl Driver for LogWritesDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Filter
    }

    fn wants_node_name(&self) -> bool {
        true
    }

    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(self.open_log(options, context))
    }
}
