//! What `export --format vllm` writes, read by an independent reader that follows vLLM's source; and what its blocks can't say is refused
//! with a way out. vLLM itself is not run here.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, LoadOptions, Transformer, load};
use prunectl_run::save::{self, Assets, CardFacts, Layout, SHARD_BYTES, SaveRequest, Saved};
use prunectl_run::stock::{Loader, Verdict};
use serde_json::{Value, json};

use crate::families::{SHAPES, golden, pruned};
use crate::stock::{logits, random, record};

/// Largest relative difference of logits: f32 on both sides, other kernels and another order of summation.
const TOLERANCE: f64 = 1e-5;

fn export(model: &Transformer, dense: &Transformer, target: &Path) -> Result<Saved, String> {
    let (record, card) = (record(dense, None), CardFacts::default());
    let layout = Layout::Compact;
    let request = SaveRequest { target, layout, dtype: None, assets: Assets::None, record: &record, card: &card, shard_bytes: SHARD_BYTES };
    save::write_blocks(model, &request).map_err(|e| e.to_string())
}

fn subjects(folder: &Path) -> Vec<(&'static str, Transformer)> {
    let own = |place: &str| load(&golden(place), &LoadOptions::default()).unwrap();
    // Widths that `ffn_mult` can say.
    let wide = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "intermediate_size": 512, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "initializer_range": 0.2, "tie_word_embeddings": false,
    });
    vec![
        ("llama", own("families/llama")),
        ("llama_tied", own("families/llama_tied")),
        ("llama_rope3", own("families/llama_rope3")),
        ("qwen2", own("families/qwen2")),
        ("llama_wide", random(folder, &wide, 3)),
        ("gemma2", own("families/gemma2")),
        ("mistral", own("families/mistral")),
    ]
}

/// Shapes that the blocks can say of a Llama, and what the refusals of the others propose.
fn expressible(family: &str, shape: &str) -> Result<(), &'static str> {
    match (family, shape) {
        ("gemma2" | "mistral", _) => Err("layout = padded"),
        (_, "attention") => Err("keep the attention of layer 0"),
        ("llama_rope3", "heads") => Err("2 in each layer is the nearest"),
        (_, "heads") => Err("8 in each layer is the nearest"),
        (_, "experts") => Err(""),
        ("llama_rope3", "all_neurons") => Err("remove the sublayer whole"),
        ("llama_rope3", "all_heads") => Err("remove the sublayer whole"),
        _ => Ok(()),
    }
}

#[test]
fn vllms_blocks_say_what_they_can() {
    let folder = tempfile::tempdir().unwrap();
    let mut asked = Vec::new();
    for (family, dense) in subjects(folder.path()) {
        for &shape in SHAPES {
            let Some(model) = pruned(&dense, shape) else { continue };
            let name = format!("{family}-{shape}");
            let saved = match (export(&model, &dense, &folder.path().join(&name)), expressible(family, shape)) {
                (Ok(saved), Ok(())) => saved,
                (Err(why), Err(remedy)) => {
                    assert!(why.contains(remedy), "{name}: {why}");
                    continue;
                }
                (found, wanted) => panic!("{name}: {wanted:?}, found {:?}", found.map(|s| s.files)),
            };
            assert!(matches!(saved.loaders[0].verdict, Verdict::Stock { tried: false, .. }) && saved.loaders[0].loader == Loader::Vllm);
            let config: Value = serde_json::from_slice(&std::fs::read(saved.dir.join("config.json")).unwrap()).unwrap();
            for (block, d) in config["block_configs"].as_array().unwrap().iter().zip(model.dims()) {
                assert_eq!(block["attention"]["no_op"], d.q_heads == 0, "{name}");
                assert_eq!(block["ffn"]["no_op"], d.ffn == 0, "{name}");
                if d.q_heads > 0 {
                    assert_eq!(block["attention"]["n_heads_in_group"], d.group_size(), "{name}");
                }
            }
            let expected = folder.path().join(format!("{name}.safetensors"));
            let ids = Tensor::new(&[[5_u32, 60, 31, 47, 12, 9, 33]], &Device::Cpu).unwrap();
            let tensors = HashMap::from([
                ("logits".to_owned(), logits(&model, &Batch::new(ids.clone()))),
                ("input_ids".to_owned(), ids.to_dtype(DType::I64).unwrap()),
            ]);
            candle_core::safetensors::save(&tensors, &expected).unwrap();
            asked.push(json!({"name": name, "dir": saved.dir, "expected": expected}));
        }
    }
    let Some(python) = prunectl_testkit::python("an independent reader of vLLM's blocks") else { return };
    let results = prunectl_testkit::ask(&python, "check_blocks.py", folder.path(), &asked);
    let right = |r: &Value| r["difference"].as_f64().is_some_and(|d| d < TOLERANCE) && r["missing"].as_array().is_some_and(Vec::is_empty);
    println!("vLLM's blocks, by a reader that follows its source (unverified by running vLLM):");
    results.iter().for_each(|result| println!("{result}"));
    let wrong: Vec<&Value> = results.iter().filter(|r| !right(r)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
