//! The parameters of a network under canonical names.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::{ModelError, Result};
use crate::tensors::Tensors;

/// Parameters by slot (`layers.3.attention.q.weight`). Fused projections are split on loading; matrices are `[out, in]`.
///
/// A training step replaces entries by the tensors of `Var`s, a masked forward by graph tensors; the network only reads. Those of a model
/// that is streamed lie on the disk: a pass holds one block's at a time, and whoever asks for one keeps it until it is put away.
#[derive(Debug, Clone, Default)]
pub struct Params(pub(crate) Tensors);

impl Params {
    /// The tensor of that slot.
    pub fn get(&self, slot: &str) -> Option<&Tensor> {
        self.0.get(slot)
    }

    /// Whether there is a tensor of that slot.
    pub fn has(&self, slot: &str) -> bool {
        self.0.contains_key(slot)
    }

    /// The tensor of that slot, or an error that names it.
    pub fn require(&self, slot: &str) -> Result<&Tensor> {
        self.0.hold(slot)?.ok_or_else(|| missing(slot))
    }

    /// The same; one on the disk is not kept in memory.
    ///
    /// # Errors
    /// There is none, or it can't be read.
    pub fn read(&self, slot: &str) -> Result<Tensor> {
        self.0.read(slot)?.ok_or_else(|| missing(slot))
    }

    /// The shape of that slot's tensor.
    ///
    /// # Errors
    /// There is none.
    pub fn shape(&self, slot: &str) -> Result<&[usize]> {
        self.0.shape(slot).ok_or_else(|| missing(slot))
    }

    /// Replaces or adds a tensor.
    pub fn set(&mut self, slot: impl Into<String>, tensor: Tensor) {
        self.0.insert(slot.into(), tensor);
    }

    /// Every slot, by name.
    pub fn slots(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Slots and tensors, by name, of those in memory: all, unless the model is streamed.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Keeps the slots that are wanted.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.0.retain(wanted);
    }

    /// The tensors.
    pub fn tensors(&self) -> &Tensors {
        &self.0
    }

    /// The tensors, to be brought or put away.
    pub fn tensors_mut(&mut self) -> &mut Tensors {
        &mut self.0
    }

    /// Whether the model is streamed: its tensors lie on the disk.
    pub fn streamed(&self) -> bool {
        self.0.shelf().is_some()
    }

    /// Number of scalars.
    pub fn count(&self) -> u64 {
        self.0.count()
    }
}

impl From<BTreeMap<String, Tensor>> for Params {
    fn from(tensors: BTreeMap<String, Tensor>) -> Self {
        Self(tensors.into())
    }
}

impl From<Tensors> for Params {
    fn from(tensors: Tensors) -> Self {
        Self(tensors)
    }
}

fn missing(slot: &str) -> ModelError {
    ModelError::MissingSlot { slot: slot.to_owned() }
}

/// What stands in front of a layer's slots.
pub fn layer_prefix(layer: usize) -> String {
    format!("layers.{layer}.")
}
