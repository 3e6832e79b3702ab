//! Gemma 2 and 3, text (Gemma Team, 2024 and 2025): norms before and after each sublayer with factor 1 + w, scaled embeddings,
//! alternating windows; soft-caps in 2, q/k norms and two rotary tables in 3.

use serde_json::{Map, Value};

use super::config::{Fields, Source, Turns};
use super::llama::{KEYS, Silent, decoder, names as llama_names};
use super::names::{Names, plain};
use super::{Family, write_layer_types};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const GEMMA2: Family = Family {
    name: "Gemma 2",
    model_types: &["gemma2"],
    architectures: &[
        ("Gemma2ForCausalLM", Task::CausalLm),
        ("Gemma2ForSequenceClassification", Task::Classification),
        ("Gemma2Model", Task::Encoder),
    ],
    read: read_gemma2,
    names: |_| names(),
    keys: KEYS,
    write_layers: write_layer_types,
};

pub(super) const GEMMA3: Family = Family {
    name: "Gemma 3",
    model_types: &["gemma3_text"],
    architectures: &[
        ("Gemma3ForCausalLM", Task::CausalLm),
        ("Gemma3TextForSequenceClassification", Task::Classification),
        ("Gemma3TextModel", Task::Encoder),
    ],
    read: read_gemma3,
    names: |_| names(),
    keys: KEYS,
    write_layers: write_gemma3,
};

/// A cap on the scores is in no sum of transformers', and other readers would obey it.
fn write_gemma3(map: &mut Map<String, Value>, blueprint: &Blueprint, dims: &[LayerDims]) {
    write_layer_types(map, blueprint, dims);
    if let Some(cap) = map.get_mut("attn_logit_softcapping") {
        *cap = Value::Null;
    }
}

/// `hidden_act` may stand beside it, and transformers' classes don't read that.
const SILENT: Silent = Silent {
    activation_key: "hidden_activation",
    activation: "gelu_pytorch_tanh",
    tied: true,
    kv_heads: Some(4),
    head_dim: Some(256),
    ..Silent::LLAMA
};
/// The scalar under the scores' root where the config is silent.
const DEFAULT_SCALAR: f64 = 256.0;
/// Every so many layers one of Gemma 3 sees everything.
const DEFAULT_PATTERN: usize = 6;
/// Rotary bases of Gemma 3's full and sliding layers.
const FULL_THETA: f64 = 1_000_000.0;
const SLIDING_THETA: f64 = 10_000.0;

/// What the two share; windows and soft-caps are left open.
fn common(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    fields.refuse_flag("use_bidirectional_attention", "bidirectional attention in a decoder", "causal attention is")?;
    let (mut blueprint, dims) = decoder(source, &SILENT)?;
    blueprint.embeddings.scale = (blueprint.hidden as f64).sqrt();
    blueprint.norm.kind = NormKind::RmsOffsetOne;
    blueprint.layout = Layout::Sandwich;
    let bias = fields.flag_or("attention_bias", false)?;
    (blueprint.attention.qkv_bias, blueprint.attention.o_bias) = (bias, bias);
    let scale = fields.positive_or(&["query_pre_attn_scalar"], DEFAULT_SCALAR)?.powf(-0.5);
    for layer in &mut blueprint.layers {
        layer.scale = scale;
    }
    Ok((blueprint, dims))
}

fn cap(fields: &Fields<'_>, blueprint: &mut Blueprint, attention: Option<f64>, output: Option<f64>) -> Result<()> {
    blueprint.attention.softcap = fields.nullable_positive_or("attn_logit_softcapping", attention)?;
    if let Head::Tokens { softcap, .. } = &mut blueprint.head {
        *softcap = fields.nullable_positive_or("final_logit_softcapping", output)?;
    }
    Ok(())
}

fn slide(fields: &Fields<'_>, blueprint: &mut Blueprint, slides: impl Fn(usize) -> bool) -> Result<()> {
    let window = Some(fields.width_or(&["sliding_window"], 4096)?);
    let layers = blueprint.layers.len();
    let windows = fields.windows(layers, window)?.unwrap_or_else(|| (0..layers).map(|l| window.filter(|_| slides(l))).collect());
    for (layer, window) in blueprint.layers.iter_mut().zip(windows) {
        layer.window = window;
    }
    Ok(())
}

fn read_gemma2(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let (mut blueprint, dims) = common(source)?;
    cap(&source.fields, &mut blueprint, Some(50.0), Some(30.0))?;
    slide(&source.fields, &mut blueprint, |layer| layer.is_multiple_of(2))?;
    Ok((blueprint, dims))
}

fn read_gemma3(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let (mut blueprint, dims) = common(source)?;
    cap(fields, &mut blueprint, None, None)?;
    // Its config has the field, and transformers' class leaves it out of the scores.
    blueprint.attention.softcap = None;
    blueprint.attention.qk_norm = true;
    let pattern = fields.count_or_none(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(DEFAULT_PATTERN);
    slide(fields, &mut blueprint, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let head_dim = dims.first().map_or(0, |d| d.head_dim);
    for layer in &mut blueprint.layers {
        layer.rotary = Some(usize::from(layer.window.is_some()));
    }
    blueprint.rotary = two_tables(fields, head_dim)?;
    Ok((blueprint, dims))
}

/// The rotary tables of full (0) and sliding (1) layers; `rope_scaling` is of the full ones.
fn two_tables(fields: &Fields<'_>, head_dim: usize) -> Result<Vec<Rotary>> {
    let both = fields.object("rope_parameters")?;
    let table = |name: &'static str, scaling: Option<Fields<'_>>, key: &'static str, theta: f64| -> Result<Rotary> {
        let own = both.map_or(Ok(None), |b| b.object(name))?;
        let mut table = fields.rotary_from(own.as_ref(), scaling.or(own).as_ref(), head_dim, Pairs::Half, Turns::WHOLE)?;
        let said = own.map_or(Ok(None), |p| p.positive_or_none(&["rope_theta"]))?;
        table.theta = said.map_or_else(|| fields.positive_or(&[key], theta), Ok)?;
        Ok(table)
    };
    Ok(vec![
        table("full_attention", fields.scaling_object()?, "rope_theta", FULL_THETA)?,
        table("sliding_attention", None, "rope_local_base_freq", SLIDING_THETA)?,
    ])
}

fn names() -> Names {
    let mut names = llama_names();
    names.entries.retain(|n| n.slot != "layers.{l}.norm2");
    names.entries.extend([
        plain("layers.{l}.post_norm1", "model.layers.{l}.post_attention_layernorm"),
        plain("layers.{l}.norm2", "model.layers.{l}.pre_feedforward_layernorm"),
        plain("layers.{l}.post_norm2", "model.layers.{l}.post_feedforward_layernorm"),
    ]);
    names
}
