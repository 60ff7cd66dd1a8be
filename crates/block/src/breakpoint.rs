//! Breakpoints on the steps of a driver: requests stop where it announces one, until somebody lets them go on.
//!
//! The node that has them is blkdebug. Whoever holds a graph finds it from the top:
//! [`BlockDevice::breakpoints`](crate::BlockDevice::breakpoints) is passed on by formats and filters to the child that
//! QEMU calls primary.

use std::rc::Rc;

use crate::Event;
use crate::node::LocalBoxFuture;

/// The breakpoints of one node. No call waits, except where it says so.
///
/// A breakpoint is good for one hit: the request that announces its event is parked under the tag, and the breakpoint
/// is gone. Several on one event all catch the same request, which goes on when each of them was resumed.
pub trait Breakpoints {
    /// Sets a breakpoint on `event` under `tag`; one tag may stand for several.
    fn set(&self, event: Event, tag: &str);

    /// Lets the newest request parked under `tag` go on; `false` if there is none.
    fn resume(&self, tag: &str) -> bool;

    /// Removes every breakpoint of `tag` that was not hit yet, and lets every request parked under it go on. `false` if
    /// there was no such breakpoint, whether or not a request was parked: QEMU's answer.
    fn remove(&self, tag: &str) -> bool;

    /// Whether a request is parked under `tag`.
    fn is_suspended(&self, tag: &str) -> bool;

    /// Tags under which requests are parked, in order, with how many.
    fn suspended(&self) -> Vec<(Rc<str>, usize)>;

    /// Breakpoints that were not hit yet, in the order in which they were set.
    fn pending(&self) -> Vec<(Event, Rc<str>)>;

    /// Removes every breakpoint, and lets every parked request go on; how many of those there were.
    fn release_all(&self) -> usize;

    /// Completes when a request is parked under `tag`, perhaps never.
    fn wait<'a>(&'a self, tag: &'a str) -> LocalBoxFuture<'a, ()>;
}
