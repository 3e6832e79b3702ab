//! Scores: what a criterion says about units and weights. Finite; a higher score is a better reason to keep.

use std::collections::BTreeMap;

use prunectl_model::{Tensors, Transformer};

use crate::error::{PruneError, Result};
use crate::site::Key;

/// Scores of the units and weights that a criterion was asked for.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// One f32 a unit of the site as the model is now. Units that the selector does not name have 0 and are never looked at.
    pub sites: BTreeMap<Key, Vec<f32>>,
    /// f32 `[out, in]`, the shape of the slot's matrix.
    pub weights: Tensors,
}

impl Scores {
    /// None yet; those of a streamed model's weights can be put away.
    ///
    /// # Errors
    /// No file can be made beside the model's.
    pub fn beside(model: &Transformer) -> Result<Self> {
        Ok(Self { sites: BTreeMap::new(), weights: model.params().tensors().beside()? })
    }

    /// Adds the scores of other sites; those of weights are put away, where the model is streamed.
    ///
    /// # Errors
    /// The disk is full.
    pub fn add(&mut self, other: Self) -> Result<()> {
        self.sites.extend(other.sites);
        Ok(self.weights.store(other.weights)?)
    }

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
        for slot in self.weights.keys() {
            let Some(t) = self.weights.read(slot)? else { continue };
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
}
