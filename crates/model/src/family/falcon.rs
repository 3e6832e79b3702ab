//! Falcon (Almazrouei et al., 2023): multi-query or grouped attention beside the MLP, q, k and v fused per key/value head.

use serde_json::{Map, Value, json};

use super::config::{Source, Turns, activation};
use super::gpt2::Plain;
use super::llama::head;
use super::names::{How, Name, Names, QkvOrder, plain, stored};
use super::{Family, Keys, same_pair};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "Falcon",
    model_types: &["falcon"],
    architectures: &[
        ("FalconForCausalLM", Task::CausalLm),
        ("FalconForSequenceClassification", Task::Classification),
        ("FalconModel", Task::Encoder),
    ],
    read,
    names,
    keys: Keys {
        layers: "num_hidden_layers",
        hidden: "hidden_size",
        embedding: None,
        heads: "num_attention_heads",
        kv_heads: None,
        head_dim: None,
        ffn: "ffn_hidden_size",
        experts: None,
    },
    write_layers,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    fields.refuse_flag("alibi", "ALiBi position biases", "rotary positions are (`alibi` false)")?;
    let shape = Plain::read(fields, "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_hidden_size")?;
    let eps = fields.positive_or(&["layer_norm_epsilon"], 1e-5)?;
    let head = head(source, fields.flag_or("tie_word_embeddings", true)?)?;
    let mut blueprint = shape.blueprint(fields, eps, activation(fields, &["activation"], "gelu")?, head)?;
    let grouped = fields.flag_or("new_decoder_architecture", false)?;
    let kv_heads = if grouped {
        fields.count_or_none(&["num_kv_heads"])?.unwrap_or(shape.heads)
    } else if fields.flag_or("multi_query", true)? {
        1
    } else {
        shape.heads
    };
    if !shape.heads.is_multiple_of(kv_heads) {
        return Err(fields.error("num_kv_heads", format!("a divisor of num_attention_heads, {}", shape.heads)));
    }
    let bias = fields.flag_or("bias", false)?;
    (blueprint.attention.qkv_bias, blueprint.attention.o_bias) = (bias, bias);
    (blueprint.mlp.up_bias, blueprint.mlp.down_bias) = (bias, bias);
    let norms = fields.count_or_none(&["num_ln_in_parallel_attn"])?.unwrap_or(2);
    blueprint.layout = if grouped && norms == 2 {
        Layout::Parallel
    } else if grouped || fields.flag_or("parallel_attn", true)? {
        Layout::ParallelOneNorm
    } else {
        Layout::Pre
    };
    blueprint.rotary = vec![fields.rotary(shape.head_dim, Pairs::Half, Turns::WHOLE)?];
    for layer in &mut blueprint.layers {
        layer.rotary = Some(0);
    }
    let dims = shape.dims().into_iter().map(|d| LayerDims { kv_heads, ..d }).collect();
    Ok((blueprint, dims))
}

/// Only the grouped variant reads a count of key/value heads.
fn write_layers(map: &mut Map<String, Value>, _: &Blueprint, dims: &[LayerDims]) {
    let grouped = map.get("new_decoder_architecture").and_then(Value::as_bool) == Some(true);
    if let Some((_, kv_heads)) = same_pair(dims).filter(|_| grouped) {
        map.insert("num_kv_heads".into(), json!(kv_heads));
    }
}

fn names(blueprint: &Blueprint) -> Names {
    let (norm1, norm2) = match blueprint.layout {
        Layout::Parallel => ("transformer.h.{l}.ln_attn", "transformer.h.{l}.ln_mlp"),
        _ => ("transformer.h.{l}.input_layernorm", "transformer.h.{l}.post_attention_layernorm"),
    };
    let entries: &[Name] = &[
        plain("embeddings.token", "transformer.word_embeddings"),
        plain("layers.{l}.norm1", norm1),
        stored("layers.{l}.attention", "transformer.h.{l}.self_attention.query_key_value", How::Qkv(QkvOrder::PerGroup)),
        plain("layers.{l}.attention.o", "transformer.h.{l}.self_attention.dense"),
        plain("layers.{l}.norm2", norm2),
        plain("layers.{l}.mlp.up", "transformer.h.{l}.mlp.dense_h_to_4h"),
        plain("layers.{l}.mlp.down", "transformer.h.{l}.mlp.dense_4h_to_h"),
        plain("final_norm", "transformer.ln_f"),
        plain("head", "lm_head"),
        plain("classifier", "score"),
    ];
    Names { prefix: "transformer.", entries: entries.to_vec() }
}
