//! The mechanisms of the network. No family is named here: a `Blueprint` says which mechanisms a model has.

pub(crate) mod block;
pub(crate) mod embeddings;
pub(crate) mod heads;

use candle_core::Tensor;

/// What all blocks of one forward pass share: built once per batch.
#[derive(Debug, Clone)]
pub struct Context {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    /// u8 `[batch, seq]`; None where every token is real.
    pub(crate) keep: Option<Tensor>,
    /// Index of the last real token of each row.
    pub(crate) last: Vec<usize>,
    /// cos and sin `[1, seq, dim / 2]` of each rotary table.
    pub(crate) rotary: Vec<(Tensor, Tensor)>,
}
