//! Folders that load, and folders that lie: each of those gets one error that names the file, the place and the way out.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{
    Facts, Gates, Head, LoadOptions, ModelError, Pooling, Task, file_shape, from_file_tensors, header::Header, load, to_file_tensors,
};
use serde_json::{Value, json};

use crate::pack::*;

fn read_config(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// A golden folder with a changed config.
fn with_config(family: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = folder(family, "config.json");
    let mut config = read_config(dir.path());
    change(&mut config);
    std::fs::write(dir.path().join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    dir
}

/// A golden folder with changed bytes in its weights.
fn with_weights(family: &str, change: impl FnOnce(&mut Vec<u8>)) -> tempfile::TempDir {
    let dir = folder(family, "config.json");
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
    dir
}

/// A golden folder with a changed header.
fn with_header(family: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    with_weights(family, |bytes| {
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
        change(&mut header);
        let header = serde_json::to_vec(&header).unwrap();
        let mut new = (header.len() as u64).to_le_bytes().to_vec();
        new.extend(header);
        new.extend_from_slice(&bytes[8 + n..]);
        *bytes = new;
    })
}

/// Loading fails with a message that has all of these parts.
fn refused(dir: &Path, parts: &[&str]) {
    let message = load(dir, &LoadOptions::default()).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    println!("{message}");
}

#[test]
fn configs_that_make_no_sense_are_refused_by_field() {
    let cases: &[(&str, Value, &[&str])] = &[
        ("hidden_size", Value::Null, &["config.json", "hidden_size", "found null", "at least 1"]),
        ("hidden_size", json!(-64), &["hidden_size", "found -64"]),
        ("num_hidden_layers", json!(1e12), &["num_hidden_layers"]),
        ("num_hidden_layers", json!("three"), &["num_hidden_layers", "\"three\""]),
        ("hidden_size", json!(1 << 23), &["hidden_size", "at most 1048576"]),
        ("intermediate_size", json!(1 << 23), &["intermediate_size", "at most 4194304"]),
        ("num_attention_heads", json!(0), &["num_attention_heads", "found 0"]),
        ("num_key_value_heads", json!(3), &["num_key_value_heads", "divisor"]),
        ("vocab_size", json!(9_000_000_000_u64), &["vocab_size"]),
        ("rms_norm_eps", json!(-1.0), &["rms_norm_eps", "above 0"]),
        ("hidden_act", json!("mish"), &["mish", "hidden_act", "gelu"]),
        ("tie_word_embeddings", json!(3), &["tie_word_embeddings", "true or false"]),
        ("architectures", json!(["LlamaForTelepathy"]), &["LlamaForTelepathy", "LlamaForCausalLM"]),
        ("model_type", json!("rwkv"), &["rwkv", "llama", "not supported"]),
        ("model_type", Value::Null, &["model_type", "found null"]),
        ("kv_lora_rank", json!(512), &["multi-head latent attention, MLA", "kv_lora_rank"]),
        ("ssm_cfg", json!({}), &["state-space layer, SSM", "ssm_cfg"]),
        ("model_type", json!("mamba2"), &["`mamba2`", "state-space layers (SSM)", "these are: bert"]),
        ("model_type", json!("deepseek_v3"), &["`deepseek_v3`", "latent attention (MLA)"]),
        ("model_type", json!("t5"), &["`t5`", "an encoder-decoder"]),
        ("model_type", json!("gemma3"), &["sees images", "`gemma3_text`"]),
        ("auto_map", json!({"AutoModelForCausalLM": "modeling_x.Mine"}), &["remote code", "modeling_x.Mine"]),
        ("quantization_config", json!({"quant_method": "gptq"}), &["quantised", "quantization_config"]),
        ("rope_parameters", json!({"rope_type": "proportional", "factor": 2.0}), &["rotary scaling `proportional`", "yarn"]),
        (
            "rope_parameters",
            json!({"rope_type": "longrope", "factor": 2.0}),
            &["rope_parameters.short_factor", "found nothing", "4 numbers"],
        ),
        (
            "rope_scaling",
            json!({"type": "su", "short_factor": [1, 1, 1, 1], "long_factor": [1, 1, 0, 1]}),
            &["rope_scaling.long_factor", "[1,1,0,1]", "4 numbers above 0"],
        ),
        ("rope_parameters", json!({"rope_type": "llama3", "factor": 2.0}), &["low_freq_factor", "rope_parameters"]),
        ("rope_parameters", json!({"rope_theta": -5}), &["rope_parameters.rope_theta", "-5"]),
        ("prunectl", json!({"layer_dims": [1]}), &["prunectl.layer_dims"]),
    ];
    for (field, value, parts) in cases {
        let dir = with_config("llama", |config| config[*field] = value.clone());
        refused(dir.path(), parts);
    }
    let dir = with_config("llama", |config| drop(config.as_object_mut().unwrap().remove("intermediate_size")));
    refused(dir.path(), &["intermediate_size", "found nothing"]);
    let dir = with_config("bert_mlm", |config| config["position_embedding_type"] = json!("relative_key"));
    refused(dir.path(), &["relative_key", "absolute"]);
    let dir = with_config("falcon", |config| config["alibi"] = json!(true));
    refused(dir.path(), &["ALiBi"]);
    let dir = with_config("llama", |config| *config = json!([1]));
    refused(dir.path(), &["JSON object"]);
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    refused(dir.path(), &["config.json", "not valid JSON"]);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(dir.path(), &["config.json", "No such file"]);
}

#[test]
fn modules_of_sentence_transformers_are_read_or_refused() {
    let source = root().join("../more/bert_encoder");
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    let module = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
    let write = |name: &str, value: Value| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    };
    let plain = json!([module("Transformer", ""), module("Pooling", "1_Pooling"), module("Normalize", "2_Normalize")]);
    let pooling = || match load(dir.path(), &LoadOptions::default()).unwrap().blueprint().head {
        Head::Encode { pooling, .. } => pooling,
        ref other => panic!("{other:?}"),
    };
    write("modules.json", plain.clone());
    for (stated, read) in [
        (json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}), Pooling::First),
        (json!({"pooling_mode_cls_token": false, "pooling_mode_lasttoken": true, "include_prompt": true}), Pooling::Last),
        (json!({"embedding_dimension": 32, "pooling_mode": "mean"}), Pooling::Mean),
    ] {
        write("1_Pooling/config.json", stated);
        assert_eq!(pooling(), read);
    }
    write("1_Pooling/config.json", json!({"pooling_mode_max_tokens": true}));
    refused(dir.path(), &["1_Pooling", "max_tokens", "pooling_mode_mean_tokens"]);
    // A dense layer behind the pooling makes other embeddings.
    write("modules.json", json!([module("Transformer", ""), module("Pooling", "1_Pooling"), module("Dense", "2_Dense")]));
    refused(dir.path(), &["modules.json", "`Dense`", "`2_Dense`", "not supported"]);
    write("modules.json", json!([module("Transformer", ""), module("Pooling", "5_Pooling")]));
    write("5_Pooling/config.json", json!({"pooling_mode_cls_token": true}));
    assert_eq!(pooling(), Pooling::First);
}

#[test]
fn a_head_that_the_files_lack_is_drawn_only_when_asked_for() {
    let dir = folder("llama", "config.json");
    let asked = LoadOptions { task: Some(Task::Classification), labels: Some(3), fresh_head: true, ..LoadOptions::default() };
    let facts = prunectl_model::Facts::read_for(dir.path(), &asked).unwrap();
    assert_eq!(facts.fresh, ["score.weight"]);
    let model = load(dir.path(), &asked).unwrap();
    let head = |m: &prunectl_model::Transformer| m.params().require("classifier.weight").unwrap().to_vec2::<f32>().unwrap();
    assert_eq!((head(&model).len(), head(&model)[0].len()), (3, 64));
    assert_eq!(head(&model), head(&load(dir.path(), &asked).unwrap()), "the same head each time");
    // Only the head: a network with a hole in it is refused as before.
    let deeper = with_config("llama", |config| config["num_hidden_layers"] = json!(4));
    let message = load(deeper.path(), &asked).unwrap_err().to_string();
    assert!(message.contains("model.layers.3."), "{message}");
    // A classifier for another number of classes is replaced, its names forgotten.
    let classes = folder("bert_cls", "config.json");
    let facts = prunectl_model::Facts::read_for(classes.path(), &LoadOptions { labels: Some(7), ..asked }).unwrap();
    assert_eq!(facts.fresh, ["classifier.weight", "classifier.bias"]);
}

#[test]
fn weights_that_do_not_fit_are_refused_by_tensor() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let wider = with_config("llama", |config| config["intermediate_size"] = json!(100));
    refused(wider.path(), &["model.safetensors", "model.layers.0.mlp.gate_proj.weight", "[96, 64]", "[100, 64]"]);
    let deeper = with_config("llama", |config| config["num_hidden_layers"] = json!(4));
    refused(deeper.path(), &["model.layers.3.", "missing"]);
    let dir = folder("llama", "config.json");
    let classes = LoadOptions { task: Some(Task::Classification), ..LoadOptions::default() };
    let message = load(dir.path(), &classes).unwrap_err().to_string();
    assert!(message.contains("`score.weight` is missing") && message.contains("text-classification"), "{message}");
    let masked = LoadOptions { task: Some(Task::MaskedLm), ..LoadOptions::default() };
    let message = load(dir.path(), &masked).unwrap_err().to_string();
    assert!(message.contains("fill-mask") && message.contains("text-generation"), "{message}");

    let integers = with_header("llama", |header| header[name]["dtype"] = json!("I32"));
    refused(integers.path(), &[name, "I32", "F32"]);
    let unknown = with_header("llama", |header| header[name]["dtype"] = json!("F33"));
    refused(unknown.path(), &[name, "F33", "safetensors"]);

    let nan = with_weights("llama", |bytes| {
        let at = bytes.len() - 400;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    refused(nan.path(), &["model.safetensors", "is NaN", "intact"]);
    let infinite = with_weights("llama", |bytes| {
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    });
    refused(infinite.path(), &["is -inf"]);
}

#[test]
fn broken_files_are_refused_by_place() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let set = |field: &str, value: Value| with_header("llama", |header| header[name][field] = value);
    refused(with_weights("llama", |b| b.truncate(b.len() - 1000)).path(), &["model.safetensors", "cut short"]);
    refused(with_weights("llama", |b| b.extend([0; 7])).path(), &["longer than its header says"]);
    refused(with_weights("llama", |b| b.truncate(4)).path(), &["4 bytes"]);
    refused(with_weights("llama", |b| b.truncate(100)).path(), &["header's length"]);
    refused(with_weights("llama", |b| b[..8].copy_from_slice(&(1_u64 << 63).to_le_bytes())).path(), &["9223372036854775808"]);
    refused(with_weights("llama", |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())).path(), &["18446744073709551615"]);
    refused(with_weights("llama", |b| b[8] = b'[').path(), &["the header", "found"]);
    refused(with_weights("llama", |b| b[9] = 0xff).path(), &["the header"]);
    refused(set("data_offsets", json!([0, 24576])).path(), &["overlaps"]);
    refused(set("data_offsets", json!([-4, 24572])).path(), &[name, "data_offsets", "none below 0"]);
    refused(set("data_offsets", json!([24576, 0])).path(), &[name, "data_offsets"]);
    refused(set("data_offsets", json!([1_u64 << 62, (1_u64 << 62) + 24576])).path(), &["hole"]);
    refused(set("shape", json!([96, 65])).path(), &[name, "24960 bytes"]);
    refused(set("shape", json!([-96, 64])).path(), &[name, "shape", "none below 0"]);
    refused(set("shape", json!([u64::MAX, u64::MAX])).path(), &[name, "shape"]);
    refused(set("shape", json!("large")).path(), &[name, "shape"]);
    refused(with_header("llama", |h| h[name] = json!(5)).path(), &[name]);
    let twice = with_weights("llama", |bytes| {
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(bytes[8..8 + n].to_vec()).unwrap();
        let twice = text.replacen("model.layers.2.mlp.up_proj.weight", name, 1);
        let mut new = (twice.len() as u64).to_le_bytes().to_vec();
        new.extend(twice.as_bytes());
        new.extend_from_slice(&bytes[8 + n..]);
        *bytes = new;
    });
    refused(twice.path(), &[name, "two entries"]);
}

#[test]
fn headers_of_noise_never_panic() {
    let good = std::fs::read(root().join("llama/model.safetensors")).unwrap();
    let n = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut state = 1_u64;
    let mut next = || {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for _ in 0..3000 {
        let mut bytes = good[..n].to_vec();
        for _ in 0..1 + next() % 4 {
            let at = 8 + next() as usize % (n - 8);
            bytes[at] = next() as u8;
        }
        let _ = Header::of_bytes(Path::new("noise"), &bytes);
    }
}

#[test]
fn folders_without_safetensors_say_how_to_get_them() {
    let dir = folder("llama", "config.json");
    std::fs::rename(dir.path().join("model.safetensors"), dir.path().join("pytorch_model.bin")).unwrap();
    refused(dir.path(), &["pytorch_model.bin", "import LlamaForCausalLM as M", "save_pretrained", "safe_serialization"]);
    for (name, says) in [
        ("pytorch_model.bin.index.json", &["pickled files", "import LlamaForCausalLM as M"][..]),
        ("model.gguf", &["gguf_file='model.gguf'"]),
        ("tf_model.h5", &["from_tf=True"]),
    ] {
        for old in ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf"] {
            let _ = std::fs::remove_file(dir.path().join(old));
        }
        std::fs::write(dir.path().join(name), "{}").unwrap();
        refused(dir.path(), &[&[name], says].concat());
    }
    std::fs::remove_file(dir.path().join("tf_model.h5")).unwrap();
    refused(dir.path(), &["model.safetensors", "model.safetensors.index.json"]);
}

fn golden_tensors(family: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(root().join(family).join("model.safetensors"), &Device::Cpu).unwrap()
}

#[test]
fn shards_load_like_one_file() {
    let dir = folder("llama", "config.json");
    let path = |name: &str| dir.path().join(name);
    std::fs::remove_file(path("model.safetensors")).unwrap();
    let (mut first, mut second) = (HashMap::new(), HashMap::new());
    let mut map = serde_json::Map::new();
    for (name, tensor) in golden_tensors("llama") {
        let (shard, file) = if name.contains("mlp") { (&mut first, "a.safetensors") } else { (&mut second, "b.safetensors") };
        map.insert(name.clone(), json!(file));
        shard.insert(name, tensor);
    }
    candle_core::safetensors::save(&first, path("a.safetensors")).unwrap();
    candle_core::safetensors::save(&second, path("b.safetensors")).unwrap();
    let index = |map: &serde_json::Map<String, Value>| {
        std::fs::write(path("model.safetensors.index.json"), serde_json::to_vec(&json!({ "weight_map": map })).unwrap()).unwrap();
    };
    index(&map);
    let loaded = load(dir.path(), &LoadOptions::default()).unwrap();
    assert!(same_parameters(&loaded, &model("llama", "config.json", DType::F32)));

    let mut outside = map.clone();
    outside.insert("model.norm.weight".into(), json!("../b.safetensors"));
    index(&outside);
    refused(dir.path(), &["weight_map.model.norm.weight", "same folder"]);
    let mut wrong = map.clone();
    wrong.insert("model.norm.weight".into(), json!("a.safetensors"));
    index(&wrong);
    refused(dir.path(), &["weight_map.model.norm.weight", "a.safetensors without it"]);
    index(&map);
    std::fs::remove_file(path("a.safetensors")).unwrap();
    refused(dir.path(), &["a.safetensors", "No such file"]);
}

#[test]
fn base_models_old_names_and_half_precision_load() {
    let dir = folder("bert_mlm", "config.json");
    let renamed: HashMap<String, Tensor> = golden_tensors("bert_mlm")
        .into_iter()
        .map(|(name, tensor)| {
            let name = name.strip_prefix("bert.").unwrap_or(&name).replace("LayerNorm.weight", "LayerNorm.gamma");
            (name.replace("LayerNorm.bias", "LayerNorm.beta"), tensor)
        })
        .chain([("embeddings.position_ids".to_owned(), Tensor::arange(0_i64, 64, &Device::Cpu).unwrap())])
        .collect();
    candle_core::safetensors::save(&renamed, dir.path().join("model.safetensors")).unwrap();
    let loaded = load(dir.path(), &LoadOptions::default()).unwrap();
    assert!(same_parameters(&loaded, &model("bert_mlm", "config.json", DType::F32)));
    let facts = Facts::read(dir.path(), None).unwrap();
    assert_eq!(facts.unused, ["embeddings.position_ids"]);
    let encoder = Facts::read(dir.path(), Some(Task::Encoder)).unwrap();
    assert!(encoder.unused.iter().any(|name| name.starts_with("cls.")));

    for (stored, tolerance) in [(DType::F16, 2e-2), (DType::BF16, 1e-1)] {
        let dir = folder("llama", "config.json");
        let half: HashMap<String, Tensor> =
            golden_tensors("llama").into_iter().map(|(name, t)| (name, t.to_dtype(stored).unwrap())).collect();
        candle_core::safetensors::save(&half, dir.path().join("model.safetensors")).unwrap();
        let model = load(dir.path(), &LoadOptions::default()).unwrap();
        assert_eq!((model.dtype(), model.origin().stored_dtype), (DType::F32, stored));
        let want = expected("llama");
        let batch = batch(&want);
        let logits = model.forward(&batch, &Gates::default(), &mut ()).unwrap();
        let error = error_where_real(&logits, &want["logits"], batch.keep.as_ref().unwrap());
        assert!(error < tolerance, "{stored:?}: {error}");
    }
}

#[test]
fn facts_need_no_weights() {
    for family in GOLDEN {
        let dir = with_weights(family, |bytes| {
            let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes.truncate(8 + n);
        });
        let facts = Facts::read(dir.path(), None).unwrap();
        let model = model(family, "config.json", DType::F32);
        assert_eq!(facts.dims, model.dims());
        assert_eq!(facts.parameters, model.parameter_count());
        assert_eq!(facts.file_bytes, std::fs::metadata(root().join(family).join("model.safetensors")).unwrap().len());
        assert_eq!(facts.stored_dtype, DType::F32);
        assert!(facts.unused.is_empty(), "{family}: {:?}", facts.unused);
        let rows: Value = serde_json::from_slice(&std::fs::read(root().join("manifest.json")).unwrap()).unwrap();
        let row = rows["families"].as_array().unwrap().iter().find(|f| f["family"] == *family).unwrap();
        assert_eq!(row["parameters"], facts.parameters, "{family}");
        assert!(matches!(load(dir.path(), &LoadOptions::default()), Err(ModelError::Safetensors { .. })));
    }
}

#[test]
fn tokens_and_labels_outside_the_model_are_refused() {
    let model = model("bert_cls", "config.json", DType::F32);
    let batch = |id: u32| prunectl_model::Batch::new(Tensor::new(&[[5_u32, id, 6]], &Device::Cpu).unwrap());
    let message = model.forward(&batch(144), &Gates::default(), &mut ()).unwrap_err().to_string();
    assert!(message.contains("token id 144 at row 0, position 1") && message.contains("ends at 144"), "{message}");
    let outputs = model.forward(&batch(7), &Gates::default(), &mut ()).unwrap();
    let mut labelled = batch(7);
    let message = model.loss(&labelled, &outputs).unwrap_err().to_string();
    assert!(message.contains("no labels"), "{message}");
    labelled.labels = Some(prunectl_model::Labels::Classes(Tensor::new(&[3_i64], &Device::Cpu).unwrap()));
    let message = model.loss(&labelled, &outputs).unwrap_err().to_string();
    assert!(message.contains("label 3 of example 0") && message.contains("3 outputs"), "{message}");
    let long = prunectl_model::Batch::new(Tensor::zeros((1, 65), DType::U32, &Device::Cpu).unwrap());
    let message = model.forward(&long, &Gates::default(), &mut ()).unwrap_err().to_string();
    assert!(message.contains("65 tokens") && message.contains("64 learned positions"), "{message}");
}

#[test]
fn random_models_repeat_by_seed() {
    let config = root().join("llama").join("config.json");
    let make = |seed| prunectl_model::init(&config, seed, &LoadOptions::default()).unwrap();
    assert!(same_parameters(&make(3), &make(3)));
    assert!(!same_parameters(&make(3), &make(4)));
    let model = make(3);
    let up = model.params().require("layers.0.mlp.up.weight").unwrap();
    let std = up.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    assert!((std - 0.02).abs() < 0.001, "{std}");
    assert_eq!(model.parameter_count(), Facts::of_config(&config, None).unwrap().parameters);
}

/// Scores of weights lie in files under the names and in the shapes of the weights themselves, whatever is fused and transposed there.
#[test]
fn matrices_of_slots_have_their_places_in_the_files() {
    for family in ["bert_cls", "llama", "gpt2", "gpt_neox", "falcon", "codegen", "phi3", "mixtral"] {
        let model = model(family, "config.json", DType::F32);
        let stored = golden_tensors(family);
        let slots: BTreeMap<String, Tensor> = (0..model.n_layers())
            .flat_map(|l| model.linears(l).unwrap())
            .map(|slot| (slot.clone(), model.params().require(&slot).unwrap().clone()))
            .collect();
        assert!(!slots.is_empty(), "{family}");
        let named = to_file_tensors(&model, &slots).unwrap();
        for (name, tensor) in &named {
            let there = stored.get(name).unwrap_or_else(|| panic!("{family}: {name} is in no file"));
            let difference = (tensor - there.to_dtype(DType::F32).unwrap()).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert_eq!(difference.to_scalar::<f32>().unwrap(), 0.0, "{family}: {name}");
            assert_eq!(file_shape(&model, name), Some(tensor.dims2().unwrap()), "{family}: {name}");
        }
        let back = from_file_tensors(&model, named).unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), slots.keys().collect::<Vec<_>>(), "{family}");
        // A part of a fused tensor alone keeps its place, too.
        let (slot, tensor) = slots.iter().find(|(s, _)| s.ends_with("attention.k.weight")).unwrap();
        let part = to_file_tensors(&model, &BTreeMap::from([(slot.clone(), tensor.clone())])).unwrap();
        let again = from_file_tensors(&model, part).unwrap();
        assert_eq!(again.keys().collect::<Vec<_>>(), [slot]);
        assert_eq!(again[slot].to_vec2::<f32>().unwrap(), tensor.to_vec2::<f32>().unwrap(), "{family}");
    }
    let model = model("llama", "config.json", DType::F32);
    let alien = BTreeMap::from([("layers.9.attention.q.weight".to_owned(), Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap())]);
    assert!(to_file_tensors(&model, &alien).unwrap_err().to_string().contains("layers.9.attention.q.weight"));
    let alien = [("nobody".to_owned(), Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap())];
    assert!(from_file_tensors(&model, alien).unwrap_err().to_string().contains("nobody"));
}

#[test]
fn windows_stay_with_their_layers_when_others_go() {
    // No `layer_types`, as published: Gemma 2 alternates by index, sliding first.
    let dir = with_config("gemma2", |config| drop(config.as_object_mut().unwrap().remove("layer_types")));
    let model = load(dir.path(), &LoadOptions::default()).unwrap();
    let windows = |m: &prunectl_model::Transformer| m.blueprint().layers.iter().map(|l| l.window.is_some()).collect::<Vec<_>>();
    let full: Vec<usize> = (0..model.n_layers()).filter(|l| !windows(&model)[*l]).collect();
    let left = model.keep_units(prunectl_model::SiteKind::Layers, None, &full).unwrap();
    let (config, _) = prunectl_model::to_checkpoint(&left).unwrap();
    assert_eq!(config["layer_types"], json!(vec!["full_attention"; full.len()]));
}
