//! Codes of QED images.

crate::code::codes! {
    MAGIC = "QED-HEADER-MAGIC", Corruption,
        title: "the image does not begin with QED's magic",
        why: "no program recognises the image, though its tables and data may be sound",
        cause: "the first bytes were overwritten, often by a boot sector or partition table written to the file itself",
        next: "if the other fields make sense, restore the bytes 51 45 44 00 at 0 in a copy",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\"";
    CUT = "QED-HEADER-CUT", Corruption,
        title: "the file ends inside the header",
        why: "neither sizes nor the place of the L1 table are known",
        cause: "a copy or download that stopped at once, a full file system",
        next: "fetch the image again from where it came from",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\"";
    GEOMETRY = "QED-HEADER-GEOMETRY", Corruption,
        title: "cluster size or table size is not one the format has",
        why: "every offset of the image is computed from these two; programs refuse the image",
        cause: "the header was overwritten in part",
        next: "check again with `--assume cluster_size=64K,table_size=4`, which is what QEMU writes unless told otherwise",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\"";
    HEADER_SIZE = "QED-HEADER-SIZE", Corruption,
        title: "the header does not say which clusters are its own",
        why: "with none, a repair frees the header itself; with too many, programs refuse the image",
        cause: "the header was overwritten in part",
        next: "set the field at 0xc to 1, which is what QEMU writes, in a copy",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\", header_size";
    FEATURES = "QED-HEADER-FEATURES", Corruption,
        title: "a feature is set that no version of the format has",
        why: "programs must not open an image with features they do not know; none has been added since 2010, so a damaged field is likely",
        cause: "the header was overwritten in part",
        next: "clear the unknown bits at 0x10 in a copy, if the rest of the header makes sense",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\", features";
    NEED_CHECK = "QED-HEADER-NEED-CHECK", Warning,
        title: "the image was not closed: it asks to be checked before it is used",
        why: "clusters allocated last may be leaked, and tables may refer to clusters that never reached the disk",
        cause: "a crash of the host or of QEMU, or a virtual machine that is running now",
        next: "make sure that nothing has it open; QEMU then repairs it when it opens it for writing",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\", QED_F_NEED_CHECK";
    UNKNOWN_BITS = "QED-HEADER-UNKNOWN-BITS", Note,
        title: "compatible or autoclear feature bits are set that nobody defined",
        why: "they may be ignored; they tell of a writer that is not QEMU, or of a damaged header",
        cause: "another program's extension",
        next: "nothing",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\", compat_features, autoclear_features";
    DISK_SIZE = "QED-HEADER-DISK-SIZE", Corruption,
        title: "the disk's size is none the format can have",
        why: "programs refuse the image: the size has to be whole sectors and within reach of the tables",
        cause: "the header was overwritten in part",
        next: "check again with `--assume size=…` of the size the guest's partition table tells",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\", image_size";
    BACKING = "QED-HEADER-BACKING", Corruption,
        title: "the backing file's name lies outside the header",
        why: "what is not allocated is read from the backing file: without its name these ranges are lost, and programs refuse the image",
        cause: "the header was overwritten in part",
        next: "find out what the backing file was, and set it with `qemu-img rebase -u` on a copy once the header is repaired",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\", backing_filename_offset";
    L1_PLACE = "QED-L1-PLACE", Corruption,
        title: "the L1 table is not where a table can be",
        why: "without it nothing of the disk can be found",
        cause: "the header was overwritten in part, or the file was cut off",
        next: "check again with `--assume l1_offset=…`; QEMU puts it into the second cluster",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\", l1_table_offset";
    L1_UNALIGNED = "QED-L1-UNALIGNED", Corruption,
        title: "L1 entries are no multiple of the cluster size",
        why: "the L2 tables they should name can not be found: the ranges they map are lost",
        cause: "the L1 table was overwritten by something else",
        next: "do not start the virtual machine; look for orphan L2 tables beside this finding",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Tables\"";
    L1_PAST_END = "QED-L1-PAST-END", Corruption,
        title: "L2 tables lie past the end of the file",
        why: "without the table the whole range it maps is lost",
        cause: "the file was cut off, or the L1 table was overwritten",
        next: "find a whole copy of the file",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Tables\"";
    L2_UNALIGNED = "QED-L2-UNALIGNED", Corruption,
        title: "L2 entries are no multiple of the cluster size",
        why: "the data they should name can not be found",
        cause: "the L2 table was overwritten by something else, guest data perhaps",
        next: "copy the rest of the disk with `qemu-img convert --salvage`",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Tables\"";
    L2_PAST_END = "QED-L2-PAST-END", Corruption,
        title: "data clusters lie past the end of the file",
        why: "their data is not there any more",
        cause: "the file was cut off: a copy that stopped, a full file system; or a crash before the data was written",
        next: "find a whole copy of the file; nothing in this one brings the clusters back",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Tables\"";
    STRAY = "QED-L2-STRAY", Warning,
        title: "clusters are mapped past the end of the disk",
        why: "the guest can not reach them: they only take space",
        cause: "a damaged size, or a disk that was made smaller",
        next: "a conversion leaves them behind",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Header\", image_size";
    DATA_TWICE = "QED-CLUSTER-TWICE", Corruption,
        title: "a data cluster is referred to twice",
        why: "a write to one guest range changes the other; the data belongs to one of them at most",
        cause: "a cluster allocated twice after a crash without a check, or an L2 table put in a wrong place",
        next: "do not write to the image; copy the disk and let the guest's file system decide whose the cluster is",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Consistency checking\"";
    TABLE_TWICE = "QED-TABLE-TWICE", Corruption,
        title: "a table or the header shares its clusters with another reference",
        why: "whatever is written to one destroys the other; the whole range behind a shared table is at stake",
        cause: "a cluster allocated twice after a crash without a check, or a table that was overwritten",
        next: "do not start the virtual machine; copy what can be read with `qemu-img convert --salvage`",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Consistency checking\"";
    LEAKED = "QED-CLUSTER-LEAKED", Leak,
        title: "clusters are referred to by nothing",
        why: "the space is lost; the data of the disk is not affected",
        cause: "a crash between allocating a cluster and linking it",
        next: "`qemu-img check -r leaks` on a copy, or a conversion, frees the space",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Consistency checking\"";
    ORPHAN = "QED-CLUSTER-ORPHAN", Warning,
        title: "clusters are referred to by nothing, in an image whose tables are damaged",
        why: "they are most likely what the lost entries referred to: the lost data itself",
        cause: "table entries that were overwritten or cut off",
        next: "do not repair the image in place: `qemu-img check -r` frees these clusters for good",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Consistency checking\"";
    ORPHAN_L2 = "QED-L2-ORPHAN", Corruption,
        title: "a table that looks like an L2 table is referred to by nothing",
        why: "the L1 entry that named it was lost: a whole window of the disk reads as zeroes, though its data may all be there",
        cause: "an L1 table that was overwritten with zeroes, or restored from an older state",
        next: "do not let anything write to the image; try the table in the empty L1 entries of a copy, and keep what mounts",
        spec: "QEMU docs/interop/qed_spec.txt, section \"Tables\"";
}
