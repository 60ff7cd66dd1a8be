//! Panics of a driver are findings, with their place, and do not write over the report.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// While a run goes on here: the place of the last panic.
    static PLACE: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// A panic that was caught.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Panic {
    /// What it said.
    pub(crate) text: String,
    /// File and line, without the folders above the crate's.
    pub(crate) site: String,
}

/// Runs `work`; a panic in it is returned, and not printed.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|place| format!("{}:{}", short(place.file()), place.line()));
            let ours = PLACE.with_borrow_mut(|slot| slot.as_mut().map(|slot| *slot = place).is_some());
            if !ours {
                before(info);
            }
        }));
    });
    let outer = PLACE.with_borrow_mut(|slot| slot.replace(None));
    let result = catch_unwind(AssertUnwindSafe(work));
    let place = PLACE.with_borrow_mut(|slot| std::mem::replace(slot, outer)).flatten();
    result.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Panic { text: text.unwrap_or_else(|| "a panic without words".to_owned()), site: place.unwrap_or_default() }
    })
}

/// A path from `src` on, with the name of the crate.
fn short(file: &str) -> &str {
    let Some(src) = file.rfind("/src/") else { return file };
    let start = file.get(..src).and_then(|above| above.rfind('/')).map_or(0, |slash| slash.saturating_add(1));
    file.get(start..).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_has_words_and_a_place() {
        assert_eq!(caught(|| 7), Ok(7));
        let panic = caught(|| -> () { panic!("no {}", "way") }).unwrap_err();
        assert_eq!(panic.text, "no way");
        assert!(panic.site.starts_with("torture/src/run/panics.rs:"), "{}", panic.site);
        assert_eq!(short("/a/b/crates/formats/src/vdi/io.rs"), "formats/src/vdi/io.rs");
        assert_eq!(short("main.rs"), "main.rs");
    }
}
