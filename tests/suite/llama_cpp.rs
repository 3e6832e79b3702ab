//! What `export --format gguf` writes runs in llama.cpp: every family × every kind of removal that the table says an architecture of
//! llama.cpp has, with the logits and the greedy text of the model in memory. What it has not is refused with a way out.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Activation, Batch, LoadOptions, Task, Transformer, load};
use prunectl_run::gguf::{self, Quantization};
use prunectl_run::save::Assets;
use prunectl_run::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::families::{MODELS, SHAPES, golden, print_table, pruned, rows};
use crate::stock::{logits, random};

/// Largest relative difference of logits with f32 weights and an f32 cache: other kernels, another order of summation.
const TOLERANCE: f64 = 2e-5;
/// The same with the tanh form of GELU, which llama.cpp looks up in a table of f16 values: an error of 2⁻¹¹ in each neuron.
const GELU_TOLERANCE: f64 = 1e-3;
/// The same where the model has the exact GELU, from which the tanh form differs by up to 5e-4 in each neuron.
const EXACT_GELU_TOLERANCE: f64 = 3e-3;
/// What llama.cpp's rounding of activations (to 8 bits beside quantised weights, to 11 beside f16) may add to that of the weights.
const ACTIVATIONS: f64 = 2e-2;
/// Types that are tried.
const TYPES: &[&str] = &["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"];
/// Windows of the golden models are 8 tokens wide, and so is what is compared: see `arch.rs` on windows.
const PROMPT: [u32; 5] = [5, 60, 31, 47, 12];
const NEW: usize = 3;

/// Golden models of which only this test has something to say.
const MORE: &[&str] = &["more/llama_linear", "more/llama_dynamic", "more/llama_yarn"];

/// Random models, for what no golden one has: a golden model's config, and what is different.
fn variants() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("qwen3_yarn_tied", "more/qwen3_yarn", json!({"tie_word_embeddings": true, "initializer_range": 0.2})),
        ("qwen3_tied", "families/qwen3", json!({"tie_word_embeddings": true, "initializer_range": 0.2})),
        ("falcon_two_norms", "more/falcon_grouped", json!({"bias": false, "initializer_range": 0.2})),
        ("gpt_neox_tied", "families/gpt_neox", json!({"tie_word_embeddings": true, "initializer_range": 0.2})),
    ]
}

fn python() -> Option<PathBuf> {
    let python = prunectl_testkit::python("llama.cpp runs what export writes")?;
    let has = Command::new(&python).args(["-c", "import llama_cpp"]).output().is_ok_and(|o| o.status.success());
    if !has {
        prunectl_testkit::skip(
            "llama.cpp runs what export writes",
            "python",
            "the interpreter has no llama_cpp; scripts/make-python-env.sh --llama-cpp builds it",
        );
        return None;
    }
    Some(python)
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, None).unwrap().ids
}

struct Case {
    name: String,
    gguf: PathBuf,
    expected: PathBuf,
    texts: Vec<(String, Vec<u32>)>,
    tolerance: f64,
    /// Quantised weights may choose another word.
    same_text: bool,
    speed: usize,
}

fn expect(model: &Transformer, prompt: &[u32], new: usize, path: &Path) {
    let batch = Batch::new(Tensor::from_vec(prompt.to_vec(), (1, prompt.len()), &Device::Cpu).unwrap());
    let row = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap().to_dtype(DType::I64).unwrap();
    let mut all = prompt.to_vec();
    for _ in 0..new {
        let batch = Batch::new(Tensor::from_vec(all.clone(), (1, all.len()), &Device::Cpu).unwrap());
        let last = logits(model, &batch).narrow(1, all.len() - 1, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        all.push((0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32);
    }
    let tensors = HashMap::from([
        ("prompt".to_owned(), row(prompt)),
        ("generated".to_owned(), row(&all)),
        ("logits".to_owned(), logits(model, &batch).squeeze(0).unwrap()),
    ]);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn export(model: &Transformer, folder: &Path, name: &str, dtype: &str, assets: Assets<'_>) -> Result<(PathBuf, gguf::Written), String> {
    let path = folder.join(format!("{name}.gguf"));
    let written = gguf::export(model, &path, name, dtype.parse::<Quantization>().unwrap(), assets).map_err(|e| e.to_string())?;
    Ok((path, written))
}

/// Runs the cases and returns what was found, by name.
fn run(python: &Path, folder: &Path, cases: &[Case]) -> BTreeMap<String, Value> {
    let asked: Vec<Value> =
        cases.iter().map(|c| json!({"name": c.name, "gguf": c.gguf, "expected": c.expected, "texts": c.texts, "speed": c.speed})).collect();
    let results = prunectl_testkit::ask(python, "check_gguf.py", folder, &asked);
    let mut wrong = Vec::new();
    for (case, result) in cases.iter().zip(&results) {
        let close = result["difference"].as_f64().is_some_and(|d| d < case.tolerance);
        let same = result["generated"] == true || !case.same_text;
        if result["loaded"] != true || !close || !same || result["texts"] != true {
            wrong.push(format!("(allowed {:.0e}) {result}", case.tolerance));
        }
    }
    assert!(wrong.is_empty(), "{} of {} are not as promised:\n{}", wrong.len(), results.len(), wrong.join("\n"));
    results.into_iter().map(|r| (r["name"].as_str().unwrap().to_owned(), r)).collect()
}

#[test]
fn llama_cpp_runs_every_shape_that_it_can_express() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (mut cases, mut table, mut architectures) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let mut reasons = BTreeMap::new();
    let goldens = MODELS.iter().chain(MORE).filter(|m| !m.contains('@'));
    let goldens = goldens.map(|place| (place.rsplit('/').next().unwrap(), load(&golden(place), &LoadOptions::default()).unwrap()));
    let random = variants().into_iter().map(|(name, place, fields)| {
        let mut config: Value = serde_json::from_slice(&std::fs::read(golden(place).join("config.json")).unwrap()).unwrap();
        fields.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        (name, random(folder.path(), &config, 23))
    });
    for (family, dense) in goldens.chain(random) {
        if dense.origin().task != Task::CausalLm {
            continue;
        }
        for &shape in SHAPES {
            let Some(model) = pruned(&dense, shape) else { continue };
            let name = format!("{family}-{shape}");
            match export(&model, folder.path(), &name, "f32", Assets::None) {
                Ok((path, written)) => {
                    let expected = folder.path().join(format!("{name}.safetensors"));
                    expect(&model, &PROMPT, NEW, &expected);
                    let tolerance = match model.blueprint().mlp.activation {
                        Activation::GeluTanh => GELU_TOLERANCE,
                        Activation::GeluErf => EXACT_GELU_TOLERANCE,
                        _ => TOLERANCE,
                    };
                    architectures.insert(name.clone(), written.architecture);
                    cases.push(Case { name, gguf: path, expected, texts: vec![], tolerance, same_text: true, speed: 0 });
                }
                Err(why) => {
                    assert!(why.starts_with("llama.cpp can't run this model: ") && why.contains("; "), "{name}: {why}");
                    reasons.entry(why).or_insert_with(Vec::new).push(name);
                    table.insert((family.to_owned(), shape.to_owned()), "refused".to_owned());
                }
            }
        }
    }
    let found = run(&python, folder.path(), &cases);
    for (name, result) in &found {
        let (family, shape) = name.split_once('-').unwrap();
        let text = format!("{:.0e} {}", result["difference"].as_f64().unwrap(), architectures[name]);
        table.insert((family.to_owned(), shape.to_owned()), text);
    }
    let mut rows = rows();
    rows.extend(MORE.iter().map(|m| m.rsplit('/').next().unwrap()));
    rows.extend(variants().into_iter().map(|(name, ..)| name));
    let mut reasons: Vec<String> =
        reasons.into_iter().map(|(why, names): (String, Vec<String>)| format!("  {}: {why}", names.join(" "))).collect();
    reasons.sort();
    println!("\nrefused\n{}", reasons.join("\n"));
    print_table("llama.cpp: worst error of the logits, and the architecture", &rows, SHAPES, &table);
}

/// Every type of weights; a vocabulary of bytes with merges.
#[test]
fn llama_cpp_reads_every_type_and_a_byte_level_vocabulary() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300, "hidden_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 512, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "initializer_range": 0.03, "rope_theta": 10000.0, "bos_token_id": 290, "eos_token_id": 291,
        "tie_word_embeddings": false,
    });
    let dense = random(folder.path(), &config, 5);
    let model = pruned(&dense, "heads").unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), byte_level().to_string()).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap().unwrap();
    let texts = ["the then  there", "Tom's 12 theses!\n\n other thé 🦙"];
    let texts: Vec<(String, Vec<u32>)> = texts.iter().map(|t| ((*t).to_owned(), ids(&tokenizer, t))).collect();
    let expected = folder.path().join("expected.safetensors");
    expect(&model, &PROMPT, 8, &expected);
    let mut cases = Vec::new();
    for dtype in TYPES {
        let (gguf, written) = export(&model, folder.path(), dtype, dtype, Assets::Folder(folder.path())).unwrap();
        assert!(written.warnings.iter().all(|w| w.contains("moves the logits") || w.contains("are finer")), "{:?}", written.warnings);
        println!(
            "{dtype}: {} bytes, read back {:.1e}, rounding {:.1e}",
            written.bytes, written.verified.difference, written.verified.rounding
        );
        let same_text = *dtype == "f32";
        let tolerance = if same_text { TOLERANCE } else { 1.2 * written.verified.rounding + ACTIVATIONS };
        cases.push(Case { name: (*dtype).into(), gguf, expected: expected.clone(), texts: texts.clone(), tolerance, same_text, speed: 0 });
    }
    for (name, result) in run(&python, folder.path(), &cases) {
        println!("{name}: logits {:.1e}, same text {}", result["difference"].as_f64().unwrap(), result["generated"]);
    }
}

/// GPT-2's alphabet of 256 bytes, a few merges, and a beginning of text.
fn byte_level() -> Value {
    let mut next = 256;
    let alphabet: Vec<char> = (0..=255_u8)
        .map(|b| match b {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(b),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap()
            }
        })
        .collect();
    let mut vocab: serde_json::Map<String, Value> = alphabet.iter().enumerate().map(|(i, c)| (c.to_string(), i.into())).collect();
    let merges = ["t h", "th e", "\u{120} t", "\u{120} th", "\u{120} the", "e s", "r e", "1 2"];
    let mut kept = Vec::new();
    for merge in merges {
        let token = merge.replace(' ', "");
        let id = vocab.len();
        vocab.entry(token).or_insert_with(|| id.into());
        kept.push(merge);
    }
    let special = |id: usize| {
        let content = format!("<|{id}|>");
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(290), special(291)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|290|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|290|>": {"id": "<|290|>", "ids": [290], "tokens": ["<|290|>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": kept,
        },
    })
}

/// A model that tells stories: dense, and with heads, neurons, sublayers and a layer gone. Sizes and speeds are printed.
#[test]
fn llama_cpp_tells_the_same_story() {
    let Some(python) = python() else { return };
    let Some(dir) = prunectl_testkit::shared("models/stories260k", "llama.cpp tells the same story") else { return };
    let folder = tempfile::tempdir().unwrap();
    let dense = load(&dir, &LoadOptions::default()).unwrap();
    let tokenizer = Tokenizer::open(&dir).unwrap().unwrap();
    let texts = ["Once upon a time, there was a little girl named Lily.", "Zoë said: \"3 apples!\"\n  Then she left."];
    let texts: Vec<(String, Vec<u32>)> = texts.iter().map(|t| ((*t).to_owned(), ids(&tokenizer, t))).collect();
    let mut cases = Vec::new();
    let mut sizes = BTreeMap::new();
    for shape in SHAPES {
        let Some(model) = pruned(&dense, shape) else { continue };
        let expected = folder.path().join(format!("{shape}.safetensors"));
        expect(&model, &texts[0].1, 60, &expected);
        for (dtype, tolerance) in [("f32", 1e-4), ("f16", 1e-2), ("q8_0", 0.1)] {
            let name = format!("{shape}-{dtype}");
            let (gguf, written) = export(&model, folder.path(), &name, dtype, Assets::Folder(&dir)).unwrap();
            sizes.insert(name.clone(), (written.bytes, written.architecture, model.parameter_count()));
            let texts = texts.clone();
            cases.push(Case { name, gguf, expected: expected.clone(), texts, tolerance, same_text: dtype == "f32", speed: 64 });
        }
    }
    for (name, result) in run(&python, folder.path(), &cases) {
        let (bytes, architecture, params) = &sizes[&name];
        println!(
            "{name:20} {architecture:6} {params:>7} parameters {bytes:>8} bytes, logits {:.1e}, same text {}, {:.0} tokens/s",
            result["difference"].as_f64().unwrap(),
            result["generated"],
            result["tokens_per_s"].as_f64().unwrap()
        );
    }
}
