//! L1 and L2 tables, refcounts, owners of clusters.

crate::code::codes! {}
