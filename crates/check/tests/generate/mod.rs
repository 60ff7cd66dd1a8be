//! Images out of a seed: valid ones of our own making and of qemu-img's, and what an attacker or a bad disk makes of
//! them.
//!
//! A [`Base`] is an image and the places of its fields; [`mutate`] changes it. A failing case prints its seed, and is
//! written to the folder named by `BLKPROOF_KEEP`.

#![allow(dead_code, unreachable_pub, clippy::cast_possible_truncation, clippy::unwrap_used, clippy::panic)]

pub mod bases;
pub mod dice;
pub mod judge;
pub mod mutate;
pub mod peer;
pub mod qcow2;
pub mod seal;
pub mod sparse;

use blkproof_check::Format;
use sparse::Sparse;

/// What a field is about: mutations are spread over the kinds, however many fields each one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Header,
    Extension,
    /// Entries of tables that map the guest's disk.
    Map,
    /// Pointers to reference counts.
    CountTable,
    Counts,
    /// Snapshots, bitmaps, logs: what lies beside the mapping.
    Side,
}

/// A number in an image.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub at: u64,
    /// Bytes.
    pub width: usize,
    pub kind: Kind,
    pub what: &'static str,
}

/// A valid image, and what there is to be changed in it.
#[derive(Clone, Debug)]
pub struct Base {
    pub format: Format,
    /// How it was made.
    pub name: String,
    pub image: Sparse,
    pub fields: Vec<Field>,
    /// Cluster, block or grain: the unit of splices and cuts.
    pub unit: u64,
    /// Whether numbers are big endian.
    pub big: bool,
}

impl Base {
    /// The same image without what the guest wrote: sectors of one repeated byte that no field lies in.
    pub fn without_data(&self) -> Self {
        let mut image = Sparse::new(0);
        for (at, sector) in self.image.sectors() {
            let data = (1..16).contains(&sector[0]) && sector.iter().all(|byte| *byte == sector[0]);
            if !data {
                image.put(at, sector);
            }
        }
        image.set_len(self.image.len);
        Self { image, ..self.clone() }
    }
}

/// Writes an image to the folder named by `BLKPROOF_KEEP`; what to print about it.
pub fn keep(name: &str, image: &Sparse) -> String {
    let Some(folder) = std::env::var_os("BLKPROOF_KEEP") else {
        return "set BLKPROOF_KEEP=FOLDER to keep the image".to_owned();
    };
    let path = std::path::Path::new(&folder).join(name);
    image.to_file(&path);
    format!("kept as {}", path.display())
}
