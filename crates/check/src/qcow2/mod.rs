//! qcow2, versions 2 and 3.

mod bitmaps;
pub(crate) mod codes;
mod dump;
mod encryption;
mod extensions;
mod features;
mod guess;
pub(crate) mod header;
mod inflate;
mod references;
pub(crate) mod side;
mod snapshots;

use crate::context::Context;

pub(crate) use header::ASSUMABLE;

pub(crate) fn analyse(cx: &mut Context<'_>) {
    let side = side::look(cx);
    cx.could_not("not yet");
    dump::dump(cx, &side);
}
