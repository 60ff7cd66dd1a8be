//! Which move comes next.
//!
//! The plain order is first in, first out: of all moves that are possible, the oldest. A [`Strategy`] departs from it by
//! a seed, a list of [`Hold`]s by name: a held move is taken only once another one has been, or when nothing else can move.
//!
//! Every departure is such a list. If a run took move B while an older move A was possible, A was held until B; holding
//! each move until the last one that overtook it makes the same run again. (At each step of the new run, moves older than
//! the one taken then are held, because it is one of those that overtook them, and the one taken is held no more, because
//! all that ever overtook it came before.) So a run found by any strategy becomes a list, and a list can be shortened.

mod holds;
mod strategy;

pub use self::holds::{Hold, HoldError};
pub use self::strategy::{Schedule, Strategy, UnknownStrategy};

pub(crate) use self::strategy::Chooser;
