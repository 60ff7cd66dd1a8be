//! What the second look at a damaged image finds: tables that lost their content, tables that lost their owner.

crate::code::codes! {
    L1_LOST = "QCOW2-LOST-L1-ENTRIES", Corruption,
        title: "L1 entries are empty, and the L2 tables that belong there are in the file without an owner",
        why: "the whole window of the disk an entry maps reads as zeroes or as the backing file, though its data is still there",
        cause: "sectors of the L1 table that were zeroed or overwritten, or a lost write of them",
        next: "do not repair leaks ('qemu-img check -r'): that frees the tables and their data; on a copy, the entries can be written again from the candidates listed",
        spec: "qcow2, Cluster mapping (L1 table entry)";
    L2_ZEROED = "QCOW2-LOST-L2-ENTRIES", Corruption,
        title: "sectors of an L2 table are zero, and the clusters they mapped are in the file without an owner",
        why: "that part of the disk reads as zeroes or as the backing file, though its data is still there",
        cause: "a medium or a file system that returned zeroes for sectors it lost, or a lost write of them",
        next: "do not repair leaks ('qemu-img check -r'): that frees the data; copy the clusters listed out of the file first",
        spec: "qcow2, Cluster mapping (L2 table entry)";
    BLOCK_OVERWRITTEN = "QCOW2-REFBLOCK-OVERWRITTEN", Corruption,
        title: "something else lies where a refcount block should be",
        why: "the counts of its clusters are not known: a write may take clusters that are in use; reading the disk needs no counts",
        cause: "a write to the wrong place: another table or guest data was put where the block was",
        next: "do not write to the image; on a copy, 'qemu-img check -r all' counts again what the tables refer to",
        spec: "qcow2, Host cluster management";
    BLOCK_ZEROED = "QCOW2-REFBLOCK-ZEROED", Corruption,
        title: "sectors of a refcount block are zero, and their clusters are in use",
        why: "the next write takes these clusters for free and overwrites what they hold; reading the disk needs no counts",
        cause: "a medium or a file system that returned zeroes for sectors it lost, or refcount updates that never reached the file",
        next: "do not write to the image; on a copy, 'qemu-img check -r all' counts again what the tables refer to",
        spec: "qcow2, Host cluster management";
    ORPHAN_L2 = "QCOW2-ORPHAN-L2", Note,
        title: "a cluster that nothing refers to looks like an L2 table",
        why: "it may be the table that a damaged or empty L1 entry should name; then the data of a whole window of the disk can be had back",
        cause: "a lost L1 entry; or a table that was given up, for instance of a deleted snapshot",
        next: "keep the image as it is; a copy with the L1 entry written again can be checked and read",
        spec: "qcow2, Cluster mapping";
    ORPHAN_L1 = "QCOW2-ORPHAN-L1", Note,
        title: "a cluster that nothing refers to looks like an L1 table",
        why: "it may be an older copy of the L1 table, which says where in the disk each L2 table belongs",
        cause: "an L1 table that was moved when the disk grew, of a deleted snapshot, or lost with the header",
        next: "check with --assume l1_offset=… and compare the findings",
        spec: "qcow2, Cluster mapping";
}
