//! Surgery: a decision applied. Masking writes zeros and keeps shapes; compacting makes tensors smaller. Coupled slices leave together:
//! the network lists them, this file never knows what a head is made of.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Blocked, LayerDims, Slice, Tensors, Transformer};
use prunectl_recipe::catalogue::SiteKind;

use crate::decision::{Decision, Removed, UnitMap, unit_count};
use crate::error::{PruneError, Result};
use crate::site::{Key, slot_layer, to_model};
use crate::units::group;

/// Zeroes what the decision removes (or gives it the value at which `removed` holds it) and adds it to `removed`. Doing it twice is doing it
/// once.
pub fn mask(model: &mut Transformer, removed: &mut Removed, decision: &Decision) -> Result<()> {
    let mut slices = Vec::new();
    for (key, kept) in &decision.sites {
        let total = unit_count(*key, model.dims(), model.blueprint().hidden);
        if let Some(unit) = kept.iter().copied().find(|u| *u >= total) {
            return Err(PruneError::NoSuchUnit { key: *key, unit, available: total });
        }
        for unit in (0..total).filter(|u| kept.binary_search(u).is_err()) {
            slices.extend(group(model, *key, unit)?);
        }
    }
    for slot in decision.weights.keys() {
        let (w, keep) = (model.params().read(slot)?, decision.weights.read(slot)?);
        let keep = keep.ok_or_else(|| PruneError::NoScores { key: slot.clone() })?;
        if w.dims() != keep.dims() {
            return Err(PruneError::ScoreShape { key: slot.clone(), found: keep.elem_count(), expected: w.elem_count() });
        }
        let w = match removed.held.read(slot)? {
            Some(held) => keep.to_device(w.device())?.where_cond(&w, &like(&held, &w)?)?,
            None => masked(&w, &keep)?,
        };
        put(model, slot, w)?;
    }
    // After the weights: of a unit that is gone nothing is held.
    zero(model, &slices)?;
    block(model, decision);
    let (dims, hidden) = (model.dims().to_vec(), model.blueprint().hidden);
    removed.add(decision, &dims, hidden)
}

/// Switches off what zeros alone do not: layers of post-norm networks, experts, and channels that norms would count.
fn block(model: &mut Transformer, decision: &Decision) {
    let (dims, hidden) = (model.dims().to_vec(), model.blueprint().hidden);
    let blocked = model.blocked_mut();
    for (key, kept) in &decision.sites {
        let gone = |n: usize| (0..n).filter(|u| kept.binary_search(u).is_err());
        match (key.kind, key.layer) {
            (SiteKind::Layers, _) => blocked.layers.extend(gone(dims.len())),
            (SiteKind::Hidden, _) => blocked.hidden.extend(gone(hidden)),
            (SiteKind::Experts, Some(layer)) => {
                let experts = dims.get(layer).map_or(0, |d| d.experts);
                blocked.experts.entry(layer).or_default().extend(gone(experts));
            }
            _ => {}
        }
    }
}

/// Replaces a weight; that of a streamed model goes to the disk.
fn put(model: &mut Transformer, slot: &str, w: Tensor) -> Result<()> {
    model.params_mut().set(slot, w);
    Ok(model.params_mut().tensors_mut().put_away(slot)?)
}

/// A weight under its keep mask.
pub(crate) fn masked(w: &Tensor, keep: &Tensor) -> Result<Tensor> {
    let keep = keep.to_device(w.device())?;
    Ok(keep.where_cond(w, &w.zeros_like()?)?)
}

/// A tensor in the type and on the device of another.
fn like(t: &Tensor, other: &Tensor) -> Result<Tensor> {
    Ok(t.to_device(other.device())?.to_dtype(other.dtype())?)
}

/// What masked weights stand at, by slot, f32; slots where all of them are zeros are left out.
pub(crate) fn held(model: &Transformer, removed: &Removed) -> Result<BTreeMap<String, Tensor>> {
    let mut out = BTreeMap::new();
    if removed.held.is_empty() {
        return Ok(out);
    }
    let mut units = keeps(model, &Removed { units: removed.units.clone(), ..Removed::default() })?;
    for (slot, held) in &removed.held {
        let held = match units.remove(slot) {
            Some(keep) => masked(held, &keep)?,
            None => held.clone(),
        };
        out.insert(slot.clone(), held);
    }
    Ok(out)
}

/// Writes zeros into slices, and into those of adapters that are coupled to them: one pass a parameter and dimension.
pub(crate) fn zero(model: &mut Transformer, slices: &[Slice]) -> Result<()> {
    let slices = &with_adapters(model, slices);
    let mut by_slot: BTreeMap<(&str, usize), Vec<&Slice>> = BTreeMap::new();
    for slice in slices {
        by_slot.entry((&slice.slot, slice.dim)).or_default().push(slice);
    }
    for ((slot, dim), slices) in by_slot {
        let w = model.params().read(slot)?;
        let keep = keep_along(&w, dim, &slices)?;
        put(model, slot, masked(&w, &keep)?)?;
    }
    Ok(())
}

/// The slices, and those of adapters that leave with them.
fn with_adapters(model: &Transformer, slices: &[Slice]) -> Vec<Slice> {
    slices.iter().flat_map(|s| std::iter::once(s.clone()).chain(model.adapter_slices(s))).collect()
}

/// u8, the shape of `w`: 0 in the slices.
fn keep_along(w: &Tensor, dim: usize, slices: &[&Slice]) -> Result<Tensor> {
    let n = w.dim(dim)?;
    let mut keep = vec![1u8; n];
    for s in slices {
        for k in keep.iter_mut().skip(s.start).take(s.len) {
            *k = 0;
        }
    }
    let mut shape = vec![1; w.rank()];
    if let Some(d) = shape.get_mut(dim) {
        *d = n;
    }
    Ok(Tensor::from_vec(keep, shape, w.device())?.broadcast_as(w.shape())?.contiguous()?)
}

/// u8 keep masks of every parameter that `removed` touches: single weights and coupled slices of units together.
pub fn keeps(model: &Transformer, removed: &Removed) -> Result<BTreeMap<String, Tensor>> {
    let mut out: BTreeMap<String, Tensor> = BTreeMap::new();
    for (slot, keep) in &removed.weights {
        out.insert(slot.clone(), keep.to_device(&Device::Cpu)?);
    }
    let mut slices = Vec::new();
    for (key, units) in &removed.units.units {
        for unit in units {
            slices.extend(group(model, *key, unit)?);
        }
    }
    let slices = with_adapters(model, &slices);
    let mut by_slot: BTreeMap<(&str, usize), Vec<&Slice>> = BTreeMap::new();
    for slice in &slices {
        by_slot.entry((&slice.slot, slice.dim)).or_default().push(slice);
    }
    for ((slot, dim), slices) in by_slot {
        let keep = keep_along(model.params().require(slot)?, dim, &slices)?.to_device(&Device::Cpu)?;
        let keep = match out.get(slot) {
            Some(before) => before.mul(&keep)?,
            None => keep,
        };
        out.insert(slot.to_owned(), keep);
    }
    Ok(out)
}

/// Takes masked whole units out: the model gets smaller tensors, `map` remembers what its units were, `removed` keeps only masks of
/// single weights, cut to the new shapes.
pub fn compact(model: &mut Transformer, removed: &mut Removed, map: &mut UnitMap) -> Result<()> {
    // The masks of single weights are cut by the same surgery, standing in for the weights in a second network.
    let mut masks = (!removed.weights.is_empty()).then(|| model.clone());
    for slot in removed.weights.keys() {
        if let (Some(masks), Some(keep)) = (&mut masks, removed.weights.read(slot)?) {
            put(masks, slot, keep.to_device(model.device())?.to_dtype(model.dtype())?)?;
        }
    }
    let mut work = Work { model: model.clone(), masks, map: map.clone() };
    for layer in 0..model.n_layers() {
        let dims = *model.layer_dims(layer)?;
        work.attention(layer, &dims, removed)?;
        work.mlp(layer, &dims, removed)?;
    }
    let layers = work.whole(SiteKind::Layers, model.n_layers(), removed)?;
    work.whole(SiteKind::Hidden, model.blueprint().hidden, removed)?;

    let (mut weights, mut held) = (removed.weights.beside()?, Tensors::default());
    for before in removed.weights.keys() {
        let (Some(slot), Some(masks)) = (renamed(before, &layers), &work.masks) else { continue };
        // The matrix may have left with its sublayer.
        if masks.params().has(&slot) {
            let keep = masks.params().read(&slot)?.ne(0.0)?.to_device(&Device::Cpu)?.to_dtype(DType::U8)?;
            if removed.held.contains_key(before) {
                let w = work.model.params().read(&slot)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                held.insert(slot.clone(), masked(&w, &keep.eq(0u8)?)?);
            }
            weights.insert(slot.clone(), keep);
            weights.put_away(&slot)?;
        }
    }
    *model = work.model;
    *model.blocked_mut() = Blocked::default();
    *map = work.map;
    *removed = Removed { weights, held, ..Removed::default() };
    Ok(())
}

/// A slot after only those layers are left.
fn renamed(slot: &str, layers: &[usize]) -> Option<String> {
    let Some(old) = slot_layer(slot) else { return Some(slot.to_owned()) };
    let new = layers.iter().position(|l| *l == old)?;
    Some(format!("layers.{new}{}", slot.strip_prefix(&format!("layers.{old}"))?))
}

struct Work {
    model: Transformer,
    /// None where no single weight is masked.
    masks: Option<Transformer>,
    map: UnitMap,
}

impl Work {
    fn keep(&mut self, key: Key, kept: &[usize]) -> Result<()> {
        let kind = to_model(key.kind).ok_or(PruneError::NothingSelected)?;
        self.model = self.model.keep_units(kind, key.layer, kept)?;
        self.masks = self.masks.as_ref().map(|masks| masks.keep_units(kind, key.layer, kept)).transpose()?;
        self.map.keep(key, kept);
        Ok(())
    }

    /// Sublayers, KV groups, then the heads of those left.
    fn attention(&mut self, layer: usize, dims: &LayerDims, removed: &Removed) -> Result<()> {
        let sublayer = Key::of(SiteKind::Attention, layer);
        let (groups, heads) = (Key::of(SiteKind::KvGroups, layer), Key::of(SiteKind::Heads, layer));
        if removed.has(sublayer, 0) {
            self.map.keep(groups, &[]);
            self.map.keep(heads, &[]);
            return self.keep(sublayer, &[]);
        }
        let size = dims.group_size();
        let kept: Vec<usize> = (0..dims.kv_heads).filter(|g| !removed.has(groups, *g)).collect();
        let there: Vec<usize> = kept.iter().flat_map(|g| g * size..(g + 1) * size).collect();
        if kept.len() < dims.kv_heads {
            self.keep(groups, &kept)?;
            self.map.keep(heads, &there);
        }
        let left: Vec<usize> = there.iter().enumerate().filter(|(_, h)| !removed.has(heads, **h)).map(|(i, _)| i).collect();
        if left.len() < there.len() {
            self.keep(heads, &left)?;
        }
        Ok(())
    }

    /// Sublayers, experts, then the neurons of those left.
    fn mlp(&mut self, layer: usize, dims: &LayerDims, removed: &Removed) -> Result<()> {
        let sublayer = Key::of(SiteKind::Mlp, layer);
        let (experts, neurons) = (Key::of(SiteKind::Experts, layer), Key::of(SiteKind::Neurons, layer));
        if removed.has(sublayer, 0) {
            self.map.keep(experts, &[]);
            self.map.keep(neurons, &[]);
            return self.keep(sublayer, &[]);
        }
        let kept: Vec<usize> = (0..dims.experts).filter(|e| !removed.has(experts, *e)).collect();
        let there: Vec<usize> =
            if dims.experts == 0 { (0..dims.ffn).collect() } else { kept.iter().flat_map(|e| e * dims.ffn..(e + 1) * dims.ffn).collect() };
        if kept.len() < dims.experts {
            self.keep(experts, &kept)?;
            self.map.keep(neurons, &there);
        }
        let left: Vec<usize> = there.iter().enumerate().filter(|(_, n)| !removed.has(neurons, **n)).map(|(i, _)| i).collect();
        if left.len() < there.len() {
            self.keep(neurons, &left)?;
        }
        Ok(())
    }

    /// Layers or hidden channels.
    fn whole(&mut self, kind: SiteKind, total: usize, removed: &Removed) -> Result<Vec<usize>> {
        let key = Key { kind, layer: None };
        let kept: Vec<usize> = (0..total).filter(|u| !removed.has(key, *u)).collect();
        if kept.len() < total {
            self.keep(key, &kept)?;
        }
        Ok(kept)
    }
}
