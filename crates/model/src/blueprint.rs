//! What a network is made of, as mechanisms: a family file fills a `Blueprint` from a config, `net/` only reads it.

use serde::{Deserialize, Serialize};

use crate::dims::LayerDims;

/// Mechanisms and fixed widths of a network; counts that pruning changes per layer are in `LayerDims`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blueprint {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// From ids to the input of block 0.
    pub embeddings: Embeddings,
    /// The norm used everywhere, except on embeddings.
    pub norm: Norm,
    /// Where the norms sit.
    pub layout: Layout,
    /// Attention, but for what differs between layers.
    pub attention: Attention,
    /// The MLP.
    pub mlp: Mlp,
    /// What differs between layers, apart from counts; one entry a layer.
    pub layers: Vec<LayerSpec>,
    /// Rotary tables that layers refer to.
    pub rotary: Vec<Rotary>,
    /// Whether a norm follows the last block.
    pub final_norm: bool,
    /// From the last hidden states to outputs.
    pub head: Head,
}

/// From ids to the input of block 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embeddings {
    /// Width of the tables; where it isn't `hidden`, a projection follows.
    pub width: usize,
    /// Rows of the learned positions, and how a token finds its own. None: no learned positions.
    pub positions: Option<Positions>,
    /// Rows of the token-type table; 0: none.
    pub token_types: usize,
    /// Epsilon of a LayerNorm over the sum; None: no norm.
    pub norm_eps: Option<f64>,
    /// Factor on the token embeddings.
    pub scale: f64,
    /// What is projected from `width` to `hidden`.
    pub project: Option<Projection>,
}

/// What is projected from the width of the tables to the width of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// The token embedding alone, without a bias; positions are `hidden` wide and are added after it.
    Tokens,
    /// The normed sum of all tables, with a bias.
    Sum,
}

/// Tokens of the longest row that a network takes: those that its learned positions hold, or that its config states; None where nothing
/// says.
pub fn stated_length(blueprint: &Blueprint, config: &serde_json::Value) -> Option<usize> {
    let table = blueprint.embeddings.positions.as_ref().map(|p| match p.rule {
        PositionRule::Index => p.rows,
        PositionRule::RankInKeep { base } | PositionRule::RankAmongNot { base, .. } => p.rows.saturating_sub(base + 1),
    });
    let stated = ["max_position_embeddings", "n_positions", "seq_length"].into_iter().find_map(|k| config.get(k)?.as_u64());
    table.or(stated.map(|n| n as usize))
}

/// Learned absolute positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Positions {
    /// Rows of the table.
    pub rows: usize,
    /// Which row a token takes.
    pub rule: PositionRule,
}

/// Which row of the position table a token takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionRule {
    /// Its index in the row.
    Index,
    /// `base` + its rank among tokens with `keep` = 1, from 1; padding takes row `base`.
    RankInKeep {
        /// The row of padding.
        base: usize,
    },
    /// The same, counting tokens whose id is not `pad`.
    RankAmongNot {
        /// The id that does not count.
        pad: u32,
        /// The row of padding.
        base: usize,
    },
}

/// A norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f64,
}

/// Kinds of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Mean and variance; weight and bias.
    Layer,
    /// Root mean square; weight w.
    Rms,
    /// Root mean square; factor 1 + w.
    RmsOffsetOne,
}

/// Where norms sit in a block. A(x) attention, M(x) MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// x += A(n1(x)); x += M(n2(x))
    Pre,
    /// x = n1(x + A(x)); x = n2(x + M(x))
    Post,
    /// x += p1(A(n1(x))); x += p2(M(n2(x)))
    Sandwich,
    /// x + A(n1(x)) + M(n2(x))
    Parallel,
    /// x + A(n1(x)) + M(n1(x))
    ParallelOneNorm,
}

/// Attention mechanisms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Whether a query sees only itself and what stands before it.
    pub causal: bool,
    /// Bias of the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub o_bias: bool,
    /// RMS norm over each head's q and k, before rotary.
    pub qk_norm: bool,
    /// s ← cap·tanh(s / cap) on scores.
    pub softcap: Option<f64>,
}

/// MLP mechanisms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mlp {
    /// The non-linearity.
    pub activation: Activation,
    /// act(gate(x))·up(x) instead of act(up(x)).
    pub gated: bool,
    /// Bias of gate and up.
    pub up_bias: bool,
    /// Bias of down.
    pub down_bias: bool,
    /// How tokens find experts, in layers that have some.
    pub router: Option<Router>,
}

/// Routing of tokens to experts: softmax over all, the best `top_k` are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Router {
    /// Experts a token goes to.
    pub top_k: usize,
    /// Whether the weights of those are made to sum to 1.
    pub renormalise: bool,
}

/// Non-linearities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·Φ(x)
    GeluErf,
    /// Its tanh approximation.
    GeluTanh,
    /// x·σ(1.702x)
    QuickGelu,
    /// x·σ(x)
    Silu,
    /// max(x, 0)
    Relu,
    /// tanh(x)
    Tanh,
}

/// What differs between layers, apart from counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// A query at q sees positions p with q − p < window. None: all.
    pub window: Option<usize>,
    /// Index into `Blueprint::rotary`. None: no rotary.
    pub rotary: Option<usize>,
    /// Factor on scores.
    pub scale: f64,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// Leading entries of the head that turn, an even number.
    pub dim: usize,
    /// Entries by which the frequencies go down: `dim`, or one fewer, where a share of the head is odd.
    pub over: usize,
    /// Which entries form pairs.
    pub pairs: Pairs,
    /// Change of the frequencies for long contexts.
    pub scaling: RotaryScaling,
}

/// Which entries of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairs {
    /// i and i + dim/2
    Half,
    /// 2i and 2i + 1
    Interleaved,
}

/// Change of rotary frequencies for long contexts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotaryScaling {
    /// None.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A larger base once a sequence is longer than `original`.
    Dynamic {
        /// The factor.
        factor: f64,
        /// Tokens of the context that the model was trained for.
        original: usize,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between them.
    Ramp {
        /// The divisor.
        factor: f64,
        /// Wavelengths above original / low are divided.
        low: f64,
        /// Wavelengths below original / high are kept.
        high: f64,
        /// Tokens of the context that the model was trained for.
        original: usize,
    },
    /// YaRN (Peng et al., 2023, §3.2 and 3.4): pairs that turn often keep their frequency, those that turn seldom have it divided, a ramp
    /// over the pairs between them; cos and sin grow.
    Yarn {
        /// The divisor.
        factor: f64,
        /// Pairs with more turns in the original context are kept.
        fast: f64,
        /// Pairs with fewer are divided.
        slow: f64,
        /// Tokens of the context that the model was trained for.
        original: usize,
        /// Whether the ramp begins and ends at whole pairs.
        truncate: bool,
        /// Factor on cos and sin.
        attention: f64,
    },
    /// LongRoPE (Ding et al., 2024): a divisor of its own for each pair; cos and sin grow.
    Long {
        /// Divisors for sequences of up to `original` tokens, one a pair.
        short: Vec<f64>,
        /// Divisors for longer ones.
        long: Vec<f64>,
        /// Tokens of the context that the model was trained for.
        original: usize,
        /// Factor on cos and sin.
        attention: f64,
    },
}

impl RotaryScaling {
    /// Its name in configs (`rope_type`).
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Ramp { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
            Self::Long { .. } => "longrope",
        }
    }
}

/// From the last hidden states to outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// Logits for each token: `[batch, seq, vocab]`.
    Tokens {
        /// The matrix is the token embedding.
        tied: bool,
        /// Bias of the output.
        bias: bool,
        /// A dense layer, this activation and a LayerNorm with this epsilon come first (masked LM).
        transform: Option<(Activation, f64)>,
        /// A projection without bias from `hidden` to the embedding width comes first.
        project: bool,
        /// z ← cap·tanh(z / cap).
        softcap: Option<f64>,
    },
    /// One row for each example: `[batch, labels]`.
    Sequence {
        /// Outputs.
        labels: usize,
        /// One output that is a value, not a class.
        regression: bool,
        /// Which token speaks for the sequence.
        pick: Pick,
        /// A dense layer with this activation comes first.
        dense: Option<Activation>,
        /// Bias of the classifier.
        bias: bool,
    },
    /// Start and end logits of an answer: `[batch, seq, 2]`.
    Spans,
    /// An embedding of each example: `[batch, hidden]`.
    Encode {
        /// How tokens become one vector.
        pooling: Pooling,
        /// Whether the file has a pooler (dense layer and tanh on the first token).
        pooler: bool,
    },
}

/// Which token speaks for the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The first.
    First,
    /// The last real one that is not this id: transformers' classes look for their `pad_token_id`, attention mask or not.
    Last {
        /// The id, where the config has one.
        pad: Option<u32>,
    },
}

/// How token states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean over real tokens.
    Mean,
    /// The first token.
    First,
    /// The last real token.
    Last,
    /// The pooler's output.
    Pooler,
}

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Next-token prediction.
    CausalLm,
    /// Masked-token prediction.
    MaskedLm,
    /// Classes or a value for each sequence.
    Classification,
    /// Answer spans.
    QuestionAnswering,
    /// Embeddings.
    Encoder,
}

impl Task {
    /// The word for it in a recipe (`task = "…"`), as on the Hugging Face hub where that has one.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "causal-lm" | "text-generation" => Self::CausalLm,
            "masked-lm" | "fill-mask" => Self::MaskedLm,
            "classification" | "text-classification" | "sequence-classification" => Self::Classification,
            "question-answering" => Self::QuestionAnswering,
            "encoder" | "feature-extraction" | "sentence-similarity" => Self::Encoder,
            _ => return None,
        })
    }

    /// The words that `parse` knows.
    pub const WORDS: &'static [&'static str] =
        &["text-generation", "fill-mask", "text-classification", "question-answering", "feature-extraction"];
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CausalLm => "text-generation",
            Self::MaskedLm => "fill-mask",
            Self::Classification => "text-classification",
            Self::QuestionAnswering => "question-answering",
            Self::Encoder => "feature-extraction",
        })
    }
}

/// One parameter that a network of that blueprint and those dims has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Canonical name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: SlotKind,
}

/// What a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// A table of embeddings.
    Embedding,
    /// A matrix `[out, in]`.
    Matrix,
    /// A bias.
    Bias,
    /// The weight of a norm.
    NormWeight,
    /// The bias of a norm.
    NormBias,
}

struct Slots(Vec<Slot>);

impl Slots {
    fn add(&mut self, name: String, shape: &[usize], kind: SlotKind) {
        self.0.push(Slot { name, shape: shape.to_vec(), kind });
    }

    fn linear(&mut self, stem: &str, out: usize, input: usize, bias: bool) {
        self.add(format!("{stem}.weight"), &[out, input], SlotKind::Matrix);
        if bias {
            self.add(format!("{stem}.bias"), &[out], SlotKind::Bias);
        }
    }

    fn norm(&mut self, stem: &str, width: usize, kind: NormKind) {
        self.add(format!("{stem}.weight"), &[width], SlotKind::NormWeight);
        if kind == NormKind::Layer {
            self.add(format!("{stem}.bias"), &[width], SlotKind::NormBias);
        }
    }
}

impl Blueprint {
    /// Every parameter of a network with these dims: the one list that loading, counting, initialising and saving follow.
    pub fn slots(&self, dims: &[LayerDims]) -> Vec<Slot> {
        let mut s = Slots(Vec::new());
        let e = &self.embeddings;
        s.add("embeddings.token.weight".into(), &[self.vocab, e.width], SlotKind::Embedding);
        if let Some(p) = &e.positions {
            s.add("embeddings.position.weight".into(), &[p.rows, self.position_width()], SlotKind::Embedding);
        }
        if e.token_types > 0 {
            s.add("embeddings.token_type.weight".into(), &[e.token_types, e.width], SlotKind::Embedding);
        }
        if e.norm_eps.is_some() {
            s.norm("embeddings.norm", self.position_width(), NormKind::Layer);
        }
        if let Some(projection) = e.project {
            s.linear("embeddings.project", self.hidden, e.width, projection == Projection::Sum);
        }
        for (i, d) in dims.iter().enumerate() {
            self.layer_slots(&mut s, i, d);
        }
        if self.final_norm {
            s.norm("final_norm", self.hidden, self.norm.kind);
        }
        self.head_slots(&mut s);
        s.0
    }

    fn layer_slots(&self, s: &mut Slots, layer: usize, d: &LayerDims) {
        let (h, a, m) = (self.hidden, &self.attention, &self.mlp);
        let p = format!("layers.{layer}");
        let (attention, mlp) = (d.has_attention(), d.has_mlp());
        let (norm1, norm2) = match self.layout {
            Layout::Pre | Layout::Sandwich | Layout::Parallel => (attention && d.q_heads > 0, mlp && d.ffn > 0),
            Layout::Post => (true, true),
            Layout::ParallelOneNorm => (d.q_heads > 0 || d.ffn > 0, false),
        };
        if norm1 {
            s.norm(&format!("{p}.norm1"), h, self.norm.kind);
        }
        if d.q_heads > 0 {
            s.linear(&format!("{p}.attention.q"), d.q_width(), h, a.qkv_bias);
            s.linear(&format!("{p}.attention.k"), d.kv_width(), h, a.qkv_bias);
            s.linear(&format!("{p}.attention.v"), d.kv_width(), h, a.qkv_bias);
            if a.qk_norm {
                s.norm(&format!("{p}.attention.q_norm"), d.head_dim, self.norm.kind);
                s.norm(&format!("{p}.attention.k_norm"), d.head_dim, self.norm.kind);
            }
            s.add(format!("{p}.attention.o.weight"), &[h, d.q_width()], SlotKind::Matrix);
        }
        if attention && a.o_bias {
            s.add(format!("{p}.attention.o.bias"), &[h], SlotKind::Bias);
        }
        if attention && self.layout == Layout::Sandwich {
            s.norm(&format!("{p}.post_norm1"), h, self.norm.kind);
        }
        if norm2 {
            s.norm(&format!("{p}.norm2"), h, self.norm.kind);
        }
        if d.ffn > 0 {
            if d.experts > 0 {
                s.add(format!("{p}.mlp.router.weight"), &[d.experts, h], SlotKind::Matrix);
            }
            for stem in d.mlp_stems(&p) {
                if m.gated {
                    s.linear(&format!("{stem}.gate"), d.ffn, h, m.up_bias);
                }
                s.linear(&format!("{stem}.up"), d.ffn, h, m.up_bias);
                s.add(format!("{stem}.down.weight"), &[h, d.ffn], SlotKind::Matrix);
                if m.down_bias {
                    s.add(format!("{stem}.down.bias"), &[h], SlotKind::Bias);
                }
            }
        } else if mlp && m.down_bias {
            s.add(format!("{p}.mlp.down.bias"), &[h], SlotKind::Bias);
        }
        if mlp && self.layout == Layout::Sandwich {
            s.norm(&format!("{p}.post_norm2"), h, self.norm.kind);
        }
    }

    fn head_slots(&self, s: &mut Slots) {
        let width = self.embeddings.width;
        if self.projects_out() {
            s.linear("head.project", width, self.hidden, false);
        }
        match &self.head {
            Head::Tokens { tied, bias, transform, .. } => {
                if transform.is_some() {
                    s.linear("head.transform", width, self.hidden, true);
                    s.norm("head.norm", width, NormKind::Layer);
                }
                if !tied {
                    s.add("head.weight".into(), &[self.vocab, self.head_width()], SlotKind::Matrix);
                }
                if *bias {
                    s.add("head.bias".into(), &[self.vocab], SlotKind::Bias);
                }
            }
            Head::Sequence { labels, dense, bias, .. } => {
                if dense.is_some() {
                    s.linear("pooler", self.hidden, self.hidden, true);
                }
                s.linear("classifier", *labels, self.head_width(), *bias);
            }
            Head::Spans => s.linear("classifier", 2, self.hidden, true),
            Head::Encode { pooler, .. } => {
                if *pooler {
                    s.linear("pooler", self.hidden, self.hidden, true);
                }
            }
        }
    }

    /// Whether a projection to the width of the tables comes before the head.
    pub fn projects_out(&self) -> bool {
        match &self.head {
            Head::Tokens { project, .. } => *project,
            _ => self.embeddings.project == Some(Projection::Tokens),
        }
    }

    /// Width of the position table and of the embeddings' norm.
    pub fn position_width(&self) -> usize {
        if self.embeddings.project == Some(Projection::Tokens) { self.hidden } else { self.embeddings.width }
    }

    /// Width of what the token head's matrix or the classifier's multiplies.
    pub fn head_width(&self) -> usize {
        match &self.head {
            Head::Tokens { transform: Some(_), .. } => self.embeddings.width,
            _ if self.projects_out() => self.embeddings.width,
            _ => self.hidden,
        }
    }

    /// Scalars of a network with these dims.
    pub fn parameter_count(&self, dims: &[LayerDims]) -> u64 {
        self.slots(dims).iter().map(|s| s.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }
}

impl LayerDims {
    /// The slots' common prefixes of each dense MLP in the layer: the MLP itself, or its experts.
    pub(crate) fn mlp_stems(&self, layer_prefix: &str) -> Vec<String> {
        if self.experts == 0 {
            vec![format!("{layer_prefix}.mlp")]
        } else {
            (0..self.experts).map(|e| format!("{layer_prefix}.mlp.experts.{e}")).collect()
        }
    }
}
