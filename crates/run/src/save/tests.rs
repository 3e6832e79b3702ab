//! A saved folder is whole or not there, belongs to its recipe, and computes what the model in memory computes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use prunectl_model::{LoadOptions, Transformer, init};

use super::record::{KeptSite, RecipeRef, RunRecord, SourceRef};
use super::*;
use crate::inspect::inspect;

fn model(folder: &Path, seed: u64) -> Transformer {
    let path = folder.join("config.json");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 24, "hidden_act": "silu",
        "max_position_embeddings": 32, "initializer_range": 0.3, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
        "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let model = init(&path, seed, &LoadOptions::default()).unwrap();
    std::fs::remove_file(path).unwrap();
    model
}

fn record(model: &Transformer, recipe: &str) -> PruneRecord {
    let run = RunRecord {
        recipe: RecipeRef { name: recipe.into(), sha256: "ab".into() },
        prunectl: "0".into(),
        model: SourceRef { name: "m".into(), source: "init:x".into(), revision: None, sha256: BTreeMap::new() },
        data: vec![],
        metrics: serde_json::Map::new(),
        shapes: vec![],
    };
    PruneRecord::after(None, run, "compact", model.dims().to_vec(), vec![0, 1], vec![])
}

fn request<'a>(target: &'a Path, record: &'a PruneRecord, card: &'a CardFacts) -> SaveRequest<'a> {
    SaveRequest { target, layout: Layout::Compact, dtype: None, assets: Assets::None, record, card, shard_bytes: SHARD_BYTES }
}

fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

#[test]
fn the_same_recipe_replaces_its_folder_and_no_other_does() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (model(folder.path(), 1), model(folder.path(), 2));
    let card = CardFacts::default();
    let target = folder.path().join("out/m");
    let mine = record(&first, "mine");
    let saved = write(&first, &request(&target, &mine, &card)).unwrap();
    assert_eq!(saved.verified.difference, 0.0, "the same weights in the same shape give the same bits");
    let before = std::fs::read(target.join("model.safetensors")).unwrap();
    std::fs::write(target.join("note.txt"), "stays only in the old folder").unwrap();
    write(&second, &request(&target, &mine, &card)).unwrap();
    let after = std::fs::read(target.join("model.safetensors")).unwrap();
    assert_ne!(before, after);
    assert_eq!(names(&target), ["README.md", "config.json", "generation_config.json", "model.safetensors", "prune.json"]);
    assert_eq!(names(&folder.path().join("out")), ["m"], "no temporary folder is left");

    let other = record(&first, "other");
    let error = write(&first, &request(&target, &other, &card)).unwrap_err().to_string();
    assert!(error.contains("the recipe `mine` saved") && error.contains("recipe `other`"), "{error}");
    for (name, content) in [("file", None), ("folder", Some("x.txt")), ("broken", Some("prune.json"))] {
        let target = folder.path().join(name);
        match content {
            None => std::fs::write(&target, "x").unwrap(),
            Some(inner) => {
                std::fs::create_dir(&target).unwrap();
                std::fs::write(target.join(inner), "x").unwrap();
            }
        }
        let error = write(&first, &request(&target, &mine, &card)).unwrap_err();
        assert!(matches!(error, SaveError::Occupied { .. }), "{error}");
    }
    assert_eq!(std::fs::read(target.join("model.safetensors")).unwrap(), after);
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), 3);
    let card = CardFacts { recipe: "edition 2026\n# ```` fenced\n".into(), ..CardFacts::default() };
    let record = record(&model, "r");
    let (a, b): (PathBuf, PathBuf) = (folder.path().join("a"), folder.path().join("b"));
    write(&model, &request(&a, &record, &card)).unwrap();
    write(&model, &request(&b, &record, &card)).unwrap();
    for name in names(&a) {
        assert_eq!(std::fs::read(a.join(&name)).unwrap(), std::fs::read(b.join(&name)).unwrap(), "{name}");
    }
    assert!(std::fs::read_to_string(a.join("README.md")).unwrap().contains("\n`````\nedition 2026"));
}

#[test]
fn a_failed_save_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let card = CardFacts::default();
    let target = folder.path().join("m");
    let mut broken = model(folder.path(), 4);
    let record = record(&broken, "r");
    let slot = "layers.1.mlp.down.weight";
    let nan = (broken.params().get(slot).unwrap() * f64::NAN).unwrap();
    broken.params_mut().set(slot, nan);
    let error = write(&broken, &request(&target, &record, &card)).unwrap_err().to_string();
    assert!(error.contains("model.layers.1.mlp.down_proj.weight") && error.contains("384 value(s)"), "{error}");
    assert!(names(folder.path()).is_empty());
}

/// The comparison can fail: a folder with other weights is told apart, and so is one that does not load.
#[test]
fn another_models_folder_is_not_taken_for_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (model(folder.path(), 5), model(folder.path(), 6));
    let record = record(&right, "r");
    let target = folder.path().join("m");
    write(&wrong, &request(&target, &record, &CardFacts::default())).unwrap();
    assert!(matches!(verify::compare(&target, &right, DType::F32), Err(SaveError::Differs { .. })));
    verify::compare(&target, &wrong, DType::F32).unwrap();
    // One weight off by a thousandth is seen.
    let mut nearly = wrong.clone();
    let slot = "layers.0.attention.v.weight";
    let mut values = nearly.params().get(slot).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[7] += 1e-3;
    let shape = nearly.params().get(slot).unwrap().dims().to_vec();
    nearly.params_mut().set(slot, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    assert!(matches!(verify::compare(&target, &nearly, DType::F32), Err(SaveError::Differs { .. })));
    std::fs::remove_file(target.join("model.safetensors")).unwrap();
    assert!(matches!(verify::compare(&target, &wrong, DType::F32), Err(SaveError::Reload { .. })));
}

#[test]
fn a_dtype_is_obeyed_and_its_rounding_stated() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), 7);
    let record = record(&model, "r");
    for (dtype, word) in [(DType::F16, "f16"), (DType::BF16, "bf16"), (DType::F32, "f32")] {
        let target = folder.path().join(word);
        let saved = write(&model, &SaveRequest { dtype: Some(dtype), ..request(&target, &record, &CardFacts::default()) }).unwrap();
        assert_eq!(saved.verified.difference, 0.0, "against weights rounded to {word}");
        assert_eq!(saved.verified.rounding > 0.0, dtype != DType::F32);
        let seen = inspect(&target).unwrap();
        assert_eq!((seen.dtype.as_str(), seen.layers.len(), seen.runs.len()), (word, 2, 1));
        assert_eq!(seen.parameters, model.parameter_count());
        assert!(seen.text().contains("pruned by `r`"), "{}", seen.text());
        // Opened again, it is saved as it was on disk.
        let again = prunectl_model::load(&target, &LoadOptions::default()).unwrap();
        let copy = folder.path().join(format!("{word}-again"));
        write(&again, &request(&copy, &record, &CardFacts::default())).unwrap();
        let bytes = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
        assert_eq!(bytes(&target), bytes(&copy), "load and save are the identity as {word}");
    }
}

/// A masked model already has its zeros in place; a layer that lost some units and masks others can't be told apart.
#[test]
fn padding_knows_masked_units_from_missing_ones() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), 8);
    let mut record = record(&model, "r");
    record.sites = vec![KeptSite { site: "mlp.neurons".into(), kept: BTreeMap::from([(0, vec![1, 2, 3])]) }];
    let target = folder.path().join("m");
    write(&model, &SaveRequest { layout: Layout::Padded, ..request(&target, &record, &CardFacts::default()) }).unwrap();
    record.original[0].ffn = 30;
    let refused = write(&model, &SaveRequest { layout: Layout::Padded, ..request(&target, &record, &CardFacts::default()) });
    assert!(refused.unwrap_err().to_string().contains("write `compact` before"));
}

#[test]
fn a_full_disk_says_so() {
    let full = std::io::Error::from_raw_os_error(28);
    let error = SaveError::io("write", Path::new("model.safetensors"), full).at(Path::new("out/m/model.safetensors")).to_string();
    assert_eq!(error, "no room on the disk: could not write out/m/model.safetensors; free some space, or save to another disk");
}

#[test]
fn shards_load_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), 9);
    let record = record(&model, "r");
    let target = folder.path().join("m");
    let saved = write(&model, &SaveRequest { shard_bytes: 4000, ..request(&target, &record, &CardFacts::default()) }).unwrap();
    assert!(saved.files.iter().filter(|(n, _)| n.ends_with(".safetensors")).count() > 2, "{:?}", saved.files);
    assert!(target.join("model.safetensors.index.json").is_file());
}
