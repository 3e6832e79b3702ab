//! `export … --format vllm`: the folder of a model whose layers differ, with the per-layer blocks that vLLM's `DeciLMForCausalLM` reads.
//! The weights are those of any folder; they are proven with the config that we read, before vLLM's takes its place. vLLM is not run.

use prunectl_model::{Blueprint, LayerDims, OWN_KEY, Transformer, checkpoint_parts, int8_tensors};
use serde_json::{Value, json};

use super::{SaveError, SaveRequest, Saved, assets, config, folder, shaped, verify, weights, write_record};
use crate::stock::vllm::{ARCHITECTURE, MODEL_TYPE, blocks};
use crate::stock::{self, Loader, LoaderVerdict, Verdict};

/// The file that makes objects of the blocks.
const CONFIG_FILE: &str = "configuration_prunectl.py";
const CONFIG_SOURCE: &str = include_str!("configuration_blocks.py");

/// Writes the folder.
///
/// # Errors
/// The blocks can't say the shapes, or as [`super::write`]; nothing is left behind.
pub fn write_blocks(model: &Transformer, request: &SaveRequest<'_>) -> Result<Saved, SaveError> {
    folder::check_target(request.target, &request.record.run.recipe.name)?;
    let origin = model.origin();
    let dtype = request.dtype.unwrap_or(origin.stored_dtype);
    let shaped = shaped(model, request)?;
    let (b, dims) = (shaped.blueprint(), shaped.dims());
    let target = stock::Target { model_type: &origin.model_type, blueprint: b, dims, own: None, no_remote_code: None };
    let blocks = blocks(&target).map_err(|o| SaveError::Blocks { reason: o.reason, remedy: o.remedy })?;
    let (mut own, parts) = checkpoint_parts(&shaped)?;
    config::finish(&mut own, dtype);
    let mut draft = folder::Draft::beside(request.target)?;
    draft.write_bytes("config.json", &weights::pretty(&own))?;
    weights::write_weights(&mut draft, &parts, &int8_tensors(&shaped)?, dtype, request.shard_bytes)?;
    let verified = verify::compare(draft.path(), model, dtype)?;

    spell(&mut own, b, dims, blocks);
    draft.write_bytes("config.json", &weights::pretty(&own))?;
    draft.write_bytes(CONFIG_FILE, CONFIG_SOURCE.as_bytes())?;
    assets::write(&mut draft, request.assets, &own, &shaped)?;
    let limit = Some(format!("as `{ARCHITECTURE}`, with trust_remote_code=True for its config"));
    let loaders = vec![LoaderVerdict { loader: Loader::Vllm, verdict: Verdict::Stock { tried: false, limit } }];
    write_record(&mut draft, request, &loaders)?;
    let files = draft.publish()?;
    let weight_bytes = files.iter().filter(|(name, _)| name.ends_with(".safetensors")).map(|(_, bytes)| bytes).sum();
    let warnings = verified.warning().into_iter().collect();
    Ok(Saved { dir: request.target.into(), files, weight_bytes, loaders, verified, warnings })
}

/// The config as vLLM reads it.
fn spell(config: &mut Value, b: &Blueprint, dims: &[LayerDims], blocks: Vec<Value>) {
    let Some(fields) = config.as_object_mut() else { return };
    fields.shift_remove(OWN_KEY);
    let most = |of: fn(&LayerDims) -> usize| dims.iter().map(of).max().unwrap_or(0);
    let a = &b.attention;
    for (name, value) in [
        ("architectures", json!([ARCHITECTURE])),
        ("model_type", json!(MODEL_TYPE)),
        ("auto_map", json!({ "AutoConfig": "configuration_prunectl.BlocksConfig" })),
        ("num_attention_heads", json!(most(|d| d.q_heads))),
        ("num_key_value_heads", json!(most(|d| d.kv_heads))),
        ("head_dim", json!(most(|d| d.head_dim))),
        ("intermediate_size", json!(most(|d| d.ffn))),
        ("sliding_window", Value::Null),
        ("hidden_act", json!("silu")),
        ("rms_norm_eps", json!(b.norm.eps)),
        ("attention_bias", json!(a.qkv_bias && a.o_bias)),
        ("mlp_bias", json!(b.mlp.up_bias)),
        ("block_configs", Value::Array(blocks)),
    ] {
        fields.insert(name.into(), value);
    }
    if let prunectl_model::Head::Tokens { tied, .. } = b.head {
        fields.insert("tie_word_embeddings".into(), tied.into());
    }
    if a.qkv_bias != a.o_bias {
        fields.insert("qkv_bias".into(), a.qkv_bias.into());
    }
}
