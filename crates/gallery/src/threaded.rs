//! The drivers for several threads as targets.

use std::sync::Arc;

use blkproof_block::Result;
use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{Content, variant};
use blkproof_torture::threads::{Disk, Driver, FEATURES, Target};
use blkproof_torture::workload::{TargetInfo, Variant};

use crate::drivers::{CLUSTER, Race, Thin};

/// [`Thin`], with one thing wrong with its locks, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threaded {
    race: Option<Race>,
}

impl Threaded {
    /// The driver with this.
    pub const fn of(race: Race) -> Self {
        Self { race: Some(race) }
    }

    /// The driver with its locks right.
    pub const fn sound() -> Self {
        Self { race: None }
    }

    /// What is wrong.
    pub const fn race(&self) -> Option<Race> {
        self.race
    }
}

impl Target for Threaded {
    fn name(&self) -> &str {
        self.race.map_or("thin", Race::name)
    }

    fn open(&self, disk: Arc<Disk>, spec: &TargetSpec) -> Result<Box<dyn Driver>> {
        Ok(Box::new(Thin::open(disk, spec.size, self.race)?))
    }

    fn create(&self, spec: &TargetSpec) -> std::result::Result<Content, String> {
        match spec.options.first() {
            Some((name, _)) => Err(format!("'{name}': a thin disk has no options")),
            None => Ok(Content::new(Thin::data_begins(spec.size))),
        }
    }

    fn grows(&self) -> bool {
        true
    }

    /// Small disks, so that threads meet.
    fn info(&self) -> TargetInfo {
        let disk = |size| Variant { features: FEATURES, ..variant(&[], size, CLUSTER) };
        TargetInfo {
            name: self.name().to_owned(),
            variants: vec![disk(64 << 10), disk(256 << 10), disk(1 << 20)],
            profiles: Vec::new(),
            blocks: Vec::new(),
            flush_errors: Vec::new(),
        }
    }
}

/// A target for every race, and the sound driver.
pub fn threaded_targets() -> Vec<Threaded> {
    std::iter::once(Threaded::sound()).chain(Race::ALL.iter().map(|race| Threaded::of(*race))).collect()
}

/// The target of that name.
pub fn find_threaded(name: &str) -> Option<Threaded> {
    threaded_targets().into_iter().find(|target| target.name() == name)
}
