//! Header, extensions, features, snapshot table, bitmaps, encryption, names of other files.

crate::code::codes! {}
