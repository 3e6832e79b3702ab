//! Sums over coupled groups: what magnitude, Taylor and Fisher scores have in common.
//!
//! A unit's slices are whole rows or columns of matrices, so one vector of row (or column) sums of each matrix serves all units.
//! Biases and norm weights do not count. Sums are in f64, in the order of the matrix, whatever the threads.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use prunectl_model::{Slice, Transformer};

use crate::error::Result;
use crate::network::Network;
use crate::site::{Key, Sites};

/// How entries become a unit's sum.
#[derive(Clone, Copy)]
pub(crate) struct Fold {
    /// Applied to each entry.
    pub entry: fn(f64) -> f64,
    /// Applied to the sum over each row or column of each member matrix.
    pub line: fn(f64) -> f64,
}

/// The identity, for [`Fold`].
pub(crate) fn same(x: f64) -> f64 {
    x
}

/// A unit's sum and its size.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct GroupSum {
    /// Σ line(Σ entry).
    pub sum: f64,
    /// Entries.
    pub entries: usize,
    /// Member matrices.
    pub members: usize,
}

/// The matrices that the sites' groups touch, and those whose single weights are meant.
pub(crate) fn slots(network: &dyn Network, sites: &Sites) -> Result<BTreeSet<String>> {
    let mut out = sites.weights.clone();
    for (key, units) in &sites.units {
        for unit in units {
            for slice in network.group(*key, unit)? {
                if network.params().shape(&slice.slot)?.len() > 1 {
                    out.insert(slice.slot);
                }
            }
        }
    }
    Ok(out)
}

/// The sum of each selected unit's group over `entries(slot)`, a tensor of the slot's shape.
pub(crate) fn sums(
    network: &dyn Network,
    sites: &Sites,
    fold: Fold,
    entries: &dyn Fn(&str) -> Result<Tensor>,
) -> Result<BTreeMap<Key, Vec<GroupSum>>> {
    let mut lines: BTreeMap<(String, usize), Vec<f64>> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for (key, units) in &sites.units {
        let mut sums = vec![GroupSum::default(); network.count(*key)?];
        for unit in units {
            let Some(own) = sums.get_mut(unit) else { continue };
            let mut members = BTreeSet::new();
            for Slice { slot, dim, start, len } in network.group(*key, unit)? {
                let dims = network.params().shape(&slot)?;
                if dims.len() < 2 {
                    continue;
                }
                own.entries += dims.iter().product::<usize>() / dims.get(dim).copied().unwrap_or(1).max(1) * len;
                let line = match lines.entry((slot.clone(), dim)) {
                    Entry::Occupied(line) => line.into_mut(),
                    Entry::Vacant(free) => free.insert(line_sums(&entries(&slot)?, dim, fold.entry)?),
                };
                own.sum += line.iter().skip(start).take(len).map(|v| (fold.line)(*v)).sum::<f64>();
                members.insert(slot);
            }
            own.members = members.len();
        }
        out.insert(*key, sums);
    }
    Ok(out)
}

/// Σ entry(x) over everything but `dim`, of a matrix.
fn line_sums(t: &Tensor, dim: usize, entry: fn(f64) -> f64) -> Result<Vec<f64>> {
    let (rows, columns) = t.dims2()?;
    let values = t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let lines = values.chunks(columns.max(1));
    if dim == 0 {
        let mut out: Vec<f64> = lines.map(|row| row.iter().map(|x| entry(*x)).sum()).collect();
        out.resize(rows, 0.0);
        return Ok(out);
    }
    let mut out = vec![0.0; columns];
    for row in lines {
        for (sum, x) in out.iter_mut().zip(row) {
            *sum += entry(*x);
        }
    }
    Ok(out)
}

/// Entries along which a head's score is averaged by codes that score dimension by dimension.
pub(crate) fn head_dim(model: &Transformer, key: Key) -> usize {
    use prunectl_recipe::catalogue::SiteKind::{Heads, KvGroups};
    match (key.kind, key.layer.and_then(|l| model.dims().get(l))) {
        (Heads | KvGroups, Some(d)) => d.head_dim.max(1),
        _ => 1,
    }
}
