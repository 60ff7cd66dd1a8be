//! A Hilbert-like curve through a rectangle: what is near in the file is near in the picture.
//!
//! The classic curve needs a square whose side is a power of two, and would leave up to three quarters of it empty. The
//! generalised curve (after an idea of Jakub Červený, "Generalized Hilbert curve for rectangular domains") halves any
//! rectangle again and again, so the picture is always about a square and always about full. With even sides each step
//! goes to a direct neighbour, never diagonally.

/// A place: column and row.
pub(crate) type Place = (u32, u32);

/// A curve through the cells of a map.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// Columns.
    pub(crate) width: u32,
    /// Rows.
    pub(crate) height: u32,
    /// Where each cell lies; as many as were asked for.
    pub(crate) places: Vec<Place>,
}

impl Curve {
    /// A curve of `cells` cells in about a square. Empty for none.
    pub(crate) fn new(cells: usize) -> Self {
        let (width, height) = sides(cells);
        let mut places = Vec::with_capacity(cells.saturating_add(width as usize));
        let (w, h) = (i64::from(width), i64::from(height));
        if cells > 0 {
            walk((0, 0), (w, 0), (0, h), &mut places);
        }
        places.truncate(cells);
        Self { width, height, places }
    }

    /// The steps from each cell to the next: `r`, `l`, `u`, `d`.
    pub(crate) fn moves(&self) -> String {
        let steps = self.places.iter().zip(self.places.iter().skip(1));
        steps
            .map(|(from, to)| match (to.0.cmp(&from.0), to.1.cmp(&from.1)) {
                (std::cmp::Ordering::Greater, _) => 'r',
                (std::cmp::Ordering::Less, _) => 'l',
                (_, std::cmp::Ordering::Less) => 'u',
                _ => 'd',
            })
            .collect()
    }
}

/// Columns and rows for so many cells: even (see above), about equal, with less than two rows to spare.
fn sides(cells: usize) -> (u32, u32) {
    match cells {
        0 => (0, 0),
        1 => (1, 1),
        2 => (2, 1),
        _ => {
            let side = cells.isqrt();
            let width = if side * side < cells { side + 1 } else { side }.next_multiple_of(2);
            let height = cells.div_ceil(width).next_multiple_of(2);
            (u32::try_from(width).unwrap_or(u32::MAX), u32::try_from(height).unwrap_or(u32::MAX))
        }
    }
}

type Vector = (i64, i64);

fn plus(one: Vector, other: Vector) -> Vector {
    (one.0 + other.0, one.1 + other.1)
}

fn minus(one: Vector, other: Vector) -> Vector {
    (one.0 - other.0, one.1 - other.1)
}

/// The step of length one in a direction along an axis.
fn unit(of: Vector) -> Vector {
    (of.0.signum(), of.1.signum())
}

fn length(of: Vector) -> i64 {
    (of.0 + of.1).abs()
}

/// Walks the rectangle spanned by `along` and `across` from the corner `at`; ends at the corner that `along` leads to.
fn walk(at: Vector, along: Vector, across: Vector, out: &mut Vec<Place>) {
    let (w, h) = (length(along), length(across));
    if h == 1 || w == 1 {
        let (step, count) = if h == 1 { (unit(along), w) } else { (unit(across), h) };
        let mut here = at;
        for _ in 0..count {
            out.push((u32::try_from(here.0).unwrap_or(0), u32::try_from(here.1).unwrap_or(0)));
            here = plus(here, step);
        }
        return;
    }
    let half = |of: Vector, whole: i64| {
        let half = (of.0 / 2, of.1 / 2);
        // Even halves keep the ends of the parts next to each other.
        if length(half) % 2 == 1 && whole > 2 { plus(half, unit(of)) } else { half }
    };
    if 2 * w > 3 * h {
        let first = half(along, w);
        walk(at, first, across, out);
        walk(plus(at, first), minus(along, first), across, out);
    } else {
        let up = half(across, h);
        let first = (along.0 / 2, along.1 / 2);
        walk(at, up, first, out);
        walk(plus(at, up), along, minus(across, up), out);
        let back = plus(plus(at, minus(along, unit(along))), minus(up, unit(across)));
        walk(back, minus((0, 0), up), minus((0, 0), minus(along, first)), out);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cell_once_and_each_step_to_a_neighbour() {
        for cells in (0..700).chain([1023, 1024, 1025, 4096, 12_345, 16_383, 16_384, 16_385, 65_536]) {
            let curve = Curve::new(cells);
            assert_eq!(curve.places.len(), cells);
            let different: BTreeSet<Place> = curve.places.iter().copied().collect();
            assert_eq!(different.len(), cells, "{cells} cells: one place twice");
            assert!(curve.places.iter().all(|(x, y)| *x < curve.width && *y < curve.height), "{cells} cells: outside");
            for pair in curve.places.windows(2) {
                let step = pair[0].0.abs_diff(pair[1].0) + pair[0].1.abs_diff(pair[1].1);
                assert_eq!(step, 1, "{cells} cells: from {:?} to {:?}", pair[0], pair[1]);
            }
            let area = curve.width as usize * curve.height as usize;
            assert!(area < cells + 2 * curve.width.max(1) as usize, "{cells} cells waste {}", area - cells);
        }
    }

    /// The point of the curve: a stretch of the file stays together.
    #[test]
    fn near_in_the_file_is_near_in_the_picture() {
        let curve = Curve::new(16_384);
        assert_eq!((curve.width, curve.height), (128, 128));
        for run in curve.places.windows(64) {
            let far = run.iter().map(|place| place.0.abs_diff(run[0].0).max(place.1.abs_diff(run[0].1))).max();
            assert!(far <= Some(24), "64 cells in a row reach {far:?} cells far");
        }
    }
}
