//! Seen: a server that ended with a panic (`RefCell already borrowed`), with a `stats` node below a disk. The disk's entry
//! among the names was the last that held it; dropped from there it took the graph below along, whose node gave up its
//! own name while the names were borrowed. What is dropped with a name has to be dropped beside the names.

#![allow(missing_docs, clippy::unwrap_used)]

use std::rc::Rc;

use blkproof_block::graph::{OpenContext, OpenFlags, Registry};
use blkproof_fault::clock::Stopped;
use blkproof_fault::disk::DiskDriver;
use blkproof_fault::lab::Lab;
use blkproof_fault::stats::StatsDriver;
use futures_lite::future::block_on;

#[test]
fn a_graph_of_named_nodes_is_forgotten_from_the_top() {
    let lab = Lab::new(Rc::new(Stopped));
    let mut registry = Registry::new();
    blkproof_block::nodes::register(&mut registry);
    registry.add(DiskDriver::new(&lab));
    registry.add(StatsDriver::new(&lab));
    let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
    let graph =
        "driver=disk,file.driver=stats,file.file.driver=disk,file.file.file.driver=memory,file.file.file.size=1M";
    let node = block_on(context.open_image(graph, None, true)).unwrap();
    assert_eq!((lab.parts().len(), lab.switches().len()), (3, 2));
    drop(node);
    assert_eq!((lab.parts().len(), lab.switches().len()), (0, 0));
}
