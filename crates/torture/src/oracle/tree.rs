//! A value for each unit of a disk, of which a copy costs nothing and a long run of equal ones little.
//!
//! A tree of fixed fan-out whose nodes are shared between copies until one of them is written to. A node whose units
//! all have one value is that value, so that a change of a terabyte touches some hundred words; elsewhere a unit takes
//! one word of eight bytes, the pointer to a value shared by all units that have it.

#![allow(clippy::cast_possible_truncation, reason = "indices are below the sizes of nodes")]

use std::rc::Rc;

/// Units of a leaf. Small, as a request far from all others takes a whole one.
const LEAF: u64 = 64;
/// Children of an inner node.
const FAN: u64 = 16;

#[derive(Debug)]
enum Node<T> {
    Uniform(Option<Rc<T>>),
    Leaf(Rc<Vec<Option<Rc<T>>>>),
    Inner(Rc<Vec<Node<T>>>),
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Uniform(value) => Self::Uniform(value.clone()),
            Self::Leaf(leaf) => Self::Leaf(Rc::clone(leaf)),
            Self::Inner(inner) => Self::Inner(Rc::clone(inner)),
        }
    }
}

/// Values of units; at first all have none.
#[derive(Debug)]
pub(super) struct Tree<T> {
    root: Node<T>,
    /// Units below the root.
    span: u64,
}

impl<T> Clone for Tree<T> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), span: self.span }
    }
}

impl<T> Tree<T> {
    pub(super) const fn new() -> Self {
        Self { root: Node::Uniform(None), span: LEAF }
    }

    /// Visits the units from `from` to before `to` in order, in runs of one value: first unit, length, value.
    pub(super) fn visit(&self, from: u64, to: u64, mut visit: impl FnMut(u64, u64, Option<&Rc<T>>)) {
        // Runs end where nodes do; they are joined here.
        let mut open: Option<(u64, u64, Option<&Rc<T>>)> = None;
        let mut join = |start: u64, len: u64, value| match &mut open {
            Some((_, length, last)) if same(*last, value) => *length += len,
            _ => {
                if let Some((start, len, value)) = open.replace((start, len, value)) {
                    visit(start, len, value);
                }
            }
        };
        if from < to {
            walk(&self.root, 0, self.span, from, to.min(self.span), &mut join);
        }
        if to > self.span.max(from) {
            let start = self.span.max(from);
            join(start, to - start, None);
        }
        if let Some((start, len, value)) = open {
            visit(start, len, value);
        }
    }

    /// Gives the units from `from` to before `to` this value.
    pub(super) fn set(&mut self, from: u64, to: u64, value: &Rc<T>) {
        while self.span < to {
            let below = std::mem::replace(&mut self.root, Node::Uniform(None));
            let mut children = vec![Node::Uniform(None); FAN as usize];
            children[0] = below;
            self.root = Node::Inner(Rc::new(children));
            self.span *= FAN;
        }
        if from < to {
            put(&mut self.root, 0, self.span, from, to, value);
        }
    }
}

pub(super) fn same<T>(one: Option<&Rc<T>>, two: Option<&Rc<T>>) -> bool {
    match (one, two) {
        (Some(one), Some(two)) => Rc::ptr_eq(one, two),
        (None, None) => true,
        _ => false,
    }
}

fn walk<'a, T>(
    node: &'a Node<T>,
    start: u64,
    span: u64,
    from: u64,
    to: u64,
    visit: &mut impl FnMut(u64, u64, Option<&'a Rc<T>>),
) {
    let (from, to) = (from.max(start), to.min(start + span));
    if from >= to {
        return;
    }
    match node {
        Node::Uniform(value) => visit(from, to - from, value.as_ref()),
        Node::Leaf(leaf) => {
            let words = &leaf[(from - start) as usize..(to - start) as usize];
            let mut at = from;
            for run in words.chunk_by(|one, two| same(one.as_ref(), two.as_ref())) {
                visit(at, run.len() as u64, run[0].as_ref());
                at += run.len() as u64;
            }
        }
        Node::Inner(children) => {
            let part = span / FAN;
            for index in (from - start) / part..=(to - 1 - start) / part {
                walk(&children[index as usize], start + index * part, part, from, to, visit);
            }
        }
    }
}

fn put<T>(node: &mut Node<T>, start: u64, span: u64, from: u64, to: u64, value: &Rc<T>) {
    let (from, to) = (from.max(start), to.min(start + span));
    if to - from == span {
        *node = Node::Uniform(Some(Rc::clone(value)));
        return;
    }
    if let Node::Uniform(all) = node {
        let all = all.clone();
        *node = match span == LEAF {
            true => Node::Leaf(Rc::new(vec![all; LEAF as usize])),
            false => Node::Inner(Rc::new(vec![Node::Uniform(all); FAN as usize])),
        };
    }
    match node {
        Node::Uniform(_) => {}
        Node::Leaf(leaf) => {
            Rc::make_mut(leaf)[(from - start) as usize..(to - start) as usize].fill(Some(Rc::clone(value)));
        }
        Node::Inner(children) => {
            let part = span / FAN;
            let children = Rc::make_mut(children);
            for index in (from - start) / part..=(to - 1 - start) / part {
                put(&mut children[index as usize], start + index * part, part, from, to, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(tree: &Tree<u32>, from: u64, to: u64) -> Vec<Option<u32>> {
        let mut all = Vec::new();
        let mut last: Option<Option<u32>> = None;
        tree.visit(from, to, |start, len, value| {
            assert_eq!(start, from + all.len() as u64, "runs follow each other");
            assert!(len > 0 && last != Some(value.map(|value| **value)), "runs are as long as they can be");
            last = Some(value.map(|value| **value));
            all.extend(std::iter::repeat_n(value.map(|value| **value), len as usize));
        });
        all
    }

    proptest! {
        #[test]
        fn a_tree_is_a_list(sets in prop::collection::vec((0u64..70_000, 0u64..40_000), 0..12), from in 0u64..80_000) {
            let mut tree = Tree::new();
            let mut list = vec![None; 120_000];
            let mut copies = Vec::new();
            for (number, (from, len)) in sets.into_iter().enumerate() {
                copies.push((tree.clone(), list.clone()));
                let to = from + len;
                tree.set(from, to, &Rc::new(number as u32));
                list[from as usize..to as usize].fill(Some(number as u32));
            }
            copies.push((tree, list));
            for (tree, list) in copies {
                prop_assert_eq!(values(&tree, 0, 120_000), list.clone());
                let to = (from + 1000).min(120_000);
                prop_assert_eq!(values(&tree, from, to), list[from as usize..to as usize].to_vec());
            }
        }
    }

    #[test]
    fn a_terabyte_is_little() {
        let mut tree = Tree::new();
        let units = (1u64 << 40) / 512;
        tree.set(3, units, &Rc::new(1));
        tree.set(units - 1, units, &Rc::new(2));
        let mut runs = Vec::new();
        tree.visit(0, units, |start, len, value| runs.push((start, len, value.map(|value| **value))));
        assert_eq!(runs, [(0, 3, None), (3, units - 4, Some(1)), (units - 1, 1, Some(2))]);
        let mut none = 0;
        tree.visit(5, 5, |_, _, _| none += 1);
        assert_eq!(none, 0);
    }
}
