//! GPT-NeoX and Pythia (Black et al., 2022; Biderman et al., 2023): partial rotary, parallel residual, q, k and v fused per head.

use super::bert::KEYS;
use super::config::{Source, Turns, activation};
use super::gpt2::Plain;
use super::llama::head;
use super::names::{How, Name, Names, QkvOrder, plain, stored};
use super::{Family, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "GPT-NeoX",
    model_types: &["gpt_neox"],
    architectures: &[
        ("GPTNeoXForCausalLM", Task::CausalLm),
        ("GPTNeoXForSequenceClassification", Task::Classification),
        ("GPTNeoXModel", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: KEYS,
    write_layers: no_layer_fields,
};

/// The share of a head that turns where the config is silent.
const DEFAULT_PARTIAL: f64 = 0.25;

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let shape = Plain::read(fields, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")?;
    let eps = fields.positive_or(&["layer_norm_eps"], 1e-5)?;
    let head = head(source, fields.flag_or("tie_word_embeddings", false)?)?;
    let mut blueprint = shape.blueprint(fields, eps, activation(fields, &["hidden_act"], "gelu")?, head)?;
    let bias = fields.flag_or("attention_bias", true)?;
    (blueprint.attention.qkv_bias, blueprint.attention.o_bias) = (bias, bias);
    if fields.flag_or("use_parallel_residual", true)? {
        blueprint.layout = Layout::Parallel;
    }
    blueprint.rotary = vec![fields.rotary(shape.head_dim, Pairs::Half, Turns { partial: DEFAULT_PARTIAL, ..Turns::WHOLE })?];
    for layer in &mut blueprint.layers {
        layer.rotary = Some(0);
    }
    Ok((blueprint, shape.dims()))
}

fn names() -> Names {
    let entries: &[Name] = &[
        plain("embeddings.token", "gpt_neox.embed_in"),
        plain("layers.{l}.norm1", "gpt_neox.layers.{l}.input_layernorm"),
        stored("layers.{l}.attention", "gpt_neox.layers.{l}.attention.query_key_value", How::Qkv(QkvOrder::PerGroup)),
        plain("layers.{l}.attention.o", "gpt_neox.layers.{l}.attention.dense"),
        plain("layers.{l}.norm2", "gpt_neox.layers.{l}.post_attention_layernorm"),
        plain("layers.{l}.mlp.up", "gpt_neox.layers.{l}.mlp.dense_h_to_4h"),
        plain("layers.{l}.mlp.down", "gpt_neox.layers.{l}.mlp.dense_4h_to_h"),
        plain("final_norm", "gpt_neox.final_layer_norm"),
        plain("head", "embed_out"),
        plain("classifier", "score"),
    ];
    Names { prefix: "gpt_neox.", entries: entries.to_vec() }
}
