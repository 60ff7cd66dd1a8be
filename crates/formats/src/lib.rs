//! blkproof-formats
