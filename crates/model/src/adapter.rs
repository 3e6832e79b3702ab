//! Adapters: small trained matrices beside a frozen weight. The network adds them where it multiplies by the weight; they leave with its
//! rows and columns, and fuse into it exactly.
//!
//! They stand among the parameters under the weight's stem: `….adapter.rows` `[rank, in]`, `….adapter.cols` `[out, rank]` and, where the
//! update is scaled, `….adapter.scale` `[]`; or `….adapter.positions` `[n, out / p, in / q]` with `….adapter.keep_rows` `[out]` and
//! `….adapter.keep_cols` `[in]` (0 where the weight's row or column was removed) and the prototypes that all of the model's matrices share,
//! `adapter.prototypes.cols` `[n, p, rank]` and `adapter.prototypes.rows` `[n, rank, q]`.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use prunectl_kernels as kernels;

use crate::error::{ModelError, Result};
use crate::params::Params;
use crate::site::Slice;
use crate::surgery::drop_indices;
use crate::transformer::Transformer;

/// What stands between a stem and the name of an adapter's tensor.
const INFIX: &str = ".adapter.";
/// Names of shared tensors begin with it.
const SHARED: &str = "adapter.";
/// Shared prototypes, `[n, p, rank]`.
pub const PROTOTYPE_COLS: &str = "adapter.prototypes.cols";
/// Shared prototypes, `[n, rank, q]`.
pub const PROTOTYPE_ROWS: &str = "adapter.prototypes.rows";

/// A tensor of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterPart {
    /// `[rank, in]`.
    Rows,
    /// `[out, rank]`.
    Cols,
    /// A scalar that does not train.
    Scale,
    /// `[n, out / p, in / q]`.
    Positions,
    /// `[out]`, does not train.
    KeepRows,
    /// `[in]`, does not train.
    KeepCols,
}

impl AdapterPart {
    fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Cols => "cols",
            Self::Scale => "scale",
            Self::Positions => "positions",
            Self::KeepRows => "keep_rows",
            Self::KeepCols => "keep_cols",
        }
    }

    /// Where the part of a stem's adapter stands (`layers.0.attention.q`).
    pub fn slot(self, stem: &str) -> String {
        format!("{stem}{INFIX}{}", self.name())
    }
}

/// The stem of a weight's slot.
pub fn stem_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Whether the slot holds a tensor of an adapter.
pub fn is_adapter(slot: &str) -> bool {
    slot.contains(INFIX) || slot.starts_with(SHARED)
}

/// Whether the slot holds a tensor of an adapter that trains.
pub fn trains(slot: &str) -> bool {
    let fixed = [AdapterPart::Scale, AdapterPart::KeepRows, AdapterPart::KeepCols];
    is_adapter(slot) && !fixed.iter().any(|p| slot.ends_with(&format!("{INFIX}{}", p.name())))
}

/// y = x(W + ΔW)ᵀ + b, without forming ΔW where it is of low rank.
pub(crate) fn linear(params: &Params, stem: &str, x: &Tensor) -> Result<Tensor> {
    let (weight, bias) = (params.require(&format!("{stem}.weight"))?, params.get(&format!("{stem}.bias")));
    let part = |part: AdapterPart| params.get(&part.slot(stem));
    if let (Some(rows), Some(cols)) = (part(AdapterPart::Rows), part(AdapterPart::Cols)) {
        let update = kernels::linear(&kernels::linear(x, rows, None)?, cols, None)?;
        let update = match part(AdapterPart::Scale) {
            Some(scale) => update.broadcast_mul(scale)?,
            None => update,
        };
        return Ok((kernels::linear(x, weight, bias)? + update)?);
    }
    match part(AdapterPart::Positions) {
        None => Ok(kernels::linear(x, weight, bias)?),
        Some(positions) => Ok(kernels::linear(x, &(weight + prototypes(params, stem, positions)?)?, bias)?),
    }
}

/// Whether the weight of that stem carries an adapter.
pub(crate) fn has_adapter(params: &Params, stem: &str) -> bool {
    [AdapterPart::Rows, AdapterPart::Positions].iter().any(|part| params.has(&part.slot(stem)))
}

/// ΔW of a stem, `[out, in]`; None without an adapter.
pub(crate) fn update(params: &Params, stem: &str) -> Result<Option<Tensor>> {
    let part = |part: AdapterPart| params.get(&part.slot(stem));
    if let (Some(rows), Some(cols)) = (part(AdapterPart::Rows), part(AdapterPart::Cols)) {
        let update = cols.matmul(rows)?;
        return Ok(Some(match part(AdapterPart::Scale) {
            Some(scale) => update.broadcast_mul(scale)?,
            None => update,
        }));
    }
    part(AdapterPart::Positions).map(|positions| prototypes(params, stem, positions)).transpose()
}

/// Σ_n positions_n ⊗ (cols_n · rows_n), removed rows and columns zeroed.
fn prototypes(params: &Params, stem: &str, positions: &Tensor) -> Result<Tensor> {
    let (n, down, across) = positions.dims3()?;
    let blocks = params.require(PROTOTYPE_COLS)?.matmul(params.require(PROTOTYPE_ROWS)?)?; // [n, p, q]
    let (_, p, q) = blocks.dims3()?;
    let mixed = positions.reshape((n, down * across))?.t()?.matmul(&blocks.reshape((n, p * q))?)?; // [down · across, p · q]
    let update = mixed.reshape((down, across, p, q))?.transpose(1, 2)?.contiguous()?.reshape((down * p, across * q))?;
    let rows = params.require(&AdapterPart::KeepRows.slot(stem))?.unsqueeze(1)?;
    let cols = params.require(&AdapterPart::KeepCols.slot(stem))?.unsqueeze(0)?;
    Ok(update.broadcast_mul(&rows)?.broadcast_mul(&cols)?)
}

impl Transformer {
    /// One projection as the network computes it, adapters included.
    pub fn project(&self, stem: &str, x: &Tensor) -> Result<Tensor> {
        linear(&self.params, stem, x)
    }

    /// Stems whose weight carries an adapter.
    pub fn adapted(&self) -> BTreeSet<String> {
        let slots = self.params.slots().filter_map(|slot| slot.split_once(INFIX));
        slots.map(|(stem, _)| stem.to_owned()).collect()
    }

    /// The same function with the adapters of these stems added into their weights. Shared prototypes go with the last that uses them.
    pub fn fused(&self, stems: &BTreeSet<String>) -> Result<Self> {
        let mut model = self.clone();
        for stem in stems {
            let Some(update) = update(&self.params, stem)? else { continue };
            let slot = format!("{stem}.weight");
            let weight = (self.params.require(&slot)? + update)?;
            model.params.set(slot, weight);
            let prefix = format!("{stem}{INFIX}");
            model.params.retain(|slot| !slot.starts_with(&prefix));
        }
        if !model.params.slots().any(|slot| slot.ends_with(&format!("{INFIX}positions"))) {
            model.params.retain(|slot| !slot.starts_with(SHARED));
        }
        Ok(model)
    }

    /// The slices of adapters that are coupled to a slice of a weight.
    pub fn adapter_slices(&self, slice: &Slice) -> Vec<Slice> {
        let Some(stem) = slice.slot.strip_suffix(".weight") else { return Vec::new() };
        let own: &[(AdapterPart, usize)] = match slice.dim {
            0 => &[(AdapterPart::Cols, 0), (AdapterPart::KeepRows, 0)],
            _ => &[(AdapterPart::Rows, 1), (AdapterPart::KeepCols, 0)],
        };
        let there = own.iter().map(|(part, dim)| (part.slot(stem), *dim)).filter(|(slot, _)| self.params.has(slot));
        there.map(|(slot, dim)| Slice { slot, dim, start: slice.start, len: slice.len }).collect()
    }

    /// Carries adapters over into a smaller model. `gone` are the indices that leave each weight, by slot and dimension.
    pub(crate) fn carry_adapters(
        &self,
        smaller: &mut Params,
        gone: &BTreeMap<(String, usize), BTreeSet<usize>>,
        rename: &dyn Fn(&str) -> Option<String>,
    ) -> Result<()> {
        for (slot, tensor) in self.params.iter().filter(|(slot, _)| is_adapter(slot)) {
            let Some((stem, part)) = slot.split_once(INFIX) else {
                smaller.set(slot, tensor.clone());
                continue;
            };
            let there = |stem: &String| smaller.has(&format!("{stem}.weight"));
            let Some(new) = rename(slot).filter(|new| new.split_once(INFIX).is_some_and(|(s, _)| there(&s.to_owned()))) else { continue };
            let of = |dim: usize| gone.get(&(format!("{stem}.weight"), dim)).filter(|g| !g.is_empty());
            let tensor = match (part, of(0), of(1)) {
                ("rows", _, Some(columns)) => drop_indices(tensor, 1, columns)?,
                ("cols", Some(rows), _) => drop_indices(tensor, 0, rows)?,
                ("positions", rows, columns) if rows.is_some() || columns.is_some() => {
                    return Err(ModelError::Mismatch {
                        what: format!("adapter of `{stem}`"),
                        found: "blocks of prototypes, which can't lose single rows or columns".into(),
                        expected: "fuse it before `compact`".into(),
                    });
                }
                _ => tensor.clone(),
            };
            smaller.set(new, tensor);
        }
        Ok(())
    }
}
