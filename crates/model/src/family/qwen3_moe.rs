//! Qwen3-MoE (Yang et al., 2025): Qwen3 whose MLPs are, in all or some layers, mixtures of routed experts.

use serde_json::{Map, Value, json};

use super::config::Source;
use super::llama::{KEYS, Silent, decoder, names as llama_names};
use super::names::{Names, plain};
use super::{ExpertKeys, Family, Keys};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "Qwen3-MoE",
    model_types: &["qwen3_moe"],
    architectures: &[
        ("Qwen3MoeForCausalLM", Task::CausalLm),
        ("Qwen3MoeForSequenceClassification", Task::Classification),
        ("Qwen3MoeModel", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: Keys {
        experts: Some(ExpertKeys {
            count: &["num_experts", "num_local_experts"],
            top_k: "num_experts_per_tok",
            ffn: "moe_intermediate_size",
        }),
        ..KEYS
    },
    write_layers,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let (mut blueprint, mut dims) = decoder(source, &Silent { kv_heads: Some(4), ..Silent::LLAMA })?;
    let bias = fields.flag_or("attention_bias", false)?;
    (blueprint.attention.qkv_bias, blueprint.attention.o_bias) = (bias, bias);
    blueprint.attention.qk_norm = true;
    let experts = fields.count(&["num_experts", "num_local_experts"])?;
    let top_k = fields.count_or_none(&["num_experts_per_tok"])?.unwrap_or(8);
    if top_k > experts {
        return Err(fields.error("num_experts_per_tok", format!("at most the {experts} experts")));
    }
    blueprint.mlp.router = Some(Router { top_k, renormalise: fields.flag_or("norm_topk_prob", false)? });
    let window = if fields.flag_or("use_sliding_window", false)? { fields.width_or_none(&["sliding_window"])? } else { None };
    for layer in &mut blueprint.layers {
        layer.window = window;
    }
    let ffn = fields.width(&["moe_intermediate_size"])?;
    let dense = fields.indices("mlp_only_layers")?;
    let step = fields.count_or_none(&["decoder_sparse_step"])?.unwrap_or(1);
    for (layer, d) in dims.iter_mut().enumerate() {
        if !dense.contains(&layer) && (layer + 1).is_multiple_of(step) {
            (d.experts, d.ffn) = (experts, ffn);
        }
    }
    Ok((blueprint, dims))
}

/// Which layers are dense, once the step no longer says it.
fn write_layers(map: &mut Map<String, Value>, _: &Blueprint, dims: &[LayerDims]) {
    let dense: Vec<usize> = dims.iter().enumerate().filter(|(_, d)| d.experts == 0).map(|(layer, _)| layer).collect();
    let step = map.get("decoder_sparse_step").and_then(Value::as_u64).unwrap_or(1);
    if step != 1 || !dense.is_empty() || map.get("mlp_only_layers").and_then(Value::as_array).is_some_and(|l| !l.is_empty()) {
        map.insert("mlp_only_layers".into(), json!(dense));
        map.insert("decoder_sparse_step".into(), json!(1));
    }
}

fn names() -> Names {
    let mut names = llama_names();
    names.entries.extend([
        plain("layers.{l}.mlp.router", "model.layers.{l}.mlp.gate"),
        plain("layers.{l}.mlp.experts.{e}.gate", "model.layers.{l}.mlp.experts.{e}.gate_proj"),
        plain("layers.{l}.mlp.experts.{e}.up", "model.layers.{l}.mlp.experts.{e}.up_proj"),
        plain("layers.{l}.mlp.experts.{e}.down", "model.layers.{l}.mlp.experts.{e}.down_proj"),
    ]);
    names
}
