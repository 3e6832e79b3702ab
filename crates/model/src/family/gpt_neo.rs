//! GPT-Neo (Black et al., 2021): GPT-2 whose layers see everything or a window, scores not scaled, q, k and v without biases.

use serde_json::{Map, Value, json};

use super::config::{Fields, Source, activation};
use super::gpt2::Plain;
use super::llama::head;
use super::names::{Name, Names, plain};
use super::{Family, Keys};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "GPT-Neo",
    model_types: &["gpt_neo"],
    architectures: &[
        ("GPTNeoForCausalLM", Task::CausalLm),
        ("GPTNeoForSequenceClassification", Task::Classification),
        ("GPTNeoModel", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: Keys {
        layers: "num_layers",
        hidden: "hidden_size",
        embedding: None,
        heads: "num_heads",
        kv_heads: None,
        head_dim: None,
        ffn: "intermediate_size",
        experts: None,
    },
    write_layers,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let shape = Plain::read(fields, "hidden_size", "num_layers", "num_heads", "intermediate_size")?;
    let eps = fields.positive_or(&["layer_norm_epsilon"], 1e-5)?;
    let head = head(source, fields.flag_or("tie_word_embeddings", true)?)?;
    let mut blueprint = shape.blueprint(fields, eps, activation(fields, &["activation_function"], "gelu_new")?, head)?;
    let rows = fields.width(&["max_position_embeddings"])?;
    blueprint.embeddings.positions = Some(Positions { rows, rule: PositionRule::Index });
    blueprint.attention.qkv_bias = false;
    let window = fields.width_or(&["window_size"], 256)?;
    for (layer, local) in blueprint.layers.iter_mut().zip(local_layers(fields, shape.layers)?) {
        layer.scale = 1.0;
        layer.window = local.then_some(window);
    }
    Ok((blueprint, shape.dims()))
}

/// Which layers see a window: `attention_layers`, or `attention_types` as `[[[kinds of a period], repeats], …]`.
fn local_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    let kinds: Vec<String> = match fields.texts("attention_layers")? {
        Some(kinds) => kinds.into_iter().map(str::to_owned).collect(),
        None => expand(fields, layers)?,
    };
    if kinds.len() != layers {
        return Err(fields.error("attention_layers", format!("{layers} entries, one a layer (here or expanded from `attention_types`)")));
    }
    kinds
        .iter()
        .map(|kind| match kind.as_str() {
            "global" => Ok(false),
            "local" => Ok(true),
            other => Err(fields.unsupported(format!("attention type `{other}`"), "global and local are")),
        })
        .collect()
}

fn expand(fields: &Fields<'_>, layers: usize) -> Result<Vec<String>> {
    let wrong = || fields.error("attention_types", "[[[\"global\", \"local\"], repeats], …]");
    let Some((_, value)) = fields.get(&["attention_types"]) else {
        // The default of its config class.
        return Ok(["global", "local"].iter().cycle().take(layers).map(|k| (*k).to_owned()).collect());
    };
    let mut kinds = Vec::new();
    for period in value.as_array().ok_or_else(wrong)? {
        let (names, repeats) = (period.get(0).and_then(Value::as_array), period.get(1).and_then(Value::as_u64));
        let (Some(names), Some(repeats)) = (names, repeats) else { return Err(wrong()) };
        for _ in 0..repeats {
            for name in names {
                kinds.push(name.as_str().ok_or_else(wrong)?.to_owned());
            }
            if kinds.len() > layers || names.is_empty() {
                return Err(wrong());
            }
        }
    }
    Ok(kinds)
}

fn write_layers(map: &mut Map<String, Value>, blueprint: &Blueprint, _: &[LayerDims]) {
    let kinds: Vec<&str> = blueprint.layers.iter().map(|l| if l.window.is_some() { "local" } else { "global" }).collect();
    let known = map.get("attention_layers");
    if known.is_some_and(|known| *known == json!(kinds)) {
        return;
    }
    map.insert("attention_types".into(), json!(kinds.iter().map(|kind| json!([[kind], 1])).collect::<Vec<_>>()));
    map.insert("attention_layers".into(), json!(kinds));
}

fn names() -> Names {
    let entries: &[Name] = &[
        plain("embeddings.token", "transformer.wte"),
        plain("embeddings.position", "transformer.wpe"),
        plain("layers.{l}.norm1", "transformer.h.{l}.ln_1"),
        plain("layers.{l}.attention.q", "transformer.h.{l}.attn.attention.q_proj"),
        plain("layers.{l}.attention.k", "transformer.h.{l}.attn.attention.k_proj"),
        plain("layers.{l}.attention.v", "transformer.h.{l}.attn.attention.v_proj"),
        plain("layers.{l}.attention.o", "transformer.h.{l}.attn.attention.out_proj"),
        plain("layers.{l}.norm2", "transformer.h.{l}.ln_2"),
        plain("layers.{l}.mlp.up", "transformer.h.{l}.mlp.c_fc"),
        plain("layers.{l}.mlp.down", "transformer.h.{l}.mlp.c_proj"),
        plain("final_norm", "transformer.ln_f"),
        plain("head", "lm_head"),
        plain("classifier", "score"),
    ];
    Names { prefix: "transformer.", entries: entries.to_vec() }
}
