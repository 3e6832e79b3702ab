//! Scores: what a criterion says about units and weights. Finite; a higher score is a better reason to keep.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::{PruneError, Result};
use crate::site::Key;

/// Scores of the units and weights that a criterion was asked for.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// One f32 a unit of the site as the model is now. Units that the selector does not name have 0 and are never looked at.
    pub sites: BTreeMap<Key, Vec<f32>>,
    /// f32 `[out, in]`, the shape of the slot's matrix.
    pub weights: BTreeMap<String, Tensor>,
}

impl Scores {
    /// Refuses NaN and infinities, naming the unit. `-0.0` becomes `0.0`, so that ties are ties.
    pub fn checked(mut self, method: &'static str) -> Result<Self> {
        for (key, values) in &mut self.sites {
            for (unit, value) in values.iter_mut().enumerate() {
                if !value.is_finite() {
                    return Err(PruneError::NotFinite { method, key: *key, unit, value: *value });
                }
                *value += 0.0;
            }
        }
        for (slot, t) in &self.weights {
            let values = t.flatten_all()?.to_vec1::<f32>()?;
            if let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
                return Err(PruneError::WeightNotFinite { method, slot: slot.clone(), index, value: *value });
            }
        }
        Ok(self)
    }

    /// Scores of a site, if it was scored.
    pub fn get(&self, key: Key) -> Option<&[f32]> {
        self.sites.get(&key).map(Vec::as_slice)
    }

    /// The tensors of a scores file: `layers.{i}.attention.heads` and the slots of weights.
    pub fn to_tensors(&self, device: &candle_core::Device) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        for (key, values) in &self.sites {
            out.insert(key.to_string(), Tensor::from_slice(values, values.len(), device)?);
        }
        for (slot, t) in &self.weights {
            out.insert(slot.clone(), t.clone());
        }
        Ok(out)
    }

    /// Reads what [`Scores::to_tensors`] wrote; names that are no site are slots of weights.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        let mut out = Self::default();
        for (name, t) in tensors {
            let t = t.to_dtype(candle_core::DType::F32)?;
            match Key::parse(&name) {
                Some(key) => {
                    out.sites.insert(key, t.flatten_all()?.to_vec1()?);
                }
                None => {
                    out.weights.insert(name, t);
                }
            }
        }
        out.checked("stored scores")
    }
}
