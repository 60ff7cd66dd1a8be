//! Every code there is. It stands above the formats, as nothing of theirs may ask for it: they use codes, this lists
//! them.

use crate::code::{Code, general};

/// Every code there is, format by format.
pub fn all() -> impl Iterator<Item = &'static Code> {
    let formats: [&[&Code]; 7] = [
        general::ALL,
        crate::vdi::codes::ALL,
        crate::vmdk::codes::ALL,
        crate::vhd::codes::ALL,
        crate::vhdx::codes::ALL,
        crate::parallels::codes::ALL,
        crate::qed::codes::ALL,
    ];
    crate::qcow2::codes::all().chain(formats.into_iter().flatten().copied())
}

/// The code of this name, in any case.
#[must_use]
pub fn find(name: &str) -> Option<&'static Code> {
    all().find(|code| code.name.eq_ignore_ascii_case(name))
}
