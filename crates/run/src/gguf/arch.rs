//! Which of llama.cpp's architectures computes what a network computes, and what it wants to be told: mechanisms are compared, not names.
//!
//! `llama` takes every pre-norm decoder with RMS norms, rotary over the whole head and a gated SiLU MLP, whatever family it comes from.
//! `deci` is the same with counts of their own for each layer. In its graph a layer without an MLP loses its attention (the residual is
//! skipped), and the width of a head is taken from layer 0: there, one unit of zeros stands for what is gone. A layer without either is
//! the identity, and left out. The other architectures take equal counts only.

use prunectl_model::{Activation, Blueprint, Head, LayerDims, Layout, NormKind, Pairs, PositionRule, RotaryScaling};

use super::file::Meta;

/// Why llama.cpp can't run a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Inexpressible {
    /// Why.
    pub reason: String,
    /// What would make it legal.
    pub remedy: String,
}

/// Where a tensor's values come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum From {
    /// One parameter.
    Slot(String),
    /// Parameters of the same shape, one a leading index.
    Stack(Vec<String>),
    /// Parameters one below the other.
    Cat(Vec<String>),
    /// One value.
    Fill(f32),
    /// These.
    Values(Vec<f32>),
}

/// What happens to the values on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing.
    None,
    /// The rows of each of so many heads go from halves to interleaved pairs.
    Interleave(usize),
    /// The norm's factor is 1 + w here, and stored whole there.
    PlusOne,
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub name: String,
    pub shape: Vec<usize>,
    pub from: From,
    pub turn: Turn,
    /// Multiplies the values, after the turn.
    pub factor: f64,
}

/// An architecture of llama.cpp for a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub architecture: &'static str,
    pub metadata: Vec<(String, Meta)>,
    pub pieces: Vec<Piece>,
    pub warnings: Vec<String>,
}

/// One of the architectures that we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arch {
    Llama,
    Deci,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Gpt2,
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Deci => "deci",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3moe",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Gpt2 => "gpt2",
        }
    }
}

fn refuse<T>(reason: impl Into<String>, remedy: impl Into<String>) -> Result<T, Inexpressible> {
    Err(Inexpressible { reason: reason.into(), remedy: remedy.into() })
}

/// Factors on scores that differ from 1/√head_dim by less than this share are that.
const SCALED: f64 = 1e-6;
const NO_ARCHITECTURE: &str = "export it with --format hf, which transformers reads";

/// The architecture for a model's shapes.
///
/// # Errors
/// Why there is none, and what would make it legal.
pub(crate) fn architecture(blueprint: &Blueprint, dims: &[LayerDims]) -> Result<&'static str, Inexpressible> {
    choose(blueprint, dims).map(Arch::name)
}

fn choose(b: &Blueprint, dims: &[LayerDims]) -> Result<Arch, Inexpressible> {
    if !matches!(b.head, Head::Tokens { bias: false, transform: None, project: false, .. }) || !b.attention.causal {
        return refuse("only causal language models are written as GGUF", NO_ARCHITECTURE);
    }
    if dims.iter().all(|d| !d.has_attention() && !d.has_mlp()) {
        return refuse("no layer is left", "keep one");
    }
    let scaled = b.layers.iter().zip(dims).all(|(l, d)| d.q_heads == 0 || (l.scale * (d.head_dim as f64).sqrt() - 1.0).abs() < SCALED);
    let whole_rotary = b.layers.iter().all(|l| l.rotary.is_some())
        && b.rotary.iter().all(|r| r.pairs == Pairs::Half && dims.iter().all(|d| d.q_heads == 0 || d.head_dim == r.dim));
    if let Some(scaling) = b.rotary.iter().map(|r| &r.scaling).find(|s| matches!(s, RotaryScaling::Dynamic { .. })) {
        return refuse(format!("rotary scaling {scaling:?} has no equal there"), NO_ARCHITECTURE);
    }
    let modern =
        matches!(b.norm.kind, NormKind::Rms | NormKind::RmsOffsetOne) && b.mlp.gated && whole_rotary && b.embeddings.positions.is_none();
    let a = &b.attention;
    let plain = a.softcap.is_none() && b.embeddings.scale == 1.0 && b.rotary.len() == 1 && b.norm.kind == NormKind::Rms;
    let softcapped_head = matches!(b.head, Head::Tokens { softcap: Some(_), .. });
    let gemma_scale = (b.embeddings.scale - (b.hidden as f64).sqrt()).abs() < 1e-6;
    let mixture = dims.iter().any(|d| d.experts > 0);
    let biases = a.qkv_bias || a.o_bias || b.mlp.up_bias || b.mlp.down_bias;
    let renormalise = b.mlp.router.as_ref().is_none_or(|r| r.renormalise);
    let arch = match b.layout {
        Layout::Pre if modern && plain && b.mlp.activation == Activation::Silu && !softcapped_head => match (a.qk_norm, mixture) {
            _ if !renormalise => return refuse("the router's weights are not made to sum to 1, and llama.cpp does that", NO_ARCHITECTURE),
            (false, false) if equal(dims).is_ok() => Arch::Llama,
            (false, false) => Arch::Deci,
            (false, true) => Arch::Llama,
            (true, _) if biases => return refuse("its architecture for q/k norms has no biases", NO_ARCHITECTURE),
            (true, false) => Arch::Qwen3,
            (true, true) => Arch::Qwen3Moe,
        },
        Layout::Sandwich if modern && gemma_scale && !biases && b.mlp.activation == Activation::GeluTanh => {
            match (a.qk_norm, a.softcap.is_some(), b.rotary.len()) {
                (false, true, 1) if softcapped_head => Arch::Gemma2,
                (true, false, 2) => Arch::Gemma3,
                _ => return refuse("no architecture of llama.cpp has this mix of q/k norms and soft-caps", NO_ARCHITECTURE),
            }
        }
        Layout::Sandwich if modern && !gemma_scale => {
            return refuse(
                "llama.cpp scales the embeddings by √hidden, and the hidden size has changed",
                "prune heads, neurons or layers instead",
            );
        }
        Layout::Pre
            if b.norm.kind == NormKind::Layer
                && !b.mlp.gated
                && b.rotary.is_empty()
                && scaled
                && b.mlp.activation == Activation::GeluTanh
                && b.embeddings.positions.as_ref().is_some_and(|p| p.rule == PositionRule::Index)
                && b.embeddings.project.is_none()
                && a.qkv_bias
                && a.o_bias
                && b.mlp.up_bias
                && b.layers.iter().all(|l| l.window.is_none()) =>
        {
            if let Some(d) = dims.iter().find(|d| d.q_heads * d.head_dim != b.hidden) {
                return refuse(
                    format!(
                        "its GPT-2 computes the width of a head as hidden / heads, and {} heads of {} are not {}",
                        d.q_heads, d.head_dim, b.hidden
                    ),
                    "prune neurons or layers, or save with layout = padded and export that",
                );
            }
            Arch::Gpt2
        }
        _ => return refuse("no architecture of llama.cpp that we write has these mechanisms", NO_ARCHITECTURE),
    };
    if arch != Arch::Deci
        && let Err((what, counts)) = equal(dims)
    {
        let nearest = counts.iter().max().copied().unwrap_or(0);
        let padded = if what == "experts" { "" } else { ", or save with layout = padded and export that" };
        return refuse(
            format!("layers differ in {what} ({counts:?}), and the architecture `{}` has one count for all", arch.name()),
            format!("keep as many in each layer, such as {nearest} (`scope = layer`){padded}"),
        );
    }
    Ok(arch)
}

/// Whether each layer has the same shape; else what differs.
fn equal(dims: &[LayerDims]) -> Result<(), (&'static str, Vec<usize>)> {
    let named = |d: &LayerDims| [("heads", d.q_heads), ("key/value heads", d.kv_heads), ("neurons", d.ffn), ("experts", d.experts)];
    for (field, (what, _)) in named(&LayerDims::default()).into_iter().enumerate() {
        let counts: Vec<usize> = dims.iter().filter_map(|d| named(d).get(field).map(|(_, n)| *n)).collect();
        if counts.iter().any(|n| Some(n) != counts.first() || (*n == 0 && what != "experts")) {
            return Err((what, counts));
        }
    }
    Ok(())
}

/// A layer as the file has it.
struct Placed<'a> {
    /// Its index in the model.
    index: usize,
    dims: &'a LayerDims,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
}

/// The layers of the file; units of zeros where `deci` needs something.
fn place(arch: Arch, dims: &[LayerDims]) -> Vec<Placed<'_>> {
    let mut placed: Vec<Placed<'_>> = Vec::new();
    for (index, d) in dims.iter().enumerate() {
        if arch == Arch::Deci && !d.has_attention() && !d.has_mlp() {
            continue;
        }
        let stand_in = arch == Arch::Deci && d.q_heads == 0 && (placed.is_empty() || d.attention_bias_left);
        let (heads, kv_heads) = if stand_in { (1, 1) } else { (d.q_heads, d.kv_heads) };
        let ffn = if arch == Arch::Deci { d.ffn.max(1) } else { d.ffn };
        placed.push(Placed { index, dims: d, heads, kv_heads, ffn });
    }
    placed
}

/// What the file holds.
///
/// # Errors
/// See [`architecture`].
pub(crate) fn plan(b: &Blueprint, dims: &[LayerDims], context: usize) -> Result<Plan, Inexpressible> {
    let arch = choose(b, dims)?;
    let layers = place(arch, dims);
    let head_dim = dims.iter().map(|d| d.head_dim).max().unwrap_or(0);
    let mut warnings = Vec::new();
    let mut context = context;
    if !matches!(arch, Arch::Gemma2 | Arch::Gemma3)
        && let Some(window) = b.layers.iter().filter_map(|l| l.window).min().filter(|w| *w < context)
    {
        warnings.push(format!(
            "layers see a window of {window} tokens, and llama.cpp's `{}` sees everything: context_length is {window}, up to which both are the same",
            arch.name()
        ));
        context = window;
    }
    let mut metadata = Metadata { arch: arch.name(), list: Vec::new() };
    metadata.top("general.architecture", Meta::Text(arch.name().into()));
    metadata.own("vocab_size", count(b.vocab));
    metadata.own("context_length", count(context));
    metadata.own("embedding_length", count(b.hidden));
    metadata.own("block_count", count(layers.len()));
    let per_layer = |of: &dyn Fn(&Placed<'_>) -> usize| {
        let counts: Vec<u32> = layers.iter().map(|l| of(l) as u32).collect();
        match (arch, counts.first()) {
            (Arch::Deci, _) | (_, None) => Meta::U32s(counts),
            (_, Some(first)) => Meta::U32(*first),
        }
    };
    metadata.own("feed_forward_length", per_layer(&|l| l.ffn));
    metadata.own("attention.head_count", per_layer(&|l| l.heads));
    metadata.own("attention.head_count_kv", per_layer(&|l| l.kv_heads));
    let eps = Meta::F32(b.norm.eps as f32);
    if arch == Arch::Gpt2 {
        metadata.own("attention.layer_norm_epsilon", eps);
    } else {
        metadata.own("attention.layer_norm_rms_epsilon", eps);
        metadata.own("attention.key_length", count(head_dim));
        metadata.own("attention.value_length", count(head_dim));
        metadata.own("rope.dimension_count", count(head_dim));
    }
    mixture(&mut metadata, b, dims);
    let factors = rotary(&mut metadata, b);
    windows(&mut metadata, arch, b);
    let mut pieces = Pieces { b, arch, list: Vec::new() };
    pieces.model(factors);
    for (to, layer) in layers.iter().enumerate() {
        pieces.layer(to, layer);
    }
    Ok(Plan { architecture: arch.name(), metadata: metadata.list, pieces: pieces.list, warnings })
}

fn count(n: usize) -> Meta {
    Meta::U32(n as u32)
}

struct Metadata {
    arch: &'static str,
    list: Vec<(String, Meta)>,
}

impl Metadata {
    fn top(&mut self, key: &str, meta: Meta) {
        self.list.push((key.into(), meta));
    }

    fn own(&mut self, key: &str, meta: Meta) {
        self.list.push((format!("{}.{key}", self.arch), meta));
    }
}

fn mixture(metadata: &mut Metadata, b: &Blueprint, dims: &[LayerDims]) {
    let (Some(router), Some(d)) = (&b.mlp.router, dims.first().filter(|d| d.experts > 0)) else { return };
    metadata.own("expert_count", count(d.experts));
    metadata.own("expert_used_count", count(router.top_k.min(d.experts)));
    metadata.own("expert_feed_forward_length", count(d.ffn));
}

/// Frequencies of the rotary table; the factors by which they are divided, where they are not divided evenly.
fn rotary(metadata: &mut Metadata, b: &Blueprint) -> Option<Vec<f32>> {
    let table = b.rotary.first()?;
    metadata.own("rope.freq_base", Meta::F32(table.theta as f32));
    if let Some(sliding) = b.rotary.get(1) {
        metadata.own("rope.freq_base_swa", Meta::F32(sliding.theta as f32));
    }
    match table.scaling {
        RotaryScaling::Linear { factor } => {
            metadata.own("rope.scaling.type", Meta::Text("linear".into()));
            metadata.own("rope.scaling.factor", Meta::F32(factor as f32));
            None
        }
        RotaryScaling::Ramp { factor, low, high, original } => {
            let divisor = |pair: usize| {
                let frequency = table.theta.powf(-2.0 * pair as f64 / table.dim as f64);
                let turns = original as f64 * frequency / std::f64::consts::TAU;
                // Of all turns in the original context: below `low` divided, above `high` kept, a ramp of 1/divisor between.
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / ((1.0 - keep) / factor + keep)
            };
            Some((0..table.dim / 2).map(|pair| divisor(pair) as f32).collect())
        }
        RotaryScaling::None | RotaryScaling::Dynamic { .. } => None,
    }
}

fn windows(metadata: &mut Metadata, arch: Arch, b: &Blueprint) {
    if !matches!(arch, Arch::Gemma2 | Arch::Gemma3) {
        return;
    }
    if let Some(window) = b.layers.iter().filter_map(|l| l.window).max() {
        metadata.own("attention.sliding_window", count(window));
        metadata.own("attention.sliding_window_pattern", Meta::Bools(b.layers.iter().map(|l| l.window.is_some()).collect()));
    }
    if let Some(cap) = b.attention.softcap {
        metadata.own("attn_logit_softcapping", Meta::F32(cap as f32));
    }
    if let Head::Tokens { softcap: Some(cap), .. } = b.head {
        metadata.own("final_logit_softcapping", Meta::F32(cap as f32));
    }
}

struct Pieces<'a> {
    b: &'a Blueprint,
    arch: Arch,
    list: Vec<Piece>,
}

impl Pieces<'_> {
    fn add(&mut self, name: String, shape: &[usize], from: From, turn: Turn) {
        self.list.push(Piece { name, shape: shape.to_vec(), from, turn, factor: 1.0 });
    }

    /// Multiplies what was added last.
    fn scale_last(&mut self, factor: f64) {
        if let Some(piece) = self.list.last_mut() {
            piece.factor = factor;
        }
    }

    fn norm(&mut self, name: &str, slot: Option<&str>, width: usize) {
        let plus_one = self.b.norm.kind == NormKind::RmsOffsetOne;
        match slot {
            Some(slot) => {
                let turn = if plus_one { Turn::PlusOne } else { Turn::None };
                self.add(format!("{name}.weight"), &[width], From::Slot(format!("{slot}.weight")), turn);
                if self.b.norm.kind == NormKind::Layer {
                    self.add(format!("{name}.bias"), &[width], From::Slot(format!("{slot}.bias")), Turn::None);
                }
            }
            // Before zeros: anything will do.
            None => self.add(format!("{name}.weight"), &[width], From::Fill(1.0), Turn::None),
        }
    }

    fn model(&mut self, factors: Option<Vec<f32>>) {
        let (b, hidden) = (self.b, self.b.hidden);
        let slot = |name: &str| From::Slot(name.into());
        self.add("token_embd.weight".into(), &[b.vocab, hidden], slot("embeddings.token.weight"), Turn::None);
        if let Some(p) = &b.embeddings.positions {
            self.add("position_embd.weight".into(), &[p.rows, hidden], slot("embeddings.position.weight"), Turn::None);
        }
        self.norm("output_norm", Some("final_norm"), hidden);
        if let Head::Tokens { tied: false, .. } = b.head {
            self.add("output.weight".into(), &[b.vocab, hidden], slot("head.weight"), Turn::None);
        }
        if let Some(values) = factors {
            self.add("rope_freqs.weight".into(), &[values.len()], From::Values(values), Turn::None);
        }
    }

    fn layer(&mut self, to: usize, layer: &Placed<'_>) {
        let (b, hidden, d) = (self.b, self.b.hidden, layer.dims);
        let (s, t) = (format!("layers.{}", layer.index), format!("blk.{to}"));
        if layer.heads > 0 {
            self.norm(&format!("{t}.attn_norm"), (d.q_heads > 0).then_some(format!("{s}.norm1")).as_deref(), hidden);
            self.attention(&s, &t, layer);
        }
        if d.has_attention() && b.layout == Layout::Sandwich {
            self.norm(&format!("{t}.post_attention_norm"), Some(&format!("{s}.post_norm1")), hidden);
        }
        self.norm(&format!("{t}.ffn_norm"), (d.ffn > 0).then_some(format!("{s}.norm2")).as_deref(), hidden);
        self.mlp(&s, &t, layer);
        if d.has_mlp() && b.layout == Layout::Sandwich {
            self.norm(&format!("{t}.post_ffw_norm"), Some(&format!("{s}.post_norm2")), hidden);
        }
    }

    fn attention(&mut self, s: &str, t: &str, layer: &Placed<'_>) {
        let (a, hidden, d) = (&self.b.attention, self.b.hidden, layer.dims);
        let (queries, keys) = (layer.heads * d.head_dim, layer.kv_heads * d.head_dim);
        if self.arch == Arch::Gpt2 {
            let all = |leaf: &str| From::Cat(["q", "k", "v"].map(|n| format!("{s}.attention.{n}.{leaf}")).to_vec());
            self.add(format!("{t}.attn_qkv.weight"), &[queries + 2 * keys, hidden], all("weight"), Turn::None);
            self.add(format!("{t}.attn_qkv.bias"), &[queries + 2 * keys], all("bias"), Turn::None);
        } else {
            // These architectures scale scores by 1/√head_dim; what a model's own factor is more than that goes into its queries.
            let scale = self.b.layers.get(layer.index).map_or(1.0, |l| l.scale * (d.head_dim as f64).sqrt());
            let factor = if (scale - 1.0).abs() < SCALED { 1.0 } else { scale };
            // `llama` and `deci` turn neighbouring entries of a head, the others entries half a head apart.
            let interleaved = matches!(self.arch, Arch::Llama | Arch::Deci);
            for (name, rows, heads) in [("q", queries, layer.heads), ("k", keys, layer.kv_heads), ("v", keys, 0)] {
                let turn = if interleaved && heads > 0 { Turn::Interleave(heads) } else { Turn::None };
                for (leaf, shape) in [("weight", vec![rows, hidden]), ("bias", vec![rows])] {
                    let from = match (leaf, d.q_heads) {
                        ("bias", _) if !a.qkv_bias => continue,
                        (_, 0) => From::Fill(0.0),
                        _ => From::Slot(format!("{s}.attention.{name}.{leaf}")),
                    };
                    self.add(format!("{t}.attn_{name}.{leaf}"), &shape, from, turn);
                    if name == "q" && !a.qk_norm {
                        self.scale_last(factor);
                    }
                }
            }
            if a.qk_norm {
                self.norm(&format!("{t}.attn_q_norm"), Some(&format!("{s}.attention.q_norm")), d.head_dim);
                self.scale_last(factor);
                self.norm(&format!("{t}.attn_k_norm"), Some(&format!("{s}.attention.k_norm")), d.head_dim);
            }
        }
        let from = if d.q_heads > 0 { From::Slot(format!("{s}.attention.o.weight")) } else { From::Fill(0.0) };
        self.add(format!("{t}.attn_output.weight"), &[hidden, queries], from, Turn::None);
        if a.o_bias && d.has_attention() {
            self.add(format!("{t}.attn_output.bias"), &[hidden], From::Slot(format!("{s}.attention.o.bias")), Turn::None);
        }
    }

    fn mlp(&mut self, s: &str, t: &str, layer: &Placed<'_>) {
        let (m, hidden, d) = (&self.b.mlp, self.b.hidden, layer.dims);
        let names: &[&str] = if m.gated { &["gate", "up", "down"] } else { &["up", "down"] };
        if d.experts > 0 {
            self.add(format!("{t}.ffn_gate_inp.weight"), &[d.experts, hidden], From::Slot(format!("{s}.mlp.router.weight")), Turn::None);
            for name in names {
                let shape = if *name == "down" { [d.experts, hidden, d.ffn] } else { [d.experts, d.ffn, hidden] };
                let all = (0..d.experts).map(|e| format!("{s}.mlp.experts.{e}.{name}.weight")).collect();
                self.add(format!("{t}.ffn_{name}_exps.weight"), &shape, From::Stack(all), Turn::None);
            }
            return;
        }
        for name in names {
            let (shape, bias, width) = match *name {
                "down" => ([hidden, layer.ffn], m.down_bias && d.has_mlp(), hidden),
                _ => ([layer.ffn, hidden], m.up_bias && d.ffn > 0, layer.ffn),
            };
            let from = if d.ffn > 0 { From::Slot(format!("{s}.mlp.{name}.weight")) } else { From::Fill(0.0) };
            self.add(format!("{t}.ffn_{name}.weight"), &shape, from, Turn::None);
            if bias {
                self.add(format!("{t}.ffn_{name}.bias"), &[width], From::Slot(format!("{s}.mlp.{name}.bias")), Turn::None);
            }
        }
    }
}
