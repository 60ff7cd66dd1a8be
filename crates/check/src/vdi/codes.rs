//! Codes.

crate::code::codes! {}
