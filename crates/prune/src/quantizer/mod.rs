//! Quantisers: `quantize m using …`, after pruning. One file each, ending in its row.

mod int8;

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::Entry;

use crate::error::Result;

/// A way to store weights in fewer bits.
pub trait Quantizer: Send + Sync {
    /// The model that computes with the stored weights.
    fn quantize(&self, model: &Transformer) -> Result<Transformer>;
}

/// Every quantiser that the language knows.
pub static QUANTIZERS: &[Entry<dyn Quantizer>] = &[int8::ENTRY];
