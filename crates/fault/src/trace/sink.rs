//! Where lines go. Files belong to whoever builds the graph; a node is given something that takes lines.

use std::rc::Rc;

/// Takes lines, and never makes a request wait.
pub trait Sink {
    /// Takes a line, which ends with a line feed; `false` if it is lost because there is no room for it.
    ///
    /// Returns at once and can not fail: I/O does not depend on a trace. A sink whose disk is full says so once, in its
    /// own way, and takes no more.
    fn line(&self, line: &str) -> bool;

    /// No further line comes for now: writes out what it still holds. May wait; called when the node is closed.
    fn finish(&self) {}
}

/// Opens sinks by name, as a file is named.
pub trait Sinks {
    /// Opens one. What an earlier run left there is emptied, but only for the first line that comes: whoever opens it may
    /// still fail. What was written in this run stays, and the lines go behind it, with a head of their own.
    ///
    /// # Errors
    /// If it can not be opened, or somebody writes there already; the message is for the user.
    fn open(&self, name: &str) -> std::io::Result<Rc<dyn Sink>>;
}
