//! `blkverify` as users name it: `blkverify:RAW:TEST`, or `driver=blkverify,raw.filename=R,test.driver=qcow2,…`.
//!
//! Options: `raw`, `test` (nodes), `on-mismatch` (`report`, `fail`, `exit`, `repair-view`), `history` (a size). RAW is
//! what its filename says, byte for byte, and never probed; TEST follows the rules of every image. A `filename` of the
//! node itself is TEST's, as in QEMU.

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{LocalBoxFuture, Node};

use crate::mirror::{Clock, Sink, Verify, VerifyOptions};
use crate::policy::OnMismatch;

/// The driver's name, and the prefix of its filenames.
const NAME: &str = "blkverify";

/// The driver; every mirror it opens reports to the same sink.
#[derive(Clone)]
pub struct VerifyDriver {
    sink: Sink,
    clock: Option<Clock>,
    defaults: VerifyOptions,
}

impl std::fmt::Debug for VerifyDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyDriver").field("defaults", &self.defaults).finish_non_exhaustive()
    }
}

impl VerifyDriver {
    /// Tells `sink` of every mismatch. Where a graph says nothing, mismatches are reported and the mirror goes on.
    pub fn new(sink: impl Fn(&crate::Mismatch) + 'static) -> Self {
        Self { sink: std::rc::Rc::new(sink), clock: None, defaults: VerifyOptions::default() }
    }

    /// Dates operations by `clock`, in nanoseconds since some beginning.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> u64 + 'static) -> Self {
        self.clock = Some(std::rc::Rc::new(clock));
        self
    }

    /// What holds for a graph that does not say `on-mismatch`.
    #[must_use]
    pub fn on_mismatch(mut self, on_mismatch: OnMismatch) -> Self {
        self.defaults = self.defaults.on_mismatch(on_mismatch);
        self
    }

    /// What holds for a graph that does not say `history`, in bytes.
    #[must_use]
    pub fn history(mut self, size: u64) -> Self {
        self.defaults = self.defaults.history(size);
        self
    }

    async fn open_mirror(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let mut how = self.defaults.clone();
        if let Some(on_mismatch) = options.take_choice("on-mismatch", OnMismatch::NAMES)? {
            how = how.on_mismatch(on_mismatch);
        }
        if let Some(size) = options.take_size("history")? {
            how = how.history(size);
        }
        let missing = |option: &str| OptionError::Missing { option: option.into(), driver: NAME.into() };
        let raw = options.take_child("raw").ok_or_else(|| missing("raw"))?;
        let filename = options.take_text("filename")?;
        let test = options.take_child("test");
        options.finish(NAME)?;
        let test = match (test, filename) {
            (Some(test), None) => test,
            (None, Some(filename)) => {
                // Put under its name, so that messages about it say `test.…`.
                let named = Options::new().with("filename", filename);
                Options::new().with_child("test", named).take_child("test").ok_or_else(|| missing("test"))?
            }
            (Some(_), Some(_)) => {
                return Err(OpenError::Usage(
                    "options 'filename' and 'test' name the same image; give one of them".into(),
                ));
            }
            (None, None) => return Err(missing("test").into()),
        };
        let raw = context.open(raw).await?;
        let test = context.open(test).await?;
        let sink = self.sink.clone();
        how = how.sink(move |mismatch| sink(mismatch));
        if let Some(clock) = self.clock.clone() {
            how = how.clock(move || clock());
        }
        match Verify::new(raw, test, how) {
            Ok(verify) => Ok(Node::new(verify)),
            Err(mismatch) => Err(OpenError::Image(mismatch.headline())),
        }
    }
}

impl Driver for VerifyDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Filter
    }

    /// Split at the first colon after the prefix: RAW can not contain one, TEST may.
    fn parse_filename(&self, filename: &str) -> Option<Result<Options, OptionError>> {
        let rest = filename.strip_prefix(NAME)?.strip_prefix(':')?;
        let usage = || OptionError::Syntax("blkverify requires raw copy and original image path".into());
        let parsed = match rest.split_once(':') {
            Some((raw, test)) if !raw.is_empty() && !test.is_empty() => Ok(Options::new()
                .with_child("raw", Options::new().with("filename", raw))
                .with_child("test", Options::new().with("filename", test))),
            _ => Err(usage()),
        };
        Some(parsed)
    }

    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(self.open_mirror(options, context))
    }
}
