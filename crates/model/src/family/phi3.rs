//! Phi-3 and 3.5 (Abdin et al., 2024): Llama with q, k, v and gate, up fused.

use super::config::{Source, Turns};
use super::llama::{KEYS, Silent, decoder, names as llama_names};
use super::names::{How, Names, QkvOrder, stored};
use super::{Family, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "Phi-3",
    model_types: &["phi3"],
    architectures: &[
        ("Phi3ForCausalLM", Task::CausalLm),
        ("Phi3ForSequenceClassification", Task::Classification),
        ("Phi3Model", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: KEYS,
    write_layers: no_layer_fields,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let (mut blueprint, dims) =
        decoder(source, &Silent { eps: 1e-5, turns: Turns { original: Some(4096), ..Turns::WHOLE }, ..Silent::LLAMA })?;
    let window = source.fields.width_or_none(&["sliding_window"])?;
    for layer in &mut blueprint.layers {
        layer.window = window;
    }
    Ok((blueprint, dims))
}

fn names() -> Names {
    let mut names = llama_names();
    names.entries.retain(|n| !n.file.contains("self_attn.") && !n.file.contains("mlp."));
    names.entries.extend([
        stored("layers.{l}.attention", "model.layers.{l}.self_attn.qkv_proj", How::Qkv(QkvOrder::Blocks)),
        stored("layers.{l}.attention.o", "model.layers.{l}.self_attn.o_proj", How::Plain),
        stored("layers.{l}.mlp", "model.layers.{l}.mlp.gate_up_proj", How::GateUp),
        stored("layers.{l}.mlp.down", "model.layers.{l}.mlp.down_proj", How::Plain),
    ]);
    names
}
