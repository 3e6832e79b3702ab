//! What candle-transformers' unmodified models compute of a network: their configs leave out mechanisms that ours may have, and files with
//! more tensors than they ask for load without a word, so each mechanism is held against what the model's source reads.

use prunectl_model::{Blueprint, Head, RotaryScaling};

use super::{Obstacle, Target, takes_counts};

/// Families whose models read the causal language model's head.
const DECODERS: &[&str] = &["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3"];
/// Those that share the output's matrix with the embedding where the config says so, or always.
const TIES: &[&str] = &["llama", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3"];
/// Those that read `attention_bias`.
const READS_BIAS: &[&str] = &["qwen3", "qwen3_moe", "gemma2", "gemma3_text"];
/// Scores are multiplied by 1/√head_dim within this share of it.
const SCALED: f64 = 1e-6;

/// How far a model of that family, in shapes that its config can say, is computed there: the limit in words, or why it isn't.
pub(super) fn reach(target: &Target<'_>) -> Result<Option<String>, Obstacle> {
    let (b, family) = (target.blueprint, target.model_type);
    match family {
        "bert" => Ok(match b.head {
            Head::Tokens { .. } | Head::Encode { .. } => None,
            _ => Some("its encoder: it has no such head".to_owned()),
        }),
        "xlm-roberta" => Ok(match b.head {
            Head::Sequence { .. } | Head::Encode { .. } => None,
            Head::Tokens { .. } => Some("its encoder: the head that it has for masked tokens lacks the bias".to_owned()),
            Head::Spans => Some("its encoder: it has no such head".to_owned()),
        }),
        _ if DECODERS.contains(&family) => decoder(target, b),
        _ => Ok(None),
    }
}

fn decoder(target: &Target<'_>, b: &Blueprint) -> Result<Option<String>, Obstacle> {
    let family = target.model_type;
    let refuse = |reason: String, remedy: &str| Err(Obstacle { reason, remedy: remedy.to_owned() });
    let other = "another loader reads it";
    let Head::Tokens { tied, .. } = b.head else { return refuse("it has the causal language model of this family alone".into(), other) };
    if tied && !TIES.contains(&family) {
        return refuse("it wants a matrix of its own for the output, which this model shares with the embedding".into(), other);
    }
    let a = &b.attention;
    let biases = match family {
        "qwen2" => a.o_bias,
        _ if READS_BIAS.contains(&family) => a.qkv_bias != a.o_bias,
        _ => a.qkv_bias || a.o_bias,
    };
    if biases || b.mlp.up_bias || b.mlp.down_bias {
        return refuse("it leaves out biases that this model has".into(), other);
    }
    let scaling = b.rotary.iter().map(|r| &r.scaling).find(|s| match s {
        RotaryScaling::None => false,
        RotaryScaling::Ramp { .. } => family != "llama",
        _ => true,
    });
    if let Some(scaling) = scaling {
        return refuse(format!("it does not compute the rotary scaling `{}` in this family, or otherwise", scaling.name()), other);
    }
    if b.rotary.iter().any(|r| r.over != r.dim) {
        return refuse("it turns no odd share of a head".into(), other);
    }
    let scaled = |scale: f64, width: usize| (scale * (width as f64).sqrt() - 1.0).abs() < SCALED;
    if let Some((l, d)) = b.layers.iter().zip(target.dims).find(|(l, d)| d.q_heads > 0 && !scaled(l.scale, d.head_dim)) {
        let reason = format!("it multiplies scores by 1/√{}, and this model by {:.4} (`query_pre_attn_scalar`)", d.head_dim, l.scale);
        return refuse(reason, other);
    }
    if target.dims.iter().any(|d| d.experts > 0) && target.dims.iter().any(|d| d.experts == 0) {
        return refuse("it does not read which layers have no experts (`mlp_only_layers`)".into(), other);
    }
    if !takes_counts(target) {
        let reason = "config.json has to hold a number of heads that transformers' class accepts, for its Python file, and not this one";
        return refuse(reason.into(), "choose a number of heads that divides the hidden size");
    }
    if family == "gemma3_text" && full_every(b).is_none() {
        let reason = "it takes every Nth layer for one without a window, and here they are not every Nth";
        return refuse(reason.into(), "remove layers so that the pattern stays, or none");
    }
    let windows = b.layers.iter().any(|l| l.window.is_some());
    if family == "gemma3_text" && windows && target.dims.iter().any(|d| d.kv_heads > 1) {
        return refuse("its cache of layers with a window takes one key/value head only".into(), other);
    }
    Ok(match b.layers.iter().filter_map(|l| l.window).min() {
        None => None,
        Some(_) if matches!(family, "qwen3" | "qwen3_moe") => return refuse("it has no windows in this family".into(), other),
        Some(window) => {
            Some(format!("texts of up to {window} tokens, the window of some layers, which it has wider, elsewhere or not at all"))
        }
    })
}

/// N, where just every Nth layer has no window.
pub(crate) fn full_every(b: &Blueprint) -> Option<usize> {
    let n = b.layers.iter().position(|l| l.window.is_none()).map_or(b.layers.len() + 1, |first| first + 1);
    b.layers.iter().enumerate().all(|(i, l)| l.window.is_none() == (i + 1).is_multiple_of(n)).then_some(n)
}
