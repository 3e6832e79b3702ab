//! Quantisers: `quantize m using …`, after pruning.

use prunectl_recipe::catalogue::{Entry, Kind, Ty};

use crate::row::{other, param, within};

/// A way to store weights in fewer bits. No row is carried out yet, so it has no operations.
pub trait Quantizer: Send + Sync {}

/// Every quantiser that the language knows.
pub static QUANTIZERS: &[Entry<dyn Quantizer>] = &[Entry {
    spec: other(
        Kind::Quantizer,
        "int8",
        "Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (2022), eq. 8",
        &[within(param("threshold", Ty::Float, "6.0", "Input columns that reach it stay in full precision."), 0.0, 1e9)],
        "Vector-wise int8: each row of the weight and each token of the input has its own scale; columns with outliers are kept apart.\n\n\
         Mind: the threshold compares with ≥; a zero row has scale 0.",
    ),
    build: None,
}];
