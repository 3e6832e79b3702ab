//! Mixtral (Jiang et al., 2024): Mistral with routed experts, whose chosen weights sum to 1.

use super::config::{Source, Turns};
use super::llama::{KEYS, Silent, decoder, names as llama_names};
use super::names::{Names, plain};
use super::{ExpertKeys, Family, Keys, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "Mixtral",
    model_types: &["mixtral"],
    architectures: &[
        ("MixtralForCausalLM", Task::CausalLm),
        ("MixtralForSequenceClassification", Task::Classification),
        ("MixtralModel", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: Keys {
        experts: Some(ExpertKeys { count: &["num_local_experts"], top_k: "num_experts_per_tok", ffn: "intermediate_size" }),
        ..KEYS
    },
    write_layers: no_layer_fields,
};

const SILENT: Silent = Silent { eps: 1e-5, kv_heads: Some(8), turns: Turns { theta: 1_000_000.0, ..Turns::WHOLE }, ..Silent::LLAMA };

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let (mut blueprint, mut dims) = decoder(source, &SILENT)?;
    let experts = fields.count(&["num_local_experts"])?;
    let top_k = fields.count_or_none(&["num_experts_per_tok"])?.unwrap_or(2);
    if top_k > experts {
        return Err(fields.error("num_experts_per_tok", format!("at most the {experts} experts")));
    }
    blueprint.mlp.router = Some(Router { top_k, renormalise: true });
    let window = fields.width_or_none(&["sliding_window"])?;
    for layer in &mut blueprint.layers {
        layer.window = window;
    }
    for d in &mut dims {
        d.experts = experts;
    }
    Ok((blueprint, dims))
}

fn names() -> Names {
    let mut names = llama_names();
    names.entries.extend([
        plain("layers.{l}.mlp.router", "model.layers.{l}.block_sparse_moe.gate"),
        plain("layers.{l}.mlp.experts.{e}.gate", "model.layers.{l}.block_sparse_moe.experts.{e}.w1"),
        plain("layers.{l}.mlp.experts.{e}.up", "model.layers.{l}.block_sparse_moe.experts.{e}.w3"),
        plain("layers.{l}.mlp.experts.{e}.down", "model.layers.{l}.block_sparse_moe.experts.{e}.w2"),
    ]);
    names
}
