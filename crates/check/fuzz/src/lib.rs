//! What the fuzz targets share with the tests: the form of an input, and what has to hold of every report.

#[path = "../../tests/generate/judge.rs"]
pub mod judge;
#[path = "../../tests/generate/seal.rs"]
pub mod seal;
#[path = "../../tests/generate/sparse.rs"]
pub mod sparse;
