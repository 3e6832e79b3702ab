//! OPT (Zhang et al., 2022): pre- or post-norm decoder; positions count real tokens from 2; narrow embeddings are projected.

use super::config::{Source, activation};
use super::gpt2::Plain;
use super::llama::head;
use super::names::{Name, Names, plain};
use super::{Family, Keys, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "OPT",
    model_types: &["opt"],
    architectures: &[
        ("OPTForCausalLM", Task::CausalLm),
        ("OPTForSequenceClassification", Task::Classification),
        ("OPTModel", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: Keys {
        layers: "num_hidden_layers",
        hidden: "hidden_size",
        embedding: Some("word_embed_proj_dim"),
        heads: "num_attention_heads",
        kv_heads: None,
        head_dim: None,
        ffn: "ffn_dim",
        experts: None,
    },
    write_layers: no_layer_fields,
};

/// Not in its config.
const EPS: f64 = 1e-5;
/// Rows of the position table in front of the first position.
const OFFSET: usize = 2;

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let shape = Plain::read(fields, "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim")?;
    if !fields.flag_or("layer_norm_elementwise_affine", true)? {
        return Err(fields.unsupported("a norm without weights (`layer_norm_elementwise_affine` is false)", "norms with weights are"));
    }
    let width = fields.width_or_none(&["word_embed_proj_dim"])?.unwrap_or(shape.hidden);
    let mut head = head(source, fields.flag_or("tie_word_embeddings", true)?)?;
    if let Head::Tokens { project, .. } = &mut head {
        *project = width != shape.hidden;
    }
    let mut blueprint = shape.blueprint(fields, EPS, activation(fields, &["activation_function"], "relu")?, head)?;
    let rows = fields.width(&["max_position_embeddings"])? + OFFSET;
    blueprint.embeddings.width = width;
    blueprint.embeddings.project = (width != shape.hidden).then_some(Projection::Tokens);
    blueprint.embeddings.positions = Some(Positions { rows, rule: PositionRule::RankInKeep { base: OFFSET - 1 } });
    let pre = fields.flag_or("do_layer_norm_before", true)?;
    blueprint.layout = if pre { Layout::Pre } else { Layout::Post };
    blueprint.final_norm = pre && !fields.flag_or("_remove_final_layer_norm", false)?;
    let bias = fields.flag_or("enable_bias", true)?;
    (blueprint.attention.qkv_bias, blueprint.attention.o_bias) = (bias, bias);
    (blueprint.mlp.up_bias, blueprint.mlp.down_bias) = (bias, bias);
    Ok((blueprint, shape.dims()))
}

fn names() -> Names {
    let entries: &[Name] = &[
        plain("embeddings.token", "model.decoder.embed_tokens"),
        plain("embeddings.position", "model.decoder.embed_positions"),
        plain("embeddings.project", "model.decoder.project_in"),
        plain("layers.{l}.attention.q", "model.decoder.layers.{l}.self_attn.q_proj"),
        plain("layers.{l}.attention.k", "model.decoder.layers.{l}.self_attn.k_proj"),
        plain("layers.{l}.attention.v", "model.decoder.layers.{l}.self_attn.v_proj"),
        plain("layers.{l}.attention.o", "model.decoder.layers.{l}.self_attn.out_proj"),
        plain("layers.{l}.norm1", "model.decoder.layers.{l}.self_attn_layer_norm"),
        plain("layers.{l}.mlp.up", "model.decoder.layers.{l}.fc1"),
        plain("layers.{l}.mlp.down", "model.decoder.layers.{l}.fc2"),
        plain("layers.{l}.norm2", "model.decoder.layers.{l}.final_layer_norm"),
        plain("final_norm", "model.decoder.final_layer_norm"),
        plain("head.project", "model.decoder.project_out"),
        plain("head", "lm_head"),
        plain("classifier", "score"),
    ];
    Names { prefix: "model.", entries: entries.to_vec() }
}
