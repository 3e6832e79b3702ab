//! CodeGen (Nijkamp et al., 2022): parallel residual with one norm, interleaved partial rotary; q, v and k fused in four shards.

use super::config::{Source, activation};
use super::gpt2::Plain;
use super::names::{How, Name, Names, QkvOrder, plain, stored};
use super::{Family, Keys, encode_head, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "CodeGen",
    model_types: &["codegen"],
    architectures: &[("CodeGenForCausalLM", Task::CausalLm), ("CodeGenModel", Task::Encoder)],
    read,
    names: |_| names(),
    keys: Keys {
        layers: "n_layer",
        hidden: "n_embd",
        embedding: None,
        heads: "n_head",
        kv_heads: None,
        head_dim: None,
        ffn: "n_inner",
        experts: None,
    },
    write_layers: no_layer_fields,
};

/// Shards of its fused projection: it was trained on four devices.
const SHARDS: usize = 4;
/// The rotary base, which its config does not have.
const THETA: f64 = 10_000.0;

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let shape = Plain::read(fields, "n_embd", "n_layer", "n_head", "n_inner")?;
    let eps = fields.positive_or(&["layer_norm_epsilon"], 1e-5)?;
    let head = match source.task {
        Task::Encoder => encode_head(false),
        _ => {
            let tied = fields.flag_or("tie_word_embeddings", false)?;
            Head::Tokens { tied, bias: true, transform: None, project: false, softcap: None }
        }
    };
    let mut blueprint = shape.blueprint(fields, eps, activation(fields, &["activation_function"], "gelu_new")?, head)?;
    (blueprint.attention.qkv_bias, blueprint.attention.o_bias) = (false, false);
    blueprint.layout = Layout::ParallelOneNorm;
    let dim = fields.nullable_width_or("rotary_dim", Some(64))?.unwrap_or(shape.head_dim);
    if dim > shape.head_dim || !dim.is_multiple_of(2) {
        return Err(fields.error("rotary_dim", format!("an even number up to the head's {} entries", shape.head_dim)));
    }
    blueprint.rotary = vec![Rotary { theta: THETA, dim, over: dim, pairs: Pairs::Interleaved, scaling: RotaryScaling::None }];
    for layer in &mut blueprint.layers {
        layer.rotary = Some(0);
    }
    Ok((blueprint, shape.dims()))
}

fn names() -> Names {
    let entries: &[Name] = &[
        plain("embeddings.token", "transformer.wte"),
        plain("layers.{l}.norm1", "transformer.h.{l}.ln_1"),
        stored("layers.{l}.attention", "transformer.h.{l}.attn.qkv_proj", How::Qkv(QkvOrder::ShardsQvk(SHARDS))),
        plain("layers.{l}.attention.o", "transformer.h.{l}.attn.out_proj"),
        plain("layers.{l}.mlp.up", "transformer.h.{l}.mlp.fc_in"),
        plain("layers.{l}.mlp.down", "transformer.h.{l}.mlp.fc_out"),
        plain("final_norm", "transformer.ln_f"),
        plain("head", "lm_head"),
    ];
    Names { prefix: "transformer.", entries: entries.to_vec() }
}
