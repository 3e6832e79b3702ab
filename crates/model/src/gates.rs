//! Gates multiply what a prunable site gives; taps look at activations. Both leave a plain forward pass untouched when they are empty.

use candle_core::Tensor;

use crate::error::Result;

/// Gates of the whole model. Default: none, the dense model.
#[derive(Debug, Clone, Default)]
pub struct Gates {
    /// One entry a layer, or empty.
    pub layers: Vec<LayerGates>,
    /// `[hidden]`: multiplies the embeddings' output, every norm's output and what every sublayer adds to the residual stream.
    pub hidden: Option<Tensor>,
}

impl Gates {
    /// The gates of a layer, if there are any.
    pub fn layer(&self, layer: usize) -> Option<&LayerGates> {
        self.layers.get(layer)
    }
}

/// Gates of one layer. Each is shared by all positions; with a leading batch dimension each example has its own.
#[derive(Debug, Clone, Default)]
pub struct LayerGates {
    /// `[heads]`, `[batch, heads]` or `[batch, seq, heads]`: multiplies each query head's context, before the output projection.
    pub heads: Option<Tensor>,
    /// `[ffn]` or `[batch, ffn]`; in a mixture `[experts, ffn]` or `[batch, experts, ffn]`: multiplies the input of the down projection.
    pub neurons: Option<Tensor>,
    /// `[batch, seq, ffn]`: added to what the activation function of a dense MLP reads, zeros to differentiate by it.
    pub potentials: Option<Tensor>,
    /// `[experts]`: multiplies each expert's output. An expert whose gate is exactly 0 is not routed to, as if it had been removed.
    pub experts: Option<Tensor>,
    /// `[1]` or `[batch]`: multiplies what the attention sublayer adds to the residual stream.
    pub attention: Option<Tensor>,
    /// `[1]` or `[batch]`: the same for the MLP sublayer.
    pub mlp: Option<Tensor>,
    /// `[1]` or `[batch]`: g in `x + g·(block(x) − x)`.
    pub layer: Option<Tensor>,
}

impl LayerGates {
    /// Whether one of them is in the graph.
    pub(crate) fn track_op(&self) -> bool {
        let all = [&self.heads, &self.neurons, &self.potentials, &self.experts, &self.attention, &self.mlp, &self.layer];
        all.into_iter().flatten().any(Tensor::track_op)
    }
}

/// A place in a block where a tap can look. B batch, S sequence, D hidden, H query heads, K key/value heads, F neurons, E experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// `[B, S, D]`: the input of the block.
    BlockInput,
    /// `[B, S, D]`: the input of the q, k and v projections.
    AttentionInput,
    /// `[B, H, S, head_dim]`, after q/k norm and rotary.
    Queries,
    /// `[B, K, S, head_dim]`, after q/k norm and rotary.
    Keys,
    /// `[B, K, S, head_dim]`.
    Values,
    /// `[B, H, S, S]`; computed only when wanted.
    AttentionProbs,
    /// `[B, S, H, head_dim]`: gated, the input of the output projection.
    HeadContext,
    /// `[B, S, D]`: the output of the output projection.
    AttentionOutput,
    /// `[B, S, D]`: the input of the gate and up projections (and of the router).
    MlpInput,
    /// `[B, S, F]`: what the activation function reads, the up projection or that of the gate; dense MLPs.
    Potential,
    /// `[B, S, F]`: gated, the input of the down projection; dense MLPs.
    Intermediate,
    /// `[B, S, D]`: the output of the MLP.
    MlpOutput,
    /// `[B, S, E]`.
    RouterLogits,
    /// `[B, S, E]`: the weight of each expert for each token, 0 where it isn't chosen.
    RouterWeights,
    /// `[rows]` u32: which of the `B·S` tokens (row-major) expert `e` received.
    ExpertRows(usize),
    /// `[rows, F]`: gated, the input of expert `e`'s down projection.
    ExpertIntermediate(usize),
    /// `[rows, D]`: the output of expert `e`, before its router weight.
    ExpertOutput(usize),
    /// `[B, S, D]`: the output of the block.
    BlockOutput,
    /// `[B, S, D]`: after the final norm; `layer` is the number of layers.
    FinalNorm,
}

impl Point {
    /// Places between a block's input and its output; of the experts the first stands for all.
    pub(crate) const INSIDE: [Self; 16] = [
        Self::AttentionInput,
        Self::Queries,
        Self::Keys,
        Self::Values,
        Self::AttentionProbs,
        Self::HeadContext,
        Self::AttentionOutput,
        Self::MlpInput,
        Self::Potential,
        Self::Intermediate,
        Self::MlpOutput,
        Self::RouterLogits,
        Self::RouterWeights,
        Self::ExpertRows(0),
        Self::ExpertIntermediate(0),
        Self::ExpertOutput(0),
    ];
}

/// Looks at activations during a forward pass.
pub trait Tap {
    /// Whether `see` should be called there. Cheap: it is asked at every point.
    fn wants(&self, layer: usize, point: Point) -> bool;
    /// Whether nothing is wanted anywhere: what no one looks at need not be computed.
    fn is_blind(&self) -> bool {
        false
    }
    /// Whether nothing of that layer is looked at behind that point, the block's output included: it need not be computed, and is then
    /// of no meaning. Asked at [`Point::Intermediate`].
    fn ends_at(&self, _layer: usize, _point: Point) -> bool {
        false
    }
    /// Called with the activation, in the order in which they are computed.
    fn see(&mut self, layer: usize, point: Point, activation: &Tensor) -> Result<()>;
}

/// The tap that wants nothing.
impl Tap for () {
    fn wants(&self, _: usize, _: Point) -> bool {
        false
    }

    fn is_blind(&self) -> bool {
        true
    }

    fn see(&mut self, _: usize, _: Point, _: &Tensor) -> Result<()> {
        Ok(())
    }
}

pub(crate) fn show(tap: &mut dyn Tap, layer: usize, point: Point, activation: &Tensor) -> Result<()> {
    if tap.wants(layer, point) { tap.see(layer, point, activation) } else { Ok(()) }
}
