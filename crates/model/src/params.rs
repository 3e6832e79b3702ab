//! The parameters of a network under canonical names.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::{ModelError, Result};

/// Parameters by slot (`layers.3.attention.q.weight`). Fused projections are split on loading; matrices are `[out, in]`.
///
/// A training step replaces entries by the tensors of `Var`s, a masked forward by graph tensors; the network only reads.
#[derive(Debug, Clone, Default)]
pub struct Params(pub BTreeMap<String, Tensor>);

impl Params {
    /// The tensor of that slot.
    pub fn get(&self, slot: &str) -> Option<&Tensor> {
        self.0.get(slot)
    }

    /// The tensor of that slot, or an error that names it.
    pub fn require(&self, slot: &str) -> Result<&Tensor> {
        self.0.get(slot).ok_or_else(|| ModelError::MissingSlot { slot: slot.to_owned() })
    }

    /// Replaces or adds a tensor.
    pub fn set(&mut self, slot: impl Into<String>, tensor: Tensor) {
        self.0.insert(slot.into(), tensor);
    }

    /// Slots and tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of scalars.
    pub fn count(&self) -> u64 {
        self.0.values().map(|t| t.elem_count() as u64).sum()
    }
}
