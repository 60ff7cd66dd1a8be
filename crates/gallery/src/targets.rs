//! The copies as targets of a tester.

use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{Checked, Content, Files, Opening, Promises, Target};
use blkproof_torture::workload::{TargetInfo, Variant};

use crate::mutant::plant;
use crate::{Driver, Entry, Mutant, Need, Planted, catalogue};

mod small;
mod small_vdi;

mod copies {
    blkproof_torture::format_targets!(crate::formats);
}

/// A copy of a driver with one defect switched on, or none.
///
/// The defect is switched on in the thread that opens the image, and stays on until another target of this crate is opened
/// there: a driver works in the thread that opened it.
#[derive(Debug)]
pub struct Planting {
    name: String,
    driver: Driver,
    entry: Option<&'static Entry>,
}

impl Planting {
    /// The copy with this defect.
    pub fn of(entry: &'static Entry) -> Self {
        Self { name: entry.name.to_owned(), driver: entry.driver, entry: Some(entry) }
    }

    /// The copy as it is.
    pub fn sound(driver: Driver) -> Self {
        let name = match driver {
            Driver::Qcow2 => "qcow2-copy",
            Driver::Vdi => "vdi-copy",
            Driver::Cache => "cache",
            Driver::Log => "log",
            Driver::Merge => "merge",
            Driver::Pad => "pad",
            Driver::Pieces => "pieces",
            Driver::Retry => "retry",
        };
        Self { name: name.to_owned(), driver, entry: None }
    }

    /// The driver it is a copy of.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The defect.
    pub fn entry(&self) -> Option<&'static Entry> {
        self.entry
    }

    fn mutant(&self) -> Option<Mutant> {
        self.entry.map(|entry| entry.mutant)
    }

    fn copy(&self) -> &'static dyn Target {
        match self.driver {
            Driver::Qcow2 => &copies::Qcow2,
            Driver::Vdi => &copies::Vdi,
            Driver::Cache => &small::CACHE,
            Driver::Log => &small::LOG,
            Driver::Merge => &small::MERGE,
            Driver::Pad => &small::PAD,
            Driver::Pieces => &small::PIECES,
            Driver::Retry => &small::RETRY,
        }
    }
}

impl Target for Planting {
    fn name(&self) -> &str {
        &self.name
    }

    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        plant(None);
        if self.driver == Driver::Vdi && small_vdi::asked(spec) {
            return small_vdi::create(spec);
        }
        self.copy().create(spec)
    }

    fn open(&self, files: Files, spec: &TargetSpec) -> Opening {
        plant(self.mutant());
        self.copy().open(files, spec)
    }

    fn grows(&self) -> bool {
        self.copy().grows()
    }

    fn promises(&self, spec: &TargetSpec) -> Promises {
        self.copy().promises(spec)
    }

    fn check(&self, image: &Content) -> Checked {
        self.copy().check(image)
    }

    /// By the copy without the defect.
    fn intact(&self, image: &Content, spec: &TargetSpec) -> Result<(), String> {
        let _sound = Planted::none();
        self.copy().intact(image, spec)
    }

    /// The images of the driver in which the defect can be reached.
    fn info(&self) -> TargetInfo {
        let mut info = self.copy().info();
        info.name.clone_from(&self.name);
        if self.driver == Driver::Vdi {
            // Most of what is to be seen is a matter of blocks, and small ones make more of them, for less.
            info.variants.extend([small_vdi::variant(300 << 10), small_vdi::variant(64 << 10)]);
        }
        if let Some(entry) = self.entry {
            let fits = |options: &[(String, String)]| {
                entry
                    .options
                    .iter()
                    .all(|wanted| options.iter().any(|(name, value)| (name.as_str(), value.as_str()) == *wanted))
            };
            info.variants.retain(|variant| fits(&variant.options));
            let reaches = |variant: &Variant| match entry.need {
                Need::Nothing => true,
                Need::Base => variant.base,
                Need::Beyond4GiB => variant.size > 1 << 32,
                Need::Snapshot => variant.options.iter().any(|(name, value)| name == "snapshot" && value == "on"),
            };
            info.variants.retain(reaches);
        }
        info
    }
}

/// A target for every entry of the catalogue, and the sound copies.
pub fn targets() -> Vec<Planting> {
    let sound = Driver::ALL.iter().map(|&driver| Planting::sound(driver));
    sound.chain(catalogue().iter().map(Planting::of)).collect()
}

/// The target of that name.
pub fn find(name: &str) -> Option<Planting> {
    targets().into_iter().find(|target| target.name == name)
}
