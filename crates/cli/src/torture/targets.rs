//! The drivers there are: those of this project and, in builds that have it, those of the gallery.

use blkproof_torture::target::{self, Target};

/// A driver, wherever it comes from.
pub(crate) enum AnyTarget {
    BuiltIn(&'static dyn Target),
    #[cfg(feature = "gallery")]
    Planted(blkproof_gallery::Planting),
}

impl AnyTarget {
    pub(crate) fn get(&self) -> &dyn Target {
        match self {
            Self::BuiltIn(target) => *target,
            #[cfg(feature = "gallery")]
            Self::Planted(target) => target,
        }
    }

    /// The image format by which QEMU knows what it is a driver of; `None` if it knows none such.
    pub(crate) fn format(&self) -> Option<&'static str> {
        match self {
            Self::BuiltIn(target) => ["raw", "qcow2", "vdi"].into_iter().find(|format| *format == target.name()),
            #[cfg(feature = "gallery")]
            Self::Planted(target) => match target.driver() {
                blkproof_gallery::Driver::Qcow2 => Some("qcow2"),
                blkproof_gallery::Driver::Vdi => Some("vdi"),
                _ => None,
            },
        }
    }

    /// It in Rust, for a test to paste; `None` where the report knows better.
    pub(crate) fn expression(&self) -> Option<String> {
        match self {
            Self::BuiltIn(_) => None,
            #[cfg(feature = "gallery")]
            Self::Planted(target) => Some(format!("blkproof_gallery::find(\"{}\").unwrap()", target.name())),
        }
    }
}

/// The driver of that name.
pub(crate) fn find(name: &str) -> Option<AnyTarget> {
    let built_in = target::find(name).map(AnyTarget::BuiltIn);
    #[cfg(feature = "gallery")]
    let built_in = built_in.or_else(|| blkproof_gallery::find(name).map(AnyTarget::Planted));
    built_in
}

/// A driver that is listed.
pub(super) struct Listed {
    pub(super) name: String,
    /// What it is.
    pub(super) words: String,
}

/// All of them.
pub(super) fn list() -> Vec<Listed> {
    let words = |name: &str| format!("the driver of {name} images of this project");
    let mut all: Vec<Listed> =
        target::names().map(|name| Listed { name: name.to_owned(), words: words(name) }).collect();
    #[cfg(feature = "gallery")]
    all.extend(blkproof_gallery::targets().iter().map(|target| {
        let words = match target.entry() {
            Some(entry) => format!("with a bug as in: {}", entry.copies),
            None => "of the gallery, without a bug".to_owned(),
        };
        Listed { name: target.name().to_owned(), words }
    }));
    all.extend(super::threads::list());
    all
}

/// Where a name may be missing from a list, why.
fn without_gallery() -> &'static str {
    match cfg!(feature = "gallery") {
        true => "",
        false => " (this program was built without the gallery of planted bugs: --features gallery)",
    }
}

/// For clap: the name of a driver.
pub(crate) fn parse(name: &str) -> Result<String, String> {
    if find(name).is_some() || super::threads::find(name).is_some() {
        return Ok(name.to_owned());
    }
    // What begins like it may have been meant.
    let close: Vec<_> = list().into_iter().map(|listed| listed.name).filter(|other| other.starts_with(name)).collect();
    Err(match close.as_slice() {
        [] => format!("there is no such driver; 'blkproof torture --list-targets' lists them{}", without_gallery()),
        close => format!("there is no such driver; did you mean {}?", close.join(" or ")),
    })
}
