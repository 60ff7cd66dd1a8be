//! The disks that a power cut may leave (CM 5).

use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_fault::disk::model::{ChangeId, Covered, Model};
use blkproof_fault::disk::{Estimate, Profile, State, StateName, UnknownState};

use super::content::Content;
use super::state::put;
use crate::key::IoKey;

/// A moment at which the power may go: what is durable, and what may or may not have survived beside it.
#[derive(Clone, Debug)]
pub struct Crash {
    base: Rc<Content>,
    cache: Model,
    names: Vec<(ChangeId, IoKey)>,
    profile: Profile,
}

impl Crash {
    pub(super) fn new(base: Rc<Content>, cache: Model, names: Vec<(ChangeId, IoKey)>, profile: Profile) -> Self {
        Self { base, cache, names, profile }
    }

    /// How many states there are.
    pub fn count(&self) -> Estimate {
        self.cache.count(self.profile)
    }

    /// Names of states in the order in which they are worth trying (CM 5.4), `budget` at most; all of them, if they are
    /// so few.
    pub fn names(&self, budget: usize, seed: u64) -> Vec<StateName> {
        self.cache.names(self.profile, budget, seed)
    }

    /// The disk in the state of that name.
    ///
    /// # Errors
    /// If there is no such state.
    pub fn content(&self, name: &StateName) -> Result<Content, UnknownState> {
        Ok(self.lay(&self.state(name)?))
    }

    /// What the state of that name consists of.
    ///
    /// # Errors
    /// If there is no such state.
    pub fn state(&self, name: &StateName) -> Result<State, UnknownState> {
        self.cache.state(name, self.profile, &Covered::Nothing)
    }

    /// A state over what is durable.
    pub fn lay(&self, state: &State) -> Content {
        let mut content = Content::over(Rc::clone(&self.base));
        content.set_size(state.size);
        for piece in &state.pieces {
            put(&mut content, piece);
        }
        content
    }

    /// What is durable.
    pub fn base(&self) -> &Rc<Content> {
        &self.base
    }

    /// The requests that may or may not have survived, in the order of their effects.
    pub fn ios(&self) -> Vec<IoKey> {
        let live: BTreeSet<_> = self.live().collect();
        self.names.iter().filter(|(change, _)| live.contains(change)).map(|(_, key)| *key).collect()
    }

    /// The same in the order in which their callers heard of them; those in flight come last.
    pub fn completed(&self) -> Vec<IoKey> {
        self.cache.by_completion().into_iter().filter_map(|change| self.io(change)).collect()
    }

    /// The name by which states speak of a request.
    pub fn change(&self, io: IoKey) -> Option<ChangeId> {
        let live: BTreeSet<_> = self.live().collect();
        self.names.iter().find(|(change, key)| *key == io && live.contains(change)).map(|(change, _)| *change)
    }

    /// The request of that name.
    pub fn io(&self, change: ChangeId) -> Option<IoKey> {
        self.names.iter().find(|(id, _)| *id == change).map(|(_, key)| *key)
    }

    fn live(&self) -> impl Iterator<Item = ChangeId> + '_ {
        self.names.iter().map(|(change, _)| *change).filter(|change| self.cache.is_cached(*change))
    }
}
