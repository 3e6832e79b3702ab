//! `layout = padded`: removed units come back as zeros, in the original model's shape, so that every loader of the family reads it.
//!
//! A head of zeros attends evenly to values of zero, a neuron of zeros meets a zero column of the down projection: both add exactly 0.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{LayerDims, Params, SlotKind, Transformer};

use super::SaveError;
use super::record::PruneRecord;

/// `model` with each present layer in the shape that it had in the original model.
pub(super) fn pad(model: &Transformer, record: &PruneRecord) -> Result<Transformer, SaveError> {
    let refuse = |reason: String| SaveError::Padding { reason };
    if record.layers.len() != model.n_layers() {
        let reason = format!("the record lists {} layers, the model has {}", record.layers.len(), model.n_layers());
        return Err(refuse(reason));
    }
    let mut dims = Vec::with_capacity(model.n_layers());
    let mut kept = Vec::with_capacity(model.n_layers());
    for (now, original_layer) in model.dims().iter().zip(&record.layers) {
        let Some(original) = record.original.get(*original_layer).copied() else {
            return Err(refuse(format!("layer {original_layer} is not among the original model's {} layers", record.original.len())));
        };
        if original.experts != now.experts {
            let reason = format!(
                "layer {original_layer} has {} of {} experts left, and a router gives a zeroed expert its share all the same; save it with layout = compact",
                now.experts, original.experts
            );
            return Err(refuse(reason));
        }
        kept.push(Kept::of(record, *original_layer, now, &original)?);
        dims.push(original);
    }
    // The original model's flags say nothing of it: a sublayer that is whole has its bias.
    let slots = model.blueprint().slots(&dims);
    let mut params = BTreeMap::new();
    for slot in slots {
        let layer = slot.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
        let tensor = match (model.params().get(&slot.name), layer) {
            (Some(tensor), None) => tensor.clone(),
            (Some(tensor), Some((index, part))) => {
                let index: usize = index.parse().unwrap_or(usize::MAX);
                match (kept.get(index), dims.get(index)) {
                    (Some(kept), Some(original)) => kept.scatter(tensor, part, original)?,
                    _ => tensor.clone(),
                }
            }
            // Gone with its sublayer: a norm before zeros may be anything, so it is what an untrained one is.
            (None, _) if slot.kind == SlotKind::NormWeight => Tensor::ones(slot.shape.as_slice(), model.dtype(), model.device())?,
            (None, _) => Tensor::zeros(slot.shape.as_slice(), model.dtype(), model.device())?,
        };
        params.insert(slot.name, tensor);
    }
    Ok(model.with_shape(dims, Params::from(params))?)
}

/// Units of one layer that are still there, by their index in the original layer.
struct Kept {
    heads: Vec<usize>,
    kv_groups: Vec<usize>,
    /// One list per expert; one in all for a dense MLP.
    neurons: Vec<Vec<usize>>,
}

impl Kept {
    fn of(record: &PruneRecord, layer: usize, now: &LayerDims, original: &LayerDims) -> Result<Self, SaveError> {
        // A layer that has all its units may still list fewer as kept: those that are masked, and already are zeros in their place.
        let listed = |site: &str, whole: bool| {
            let site = record.sites.iter().find(|s| s.site == site).filter(|_| !whole);
            site.and_then(|s| s.kept.get(&layer)).cloned()
        };
        let (all_heads, all_groups) = (now.q_heads == original.q_heads, now.kv_heads == original.kv_heads);
        let group = original.group_size();
        let kv_groups = match listed("attention.kv_groups", all_groups) {
            Some(list) => list,
            None if now.q_heads == 0 => Vec::new(),
            // Without grouping a removed head takes its key and value with it.
            None if group == 1 => listed("attention.heads", all_heads).unwrap_or_else(|| (0..original.kv_heads).collect()),
            None => (0..original.kv_heads).collect(),
        };
        let in_kept_group = |h: &usize| h.checked_div(group).is_some_and(|g| kv_groups.contains(&g));
        let heads: Vec<usize> = match listed("attention.heads", all_heads) {
            Some(list) => list.into_iter().filter(in_kept_group).collect(),
            None => (0..original.q_heads).filter(in_kept_group).collect(),
        };
        let experts = original.experts.max(1);
        let all: Vec<usize> = match listed("mlp.neurons", now.ffn == original.ffn) {
            Some(list) => list,
            None if now.ffn == 0 => Vec::new(),
            None => (0..original.ffn * experts).collect(),
        };
        let neurons: Vec<Vec<usize>> = (0..experts)
            .map(|e| all.iter().filter(|u| **u / original.ffn.max(1) == e).map(|u| *u % original.ffn.max(1)).collect())
            .collect();
        let check = |what: &str, found: usize, expected: usize| {
            if found == expected {
                return Ok(());
            }
            let reason = format!(
                "layer {layer} has {expected} {what}, of which {found} are kept: some are masked beside others that are gone; write `compact` before this save"
            );
            Err(SaveError::Padding { reason })
        };
        check("heads", heads.len(), now.q_heads)?;
        check("key/value heads", if now.q_heads == 0 { 0 } else { kv_groups.len() }, now.kv_heads)?;
        for list in &neurons {
            check("neurons", list.len(), now.ffn)?;
        }
        Ok(Self { heads, kv_groups, neurons })
    }

    /// One parameter of the layer, zeros where units are missing.
    fn scatter(&self, tensor: &Tensor, part: &str, original: &LayerDims) -> Result<Tensor, SaveError> {
        let head = original.head_dim;
        let (expert, part) = match part.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.')) {
            Some((index, part)) => (index.parse().unwrap_or(usize::MAX), format!("mlp.{part}")),
            None => (0, part.to_owned()),
        };
        let neurons = self.neurons.get(expert).map_or([].as_slice(), Vec::as_slice);
        match part.as_str() {
            "attention.q.weight" | "attention.q.bias" => spread(tensor, 0, &self.heads, head, original.q_heads),
            "attention.k.weight" | "attention.k.bias" | "attention.v.weight" | "attention.v.bias" => {
                spread(tensor, 0, &self.kv_groups, head, original.kv_heads)
            }
            "attention.o.weight" => spread(tensor, 1, &self.heads, head, original.q_heads),
            "mlp.gate.weight" | "mlp.gate.bias" | "mlp.up.weight" | "mlp.up.bias" => spread(tensor, 0, neurons, 1, original.ffn),
            "mlp.down.weight" => spread(tensor, 1, neurons, 1, original.ffn),
            _ => Ok(tensor.clone()),
        }
    }
}

/// Puts unit i of `tensor` (each `width` indices of `dim`) at unit `kept[i]` of `units`, zeros elsewhere.
fn spread(tensor: &Tensor, dim: usize, kept: &[usize], width: usize, units: usize) -> Result<Tensor, SaveError> {
    if kept.len() == units {
        return Ok(tensor.clone());
    }
    let size = tensor.dim(dim)?;
    let mut zero = tensor.dims().to_vec();
    if let Some(n) = zero.get_mut(dim) {
        *n = 1;
    }
    let zero = Tensor::zeros(zero, DType::F32, tensor.device())?.to_dtype(tensor.dtype())?;
    let with_zero = Tensor::cat(&[tensor, &zero], dim)?;
    let mut index = vec![size as u32; units * width];
    for (from, to) in kept.iter().enumerate() {
        for i in 0..width {
            if let Some(slot) = index.get_mut(to * width + i) {
                *slot = (from * width + i) as u32;
            }
        }
    }
    Ok(with_zero.contiguous()?.index_select(&Tensor::new(index, tensor.device())?, dim)?)
}
