//! Which defect is on.

use std::cell::Cell;
use std::marker::PhantomData;
use std::rc::Rc;

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A defect. The names are those of the bug gallery: M1 to M47 are its planting list, Q and V the finds of FVD's
        /// tool in QEMU's drivers of 2011. What each is, [`catalogue`](crate::catalogue()) says.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, reason = "the catalogue describes them, in a form that programs read too")]
        pub enum Mutant {
            $($(#[$doc])* $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

mutants! {
    M1, M2, M3, M4, M5, M6, M7, M8, M9, M10, M11, M12, M13, M14, M15, M16, M17, M18, M19, M20, M21, M22, M23, M24, M25,
    M26, M27, M28, M29, M30, M31, M32, M33, M34, M35, M36, M37, M38, M39, M40, M41, M42, M43, M44, M45, M46, M47,
    Q1, Q2, V1, V1b, V3, V4,
}

impl std::fmt::Display for Mutant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

thread_local! {
    static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether `mutant` is on in this thread. The drivers ask wherever one is planted.
#[inline]
pub fn planted(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

/// Switches a defect on in this thread, or all of them off, until somebody says otherwise.
pub(crate) fn plant(mutant: Option<Mutant>) {
    ON.set(mutant);
}

/// Switches a defect on in this thread, until it is dropped; then what was on before is on again.
///
/// ```
/// use blkproof_gallery::{Mutant, Planted, planted};
///
/// let on = Planted::new(Mutant::V1);
/// assert!(planted(Mutant::V1));
/// drop(on);
/// assert!(!planted(Mutant::V1));
/// ```
#[derive(Debug)]
#[must_use = "the defect is on while this lives"]
pub struct Planted {
    before: Option<Mutant>,
    /// It belongs to its thread.
    thread: PhantomData<Rc<()>>,
}

impl Planted {
    /// Switches `mutant` on.
    pub fn new(mutant: Mutant) -> Self {
        Self { before: ON.replace(Some(mutant)), thread: PhantomData }
    }

    /// Switches everything off, for the control run between others.
    pub fn none() -> Self {
        Self { before: ON.replace(None), thread: PhantomData }
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        ON.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_is_on_in_its_thread_while_its_guard_lives() {
        assert!(Mutant::ALL.iter().all(|&mutant| !planted(mutant)));
        let outer = Planted::new(Mutant::M1);
        {
            let _inner = Planted::new(Mutant::V1);
            assert!(planted(Mutant::V1) && !planted(Mutant::M1));
            std::thread::scope(|scope| scope.spawn(|| assert!(!planted(Mutant::V1))).join().unwrap());
        }
        assert!(planted(Mutant::M1));
        {
            let _none = Planted::none();
            assert!(!planted(Mutant::M1));
        }
        drop(outer);
        assert!(!planted(Mutant::M1));
    }
}
