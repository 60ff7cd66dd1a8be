//! What was acknowledged and not flushed, over all connections.
//!
//! A flush covers the writes that completed before it was submitted (CM 4.6), on its own connection. It covers those of
//! an earlier connection only if both servers say `NBD_FLAG_CAN_MULTI_CONN`: that the cache behind them is one (section
//! "Transmission flags"). Where they do not, writes that were unflushed when their connection was lost can never be
//! flushed any more, and since the caller believes that they will be, every flush has to fail from then on (CM 4.7).
//!
//! Writes are counted in the order in which they completed; durable is a prefix of that order. The count is one for
//! all connections that share a cache: such a row of connections is a *chain*.

use blkproof_block::{Errno, IoError};

/// The account.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Writes that completed.
    acknowledged: u64,
    /// The first so many of them are durable, or given up.
    flushed: u64,
    /// Those given up.
    lost: u64,
    /// The first connection of the chain that the present one is part of.
    chain: u64,
}

impl Ledger {
    /// A new connection. `shared`: it and the one before have one cache.
    pub(super) fn connected(&mut self, connection: u64, shared: bool) {
        if !shared {
            self.lost = self.lost.saturating_add(self.acknowledged.saturating_sub(self.flushed));
            self.flushed = self.acknowledged;
            self.chain = connection;
        }
    }

    /// A write completed, without being durable. Its connection may be lost and replaced since.
    pub(super) fn acknowledge(&mut self, connection: u64) {
        let count = if connection >= self.chain { &mut self.acknowledged } else { &mut self.lost };
        *count = count.saturating_add(1);
    }

    /// A flush is about to be sent: what it will cover.
    ///
    /// # Errors
    /// EIO if there are writes it can not cover.
    pub(super) fn submit(&self) -> Result<u64, IoError> {
        let count = match self.lost {
            0 => return Ok(self.acknowledged),
            1 => "1 write that the server had".to_owned(),
            lost => format!("{lost} writes that the server had"),
        };
        Err(IoError::new(Errno::IO).detail(format!(
            "{count} acknowledged were never flushed when the NBD connection was lost, and it does not offer to flush \
             them over another one (CAN_MULTI_CONN)"
        )))
    }

    /// A flush of the writes before `covered` succeeded.
    pub(super) fn flushed(&mut self, connection: u64, covered: u64) {
        if connection >= self.chain {
            self.flushed = self.flushed.max(covered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(ledger: &Ledger) -> u64 {
        assert_eq!(ledger.submit().is_err(), ledger.lost > 0);
        ledger.lost
    }

    #[test]
    fn a_flush_covers_what_completed_before_it_was_submitted() {
        for (shared, want) in [(true, 0), (false, 1)] {
            let mut ledger = Ledger::default();
            ledger.acknowledge(0);
            let covered = ledger.submit().unwrap();
            ledger.acknowledge(0);
            ledger.flushed(0, covered);
            ledger.connected(1, shared);
            assert_eq!(lost(&ledger), want, "{shared}");
        }
    }

    #[test]
    fn completions_that_are_noticed_late_belong_to_their_own_connection() {
        let mut ledger = Ledger::default();
        ledger.connected(1, true);
        ledger.acknowledge(0);
        assert_eq!(lost(&ledger), 0, "same chain");
        let covered = ledger.submit().unwrap();
        ledger.flushed(1, covered);
        ledger.connected(2, false);
        assert_eq!(lost(&ledger), 0);
        ledger.connected(3, true);
        ledger.acknowledge(1);
        assert_eq!(lost(&ledger), 1, "the chain was broken between 1 and 2");
        ledger.acknowledge(2);
        assert_eq!(lost(&ledger), 1);
    }

    #[test]
    fn a_late_flush_covers_nothing_of_a_later_chain() {
        let mut ledger = Ledger::default();
        ledger.acknowledge(0);
        ledger.connected(1, false);
        ledger.acknowledge(1);
        ledger.flushed(0, 2);
        ledger.connected(2, false);
        assert_eq!(lost(&ledger), 2);
    }
}
