//! The pure cache and a reference for it, computed another way: from the log of events, with whole images.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::collections::BTreeSet;

use blkproof_block::ByteRange;
use blkproof_block::testing::Choices;
use blkproof_fault::disk::model::{ChangeId, Covered, Model, Moment, Request, Sabotage};
use blkproof_fault::disk::{Profile, State, StateName};

pub const BLOCK: usize = 512;

/// An image: its size is the length.
pub type Image = Vec<u8>;

/// A request as the reference sees it.
#[derive(Clone)]
pub struct Op {
    pub id: ChangeId,
    /// Blocks it touches, with their content once it was done.
    pub versions: Vec<(usize, Vec<u8>)>,
    pub complete: Option<u64>,
    pub fua: bool,
}

/// The log, and nothing else.
#[derive(Default)]
pub struct Reference {
    pub clock: u64,
    pub ops: Vec<Op>,
    /// When each flush that completed was sent.
    pub flushes: Vec<u64>,
    pub now: Image,
    pub initial: Image,
}

impl Reference {
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub fn durable(&self, op: &Op) -> bool {
        op.complete.is_some_and(|complete| op.fua || self.flushes.iter().any(|&submit| complete < submit))
    }

    /// Requests that are volatile and have a version left, and per block the base and the versions by request.
    #[allow(clippy::type_complexity)]
    pub fn point(&self) -> (BTreeSet<ChangeId>, Vec<(Vec<u8>, Vec<(ChangeId, Vec<u8>)>)>) {
        let mut volatile = BTreeSet::new();
        let blocks = self.initial.len() / BLOCK;
        let point = (0..blocks)
            .map(|block| {
                let mut base = self.initial[block * BLOCK..(block + 1) * BLOCK].to_vec();
                let mut newer = Vec::new();
                for op in &self.ops {
                    for (_, content) in op.versions.iter().filter(|(at, _)| *at == block) {
                        if self.durable(op) {
                            base.clone_from(content);
                            newer.clear();
                        } else {
                            newer.push((op.id, content.clone()));
                        }
                    }
                }
                volatile.extend(newer.iter().map(|(id, _)| *id));
                (base, newer)
            })
            .collect();
        (volatile, point)
    }

    /// Every image that each block may choose for itself.
    pub fn by_block(&self) -> BTreeSet<Image> {
        let (_, point) = self.point();
        let mut images = BTreeSet::from([Vec::new()]);
        for (base, newer) in point {
            let contents: BTreeSet<_> = newer.into_iter().map(|(_, content)| content).chain([base]).collect();
            images = images
                .iter()
                .flat_map(|image: &Image| contents.iter().map(move |content| [&image[..], content].concat()))
                .collect();
        }
        images
    }

    pub fn keeping(&self, kept: &BTreeSet<ChangeId>) -> Image {
        let (_, point) = self.point();
        let pick = |(base, newer): (Vec<u8>, Vec<(ChangeId, Vec<u8>)>)| {
            newer.into_iter().rev().find(|(id, _)| kept.contains(id)).map_or(base, |(_, content)| content)
        };
        point.into_iter().flat_map(pick).collect()
    }

    pub fn by_request(&self) -> BTreeSet<Image> {
        let ids: Vec<_> = self.point().0.into_iter().collect();
        (0..1_u32 << ids.len())
            .map(|bits| {
                self.keeping(&ids.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, id)| *id).collect())
            })
            .collect()
    }

    pub fn prefixes(&self) -> BTreeSet<Image> {
        let by_submission: Vec<_> = self.point().0.into_iter().collect();
        let mut by_completion = by_submission.clone();
        let end = |id: &ChangeId| self.ops.iter().find(|op| op.id == *id).unwrap().complete.unwrap_or(u64::MAX);
        by_completion.sort_by_key(|id| (end(id), *id));
        [by_submission, by_completion]
            .iter()
            .flat_map(|order| (0..=order.len()).map(|n| self.keeping(&order[..n].iter().copied().collect())))
            .collect()
    }
}

/// The model and the reference, side by side, and the medium that an honest owner keeps.
pub struct Both {
    pub model: Model,
    pub reference: Reference,
    pub medium: Image,
    pub open: Vec<(ChangeId, bool)>,
    pub flush: Option<(Moment, u64)>,
    pub data: u8,
}

impl Both {
    pub fn new(blocks: usize, sabotage: Option<Sabotage>) -> Self {
        let initial: Image = (0..blocks * BLOCK).map(|at| 0xe0 | (at / 256) as u8).collect();
        let mut model = Model::new(initial.len() as u64, BLOCK as u32);
        if let Some(sabotage) = sabotage {
            model.sabotage(sabotage);
        }
        let reference = Reference { now: initial.clone(), initial: initial.clone(), ..Reference::default() };
        Self { model, reference, medium: initial, open: Vec::new(), flush: None, data: 0 }
    }

    pub fn settle(&mut self, covered: &Covered) {
        let batch = self.model.batch(covered);
        batch.pieces.iter().for_each(|piece| put(&mut self.medium, piece));
        self.model.settle(covered);
    }

    pub fn step(&mut self, draws: &mut Choices) {
        let size = self.medium.len() as u64;
        match draws.below(10) {
            0..=3 => {
                // Mostly whole blocks; sometimes a few bytes, also across a border.
                let unit = if draws.chance(300) { 128 } else { BLOCK as u64 };
                let at = draws.below(size / unit) * unit;
                let len = ((1 + draws.below(3)) * unit).min(size - at);
                let range = ByteRange::at(at, len);
                self.data = (self.data + 1) % 0xdf;
                let (request, byte) = match draws.below(4) {
                    0 => (Request::Zeroes { range, unmap: draws.chance(500) }, 0),
                    _ => (Request::Write { at, data: vec![self.data; len as usize].into() }, self.data),
                };
                let id = self.model.submit(request);
                let fua = draws.chance(200);
                self.reference.tick();
                self.reference.now[at as usize..(at + len) as usize].fill(byte);
                let now = &self.reference.now;
                let blocks = at as usize / BLOCK..((at + len) as usize).div_ceil(BLOCK);
                let versions = blocks.map(|block| (block, now[block * BLOCK..(block + 1) * BLOCK].to_vec())).collect();
                self.reference.ops.push(Op { id, versions, complete: None, fua });
                self.open.push((id, fua));
            }
            4..=6 if !self.open.is_empty() => {
                let (id, fua) = self.open.remove(draws.index(self.open.len()));
                if fua {
                    self.settle(&Covered::one(id));
                }
                self.model.complete(id);
                let at = self.reference.tick();
                self.reference.ops.iter_mut().find(|op| op.id == id).unwrap().complete = Some(at);
            }
            7 if self.flush.is_none() => self.flush = Some((self.model.begin_flush(), self.reference.tick())),
            8 => {
                if let Some((moment, submit)) = self.flush.take() {
                    self.settle(&Covered::CompletedBefore(moment));
                    self.reference.flushes.push(submit);
                }
            }
            _ => {}
        }
    }

    pub fn image(&self, state: &State) -> Image {
        let mut image = self.medium.clone();
        image.resize(state.size as usize, 0);
        state.pieces.iter().for_each(|piece| put(&mut image, piece));
        image
    }

    pub fn state(&self, name: &StateName, profile: Profile) -> Image {
        self.image(
            &self.model.state(name, profile, &Covered::Nothing).unwrap_or_else(|error| panic!("{name}: {error}")),
        )
    }

    /// Everything that has to hold at any moment; an error says what does not.
    pub fn check(&self, budget: usize) -> Result<(), String> {
        let mut seen = self.medium.clone();
        self.model.look(ByteRange::at(0, seen.len() as u64)).iter().for_each(|piece| put(&mut seen, piece));
        if seen != self.reference.now {
            return Err("readers see something else".into());
        }
        let profiles = [
            (Profile::Ordered, self.reference.prefixes()),
            (Profile::Request, self.reference.by_request()),
            (Profile::Block, self.reference.by_block()),
        ];
        for (profile, legal) in &profiles {
            let profile = *profile;
            let total = self.model.count(profile).count;
            if total > budget as u64 {
                continue;
            }
            let names = self.model.names(profile, budget, 0);
            let got: BTreeSet<_> = names.iter().map(|name| self.state(name, profile)).collect();
            if let Some(name) = names.iter().find(|name| !legal.contains(&self.state(name, profile))) {
                return Err(format!("{profile:?}: {name} is not legal"));
            }
            if got != *legal {
                return Err(format!("{profile:?}: {} of {} states reached", got.len(), legal.len()));
            }
        }
        let block = &profiles[2].1;
        for profile in [Profile::Ordered, Profile::Request, Profile::Block, Profile::Torn] {
            let legal = profiles.iter().find(|(of, _)| *of == profile).map_or(block, |(_, legal)| legal);
            for name in self.model.names(profile, 40, 7) {
                if !legal.contains(&self.state(&name, profile)) {
                    return Err(format!("{profile:?}: {name} is not legal"));
                }
                // A name survives being written down.
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
        Ok(())
    }
}

pub fn put(image: &mut Image, piece: &blkproof_fault::disk::piece::Piece) {
    piece.copy_to(0, image);
}
