//! blkproof-verify
