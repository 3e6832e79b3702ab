//! What a model's config says, as far as a recipe can be checked against it, and how a selector becomes sites.

use range_set_blaze::RangeSetBlaze;

use crate::catalogue::SiteKind;
use crate::plan::{DataDecl, ModelDecl};

/// What is known about a model before a weight is read. Counts are those of the model as it is now: the executor fills them
/// from the live network before each step, `check` and `plan` from the config.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// `bert`, `llama`, …; for messages only.
    pub family: String,
    /// One entry per layer.
    pub layers: Vec<LayerFacts>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// The matrices of the model's files, as `m.tensors("glob")` matches them: the name there, and the network's names of what it holds.
    /// Empty if unknown.
    pub tensors: Vec<(String, Vec<String>)>,
    /// Whether there is a language-model head.
    pub head: bool,
    /// Whether there is a classifier.
    pub classifier: bool,
    /// Weight matrices outside the layers: token and position embeddings.
    pub embeddings: Vec<String>,
}

/// What is known about one layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerFacts {
    /// Query heads; 0: the attention sublayer is gone.
    pub heads: usize,
    /// Key/value heads.
    pub kv_groups: usize,
    /// Intermediate neurons (of all experts together, if there are experts); 0: the MLP sublayer is gone.
    pub neurons: usize,
    /// Routed experts; 0 for a dense MLP.
    pub experts: usize,
    /// Names of the weight matrices of the attention.
    pub attention_linears: Vec<String>,
    /// Names of the weight matrices of the MLP.
    pub mlp_linears: Vec<String>,
}

impl Facts {
    /// Facts of a model whose layers are all alike and whose matrices have canonical names; for tests and docs.
    pub fn uniform(family: &str, n_layers: usize, heads: usize, kv_groups: usize, neurons: usize, hidden: usize) -> Self {
        let layer = |i: usize| LayerFacts {
            heads,
            kv_groups,
            neurons,
            experts: 0,
            attention_linears: ["q", "k", "v", "o"].iter().map(|s| format!("layers.{i}.attention.{s}.weight")).collect(),
            mlp_linears: ["up", "down"].iter().map(|s| format!("layers.{i}.mlp.{s}.weight")).collect(),
        };
        let layers: Vec<LayerFacts> = (0..n_layers).map(layer).collect();
        let names = layers.iter().flat_map(|l| l.attention_linears.iter().chain(&l.mlp_linears).cloned());
        let tensors = names.map(|name| (name.clone(), vec![name])).collect();
        Self {
            family: family.to_owned(),
            layers,
            hidden,
            tensors,
            head: true,
            classifier: true,
            embeddings: vec!["embeddings.token.weight".to_owned()],
        }
    }

    /// How many units of that kind a layer has. `Hidden` is counted once for the model, whatever the layer; `Weights` are not units
    /// of a layer, they count 0.
    pub fn units(&self, kind: SiteKind, layer: usize) -> usize {
        let Some(l) = self.layers.get(layer) else { return 0 };
        match kind {
            SiteKind::Heads => l.heads,
            SiteKind::KvGroups => l.kv_groups,
            SiteKind::Neurons => l.neurons,
            SiteKind::Experts => l.experts,
            SiteKind::Attention => usize::from(l.heads > 0),
            SiteKind::Mlp => usize::from(l.neurons > 0),
            SiteKind::Layers => 1,
            SiteKind::Hidden => self.hidden,
            SiteKind::Weights => 0,
        }
    }
}

/// Where `check` and `plan` get facts from. The crate opens no file: whoever can, implements this.
pub trait ModelFacts {
    /// The model's facts, or `None` when its config is not at hand.
    fn facts(&self, decl: &ModelDecl) -> Option<Facts>;
    /// The names of a source's splits, or `None` when unknown; an empty list is a source without splits.
    fn splits(&self, decl: &DataDecl) -> Option<Vec<String>> {
        let _ = decl;
        None
    }
}

/// Knows nothing: a recipe is then checked against the catalogue alone.
impl ModelFacts for () {
    fn facts(&self, _: &ModelDecl) -> Option<Facts> {
        None
    }
}

/// A set of units as the ranges that it consists of: all neurons of a large layer are one.
pub type Units = RangeSetBlaze<usize>;

/// One expanded site: units of one kind in one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// What the units are.
    pub kind: SiteKind,
    /// The layer; `None` for `hidden` and for tensors outside the layers.
    pub layer: Option<usize>,
    /// Indices of the selected units; `[layer]` for whole layers, `[0]` for a whole sublayer; empty for `Weights`.
    pub units: Units,
    /// For `Weights` (and for `linears`): the names of the matrices.
    pub tensors: Vec<String>,
}
