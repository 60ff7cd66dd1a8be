//! blkproof-nbd
