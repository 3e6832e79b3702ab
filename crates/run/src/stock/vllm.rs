//! vLLM's per-layer blocks (its `DeciLMForCausalLM`, made for Nemotron-NAS): a Llama in which each layer has its FFN width and its number of
//! key/value heads, or lacks a sublayer. Read in vLLM's source; not run by us.

use prunectl_model::{Activation, Blueprint, Head, LayerDims, Layout, NormKind, Pairs, RotaryScaling};
use serde_json::{Value, json};

use super::{Obstacle, Target};
use crate::gguf;

/// The architecture's name in `config.json`.
pub(crate) const ARCHITECTURE: &str = "DeciLMForCausalLM";
/// The `model_type` by which vLLM knows that layers differ.
pub(crate) const MODEL_TYPE: &str = "nemotron-nas";
/// Families whose tensors have the names and shapes of a Llama's.
const FAMILIES: &[&str] = &["llama", "mistral", "qwen2"];
/// Widths that `ffn_mult` can say are multiples of this.
const STEP: usize = 256;
/// Scores are multiplied by 1/√head_dim within this share of it.
const SCALED: f64 = 1e-6;

/// `block_configs`, one a layer.
///
/// # Errors
/// What the blocks can't say, and what would make it legal.
pub(crate) fn blocks(target: &Target<'_>) -> Result<Vec<Value>, Obstacle> {
    let (b, dims) = (target.blueprint, target.dims);
    if !FAMILIES.contains(&target.model_type) || !is_llama(b, dims) {
        return Err(Obstacle {
            reason: "its per-layer blocks are a Llama's: RMS norms before each sublayer, a gated SiLU MLP, rotary over the whole head \
                     (scaled linearly, as Llama 3 or not), no windows, no q/k norms, no experts"
                .into(),
            remedy: "`layout = padded` writes the removed units as zeros, in the family's own shape".into(),
        });
    }
    let refuse = |reason: String, remedy: String| Err(Obstacle { reason, remedy });
    let mut with_heads = dims.iter().enumerate().filter(|(_, d)| d.q_heads > 0);
    match with_heads.next() {
        None => return refuse("no layer has attention".into(), "keep one".into()),
        Some((0, _)) => {}
        Some((layer, _)) => {
            return refuse(
                format!("its first layer must have attention, and the first that has is layer {layer}"),
                "keep the attention of layer 0".into(),
            );
        }
    }
    if let Some((layer, _)) = dims.iter().enumerate().find(|(_, d)| d.attention_bias_left || d.mlp_bias_left) {
        return refuse(format!("of layer {layer} only a bias is left"), "remove the sublayer whole: `layers[*].attention`".into());
    }
    let counts: Vec<usize> = dims.iter().map(|d| d.q_heads).filter(|n| *n > 0).collect();
    let heads = counts.first().copied().unwrap_or(0);
    if counts.iter().any(|n| *n != heads) {
        let step = dims.iter().map(|d| d.kv_heads).max().unwrap_or(1);
        return refuse(
            format!("its blocks have one number of query heads for all layers, and here they are {counts:?}"),
            format!(
                "{} in each layer is the nearest equal count (`scope = layer`), or remove whole attentions and neurons only",
                gguf::nearest(&counts, step)
            ),
        );
    }
    Ok(dims.iter().map(|d| block(d, heads, b.hidden)).collect())
}

fn block(d: &LayerDims, heads: usize, hidden: usize) -> Value {
    let group = (d.q_heads > 0).then(|| heads / d.kv_heads.max(1));
    let mut ffn = json!({ "no_op": d.ffn == 0, "ffn_mult": null, "replace_with_linear": false });
    if let (Some(fields), true) = (ffn.as_object_mut(), d.ffn > 0) {
        fields.insert("intermediate_size".into(), d.ffn.into());
        if d.ffn.is_multiple_of(STEP) {
            // It rounds ⌊2/3 · ffn_mult · hidden⌋ up to the next multiple, which forgives the division.
            fields.insert("ffn_mult".into(), json!(1.5 * d.ffn as f64 / hidden as f64));
        } else {
            // Where the field is there, the width beside it is not read.
            fields.remove("ffn_mult");
        }
    }
    json!({ "attention": { "no_op": d.q_heads == 0, "n_heads_in_group": group, "replace_with_linear": false }, "ffn": ffn })
}

fn is_llama(b: &Blueprint, dims: &[LayerDims]) -> bool {
    let a = &b.attention;
    let head = matches!(b.head, Head::Tokens { bias: false, transform: None, project: false, softcap: None, .. });
    let norms = b.norm.kind == NormKind::Rms && b.layout == Layout::Pre && b.final_norm;
    let mlp = b.mlp.gated && b.mlp.activation == Activation::Silu && b.mlp.up_bias == b.mlp.down_bias;
    let attention = a.causal && !a.qk_norm && a.softcap.is_none() && (a.qkv_bias || !a.o_bias);
    let rotary = matches!(b.rotary.as_slice(), [r] if r.pairs == Pairs::Half
        && matches!(r.scaling, RotaryScaling::None | RotaryScaling::Linear { .. } | RotaryScaling::Ramp { .. })
        && dims.iter().all(|d| d.q_heads == 0 || d.head_dim == r.dim));
    let layers = b.layers.iter().zip(dims).all(|(l, d)| {
        let scaled = d.q_heads == 0 || (l.scale * (d.head_dim as f64).sqrt() - 1.0).abs() < SCALED;
        l.window.is_none() && scaled && d.experts == 0
    });
    head && norms && mlp && attention && rotary && layers && b.embeddings.positions.is_none() && b.embeddings.scale == 1.0
}
