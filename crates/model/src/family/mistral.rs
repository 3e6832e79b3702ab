//! Mistral (Jiang et al., 2023): Llama with a sliding window.

use super::config::Source;
use super::llama::{KEYS, Silent, decoder, names};
use super::{Family, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "Mistral",
    model_types: &["mistral"],
    architectures: &[
        ("MistralForCausalLM", Task::CausalLm),
        ("MistralForSequenceClassification", Task::Classification),
        ("MistralModel", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: KEYS,
    write_layers: no_layer_fields,
};

/// The window of a config that is silent about it.
const DEFAULT_WINDOW: usize = 4096;

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let (mut blueprint, dims) = decoder(source, &Silent { kv_heads: Some(8), ..Silent::LLAMA })?;
    let window = source.fields.nullable_width_or("sliding_window", Some(DEFAULT_WINDOW))?;
    for layer in &mut blueprint.layers {
        layer.window = window;
    }
    Ok((blueprint, dims))
}
