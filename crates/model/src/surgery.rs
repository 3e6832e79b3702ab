//! Smaller models: units leave with every slice that is coupled to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;

use crate::dims::LayerDims;
use crate::error::{ModelError, Result};
use crate::params::Params;
use crate::site::{self, SiteKind, Slice, heads_by_group};
use crate::tensors::Tensors;
use crate::transformer::Transformer;

/// Indices that leave, by slot and dimension.
type Gone = BTreeMap<(String, usize), BTreeSet<usize>>;
/// The new name of a slot. None: the slot is gone.
type Rename<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

impl Transformer {
    /// Units of that kind in the layer; `layer` is None for `Layers` and `Hidden`, whose units are the whole model's.
    pub fn units(&self, kind: SiteKind, layer: Option<usize>) -> Result<usize> {
        site::units(&self.blueprint, &self.dims, kind, layer)
    }

    /// The coupled slices of one unit: see `site::group`.
    pub fn group(&self, kind: SiteKind, layer: Option<usize>, unit: usize) -> Result<Vec<Slice>> {
        site::group(&self.blueprint, &self.dims, kind, layer, unit)
    }

    /// Slots of the weight matrices of a layer, in the order in which they are applied (routers left out).
    pub fn linears(&self, layer: usize) -> Result<Vec<String>> {
        site::linears(&self.blueprint, &self.dims, layer)
    }

    /// The smaller model that keeps these units (ascending). Keeping all of them gives the same tensors, not copies.
    ///
    /// Query heads that share keys and values must stay equally many in each group that stays at all.
    pub fn keep_units(&self, kind: SiteKind, layer: Option<usize>, kept: &[usize]) -> Result<Self> {
        let (blueprint, dims) = site::shrink(&self.blueprint, &self.dims, kind, layer, kept)?;
        let available = self.units(kind, layer)?;
        if kept.len() == available {
            return Ok(self.clone());
        }
        let gone = self.gone(kind, layer, kept, available)?;
        let rename = self.renames(kind, layer, kept);
        let mut slots: BTreeMap<String, Vec<usize>> = blueprint.slots(&dims).into_iter().map(|s| (s.name, s.shape)).collect();
        let mut params = Params::from(Tensors::on(self.params.tensors().shelf().cloned()));
        for old in self.params.slots() {
            let Some(new) = rename(old) else { continue };
            let Some(shape) = slots.remove(&new) else { continue };
            let smaller = (0..self.params.shape(old)?.len()).any(|dim| gone.contains_key(&(old.to_owned(), dim)));
            if smaller {
                let mut tensor = self.params.read(old)?;
                for dim in 0..tensor.rank() {
                    if let Some(drop) = gone.get(&(old.to_owned(), dim)) {
                        tensor = drop_indices(&tensor, dim, drop)?;
                    }
                }
                params.set(new.as_str(), tensor);
                params.tensors_mut().put_away(&new)?;
            } else {
                params.tensors_mut().share(new.as_str(), self.params.tensors(), old);
            }
            if params.shape(&new)? != shape {
                return Err(ModelError::Mismatch {
                    what: format!("shape of `{new}` after removing {}", kind.name()),
                    found: format!("{:?}", params.shape(&new)?),
                    expected: format!("{shape:?}"),
                });
            }
        }
        if let Some((slot, _)) = slots.pop_first() {
            return Err(ModelError::MissingSlot { slot });
        }
        self.carry_adapters(&mut params, &gone, &rename)?;
        Ok(Self { blueprint: Arc::new(blueprint), dims, params, ..self.clone() })
    }

    /// The model with only these layers (ascending).
    pub fn keep_layers(&self, kept: &[usize]) -> Result<Self> {
        self.keep_units(SiteKind::Layers, None, kept)
    }

    /// The same function with a key/value head of its own for each query head: any set of heads can leave then. The layer grows.
    pub fn unshare_kv(&self, layer: usize) -> Result<Self> {
        let d = *self.layer_dims(layer)?;
        let copies = d.group_size();
        if copies <= 1 {
            return Ok(self.clone());
        }
        let mut model = self.clone();
        for name in ["k", "v"] {
            for leaf in ["weight", "bias"] {
                let slot = format!("layers.{layer}.attention.{name}.{leaf}");
                let Some(tensor) = self.params.get(&slot) else { continue };
                let rest = tensor.elem_count() / d.kv_width();
                let mut shape = tensor.dims().to_vec();
                if let Some(rows) = shape.first_mut() {
                    *rows = d.q_width();
                }
                let repeated = tensor.reshape((d.kv_heads, 1, d.head_dim * rest))?.repeat((1, copies, 1))?;
                model.params.set(slot, repeated.reshape(shape)?);
            }
        }
        if let Some(d) = model.dims.get_mut(layer) {
            d.kv_heads = d.q_heads;
        }
        Ok(model)
    }

    /// Indices that leave, by slot and dimension.
    fn gone(&self, kind: SiteKind, layer: Option<usize>, kept: &[usize], available: usize) -> Result<Gone> {
        let mut gone = Gone::new();
        let mut add = |slices: Vec<Slice>| {
            for s in slices {
                gone.entry((s.slot, s.dim)).or_default().extend(s.start..s.start + s.len);
            }
        };
        if matches!(kind, SiteKind::Layers | SiteKind::Attention | SiteKind::Mlp) {
            return Ok(gone); // Whole slots, which are not in the smaller network's list.
        }
        let kept_set: BTreeSet<usize> = kept.iter().copied().collect();
        for unit in (0..available).filter(|u| !kept_set.contains(u)) {
            add(self.group(kind, layer, unit)?);
        }
        // Keys and values leave with the last query head of their group.
        if let (SiteKind::Heads, Some(layer)) = (kind, layer) {
            let d = self.layer_dims(layer)?;
            if d.group_size() > 1 {
                for (g, _) in heads_by_group(d, kept).iter().enumerate().filter(|(_, n)| **n == 0) {
                    let slices = self.group(SiteKind::KvGroups, Some(layer), g)?;
                    add(slices.into_iter().filter(|s| s.slot.contains(".k.") || s.slot.contains(".v.")).collect());
                }
            }
        }
        Ok(gone)
    }

    /// New names of slots: layers and experts are counted anew. None: the slot is gone.
    fn renames<'a>(&self, kind: SiteKind, layer: Option<usize>, kept: &'a [usize]) -> Rename<'a> {
        let prefix = match (kind, layer) {
            (SiteKind::Layers, _) => "layers.".to_owned(),
            (SiteKind::Experts, Some(layer)) => format!("layers.{layer}.mlp.experts."),
            _ => return Box::new(|old| Some(old.to_owned())),
        };
        Box::new(move |old| {
            let Some((index, rest)) = old.strip_prefix(&prefix).and_then(|rest| rest.split_once('.')) else {
                return Some(old.to_owned());
            };
            let index: usize = index.parse().ok()?;
            let new = kept.iter().position(|k| *k == index)?;
            Some(format!("{prefix}{new}.{rest}"))
        })
    }
}

/// The tensor without some indices of a dimension.
pub(crate) fn drop_indices(tensor: &Tensor, dim: usize, drop: &BTreeSet<usize>) -> Result<Tensor> {
    let kept: Vec<u32> = (0..tensor.dim(dim)?).filter(|i| !drop.contains(i)).map(|i| i as u32).collect();
    if kept.is_empty() {
        return Ok(tensor.narrow(dim, 0, 0)?);
    }
    let n = kept.len();
    Ok(tensor.contiguous()?.index_select(&Tensor::from_vec(kept, n, tensor.device())?, dim)?)
}

impl LayerDims {
    /// The legal sets of query heads that keep the best `per_group` of each key/value group, given an order of all heads, best first.
    pub fn best_per_group(&self, best_first: &[usize], per_group: usize) -> Vec<usize> {
        let mut counts = vec![0; self.kv_heads];
        let mut kept: Vec<usize> = best_first
            .iter()
            .copied()
            .filter(|head| {
                let count = head.checked_div(self.group_size()).and_then(|g| counts.get_mut(g));
                count.is_some_and(|n| {
                    *n += 1;
                    *n <= per_group
                })
            })
            .collect();
        kept.sort_unstable();
        kept
    }
}
