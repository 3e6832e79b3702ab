//! Qwen2 and 2.5 (Yang et al., 2024): Llama with biases on q, k and v.

use super::config::{Fields, Source};
use super::llama::{KEYS, Silent, decoder, names};
use super::{Family, write_layer_types};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "Qwen2",
    model_types: &["qwen2"],
    architectures: &[
        ("Qwen2ForCausalLM", Task::CausalLm),
        ("Qwen2ForSequenceClassification", Task::Classification),
        ("Qwen2Model", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: KEYS,
    write_layers: write_layer_types,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let (mut blueprint, dims) = decoder(source, &Silent { kv_heads: Some(32), ..Silent::LLAMA })?;
    blueprint.attention.qkv_bias = true;
    slide_upper_layers(&source.fields, &mut blueprint)?;
    Ok((blueprint, dims))
}

/// `layer_types`, or with `use_sliding_window` the layers from `max_window_layers` on slide.
pub(super) fn slide_upper_layers(fields: &Fields<'_>, blueprint: &mut Blueprint) -> Result<()> {
    let slides = fields.flag_or("use_sliding_window", false)?;
    let window = fields.nullable_width_or("sliding_window", Some(4096))?;
    let layers = blueprint.layers.len();
    let windows = match fields.windows(layers, window)? {
        Some(windows) => windows,
        None if slides => {
            let first = fields.width_or(&["max_window_layers"], 28)?;
            (0..layers).map(|layer| window.filter(|_| layer >= first)).collect()
        }
        None => vec![None; layers],
    };
    for (layer, window) in blueprint.layers.iter_mut().zip(windows) {
        layer.window = window;
    }
    Ok(())
}
