//! The last touches to `config.json`: fields that one loader reads under one name and another loader under another.

use candle_core::DType;
use prunectl_model::{Blueprint, LayerDims};
use serde_json::{Map, Value, json};

use crate::stock::candle::full_every;

/// Sets the dtype in both spellings, and spells rotary parameters for transformers 5 (`rope_parameters`) and for everyone before it and
/// beside it (`rope_theta`, `rope_scaling`: candle-transformers, vLLM, llama.cpp's converter).
pub(super) fn finish(config: &mut Value, dtype: DType) {
    let Some(fields) = config.as_object_mut() else { return };
    let word = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F64 => "float64",
        _ => "float32",
    };
    fields.insert("dtype".into(), word.into());
    fields.insert("torch_dtype".into(), word.into());
    let gemma = fields.get("model_type").and_then(Value::as_str) == Some("gemma3_text");
    match gemma {
        true => spell_two_tables(fields),
        false => spell_one_table(fields),
    }
}

/// Fields that candle-transformers' configs want and transformers 5 no longer writes, with what they mean of this network.
pub(super) fn spell_for_candle(config: &mut Value, blueprint: &Blueprint, dims: &[LayerDims]) {
    let family = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(fields) = config.as_object_mut() else { return };
    let windows = blueprint.layers.iter().any(|l| l.window.is_some());
    let mut fill = |name: &str, value: Value| {
        if fields.get(name).is_none_or(Value::is_null) {
            fields.insert(name.into(), value);
        }
    };
    match family.as_str() {
        "xlm-roberta" => fill("position_embedding_type", json!("absolute")),
        "qwen2" | "qwen3" | "qwen3_moe" => {
            fill("max_window_layers", json!(blueprint.layers.len()));
            fill("use_sliding_window", json!(windows));
            if family != "qwen2" {
                fill("attention_bias", json!(blueprint.attention.qkv_bias));
            }
        }
        "gemma3_text" => {
            if let [full, sliding] = blueprint.rotary.as_slice() {
                fill("rope_theta", json!(full.theta));
                fill("rope_local_base_freq", json!(sliding.theta));
            }
            if let Some(every) = full_every(blueprint) {
                fields.insert("sliding_window_pattern".into(), json!(every));
            }
        }
        _ => {}
    }
    if family == "qwen2" && !windows && fields.get("sliding_window").is_none_or(Value::is_null) {
        // Without `use_sliding_window` nobody reads it, and candle's config wants a number.
        let context = fields.get("max_position_embeddings").cloned().unwrap_or_else(|| json!(32_768));
        fields.insert("sliding_window".into(), context);
    }
    // Where no layer has experts any more, the count that was there stays: 0 is none that a reader takes.
    if let Some(experts) = dims.iter().map(|d| d.experts).max().filter(|n| *n > 0 && family == "qwen3_moe") {
        fields.insert("num_experts".into(), json!(experts));
    }
}

/// The config of a Llama becomes that of the Mistral which computes the same.
pub(super) fn rename(config: &mut Value, model_type: &str) {
    let Some(fields) = config.as_object_mut() else { return };
    fields.insert("model_type".into(), model_type.into());
    if let Some(classes) = fields.get_mut("architectures").and_then(Value::as_array_mut) {
        for class in classes {
            if let Some(rest) = class.as_str().and_then(|c| c.strip_prefix("Llama")) {
                *class = format!("Mistral{rest}").into();
            }
        }
    }
    for name in ["attention_bias", "mlp_bias", "pretraining_tp"] {
        fields.shift_remove(name);
    }
    fields.insert("sliding_window".into(), Value::Null);
}

fn object(fields: &Map<String, Value>, name: &str) -> Option<Map<String, Value>> {
    fields.get(name).and_then(Value::as_object).filter(|o| !o.is_empty()).cloned()
}

/// The scaling in an object of rotary parameters, as `rope_scaling` has it.
fn scaling_of(parameters: &Map<String, Value>) -> Value {
    let kind = parameters.get("rope_type").and_then(Value::as_str).unwrap_or("default");
    if kind == "default" {
        return Value::Null;
    }
    let mut scaling = parameters.clone();
    for elsewhere in ["rope_theta", "partial_rotary_factor"] {
        scaling.remove(elsewhere);
    }
    Value::Object(scaling)
}

/// The rotary table of all layers. A `rope_scaling` that says something is what every reader takes, whatever stands in `rope_parameters`;
/// the base and the share that turns are then taken from beside it.
fn spell_one_table(fields: &mut Map<String, Value>) {
    let neox = fields.get("model_type").and_then(Value::as_str) == Some("gpt_neox");
    let (theta, partial) = if neox { ("rotary_emb_base", "rotary_pct") } else { ("rope_theta", "partial_rotary_factor") };
    let beside = [(theta, "rope_theta"), (partial, "partial_rotary_factor")];
    if let (None, Some(parameters)) = (object(fields, "rope_scaling"), object(fields, "rope_parameters")) {
        for (old, new) in beside {
            if let Some(value) = parameters.get(new) {
                fields.insert(old.into(), value.clone());
            }
        }
        let mut scaling = scaling_of(&parameters);
        if let Some(long) = scaling.as_object_mut().filter(|s| s.get("rope_type").is_some_and(|kind| kind == "longrope")) {
            // Before transformers 5 Phi-3's class wanted three fields in it, and this one beside it.
            if let Some(original) = long.remove("original_max_position_embeddings") {
                fields.entry("original_max_position_embeddings").or_insert(original);
            }
            if let Some(kind) = long.remove("rope_type") {
                long.insert("type".into(), kind);
            }
        }
        fields.insert("rope_scaling".into(), scaling);
        return;
    }
    let scaling = object(fields, "rope_scaling");
    if scaling.is_none() && !fields.contains_key(theta) {
        return;
    }
    let mut parameters = scaling.unwrap_or_default();
    // Early configs say `type`.
    if let Some(kind) = parameters.remove("type") {
        parameters.entry("rope_type").or_insert(kind);
    }
    parameters.entry("rope_type").or_insert_with(|| json!("default"));
    for (old, new) in beside {
        if let Some(value) = fields.get(old).filter(|v| !v.is_null()) {
            parameters.entry(new).or_insert_with(|| value.clone());
        }
    }
    fields.insert("rope_parameters".into(), Value::Object(parameters));
}

/// Those of full and of sliding layers, of which `rope_scaling` and `rope_theta` are the former's.
fn spell_two_tables(fields: &mut Map<String, Value>) {
    let both = object(fields, "rope_parameters").unwrap_or_default();
    let mut tables = Map::new();
    for (name, theta) in [("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq")] {
        let mut table = both.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        if let Some(mut scaling) = object(fields, "rope_scaling").filter(|_| name == "full_attention") {
            if let Some(kind) = scaling.remove("type") {
                scaling.entry("rope_type").or_insert(kind);
            }
            table.extend(scaling);
        }
        table.entry("rope_type").or_insert_with(|| json!("default"));
        match (table.get("rope_theta").cloned(), fields.get(theta).cloned()) {
            (Some(own), _) => {
                fields.insert(theta.into(), own);
            }
            (None, Some(beside)) => {
                table.insert("rope_theta".into(), beside);
            }
            (None, None) => {}
        }
        if name == "full_attention" {
            fields.insert("rope_scaling".into(), scaling_of(&table));
        }
        tables.insert(name.into(), Value::Object(table));
    }
    fields.insert("rope_parameters".into(), Value::Object(tables));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(config: &Value) -> prunectl_model::Facts {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        prunectl_model::Facts::of_config(&path, None).unwrap()
    }

    #[test]
    fn candles_fields_mean_what_the_network_does() {
        let mut config = json!({
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 96, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": {"rope_theta": 500.0, "rope_type": "default"},
                                "sliding_attention": {"rope_theta": 20.0, "rope_type": "default"}},
        });
        let read = facts(&config);
        spell_for_candle(&mut config, &read.blueprint, &read.dims);
        let found = (&config["rope_theta"], &config["rope_local_base_freq"], &config["sliding_window_pattern"]);
        assert_eq!(found, (&json!(500.0), &json!(20.0), &json!(2)));
        assert_eq!(facts(&config).blueprint, read.blueprint, "the fields change nothing for us");
    }

    #[test]
    fn a_llama_becomes_a_mistral_with_the_same_network() {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 96, "rms_norm_eps": 1e-5,
            "attention_bias": false, "rope_theta": 300.0, "tie_word_embeddings": false,
        });
        let before = facts(&config);
        rename(&mut config, "mistral");
        assert_eq!(config["architectures"], json!(["MistralForCausalLM"]));
        let after = facts(&config);
        assert_eq!((after.blueprint, after.dims), (before.blueprint, before.dims));
    }

    #[test]
    fn the_two_tables_of_gemma_3_stay_two() {
        let published = json!({"model_type": "gemma3_text", "rope_theta": 5e5, "rope_local_base_freq": 300.0,
                               "rope_scaling": {"factor": 8.0, "rope_type": "linear"}});
        let nested = json!({"full_attention": {"factor": 8.0, "rope_type": "linear", "rope_theta": 5e5},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}});
        let mut old = published.clone();
        finish(&mut old, DType::F32);
        assert_eq!((&old["rope_parameters"], &old["rope_scaling"]), (&nested, &published["rope_scaling"]));
        let mut new = json!({"model_type": "gemma3_text", "rope_parameters": nested.clone()});
        finish(&mut new, DType::F32);
        for again in [false, true] {
            let found = (&new["rope_parameters"], &new["rope_scaling"], &new["rope_theta"], &new["rope_local_base_freq"]);
            assert_eq!(found, (&nested, &published["rope_scaling"], &json!(5e5), &json!(300.0)), "{again}");
            finish(&mut new, DType::F32);
        }
    }

    #[test]
    fn rotary_parameters_are_spelt_for_both() {
        let mut new = json!({"rope_parameters": {"rope_theta": 5.0, "rope_type": "llama3", "factor": 8.0}});
        finish(&mut new, DType::BF16);
        assert_eq!(new["rope_theta"], 5.0);
        assert_eq!(new["rope_scaling"], json!({"rope_type": "llama3", "factor": 8.0}));
        assert_eq!((&new["dtype"], &new["torch_dtype"]), (&json!("bfloat16"), &json!("bfloat16")));
        let mut old = json!({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
        finish(&mut old, DType::F32);
        assert_eq!(old["rope_parameters"], json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}));
        let mut partial =
            json!({"rope_parameters": {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}});
        finish(&mut partial, DType::F32);
        assert_eq!(partial["partial_rotary_factor"], 0.5, "`rope_scaling` goes before `rope_parameters`, and has it not");
        let mut neox = partial.clone();
        neox["model_type"] = json!("gpt_neox");
        neox["rope_scaling"] = Value::Null;
        finish(&mut neox, DType::F32);
        assert_eq!((&neox["rotary_pct"], &neox["rotary_emb_base"]), (&json!(0.5), &json!(5.0)));
        let mut added = json!({"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
                               "rope_scaling": {"rope_type": "yarn", "factor": 4.0}});
        finish(&mut added, DType::F32);
        assert_eq!(added["rope_parameters"], json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 7.0}), "what was added counts");
        let mut plain = json!({"hidden_act": "gelu"});
        finish(&mut plain, DType::F16);
        assert!(plain.get("rope_parameters").is_none());
    }
}
