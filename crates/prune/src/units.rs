//! What criteria ask of a network, in the recipe's kinds of site.

use prunectl_model::{Slice, Transformer};

use crate::error::{PruneError, Result};
use crate::site::{Key, to_model};

/// Units of a site.
pub(crate) fn count(model: &Transformer, key: Key) -> Result<usize> {
    if let Some(layer) = key.layer {
        model.layer_dims(layer)?;
    }
    Ok(crate::decision::unit_count(key, model.dims(), model.blueprint().hidden))
}

/// The coupled slices of a unit.
pub(crate) fn group(model: &Transformer, key: Key, unit: usize) -> Result<Vec<Slice>> {
    let kind = to_model(key.kind).ok_or(PruneError::NothingSelected)?;
    Ok(model.group(kind, key.layer, unit)?)
}
