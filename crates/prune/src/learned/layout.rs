//! Where the units of a selection stand in the matrices: all that a learner needs to know of a network.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use prunectl_model::{Slice, Transformer};

use super::{Backward, Values};
use crate::decision::Decision;
use crate::error::{PruneError, Result};
use crate::site::{Key, Sites};
use crate::units::{count, group};

/// The selected units and weights of a network.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// `(rows, columns)` of every matrix that a selected unit or weight stands in.
    pub shapes: BTreeMap<String, (usize, usize)>,
    /// The slices of each unit in matrices, by unit; empty for units that are not selected. Biases and norm weights are not listed.
    pub units: BTreeMap<Key, Vec<Vec<Slice>>>,
    /// Matrices whose single weights are selected.
    pub weights: BTreeSet<String>,
}

impl Layout {
    /// The layout of a selection.
    pub fn of(model: &Transformer, sites: &Sites) -> Result<Self> {
        let mut out = Self { weights: sites.weights.clone(), ..Self::default() };
        for slot in &sites.weights {
            out.shapes.insert(slot.clone(), model.params().require(slot)?.dims2()?);
        }
        for (key, units) in &sites.units {
            let mut slices = vec![Vec::new(); count(model, *key)?];
            let available = slices.len();
            for unit in units {
                let own = slices.get_mut(unit).ok_or(PruneError::NoSuchUnit { key: *key, unit, available })?;
                for slice in group(model, *key, unit)? {
                    let t = model.params().require(&slice.slot)?;
                    if t.rank() == 2 {
                        out.shapes.insert(slice.slot.clone(), t.dims2()?);
                        own.push(slice);
                    }
                }
            }
            out.units.insert(*key, slices);
        }
        Ok(out)
    }

    /// The shape of a matrix.
    pub fn shape(&self, slot: &str) -> Result<(usize, usize)> {
        self.shapes.get(slot).copied().ok_or_else(|| PruneError::NoScores { key: slot.to_owned() })
    }

    /// One vector a site, every entry `value`, by the site's name.
    pub(super) fn vectors(&self, value: f32) -> Values {
        self.units.iter().map(|(key, units)| (key.to_string(), vec![value; units.len()])).collect()
    }

    /// The vectors of the sites among `values`, by site.
    pub(super) fn by_site(&self, values: &Values) -> Result<BTreeMap<Key, Vec<f32>>> {
        let find = |key: &Key| values.get(&key.to_string()).cloned().ok_or_else(|| PruneError::NoScores { key: key.to_string() });
        self.units.keys().map(|key| Ok((*key, find(key)?))).collect()
    }

    /// Entries in matrices of each unit of a site.
    pub(super) fn costs(&self, key: Key) -> Vec<f64> {
        let other = |s: &Slice| self.shapes.get(&s.slot).map_or(0, |(rows, columns)| if s.dim == 0 { *columns } else { *rows });
        let cost = |slices: &Vec<Slice>| slices.iter().map(|s| (s.len * other(s)) as f64).sum();
        self.units.get(&key).into_iter().flatten().map(cost).collect()
    }

    /// Σ ∂L/∂W′ ⊙ W over each unit's group, in f64 in a fixed order; by the site's name.
    pub fn group_sums(&self, backward: &Backward<'_>) -> Result<Values> {
        self.sums(backward, |_, _| true)
    }

    /// The same where a unit's output is read only: the gradient by a gate on it.
    pub fn output_sums(&self, backward: &Backward<'_>) -> Result<Values> {
        self.sums(backward, cuts)
    }

    fn sums(&self, backward: &Backward<'_>, counts: fn(&[Slice], &Slice) -> bool) -> Result<Values> {
        let mut lines: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
        let mut out = Values::new();
        for (key, units) in &self.units {
            let mut sums = Vec::with_capacity(units.len());
            for slices in units {
                let mut sum = 0.0;
                for slice in slices.iter().filter(|s| counts(slices, s)) {
                    let line = match lines.entry((slice.slot.as_str(), slice.dim)) {
                        Entry::Occupied(line) => line.into_mut(),
                        Entry::Vacant(free) => free.insert(self.line_products(backward, &slice.slot, slice.dim)?),
                    };
                    sum += line.iter().skip(slice.start).take(slice.len).sum::<f64>();
                }
                sums.push(sum as f32);
            }
            out.insert(key.to_string(), sums);
        }
        Ok(out)
    }

    /// Σ ∂L/∂W′ ⊙ W of each row (`dim` 0) or column.
    fn line_products(&self, backward: &Backward<'_>, slot: &str, dim: usize) -> Result<Vec<f64>> {
        let (rows, columns) = self.shape(slot)?;
        let mut out = vec![0.0; if dim == 0 { rows } else { columns }];
        // A matrix that the loss did not depend on in this step has no gradient.
        let (Some(g), Some(w)) = (backward.gradients.get(slot), backward.weights.get(slot)) else { return Ok(out) };
        for (i, (g, w)) in g.chunks(columns.max(1)).zip(w.chunks(columns.max(1))).enumerate() {
            let products = g.iter().zip(w).map(|(g, w)| f64::from(*g) * f64::from(*w));
            if dim == 0 {
                if let Some(sum) = out.get_mut(i) {
                    *sum = products.sum();
                }
            } else {
                out.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
            }
        }
        Ok(out)
    }

    /// What the forward pass multiplies weights by under a decision, by slot: 0 or 1. A unit is cut where its output is read (the columns of
    /// `down` and `o`): the function is that without the unit, and its score still has a gradient. Cut on all sides, a network without
    /// biases would give it none, and it could never return.
    pub fn factors(&self, decision: &Decision) -> Result<Values> {
        let mut out = Values::new();
        for (slot, keep) in &decision.weights {
            out.insert(slot.clone(), keep.flatten_all()?.to_vec1::<u8>()?.into_iter().map(f32::from).collect());
        }
        for (key, kept) in &decision.sites {
            let Some(units) = self.units.get(key) else { continue };
            let gates: Vec<f32> = (0..units.len()).map(|u| f32::from(u8::from(kept.binary_search(&u).is_ok()))).collect();
            self.spread(*key, &gates, &mut out)?;
        }
        Ok(out)
    }

    /// Multiplies factors by gates on the outputs of a site's units.
    pub(crate) fn spread(&self, key: Key, gates: &[f32], factors: &mut Values) -> Result<()> {
        for (slices, gate) in self.units.get(&key).into_iter().flatten().zip(gates).filter(|(_, g)| **g != 1.0) {
            for slice in slices.iter().filter(|s| cuts(slices, s)) {
                let (rows, columns) = self.shape(&slice.slot)?;
                let factor = factors.entry(slice.slot.clone()).or_insert_with(|| vec![1.0; rows * columns]);
                let width = columns.max(1);
                for (row, own) in factor.chunks_mut(width).enumerate() {
                    let (from, len) = match slice.dim {
                        1 => (slice.start, slice.len),
                        _ if (slice.start..slice.start + slice.len).contains(&row) => (0, width),
                        _ => continue,
                    };
                    own.iter_mut().skip(from).take(len).for_each(|f| *f *= gate);
                }
            }
        }
        Ok(())
    }

    /// 1 on the selected weights and on those of the selected units' groups, 0 elsewhere, by slot.
    pub(super) fn members(&self) -> Result<Values> {
        let mut out = Values::new();
        for slot in &self.weights {
            let (rows, columns) = self.shape(slot)?;
            out.insert(slot.clone(), vec![1.0; rows * columns]);
        }
        for slice in self.units.values().flatten().flatten() {
            let (rows, columns) = self.shape(&slice.slot)?;
            let member = out.entry(slice.slot.clone()).or_insert_with(|| vec![0.0; rows * columns]);
            for (row, own) in member.chunks_mut(columns.max(1)).enumerate() {
                let (from, len) = if slice.dim == 1 { (slice.start, slice.len) } else { (0, columns) };
                if slice.dim == 1 || (slice.start..slice.start + slice.len).contains(&row) {
                    own.iter_mut().skip(from).take(len).for_each(|m| *m = 1.0);
                }
            }
        }
        Ok(out)
    }

    /// How many of the selected units and weights a decision leaves out, and how many are selected.
    pub fn gone(&self, decision: &Decision) -> Result<(usize, usize)> {
        let (mut gone, mut total) = (0, 0);
        for (key, units) in &self.units {
            let kept = decision.sites.get(key).map(Vec::as_slice).unwrap_or_default();
            for (unit, _) in units.iter().enumerate().filter(|(_, s)| !s.is_empty()) {
                total += 1;
                gone += usize::from(kept.binary_search(&unit).is_err());
            }
        }
        for slot in &self.weights {
            if let Some(keep) = decision.weights.get(slot) {
                let keep = keep.flatten_all()?.to_vec1::<u8>()?;
                total += keep.len();
                gone += keep.iter().filter(|k| **k == 0).count();
            }
        }
        Ok((gone, total))
    }
}

/// Whether a gate on the unit's output stands on this slice: on the columns that read the output, or on the rows where nothing reads it.
fn cuts(slices: &[Slice], slice: &Slice) -> bool {
    slice.dim == 1 || slices.iter().all(|s| s.dim != 1)
}
