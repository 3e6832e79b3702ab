//! Qwen3 (Yang et al., 2025): Llama with an RMS norm on each head's q and k.

use super::config::Source;
use super::llama::{KEYS, Silent, decoder, names};
use super::qwen2::slide_upper_layers;
use super::{Family, write_layer_types};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "Qwen3",
    model_types: &["qwen3"],
    architectures: &[
        ("Qwen3ForCausalLM", Task::CausalLm),
        ("Qwen3ForSequenceClassification", Task::Classification),
        ("Qwen3Model", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: KEYS,
    write_layers: write_layer_types,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let (mut blueprint, dims) = decoder(source, &Silent { kv_heads: Some(32), head_dim: Some(128), ..Silent::LLAMA })?;
    let bias = source.fields.flag_or("attention_bias", false)?;
    (blueprint.attention.qkv_bias, blueprint.attention.o_bias) = (bias, bias);
    blueprint.attention.qk_norm = true;
    slide_upper_layers(&source.fields, &mut blueprint)?;
    Ok((blueprint, dims))
}
