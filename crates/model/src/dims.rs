//! Shapes of each layer: the only truth about how many heads, neurons and experts a layer has.

use serde::{Deserialize, Serialize};

/// Shape of one layer. Counts differ between layers of a pruned model.
///
/// `q_heads % kv_heads == 0` always; query head `h` reads key/value head `h / (q_heads / kv_heads)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct LayerDims {
    /// Query heads. 0: the attention is gone.
    pub q_heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of one head, never derived from the hidden size.
    pub head_dim: usize,
    /// FFN neurons (of each expert, in a mixture). 0: the MLP is gone.
    pub ffn: usize,
    /// Routed experts; 0 for a dense MLP.
    #[serde(default)]
    pub experts: usize,
    /// `q_heads` is 0, yet the bias of the output projection is still added: what is left when each head was removed, but not the sublayer.
    #[serde(default)]
    pub attention_bias_left: bool,
    /// `ffn` is 0, yet the bias of the down projection is still added.
    #[serde(default)]
    pub mlp_bias_left: bool,
}

impl LayerDims {
    /// Whether any part of the attention sublayer is there.
    pub fn has_attention(&self) -> bool {
        self.q_heads > 0 || self.attention_bias_left
    }

    /// Whether any part of the MLP sublayer is there.
    pub fn has_mlp(&self) -> bool {
        self.ffn > 0 || self.mlp_bias_left
    }

    /// Query heads that share one key/value head; 0 without attention.
    pub fn group_size(&self) -> usize {
        self.q_heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// Width of the concatenated query heads.
    pub fn q_width(&self) -> usize {
        self.q_heads * self.head_dim
    }

    /// Width of the concatenated keys (or values).
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
