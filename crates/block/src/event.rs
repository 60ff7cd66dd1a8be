//! The steps drivers announce to the node beneath them.
//!
//! QEMU's names where QEMU has one (its `BlkdebugEvent`), names of our own where it is silent (VDI). A rule or a
//! breakpoint of a fault-injecting node below is armed by them; all other nodes ignore them.

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A step of a driver, announced before it is done.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[non_exhaustive]
        pub enum Event {
            $(
                $(#[$doc])*
                #[doc = concat!("`", $name, "`")]
                $variant,
            )*
        }

        impl Event {
            /// Every event, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in configuration files and on command lines.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The event of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

events! {
    // QEMU's names.
    L1Update = "l1_update",
    L1GrowAllocTable = "l1_grow_alloc_table",
    L1GrowWriteTable = "l1_grow_write_table",
    L1GrowActivateTable = "l1_grow_activate_table",
    L1ShrinkWriteTable = "l1_shrink_write_table",
    L1ShrinkFreeL2Clusters = "l1_shrink_free_l2_clusters",
    L2Load = "l2_load",
    L2Update = "l2_update",
    L2UpdateCompressed = "l2_update_compressed",
    L2AllocCowRead = "l2_alloc_cow_read",
    L2AllocWrite = "l2_alloc_write",
    ReadAio = "read_aio",
    ReadBackingAio = "read_backing_aio",
    ReadCompressed = "read_compressed",
    WriteAio = "write_aio",
    WriteCompressed = "write_compressed",
    VmstateLoad = "vmstate_load",
    VmstateSave = "vmstate_save",
    CowRead = "cow_read",
    CowWrite = "cow_write",
    ReftableLoad = "reftable_load",
    ReftableGrow = "reftable_grow",
    ReftableUpdate = "reftable_update",
    RefblockLoad = "refblock_load",
    RefblockUpdate = "refblock_update",
    RefblockUpdatePart = "refblock_update_part",
    RefblockAlloc = "refblock_alloc",
    RefblockAllocHookup = "refblock_alloc_hookup",
    RefblockAllocWrite = "refblock_alloc_write",
    RefblockAllocWriteBlocks = "refblock_alloc_write_blocks",
    RefblockAllocWriteTable = "refblock_alloc_write_table",
    RefblockAllocSwitchTable = "refblock_alloc_switch_table",
    ClusterAlloc = "cluster_alloc",
    ClusterAllocBytes = "cluster_alloc_bytes",
    ClusterFree = "cluster_free",
    FlushToOs = "flush_to_os",
    FlushToDisk = "flush_to_disk",
    PwritevRmwHead = "pwritev_rmw_head",
    PwritevRmwAfterHead = "pwritev_rmw_after_head",
    PwritevRmwTail = "pwritev_rmw_tail",
    PwritevRmwAfterTail = "pwritev_rmw_after_tail",
    Pwritev = "pwritev",
    PwritevZero = "pwritev_zero",
    PwritevDone = "pwritev_done",
    EmptyImagePrepare = "empty_image_prepare",
    CorWrite = "cor_write",
    ClusterAllocSpace = "cluster_alloc_space",
    None = "none",
    // Our names for steps of formats that announce nothing in QEMU.
    /// The VDI header is about to be read.
    VdiHeaderLoad = "vdi_header_load",
    /// The VDI header (block count) is about to be written.
    VdiHeaderUpdate = "vdi_header_update",
    /// The VDI block map is about to be read.
    VdiBmapLoad = "vdi_bmap_load",
    /// A sector of the VDI block map is about to be written.
    VdiBmapUpdate = "vdi_bmap_update",
    /// A VDI block gets its place in the file.
    VdiBlockAlloc = "vdi_block_alloc",
    /// The data of a newly allocated VDI block is about to be written.
    VdiBlockWrite = "vdi_block_write",
    /// A VDI block is given back.
    VdiBlockFree = "vdi_block_free",
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Event;

    #[test]
    fn names_lead_back_to_their_events() {
        for &event in Event::ALL {
            assert_eq!(Event::from_name(event.name()), Some(event), "{event}");
        }
        assert_eq!(Event::from_name("l1_grow.alloc_table"), None, "the dotted names of 2010 are gone");
    }
}
