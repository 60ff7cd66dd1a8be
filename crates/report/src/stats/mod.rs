//! What went through a node, for people: a table for a terminal, and a page with heat maps and latencies.
//!
//! Both render the values of a snapshot and find out nothing of their own.

mod charts;
mod html;
mod table;
mod words;

pub use self::html::html;
pub use self::table::{table, table_since};
