//! TODO

pub(crate) mod codes;

use crate::context::Context;

pub(crate) fn analyse(cx: &mut Context<'_>) {
    cx.could_not("not yet");
}
