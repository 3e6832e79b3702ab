//! Which of llama.cpp's architectures computes what a network computes, and what it wants to be told: mechanisms are compared, not names.
//!
//! `llama` takes every pre-norm decoder with RMS norms, rotary over the whole head and a gated SiLU MLP, whatever family it comes from.
//! `deci` is the same with counts of their own for each layer. In its graph a layer without an MLP loses its attention (the residual is
//! skipped), and the width of a head is taken from layer 0: there, one unit of zeros stands for what is gone. A layer without either is
//! the identity, and left out. `openelm` has counts for each layer and q/k norms, and always ties its output; it knows no layer without
//! attention, so one head of zeros stands there. `gptneox` takes decoders with LayerNorms, biases, rotary and GELU, serial or parallel
//! (a norm that both sublayers share is written twice, biases that are not there as zeros), `falcon` those without biases, `phi2` those
//! whose output has a bias, `gpt2` those with learned positions. All but `deci` and `openelm` take equal counts only.

use prunectl_model::{Activation, Blueprint, Head, LayerDims, Layout, NormKind, Pairs, PositionRule, RotaryScaling};

use super::file::Meta;
use super::metadata::{Metadata, count, mixture, rotary, windows};
use super::pieces::{Piece, Pieces};

/// Why llama.cpp can't run a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Inexpressible {
    /// Why.
    pub reason: String,
    /// What would make it legal.
    pub remedy: String,
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
pub(crate) enum Arch {
    Llama,
    Deci,
    Qwen3,
    Qwen3Moe,
    OpenElm,
    Gemma2,
    Gemma3,
    Gpt2,
    GptNeox,
    Falcon,
    Phi2,
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
            Self::OpenElm => "openelm",
            Self::Gpt2 => "gpt2",
            Self::GptNeox => "gptneox",
            Self::Falcon => "falcon",
            Self::Phi2 => "phi2",
        }
    }

    /// Whether each layer has counts of its own.
    fn per_layer(self) -> bool {
        matches!(self, Self::Deci | Self::OpenElm)
    }

    /// Whether it reads a divisor for each pair of the rotary table.
    pub(crate) fn divides_pairs(self) -> bool {
        matches!(self, Self::Llama | Self::Deci)
    }

    /// Whether it has LayerNorms (and heads that fill the hidden size) instead of RMS norms.
    pub(crate) fn layer_norms(self) -> bool {
        matches!(self, Self::Gpt2 | Self::GptNeox | Self::Falcon | Self::Phi2)
    }

    /// What it multiplies scores by. Two sizes of Gemma, which it tells by their number of layers, are scaled by hidden / heads.
    pub(crate) fn scale(self, layers: usize, hidden: usize, d: &LayerDims) -> f64 {
        let by_hidden = matches!((self, layers), (Self::Gemma2, 46) | (Self::Gemma3, 62));
        let width = if by_hidden { hidden.checked_div(d.q_heads).unwrap_or(d.head_dim) } else { d.head_dim };
        (width as f64).powf(-0.5)
    }
}

fn refuse<T>(reason: impl Into<String>, remedy: impl Into<String>) -> Result<T, Inexpressible> {
    Err(Inexpressible { reason: reason.into(), remedy: remedy.into() })
}

const NO_ARCHITECTURE: &str = "export it with --format hf, which transformers reads";
const PADDED: &str = "save with layout = padded and export that";

/// The architecture for a model's shapes.
///
/// # Errors
/// Why there is none, and what would make it legal.
pub(crate) fn architecture(blueprint: &Blueprint, dims: &[LayerDims]) -> Result<&'static str, Inexpressible> {
    choose(blueprint, dims).map(Arch::name)
}

fn choose(b: &Blueprint, dims: &[LayerDims]) -> Result<Arch, Inexpressible> {
    if !matches!(b.head, Head::Tokens { transform: None, .. }) || !b.attention.causal {
        return refuse("only causal language models are written as GGUF", NO_ARCHITECTURE);
    }
    if dims.iter().all(|d| !d.has_attention() && !d.has_mlp()) {
        return refuse("no layer is left", "keep one");
    }
    let arch = match b.norm.kind {
        NormKind::Layer => with_layer_norms(b, dims)?,
        NormKind::Rms | NormKind::RmsOffsetOne => with_rms_norms(b, dims)?,
    };
    if let Some(r) = b.rotary.iter().find(|r| r.over != r.dim) {
        return refuse(format!("its rotary tables are over an even number of entries, and this one is over {}", r.over), NO_ARCHITECTURE);
    }
    if let Some(scaling) = b.rotary.iter().map(|r| &r.scaling).find(|s| !turns(arch, s)) {
        return refuse(format!("its `{}` has no rotary scaling that is this `{}`", arch.name(), scaling.name()), NO_ARCHITECTURE);
    }
    if let (Some(layer), true) = (dims.iter().position(|d| d.experts == 0 && d.ffn > 0), dims.iter().any(|d| d.experts > 0)) {
        return refuse(
            format!("layer {layer} has no experts and others have, and the architecture `{}` has them in each", arch.name()),
            NO_ARCHITECTURE,
        );
    }
    if !arch.per_layer()
        && let Err((what, counts)) = equal(dims)
    {
        // Each group of heads gets as many.
        let step = if what == "heads" { dims.iter().map(|d| d.kv_heads).max().unwrap_or(1) } else { 1 };
        if let Some(layer) = counts.iter().position(|n| *n == 0).filter(|_| what != "experts") {
            return refuse(
                format!(
                    "layer {layer} has lost a whole sublayer ({what} {counts:?}), and the architecture `{}` has both in each",
                    arch.name()
                ),
                format!("remove the whole layer instead, keep {} of its {what}, or {PADDED}", nearest(&counts, step)),
            );
        }
        let padded = if what == "experts" { String::new() } else { format!(", or {PADDED}") };
        return refuse(
            format!("layers differ in {what} ({counts:?}), and the architecture `{}` has one count for all", arch.name()),
            format!("{} of them in each layer is the nearest equal count (`scope = layer`){padded}", nearest(&counts, step)),
        );
    }
    if arch.layer_norms()
        && let Some(d) = dims.iter().find(|d| d.q_heads * d.head_dim != b.hidden)
    {
        let (name, found) = (arch.name(), d.q_heads * d.head_dim);
        return refuse(
            format!("its `{name}` wants heads that fill the hidden size, and {} of {} are {found} of {}", d.q_heads, d.head_dim, b.hidden),
            format!("prune neurons or layers, or {PADDED}"),
        );
    }
    Ok(arch)
}

/// Whether it has that rotary scaling. YaRN with other bounds than the paper's can be said by divisors alone.
fn turns(arch: Arch, scaling: &RotaryScaling) -> bool {
    match scaling {
        RotaryScaling::None | RotaryScaling::Linear { .. } => true,
        RotaryScaling::Dynamic { .. } => false,
        RotaryScaling::Ramp { .. } | RotaryScaling::Long { .. } => arch.divides_pairs(),
        RotaryScaling::Yarn { fast, slow, truncate, .. } => {
            arch.divides_pairs()
                || (matches!(arch, Arch::Qwen3 | Arch::Qwen3Moe | Arch::OpenElm) && *fast == 32.0 && *slow == 1.0 && *truncate)
        }
    }
}

/// The multiple of `step` nearest to the mean of the counts that are not 0.
pub(crate) fn nearest(counts: &[usize], step: usize) -> usize {
    let (there, step) = (counts.iter().filter(|n| **n > 0).count().max(1), step.max(1));
    let mean = counts.iter().sum::<usize>() as f64 / there as f64;
    ((mean / step as f64).round() as usize).max(1) * step
}

/// Gated decoders with RMS norms and rotary over the whole head.
fn with_rms_norms(b: &Blueprint, dims: &[LayerDims]) -> Result<Arch, Inexpressible> {
    let a = &b.attention;
    let whole_rotary = b.layers.iter().all(|l| l.rotary.is_some())
        && b.rotary.iter().all(|r| r.pairs == Pairs::Half && dims.iter().all(|d| d.q_heads == 0 || d.head_dim == r.dim));
    let partial = b.rotary.iter().find_map(|r| Some((r.dim, dims.iter().find(|d| d.q_heads > 0 && d.head_dim > r.dim)?.head_dim)));
    if let (Some((turned, width)), NormKind::Rms) = (partial, b.norm.kind) {
        let reason = format!("its decoders with RMS norms turn whole heads, and here {turned} of a head's {width} entries turn");
        return refuse(reason, NO_ARCHITECTURE);
    }
    let (tied, softcapped_head) = match b.head {
        Head::Tokens { tied, softcap, bias: false, project: false, .. } => (tied, softcap.is_some()),
        _ => return unlike(b),
    };
    if !b.mlp.gated || !whole_rotary || !b.final_norm || b.embeddings.positions.is_some() {
        return unlike(b);
    }
    let plain = a.softcap.is_none() && b.embeddings.scale == 1.0 && b.rotary.len() == 1 && b.norm.kind == NormKind::Rms && !softcapped_head;
    let gemma_scale = (b.embeddings.scale - (b.hidden as f64).sqrt()).abs() < 1e-6;
    let mixture = dims.iter().any(|d| d.experts > 0);
    let biases = a.qkv_bias || a.o_bias || b.mlp.up_bias || b.mlp.down_bias;
    let renormalise = b.mlp.router.as_ref().is_none_or(|r| r.renormalise);
    match b.layout {
        Layout::Pre if plain && b.mlp.activation == Activation::Silu => match (a.qk_norm, mixture) {
            _ if !renormalise => refuse("the router's weights are not made to sum to 1, and llama.cpp does that", NO_ARCHITECTURE),
            (false, false) if equal(dims).is_ok() => Ok(Arch::Llama),
            (false, false) => Ok(Arch::Deci),
            (false, true) => Ok(Arch::Llama),
            (true, _) if biases => refuse("its architectures for q/k norms have no biases", NO_ARCHITECTURE),
            (true, false) if tied && equal(dims).is_err() => Ok(Arch::OpenElm),
            (true, false) => Ok(Arch::Qwen3),
            (true, true) => Ok(Arch::Qwen3Moe),
        },
        Layout::Sandwich if !gemma_scale => {
            refuse("llama.cpp scales the embeddings by √hidden, and the hidden size has changed", "prune heads, neurons or layers instead")
        }
        Layout::Sandwich if !biases && b.mlp.activation == Activation::GeluTanh => match (a.qk_norm, a.softcap.is_some(), b.rotary.len()) {
            (false, true, 1) if softcapped_head => Ok(Arch::Gemma2),
            (true, false, 2) => Ok(Arch::Gemma3),
            _ => refuse("no architecture of llama.cpp has this mix of q/k norms and soft-caps", NO_ARCHITECTURE),
        },
        _ => unlike(b),
    }
}

/// Decoders with LayerNorms and a plain GELU MLP.
fn with_layer_norms(b: &Blueprint, dims: &[LayerDims]) -> Result<Arch, Inexpressible> {
    let (a, e) = (&b.attention, &b.embeddings);
    let Head::Tokens { bias: head_bias, project: false, softcap: None, .. } = b.head else { return unlike(b) };
    let gelu = matches!(b.mlp.activation, Activation::GeluTanh | Activation::GeluErf);
    let plain = e.norm_eps.is_none() && e.project.is_none() && e.token_types == 0 && e.scale == 1.0 && !a.qk_norm && a.softcap.is_none();
    if b.mlp.gated || !gelu || !plain || !b.final_norm || b.layout == Layout::Post {
        return unlike(b);
    }
    let biases = a.qkv_bias || a.o_bias || b.mlp.up_bias || b.mlp.down_bias;
    match (b.rotary.as_slice(), &e.positions, b.layout) {
        ([], Some(p), Layout::Pre) if p.rule == PositionRule::Index && !head_bias => Ok(Arch::Gpt2),
        ([r], None, Layout::ParallelOneNorm) if head_bias || r.pairs == Pairs::Interleaved => Ok(Arch::Phi2),
        ([r], None, Layout::Parallel | Layout::ParallelOneNorm)
            if !biases && !head_bias && r.pairs == Pairs::Half && dims.iter().all(|d| d.q_heads == 0 || d.head_dim == r.dim) =>
        {
            Ok(Arch::Falcon)
        }
        ([r], None, Layout::Parallel | Layout::ParallelOneNorm | Layout::Pre) if !head_bias && r.pairs == Pairs::Half => Ok(Arch::GptNeox),
        _ => unlike(b),
    }
}

/// Which mechanism llama.cpp lacks.
fn unlike(b: &Blueprint) -> Result<Arch, Inexpressible> {
    let plain_mlp = !b.mlp.gated && !matches!(b.mlp.activation, Activation::GeluTanh | Activation::GeluErf);
    let reason = match b.layout {
        Layout::Post => "no decoder of llama.cpp has its norms after the sublayers".to_owned(),
        _ if b.embeddings.project.is_some() => "no decoder of llama.cpp has embeddings of another width than its hidden states".to_owned(),
        _ if plain_mlp => format!("no decoder of llama.cpp with these norms has an MLP with {:?} and no gate", b.mlp.activation),
        _ => "no architecture of llama.cpp that we write has these mechanisms".to_owned(),
    };
    refuse(reason, NO_ARCHITECTURE)
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
pub(crate) struct Placed<'a> {
    /// Its index in the model.
    pub index: usize,
    pub dims: &'a LayerDims,
    pub heads: usize,
    pub kv_heads: usize,
    pub ffn: usize,
}

/// The layers of the file; units of zeros where an architecture with counts of its own for each layer needs something.
fn place(arch: Arch, dims: &[LayerDims]) -> Vec<Placed<'_>> {
    let mut placed: Vec<Placed<'_>> = Vec::new();
    for (index, d) in dims.iter().enumerate() {
        if arch.per_layer() && !d.has_attention() && !d.has_mlp() {
            continue;
        }
        let needed = arch == Arch::OpenElm || placed.is_empty() || d.attention_bias_left;
        let (heads, kv_heads) = if arch.per_layer() && d.q_heads == 0 && needed { (1, 1) } else { (d.q_heads, d.kv_heads) };
        let ffn = if arch.per_layer() { d.ffn.max(1) } else { d.ffn };
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
    if arch == Arch::Gpt2 {
        // Its table of positions has a row for each place of the context.
        context = b.embeddings.positions.as_ref().map_or(context, |p| context.min(p.rows));
    }
    if let Some(RotaryScaling::Long { original, .. }) = b.rotary.first().map(|r| &r.scaling) {
        warnings.push(format!(
            "llama.cpp takes longrope's long factors by the size of its context (`-c`), not by the length of the text: up to {original} tokens \
             it computes the same with a context of at most {original}"
        ));
    }
    if b.mlp.activation == Activation::GeluErf {
        warnings.push("llama.cpp computes GELU in its tanh form, and this model has the exact one: logits move by some 1e-4".into());
    }
    let mut metadata = Metadata { arch: arch.name(), list: Vec::new() };
    metadata.top("general.architecture", Meta::Text(arch.name().into()));
    metadata.own("vocab_size", count(b.vocab));
    metadata.own("context_length", count(context));
    metadata.own("embedding_length", count(b.hidden));
    metadata.own("block_count", count(layers.len()));
    let per_layer = |of: &dyn Fn(&Placed<'_>) -> usize| {
        let counts: Vec<u32> = layers.iter().map(|l| of(l) as u32).collect();
        match counts.first() {
            Some(first) if !arch.per_layer() => Meta::U32(*first),
            _ => Meta::U32s(counts),
        }
    };
    metadata.own("feed_forward_length", per_layer(&|l| l.ffn));
    metadata.own("attention.head_count", per_layer(&|l| l.heads));
    metadata.own("attention.head_count_kv", per_layer(&|l| l.kv_heads));
    let eps = Meta::F32(b.norm.eps as f32);
    metadata.own(if arch.layer_norms() { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" }, eps);
    metadata.own("attention.key_length", count(head_dim));
    metadata.own("attention.value_length", count(head_dim));
    if let Some(table) = b.rotary.first() {
        metadata.own("rope.dimension_count", count(table.dim));
    }
    if arch == Arch::GptNeox {
        metadata.own("use_parallel_residual", Meta::Bool(b.layout != Layout::Pre));
    }
    mixture(&mut metadata, b, dims);
    let factors = rotary(&mut metadata, arch, b);
    windows(&mut metadata, arch, b);
    let mut pieces = Pieces { b, arch, layers: dims.len(), list: Vec::new() };
    pieces.model(factors, context);
    for (to, layer) in layers.iter().enumerate() {
        pieces.layer(to, layer);
    }
    Ok(Plan { architecture: arch.name(), metadata: metadata.list, pieces: pieces.list, warnings })
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_equal_count_is_one_that_groups_can_share() {
        assert_eq!(nearest(&[64, 77, 96], 1), 79);
        assert_eq!(nearest(&[96, 0, 96], 1), 96, "a layer without any says nothing of the others");
        assert_eq!(nearest(&[4, 6, 8], 4), 8);
        assert_eq!(nearest(&[1, 1, 1], 2), 2);
    }
}
