//! A matrix of a model's files by its rows alone: what has a weight's outputs without its inputs (the `B` of an adapter) lies as these do.

use candle_core::Tensor;

use super::{FileTensor, named_tensors};
use crate::error::Result;
use crate::transformer::Transformer;

/// A matrix under the name of the family's files, and the slots that it holds: several where projections are fused.
#[derive(Debug, Clone)]
pub struct FileMatrix {
    /// Its name in the files.
    pub name: String,
    /// Whether it lies there as `[in, out]`.
    pub turned: bool,
    tensor: FileTensor,
}

impl FileMatrix {
    /// Every matrix of a model's files.
    ///
    /// # Errors
    /// The family's table has no name for a slot.
    pub fn all(model: &Transformer) -> Result<Vec<Self>> {
        let matrix = |(name, tensor): (String, FileTensor)| {
            let rank = tensor.parts.first().map_or(0, |slot| slot.shape.len());
            let turned = tensor.turned(&[0, 1]) != [0, 1];
            (rank == 2).then(|| Self { name, turned, tensor: tensor.upright() })
        };
        Ok(named_tensors(model)?.into_iter().filter_map(matrix).collect())
    }

    /// The slots in it with their rows.
    pub fn slots(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tensor.parts.iter().map(|slot| (slot.name.as_str(), slot.shape.first().copied().unwrap_or_default()))
    }

    /// Rows of all slots, `[rows of each, n]`, in the file's order.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn join(&self, parts: &[Tensor]) -> Result<Tensor> {
        self.tensor.join(parts)
    }

    /// The inverse of [`Self::join`].
    ///
    /// # Errors
    /// Another number of rows.
    pub fn split(&self, rows: &Tensor) -> Result<Vec<Tensor>> {
        self.tensor.split(rows)
    }
}
