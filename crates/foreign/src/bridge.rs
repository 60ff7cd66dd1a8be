//! A way from storage that has to be `Send` and `Sync` to a node, which is neither.
//!
//! `imago` wants its storage to be shareable between threads, though its futures are not. Nodes live on one thread. So the
//! storage holds a number, and the thread a table of its nodes: whoever asks on another thread finds nothing there and
//! gets an error, and no request ever waits for another thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

use blkproof_block::Node;

thread_local! {
    static NODES: RefCell<BTreeMap<u64, Node>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// A node of this thread, as a value that may be sent.
#[derive(Debug)]
pub(crate) struct Handle(u64);

impl Handle {
    /// Puts a node into the table, until the handle is dropped.
    pub(crate) fn new(node: Node) -> Self {
        let number = NEXT.get();
        NEXT.set(number.wrapping_add(1));
        NODES.with_borrow_mut(|nodes| nodes.insert(number, node));
        Self(number)
    }

    /// The node.
    ///
    /// # Errors
    /// On any other thread.
    pub(crate) fn node(&self) -> io::Result<Node> {
        let node = NODES.with_borrow(|nodes| nodes.get(&self.0).cloned());
        node.ok_or_else(|| io::Error::other("the disk was asked by another thread than the one it lives on"))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A thread may end with a handle on it; its table is then gone first. The node itself is dropped out here, where
        // nobody has the table.
        let node = NODES.try_with(|nodes| nodes.borrow_mut().remove(&self.0));
        drop(node);
    }
}
