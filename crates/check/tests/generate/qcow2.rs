//! A qcow2 writer of its own: small, slow, and by the book (qcow2 spec), over everything the format can be.
//!
//! The image is planned first (what there is), then laid out (where it is, in any order, with holes between), then
//! counted (by walking every layer, as the specification counts), then written.

use std::io::Write as _;

use blkproof_check::Format;

use super::dice::Dice;
use super::sparse::Sparse;
use super::{Base, Field, Kind};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Files that images name; whoever lets QEMU look at one puts them beside it.
pub const BACKING: &str = "base.raw";
pub const DATA_FILE: &str = "data.raw";

/// What an image is to have.
#[derive(Clone, Debug)]
pub struct Plan {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub extended: bool,
    pub zeroes: bool,
    pub compressed: bool,
    pub zstd: bool,
    pub snapshots: u64,
    pub vm_state: bool,
    pub external: bool,
    pub raw_external: bool,
    pub bitmaps: u64,
    pub backing: bool,
    pub feature_names: bool,
    pub unknown_extension: bool,
    pub long_header: bool,
    pub lazy: bool,
    pub dirty: bool,
    /// Bytes.
    pub size: u64,
    pub spare_l1: u64,
}

impl Plan {
    /// Any legal combination; most are tiny, so that many can be checked.
    pub fn draw(dice: &mut Dice) -> Self {
        let v2 = dice.percent(15);
        let extended = !v2 && dice.percent(12);
        let zero = dice.percent(3);
        let widest = if dice.percent(80) { 3 } else { 8 };
        let cluster_bits = match dice.below(100) {
            _ if extended => 14 + dice.below(widest),
            0..50 => 9,
            50..75 => 10 + dice.below(3),
            75..95 => 13 + dice.below(4),
            _ => 17 + dice.below(5),
        } as u32;
        let refcount_order = if v2 || dice.percent(40) { 4 } else { dice.below(7) as u32 };
        let external = !v2 && dice.percent(8);
        let counts_max = (1u64 << (1u32 << refcount_order).min(16)) - 1;
        let snapshots = if external || counts_max < 2 || dice.percent(60) { 0 } else { 1 + dice.below(3) };
        let compressed = !external && counts_max >= 15 && dice.percent(35);
        let zstd = compressed && !v2 && dice.percent(30);
        let cluster = 1u64 << cluster_bits;
        let per_table = cluster / if extended { 16 } else { 8 };
        let clusters = match dice.below(10) {
            0 => 1,
            1..7 => 1 + dice.below(per_table.min(64)),
            _ if cluster_bits <= 12 => per_table + dice.below(per_table * 2),
            _ => 1 + dice.below(100),
        };
        let cut = if dice.percent(30) { dice.below(cluster / 512) * 512 } else { 0 };

        Self {
            version: if v2 { 2 } else { 3 },
            cluster_bits,
            refcount_order,
            extended,
            zeroes: !v2 && dice.percent(60),
            compressed,
            zstd,
            snapshots: snapshots.min(counts_max / 2),
            vm_state: dice.percent(25),
            external,
            raw_external: external && dice.percent(30),
            bitmaps: if v2 || zero || dice.percent(75) { 0 } else { 1 + dice.below(2) },
            backing: dice.percent(15) && !external,
            feature_names: !v2 && dice.percent(15),
            unknown_extension: dice.percent(8),
            long_header: zstd || dice.percent(70),
            lazy: !v2 && dice.percent(10),
            dirty: !v2 && dice.percent(3),
            size: if zero { 0 } else { clusters * cluster - cut },
            spare_l1: if dice.percent(20) { dice.below(4) } else { 0 },
        }
    }
}

/// One entry of an L2 table, before it is known where things are.
#[derive(Clone, Copy, Debug)]
enum Entry {
    None,
    /// The extended bitmap's zero half.
    Zero(u32),
    /// A data cluster by number, whether it also reads as zeroes, and the extended bitmap.
    Data(usize, bool, u64),
    Stream(usize),
}

/// What takes up clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thing {
    Hole,
    RefcountTable,
    RefcountBlock(usize),
    L1(usize),
    L2(usize),
    Data(usize),
    Streams,
    SnapshotTable,
    Directory,
    BitmapTable(usize),
    BitmapData(usize),
}

struct Writer<'d> {
    plan: Plan,
    dice: &'d mut Dice,
    cluster: u64,
    per_table: u64,
    tables: Vec<Vec<Entry>>,
    /// The active layer, then the snapshots: their L1 tables.
    layers: Vec<Vec<Option<usize>>>,
    data: usize,
    /// Where each stream begins within the cluster area of streams, and its bytes.
    streams: Vec<(u64, Vec<u8>)>,
    streams_len: u64,
    places: Vec<(Thing, u64)>,
    image: Sparse,
    fields: Vec<Field>,
}

/// The image of a seed.
pub fn generate(seed: u64) -> Base {
    let mut dice = Dice::new(seed);
    let plan = Plan::draw(&mut dice);
    build(&plan, &mut dice)
}

pub fn build(plan: &Plan, dice: &mut Dice) -> Base {
    let cluster = 1u64 << plan.cluster_bits;
    let mut writer = Writer {
        plan: plan.clone(),
        dice,
        cluster,
        per_table: cluster / if plan.extended { 16 } else { 8 },
        tables: Vec::new(),
        layers: Vec::new(),
        data: 0,
        streams: Vec::new(),
        streams_len: 0,
        places: Vec::new(),
        image: Sparse::new(0),
        fields: Vec::new(),
    };
    writer.fill();
    writer.write();
    Base {
        format: Format::Qcow2,
        name: format!("{plan:?}"),
        image: writer.image,
        fields: writer.fields,
        unit: cluster,
        big: true,
    }
}

impl Writer<'_> {
    fn guest_clusters(&self) -> u64 {
        self.plan.size.div_ceil(self.cluster)
    }

    // What there is.

    fn fill(&mut self) {
        let needed = self.plan.size.div_ceil(self.cluster * self.per_table);
        let len = needed + self.plan.spare_l1;
        let mut active = vec![None; len as usize];
        for index in 0..needed {
            if self.dice.percent(80) {
                active[index as usize] = Some(self.table(index));
            }
        }
        self.layers.push(active);
        for _ in 0..self.plan.snapshots {
            let mut snapshot = self.layers[0].clone();
            snapshot.truncate(needed as usize);
            if self.plan.vm_state {
                let table = self.table_of(0..self.per_table.min(3));
                snapshot.push(Some(table));
            }
            self.layers.push(snapshot);
            // Later writes of the guest copy a table, and change some of it.
            for index in 0..needed {
                if self.dice.percent(50) {
                    let Some(shared) = self.layers[0][index as usize] else { continue };
                    let mut own = self.tables[shared].clone();
                    let within = self.within(index);
                    for at in 0..within {
                        if self.dice.percent(if within > 20 { 5 } else { 30 }) {
                            own[at as usize] = self.entry();
                        }
                    }
                    self.tables.push(own);
                    self.layers[0][index as usize] = Some(self.tables.len() - 1);
                }
            }
        }
    }

    /// Entries of table `index` that the disk reaches.
    fn within(&self, index: u64) -> u64 {
        (self.guest_clusters() - index * self.per_table).min(self.per_table)
    }

    fn table(&mut self, index: u64) -> usize {
        let within = self.within(index);
        self.table_of(0..within)
    }

    fn table_of(&mut self, used: std::ops::Range<u64>) -> usize {
        let mut table = vec![Entry::None; self.per_table as usize];
        let dense = 100 / (1 + (used.end - used.start) / 16);
        for at in used {
            if self.dice.percent(dense.max(2)) {
                table[at as usize] = self.entry();
            }
        }
        self.tables.push(table);
        self.tables.len() - 1
    }

    fn entry(&mut self) -> Entry {
        let zero_bits = self.dice.next() as u32;
        match self.dice.below(10) {
            0 => Entry::None,
            1 | 2 if self.plan.zeroes => Entry::Zero(zero_bits),
            3 | 4 if self.plan.compressed && self.streams.len() < 4 => self.stream(),
            kind => {
                let allocated = if self.dice.percent(50) { u32::MAX } else { self.dice.next() as u32 };
                let bitmap = (u64::from(zero_bits & !allocated) << 32) | u64::from(allocated);
                self.data += 1;
                Entry::Data(self.data - 1, kind == 5 && self.plan.zeroes && !self.plan.extended, bitmap)
            }
        }
    }

    fn stream(&mut self) -> Entry {
        let mut content = vec![0u8; self.cluster as usize];
        for byte in content.iter_mut().take(200) {
            *byte = self.dice.next() as u8;
        }
        let bytes = if self.plan.zstd {
            zstd::bulk::compress(&content, 1).unwrap()
        } else {
            let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            deflate.write_all(&content).unwrap();
            deflate.finish().unwrap()
        };
        if bytes.len() as u64 >= self.cluster {
            return Entry::None;
        }
        let at = self.streams_len;
        self.streams_len += bytes.len() as u64;
        self.streams.push((at, bytes));
        Entry::Stream(self.streams.len() - 1)
    }

    // Where it is.

    fn place_all(&mut self) -> u64 {
        let mut things: Vec<(Thing, u64)> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            things.push((Thing::L1(index), (layer.len() as u64 * 8).div_ceil(self.cluster)));
        }
        things.extend((0..self.tables.len()).map(|index| (Thing::L2(index), 1)));
        if !self.plan.external {
            things.extend((0..self.data).map(|index| (Thing::Data(index), 1)));
        }
        if self.streams_len > 0 {
            things.push((Thing::Streams, self.streams_len.div_ceil(self.cluster)));
        }
        if self.plan.snapshots > 0 {
            things.push((Thing::SnapshotTable, (self.snapshot_table().len() as u64).div_ceil(self.cluster)));
        }
        for index in 0..self.plan.bitmaps as usize {
            things.push((Thing::BitmapTable(index), (self.bitmap_entries() * 8).div_ceil(self.cluster)));
            if self.bitmap_entries() > 0 {
                things.push((Thing::BitmapData(index), 1));
            }
        }
        if self.plan.bitmaps > 0 {
            things.push((Thing::Directory, (self.directory().len() as u64).div_ceil(self.cluster)));
        }
        for _ in 0..self.dice.below(4) {
            let clusters = 1 + self.dice.below(3);
            things.push((Thing::Hole, clusters));
        }
        // The counts count themselves.
        let others: u64 = 1 + things.iter().map(|(_, clusters)| clusters).sum::<u64>();
        let per_block = (self.cluster * 8) >> self.plan.refcount_order;
        let mut blocks = 0;
        let mut table = 1;
        loop {
            let want = (others + blocks + table).div_ceil(per_block);
            let want_table = (want * 8).div_ceil(self.cluster);
            if (want, want_table) == (blocks, table) {
                break;
            }
            (blocks, table) = (want, want_table);
        }
        things.push((Thing::RefcountTable, table));
        things.extend((0..blocks as usize).map(|index| (Thing::RefcountBlock(index), 1)));
        if self.dice.percent(70) {
            self.dice.shuffle(&mut things);
        }
        let mut next = 1;
        for (thing, clusters) in things {
            self.places.push((thing, next * self.cluster));
            next += clusters;
        }
        next
    }

    fn place(&self, wanted: Thing) -> u64 {
        self.places.iter().find(|(thing, _)| *thing == wanted).map_or(0, |(_, place)| *place)
    }

    // How often.

    fn counts(&self, clusters: u64) -> Vec<u64> {
        let mut counts = vec![0u64; clusters as usize];
        counts[0] = 1;
        let mut claim = |at: u64, len: u64| {
            for cluster in at / self.cluster..(at + len).div_ceil(self.cluster) {
                counts[cluster as usize] += 1;
            }
        };
        for (thing, place) in &self.places {
            let bytes = match thing {
                Thing::Hole | Thing::L2(_) | Thing::Data(_) | Thing::Streams => 0,
                Thing::RefcountTable => (self.blocks() * 8).div_ceil(self.cluster) * self.cluster,
                Thing::RefcountBlock(_) | Thing::BitmapData(_) => self.cluster,
                Thing::L1(index) => self.layers[*index].len() as u64 * 8,
                Thing::SnapshotTable => self.snapshot_table().len() as u64,
                Thing::Directory => self.directory().len() as u64,
                Thing::BitmapTable(_) => self.bitmap_entries() * 8,
            };
            claim(*place, bytes);
        }
        for layer in &self.layers {
            for table in layer.iter().flatten() {
                claim(self.place(Thing::L2(*table)), self.cluster);
                for entry in &self.tables[*table] {
                    match entry {
                        Entry::Data(index, ..) if !self.plan.external => {
                            claim(self.place(Thing::Data(*index)), self.cluster);
                        }
                        Entry::Stream(index) => {
                            let (at, sectors) = self.stream_place(*index);
                            claim(at / 512 * 512, (sectors + 1) * 512);
                        }
                        _ => {}
                    }
                }
            }
        }
        counts
    }

    fn blocks(&self) -> u64 {
        self.places.iter().filter(|(thing, _)| matches!(thing, Thing::RefcountBlock(_))).count() as u64
    }

    /// First byte of a stream, and the sectors it takes beyond its first.
    fn stream_place(&self, index: usize) -> (u64, u64) {
        let (at, bytes) = &self.streams[index];
        let at = self.place(Thing::Streams) + at;
        (at, (at + bytes.len() as u64 - 1) / 512 - at / 512)
    }

    // The bytes.

    fn write(&mut self) {
        let clusters = self.place_all();
        let counts = self.counts(clusters);
        self.image.set_len(clusters * self.cluster);
        self.write_header();
        for index in 0..self.layers.len() {
            self.write_l1(index, &counts);
        }
        for index in 0..self.tables.len() {
            self.write_l2(index, &counts);
        }
        for (at, bytes) in self.streams.clone() {
            self.image.put(self.place(Thing::Streams) + at, &bytes);
        }
        if !self.plan.external {
            for index in 0..self.data {
                let content = [self.dice.next().to_be_bytes(), (index as u64).to_be_bytes()].concat();
                self.image.put(self.place(Thing::Data(index)), &content);
            }
        }
        self.write_side_tables();
        self.write_counts(&counts);
    }

    fn field(&mut self, at: u64, width: usize, kind: Kind, what: &'static str, value: u64) {
        self.image.set_number(at, width, true, value);
        self.fields.push(Field { at, width, kind, what });
    }

    fn write_header(&mut self) {
        let plan = self.plan.clone();
        let header_len: u64 = match plan.version {
            2 => 72,
            _ if plan.long_header => 112,
            _ => 104,
        };
        let extensions = self.extensions();
        let backing = if plan.backing { BACKING } else { "" };
        let backing_at = header_len + extensions.len() as u64;
        let snapshots = self.place(Thing::SnapshotTable);
        let h = Kind::Header;
        self.field(0, 4, h, "magic", 0x5146_49fb);
        self.field(4, 4, h, "version", u64::from(plan.version));
        self.field(8, 8, h, "backing_file_offset", if plan.backing { backing_at } else { 0 });
        self.field(16, 4, h, "backing_file_size", backing.len() as u64);
        self.field(20, 4, h, "cluster_bits", u64::from(plan.cluster_bits));
        self.field(24, 8, h, "size", plan.size);
        self.field(32, 4, h, "crypt_method", 0);
        self.field(36, 4, h, "l1_size", self.layers[0].len() as u64);
        self.field(40, 8, h, "l1_table_offset", self.place(Thing::L1(0)));
        self.field(48, 8, h, "refcount_table_offset", self.place(Thing::RefcountTable));
        self.field(56, 4, h, "refcount_table_clusters", (self.blocks() * 8).div_ceil(self.cluster));
        self.field(60, 4, h, "nb_snapshots", plan.snapshots);
        self.field(64, 8, h, "snapshots_offset", snapshots);
        if plan.version == 3 {
            let incompatible = u64::from(plan.dirty)
                | (u64::from(plan.external) << 2)
                | (u64::from(plan.zstd) << 3)
                | (u64::from(plan.extended) << 4);
            let autoclear = u64::from(plan.bitmaps > 0) | (u64::from(plan.raw_external) << 1);
            self.field(72, 8, h, "incompatible_features", incompatible);
            self.field(80, 8, h, "compatible_features", u64::from(plan.lazy || plan.dirty));
            self.field(88, 8, h, "autoclear_features", autoclear);
            self.field(96, 4, h, "refcount_order", u64::from(plan.refcount_order));
            self.field(100, 4, h, "header_length", header_len);
            if plan.long_header {
                self.field(104, 1, h, "compression_type", u64::from(plan.zstd));
                self.field(105, 1, h, "padding", 0);
            }
        }
        let words = extensions.len() as u64 / 8;
        self.image.put(header_len, &extensions);
        for word in 0..words {
            let at = header_len + word * 8;
            self.fields.push(Field { at, width: 4, kind: Kind::Extension, what: "extension word" });
            self.fields.push(Field { at: at + 4, width: 4, kind: Kind::Extension, what: "extension word" });
        }
        self.image.put(backing_at, backing.as_bytes());
    }

    fn extensions(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut add = |kind: u32, bytes: &[u8]| {
            out.extend(kind.to_be_bytes());
            out.extend((bytes.len() as u32).to_be_bytes());
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if self.plan.backing {
            add(0xe279_2aca, b"raw");
        }
        if self.plan.external {
            add(0x4441_5441, DATA_FILE.as_bytes());
        }
        if self.plan.feature_names {
            let mut name = [0u8; 48];
            name[2..11].copy_from_slice(b"dirty bit");
            add(0x6803_f857, &name);
        }
        if self.plan.unknown_extension {
            add(0x1234_5678, b"something later programs know");
        }
        if self.plan.bitmaps > 0 {
            let mut bytes = (self.plan.bitmaps as u32).to_be_bytes().to_vec();
            bytes.extend([0; 4]);
            bytes.extend((self.directory().len() as u64).to_be_bytes());
            bytes.extend(self.place(Thing::Directory).to_be_bytes());
            add(0x2385_2875, &bytes);
        }
        add(0, b"");
        out
    }

    fn write_l1(&mut self, index: usize, counts: &[u64]) {
        let at = self.place(Thing::L1(index));
        for (entry, table) in self.layers[index].clone().into_iter().enumerate() {
            let value = table.map_or(0, |table| {
                let place = self.place(Thing::L2(table));
                let single = counts[(place / self.cluster) as usize] == 1;
                place | if single { COPIED } else { 0 }
            });
            let kind = if index == 0 { Kind::Map } else { Kind::Side };
            self.field(at + entry as u64 * 8, 8, kind, "L1 entry", value);
        }
    }

    fn write_l2(&mut self, index: usize, counts: &[u64]) {
        let at = self.place(Thing::L2(index));
        let l1 = self.layers.iter().find_map(|layer| layer.iter().position(|table| *table == Some(index)));
        let first = l1.unwrap_or(0) as u64 * self.per_table;
        let step = if self.plan.extended { 16 } else { 8 };
        let mut empty = 0;
        for (entry, what) in self.tables[index].clone().into_iter().enumerate() {
            let mut bitmap = 0;
            let value = match what {
                Entry::None => 0,
                Entry::Zero(bits) if self.plan.extended => {
                    bitmap = u64::from(bits) << 32;
                    0
                }
                Entry::Zero(_) => 1,
                Entry::Data(data, zero, bits) => {
                    bitmap = bits;
                    let place = if self.plan.external {
                        ((first + entry as u64) * self.cluster) | COPIED
                    } else {
                        let place = self.place(Thing::Data(data));
                        let single = counts[(place / self.cluster) as usize] == 1;
                        place | if single { COPIED } else { 0 }
                    };
                    place | u64::from(zero)
                }
                Entry::Stream(stream) => {
                    let (at, sectors) = self.stream_place(stream);
                    COMPRESSED | (sectors << (70 - self.plan.cluster_bits)) | at
                }
            };
            let here = at + entry as u64 * step;
            if value == 0 && bitmap == 0 {
                empty += 1;
                // Of the empty entries the first ones are enough to change.
                if empty > 3 {
                    continue;
                }
            }
            self.field(here, 8, Kind::Map, "L2 entry", value);
            if self.plan.extended {
                self.field(here + 8, 8, Kind::Map, "subcluster bitmap", bitmap);
            }
        }
    }

    fn snapshot_table(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for index in 1..self.layers.len() {
            let extra = if self.plan.version == 3 { 24u32 } else { 0 };
            let vm_state = if self.plan.vm_state { self.cluster.min(3000) } else { 0 };
            out.extend(self.place(Thing::L1(index)).to_be_bytes());
            out.extend((self.layers[index].len() as u32).to_be_bytes());
            out.extend(1u16.to_be_bytes());
            out.extend(2u16.to_be_bytes());
            out.extend(1_700_000_000u32.to_be_bytes());
            out.extend(5u32.to_be_bytes());
            out.extend(7u64.to_be_bytes());
            out.extend((vm_state as u32).to_be_bytes());
            out.extend(extra.to_be_bytes());
            if extra > 0 {
                out.extend(vm_state.to_be_bytes());
                out.extend(self.plan.size.to_be_bytes());
                out.extend(u64::MAX.to_be_bytes());
            }
            out.extend(format!("{index}s{index}").bytes());
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out
    }

    fn bitmap_entries(&self) -> u64 {
        self.plan.size.div_ceil(1 << 16).div_ceil(8).div_ceil(self.cluster)
    }

    fn directory(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for index in 0..self.plan.bitmaps as usize {
            out.extend(self.place(Thing::BitmapTable(index)).to_be_bytes());
            out.extend((self.bitmap_entries() as u32).to_be_bytes());
            out.extend((index as u32 * 2).to_be_bytes());
            out.extend([1, 16]);
            out.extend(2u16.to_be_bytes());
            out.extend(0u32.to_be_bytes());
            out.extend(format!("b{index}").bytes());
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out
    }

    fn write_side_tables(&mut self) {
        for (thing, bytes) in [(Thing::SnapshotTable, self.snapshot_table()), (Thing::Directory, self.directory())] {
            let at = self.place(thing);
            if at == 0 {
                continue;
            }
            self.image.put(at, &bytes);
            for word in (0..bytes.len() as u64).step_by(4) {
                self.fields.push(Field { at: at + word, width: 4, kind: Kind::Side, what: "side table word" });
            }
        }
        for index in 0..self.plan.bitmaps as usize {
            let table = self.place(Thing::BitmapTable(index));
            for entry in 0..self.bitmap_entries() {
                let value = if entry == 0 { self.place(Thing::BitmapData(index)) } else { 0 };
                self.field(table + entry * 8, 8, Kind::Side, "bitmap table entry", value);
            }
        }
    }

    fn write_counts(&mut self, counts: &[u64]) {
        let order = self.plan.refcount_order;
        let per_block = (self.cluster * 8) >> order;
        let table = self.place(Thing::RefcountTable);
        let blocks = self.blocks();
        for index in 0..blocks {
            let block = self.place(Thing::RefcountBlock(index as usize));
            self.field(table + index * 8, 8, Kind::CountTable, "refcount table entry", block);
        }
        if blocks * 8 < self.cluster {
            self.field(table + blocks * 8, 8, Kind::CountTable, "refcount table entry", 0);
        }
        for (cluster, count) in counts.iter().enumerate() {
            let cluster = cluster as u64;
            let block = self.place(Thing::RefcountBlock((cluster / per_block) as usize));
            let bit = (cluster % per_block) << order;
            if order >= 3 {
                self.field(block + bit / 8, 1 << (order - 3), Kind::Counts, "count", *count);
            } else {
                // Counts narrower than a byte begin at its least significant bit.
                let old = self.image.number(block + bit / 8, 1, true);
                self.field(block + bit / 8, 1, Kind::Counts, "counts", old | (count << (bit % 8)));
            }
        }
    }
}
