//! Sites and units: which slices of which parameters belong to one removable unit, and leave together.

use serde::{Deserialize, Serialize};

/// Kinds of prunable places. The same as the recipe language's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteKind {
    /// Query heads.
    Heads,
    /// Key/value heads with their query heads.
    KvGroups,
    /// FFN neurons; in a mixture unit e·ffn + f is neuron f of expert e.
    Neurons,
    /// Routed experts, with their router rows.
    Experts,
    /// A whole attention sublayer.
    Attention,
    /// A whole MLP sublayer.
    Mlp,
    /// A whole layer.
    Layers,
    /// Channels of the residual stream.
    Hidden,
    /// Single entries of weight matrices.
    Weights,
}

impl SiteKind {
    /// Its name in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::KvGroups => "kv_groups",
            Self::Neurons => "neurons",
            Self::Experts => "experts",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Layers => "layers",
            Self::Hidden => "hidden",
            Self::Weights => "weights",
        }
    }
}

/// `len` consecutive indices of dimension `dim` of a parameter, from `start`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice {
    /// The parameter.
    pub slot: String,
    /// The dimension.
    pub dim: usize,
    /// First index.
    pub start: usize,
    /// Number of indices.
    pub len: usize,
}
