//! How a user names a graph, and how it is built.
//!
//! The syntax is QEMU's: a path, `nbd://…`, `blkverify:RAW:TEST`, `json:{…}`, or `driver=…,file.driver=…`. All of them
//! become one [`Options`] tree, from which a [`Registry`] of [`Driver`]s builds the nodes, leaves first.
//!
//! | given to [`open`](OpenContext::open) | becomes |
//! |---|---|
//! | `driver` | that driver; a *format* with a `filename` gets the node of that name as its `file` |
//! | a child `file`, `data-file`, `image` or `raw` with nothing but a `filename` | the node the name says, never probed |
//! | a plain path, `file:PATH`, or a `file` group without `driver` beside it | probed: the first format that knows the first 4 KiB |
//! | any other name (`nbd://…`, `blkverify:…`, `json:` with a driver) | the node the name says, as it stands |
//!
//! Probing never ends in a *writable* raw image: whoever can write a raw disk can write the header of another format
//! into it, and would be obeyed at the next open. For reading alone the guess does no harm.
//!
//! Every node with [`Limits`](crate::Limits) comes wrapped in [`Aligned`](crate::align::Aligned).
//!
//! # Example
//! A program registers its drivers and opens what the user typed; a driver opens its children in the same way.
//! ```
//! use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OpenFlags, Options, Registry};
//! use blkproof_block::nodes::memory::Memory;
//! use blkproof_block::{BlockDevice, LocalBoxFuture, Node};
//!
//! /// `ram://SIZE`, or `driver=ram,size=SIZE`.
//! struct Ram;
//!
//! impl Driver for Ram {
//!     fn name(&self) -> &'static str {
//!         "ram"
//!     }
//!
//!     fn kind(&self) -> DriverKind {
//!         DriverKind::Protocol
//!     }
//!
//!     fn parse_filename(&self, name: &str) -> Option<Result<Options, blkproof_block::graph::OptionError>> {
//!         Some(Ok(Options::new().with("size", name.strip_prefix("ram://")?)))
//!     }
//!
//!     fn open<'a>(
//!         &'a self,
//!         mut options: Options,
//!         _context: &'a OpenContext<'a>, // a driver with children: context.open(options.take_child("file")…)
//!     ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
//!         Box::pin(async move {
//!             let size = options.take_size("size")?.unwrap_or(1 << 20);
//!             options.finish(self.name())?; // whatever is left was a mistake
//!             Ok(Node::new(Memory::new(size)))
//!         })
//!     }
//! }
//!
//! let mut registry = Registry::new();
//! registry.add(Ram);
//! let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
//! futures_lite::future::block_on(async {
//!     for (name, image_opts) in [("ram://64k", false), ("json:{'driver':'ram','size':65536}", false), ("driver=ram,size=64k", true)] {
//!         let node = context.open_image(name, None, image_opts).await?;
//!         assert_eq!(node.info().size, 65536);
//!     }
//!     let error = context.open_image("driver=ram,sise=64k", None, true).await.unwrap_err();
//!     assert_eq!(error.to_string(), "unknown option 'sise' for driver 'ram'; did you mean 'size'?");
//!     Ok::<(), OpenError>(())
//! })
//! # .unwrap();
//! ```

mod open;
mod options;
mod registry;
mod syntax;
mod write_through;

pub use open::GRAPH_DEPTH_MAX;
pub use options::{OptionError, Options, Value};
pub use registry::{CacheMode, Driver, DriverKind, OpenContext, OpenError, OpenFlags, Registry};

/// Parses a size: a number with an optional suffix b, k, M, G, T, P or E (powers of 1024; fractions with a suffix).
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.char_indices().next_back()? {
        (at, suffix) if suffix.is_ascii_alphabetic() && !text.starts_with("0x") => {
            let shift = match suffix.to_ascii_lowercase() {
                'b' => 0,
                'k' => 10,
                'm' => 20,
                'g' => 30,
                't' => 40,
                'p' => 50,
                'e' => 60,
                _ => return None,
            };
            (text.get(..at)?, Some(shift))
        }
        _ => (text, None),
    };
    if let Some(hex) = number.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let unit = 1u64 << shift.unwrap_or(0);
    match (number.split_once('.'), shift) {
        (None, _) => number.parse::<u64>().ok()?.checked_mul(unit),
        (Some((whole, fraction)), Some(_)) if fraction.len() <= 18 && fraction.bytes().all(|b| b.is_ascii_digit()) => {
            // In units of 10^-18, so that no rounding of floating point enters.
            let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
            let fraction = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
            let part = u64::try_from(fraction.checked_mul(u128::from(unit))?.checked_div(scale)?).ok()?;
            whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(part)
        }
        _ => None,
    }
}

/// The candidate nearest to `word`, if one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let limit = word.len().div_ceil(3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// Number of letters to insert, delete or replace.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, y) in b.iter().enumerate() {
            let up = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let replace = diagonal + usize::from(x != *y);
            diagonal = up;
            left = replace.min(left + 1).min(up + 1);
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = left;
            }
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
