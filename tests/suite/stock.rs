//! The loader table, held against the loaders: folders that `save` wrote are opened by candle-transformers' own models (always) and by
//! unmodified transformers (under `PRUNECTL_TEST_PYTHON`), and must give the logits of the model in memory. What the table calls
//! impossible must be refused there, too.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, llama};
use prunectl_model::{Batch, Gates, LayerDims, LoadOptions, Params, SiteKind, Transformer, init};
use prunectl_run::save::record::{KeptSite, RecipeRef, RunRecord, SourceRef};
use prunectl_run::save::{self, Assets, CardFacts, Layout, PruneRecord, SHARD_BYTES, SaveRequest, Saved};
use prunectl_run::stock::{Loader, Verdict};
use serde_json::{Value, json};

/// Largest relative difference of logits, max|a−b| / max|b|: f32 on both sides, other kernels and another order of summation.
const TOLERANCE: f64 = 1e-4;
const HIDDEN: usize = 64;
const HEAD_DIM: usize = 8;
const FFN: usize = 96;

fn bert_config(head: &str) -> Value {
    json!({
        "architectures": [head], "model_type": "bert", "vocab_size": 144, "hidden_size": HIDDEN, "num_hidden_layers": 3,
        "num_attention_heads": 8, "intermediate_size": FFN, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 64, "type_vocab_size": 2, "initializer_range": 0.2,
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "tie_word_embeddings": true,
        "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2},
    })
}

fn llama_config(tied: bool) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 144, "hidden_size": HIDDEN, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": HEAD_DIM, "intermediate_size": FFN, "hidden_act": "silu",
        "max_position_embeddings": 128, "initializer_range": 0.2, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": tied,
        "attention_bias": false, "mlp_bias": false,
    })
}

/// What stays of one layer. The query heads of a group follow their key/value head.
#[derive(Debug, Clone)]
pub struct Keep {
    heads: Vec<usize>,
    groups: Vec<usize>,
    neurons: Vec<usize>,
}

fn every(n: usize, step: usize) -> Vec<usize> {
    (0..n).step_by(step).collect()
}

fn heads(heads: &[usize], groups: &[usize], neurons: Vec<usize>) -> Keep {
    Keep { heads: heads.to_vec(), groups: groups.to_vec(), neurons }
}

/// Layers that differ: fewer heads, fewer neurons, whole groups gone, a sublayer gone.
fn ragged(grouped: bool) -> Vec<Keep> {
    if grouped {
        let one_of_each = heads(&[0, 3, 5, 6], &[0, 1, 2, 3], every(FFN, 3));
        vec![one_of_each, heads(&[2, 3, 6, 7], &[1, 3], every(FFN, 2)), heads(&every(8, 1), &every(4, 1), (0..40).collect())]
    } else {
        let odd = [1, 3, 4, 6, 7];
        vec![heads(&odd, &odd, every(FFN, 3)), heads(&[2], &[2], every(FFN, 1)), heads(&every(8, 1), &every(8, 1), (10..50).collect())]
    }
}

/// The smaller model, sliced here by hand: an independent witness of what removing a unit means.
fn smaller(model: &Transformer, keeps: &[Keep]) -> Transformer {
    let mut dims = model.dims().to_vec();
    let mut params = BTreeMap::new();
    let index = |units: &[usize], width: usize| {
        let all: Vec<u32> = units.iter().flat_map(|u| (0..width).map(move |i| (u * width + i) as u32)).collect();
        Tensor::new(all, &Device::Cpu).unwrap()
    };
    for (d, keep) in dims.iter_mut().zip(keeps) {
        let mut now = LayerDims { q_heads: keep.heads.len(), kv_heads: keep.groups.len(), ffn: keep.neurons.len(), ..*d };
        if now.q_heads == 0 {
            now.kv_heads = 0;
        }
        *d = now;
    }
    for slot in model.blueprint().slots(&dims) {
        let tensor = model.params().get(&slot.name).unwrap();
        let layer = slot.name.strip_prefix("layers.").and_then(|r| r.split_once('.'));
        let tensor = match layer.map(|(l, part)| (&keeps[l.parse::<usize>().unwrap()], part)) {
            Some((k, "attention.q.weight" | "attention.q.bias")) => tensor.index_select(&index(&k.heads, HEAD_DIM), 0),
            Some((k, "attention.k.weight" | "attention.k.bias" | "attention.v.weight" | "attention.v.bias")) => {
                tensor.index_select(&index(&k.groups, HEAD_DIM), 0)
            }
            Some((k, "attention.o.weight")) => tensor.index_select(&index(&k.heads, HEAD_DIM), 1),
            Some((k, "mlp.up.weight" | "mlp.up.bias" | "mlp.gate.weight" | "mlp.gate.bias")) => {
                tensor.index_select(&index(&k.neurons, 1), 0)
            }
            Some((k, "mlp.down.weight")) => tensor.index_select(&index(&k.neurons, 1), 1),
            _ => Ok(tensor.clone()),
        };
        params.insert(slot.name, tensor.unwrap());
    }
    model.with_shape(dims, Params::from(params)).unwrap()
}

/// The same units masked: zeros where their outputs are read.
fn masked(model: &Transformer, keeps: &[Keep]) -> Transformer {
    let mut out = model.clone();
    for (l, keep) in keeps.iter().enumerate() {
        for (part, kept, width) in [("attention.o.weight", &keep.heads, HEAD_DIM), ("mlp.down.weight", &keep.neurons, 1)] {
            let slot = format!("layers.{l}.{part}");
            let tensor = model.params().get(&slot).unwrap();
            let columns: Vec<f32> = (0..tensor.dim(1).unwrap()).map(|c| f32::from(u8::from(kept.contains(&(c / width))))).collect();
            let columns = Tensor::new(columns, &Device::Cpu).unwrap();
            out.params_mut().set(slot, tensor.broadcast_mul(&columns).unwrap());
        }
    }
    out
}

/// Random weights; biases and norms, which `init` leaves at 0 and 1, get values too, so that losing one shows.
pub fn random(folder: &Path, config: &Value, seed: u64) -> Transformer {
    let path = folder.join(format!("init-{seed}.json"));
    std::fs::write(&path, config.to_string()).unwrap();
    let mut model = init(&path, seed, &LoadOptions::default()).unwrap();
    let mut state = seed + 1;
    let names: Vec<String> = model.params().iter().filter(|(_, t)| t.rank() == 1).map(|(n, _)| n.to_owned()).collect();
    for name in names {
        let tensor = model.params().get(&name).unwrap();
        let shift: Vec<f32> = (0..tensor.elem_count())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / 16_777_216.0 - 0.5) * 0.4
            })
            .collect();
        let shifted = (tensor + Tensor::new(shift, &Device::Cpu).unwrap()).unwrap();
        model.params_mut().set(name, shifted);
    }
    model
}

pub fn record(original: &Transformer, keeps: Option<&[Keep]>) -> PruneRecord {
    let run = RunRecord {
        recipe: RecipeRef { name: "stock".into(), sha256: "0".repeat(64) },
        prunectl: env!("CARGO_PKG_VERSION").into(),
        model: SourceRef { name: "m".into(), source: "init:config.json".into(), revision: None, sha256: BTreeMap::new() },
        data: vec![],
        metrics: serde_json::Map::new(),
        shapes: vec![],
    };
    let site = |name: &str, units: fn(&Keep) -> Vec<usize>| KeptSite {
        site: name.into(),
        kept: keeps.unwrap_or_default().iter().map(units).enumerate().collect(),
    };
    let sites = match keeps {
        None => vec![],
        Some(_) => vec![
            site("attention.heads", |k| k.heads.clone()),
            site("attention.kv_groups", |k| k.groups.clone()),
            site("mlp.neurons", |k| k.neurons.clone()),
        ],
    };
    let layers = (0..original.n_layers()).collect();
    PruneRecord::after(None, run, "compact", original.dims().to_vec(), layers, sites)
}

pub fn save(model: &Transformer, target: &Path, layout: Layout, record: &PruneRecord) -> Saved {
    let card = CardFacts { task: "text-generation".into(), ..CardFacts::default() };
    let request = SaveRequest { target, layout, dtype: None, assets: Assets::None, record, card: &card, shard_bytes: SHARD_BYTES };
    save::write(model, &request).unwrap()
}

/// Three rows of 20 tokens; the last has 6 tokens of padding.
fn probe() -> Batch {
    let ids: Vec<u32> = (0..60_u32).map(|i| 3 + (i * 37 + i * i * 5) % 140).collect();
    let keep: Vec<u8> = (0..60_u8).map(|i| u8::from(i < 54)).collect();
    Batch {
        keep: Some(Tensor::from_vec(keep, (3, 20), &Device::Cpu).unwrap()),
        ..Batch::new(Tensor::from_vec(ids, (3, 20), &Device::Cpu).unwrap())
    }
}

pub fn logits(model: &Transformer, batch: &Batch) -> Tensor {
    model.forward(batch, &Gates::default(), &mut ()).unwrap()
}

pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (a, b) = (flat(a), flat(b));
    let worst = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    assert!(a.iter().all(|x| x.is_finite()));
    worst / b.iter().map(|y| y.abs()).fold(0.0, f64::max)
}

struct Case {
    name: String,
    model: Transformer,
    saved: Saved,
}

/// Every kind of output of both families.
fn cases(folder: &Path) -> Vec<Case> {
    let families = [
        ("bert_mlm", bert_config("BertForMaskedLM")),
        ("bert_cls", bert_config("BertForSequenceClassification")),
        ("llama", llama_config(false)),
        ("llama_tied", llama_config(true)),
    ];
    let mut out = Vec::new();
    for (seed, (family, config)) in families.into_iter().enumerate() {
        let dense = random(folder, &config, seed as u64);
        let grouped = family.starts_with("llama");
        let keeps = ragged(grouped);
        let whole = |neurons: Vec<usize>| heads(&every(8, 1), &every(if grouped { 4 } else { 8 }, 1), neurons);
        let narrow = vec![whole(every(FFN, 2)), whole((0..48).collect()), whole((48..96).collect())];
        let four = if grouped { heads(&[2, 3, 6, 7], &[1, 3], every(FFN, 1)) } else { heads(&[0, 2, 3, 7], &[0, 2, 3, 7], every(FFN, 1)) };
        let same_heads = vec![four; 3];
        let six = heads(&every(6, 1), &every(3, 1), every(FFN, 1));
        let mut gone = keeps.clone();
        gone[0] = heads(&[], &[], every(FFN, 2));
        gone[2].neurons.clear();
        let mut add = |what: &str, model: Transformer, layout: Layout, record: PruneRecord| {
            let name = format!("{family}-{what}");
            let saved = save(&model, &folder.join(&name), layout, &record);
            println!("{name}: reopened, difference {:.1e} (allowed {:.0e})", saved.verified.difference, saved.verified.tolerance);
            out.push(Case { name, model, saved });
        };
        add("dense", dense.clone(), Layout::Compact, record(&dense, None));
        add("masked", masked(&dense, &keeps), Layout::Compact, record(&dense, None));
        let compact = smaller(&dense, &keeps);
        let drift = difference(&logits(&compact, &probe()), &logits(&masked(&dense, &keeps), &probe()));
        assert!(drift < TOLERANCE, "{family}: removing is not masking: {drift}");
        add("padded", compact.clone(), Layout::Padded, record(&dense, Some(&keeps)));
        add("ragged", compact, Layout::Compact, record(&dense, Some(&keeps)));
        add("equal_ffn", smaller(&dense, &narrow), Layout::Compact, record(&dense, Some(&narrow)));
        add("equal_heads", smaller(&dense, &same_heads), Layout::Compact, record(&dense, Some(&same_heads)));
        if grouped {
            let sixes = vec![six; 3];
            add("six_heads", smaller(&dense, &sixes), Layout::Compact, record(&dense, Some(&sixes)));
        }
        let mut two_layers = record(&dense, None);
        two_layers.layers = vec![0, 2];
        two_layers.sites = vec![KeptSite { site: "layers".into(), kept: BTreeMap::from([(0, vec![0, 2])]) }];
        add("dropped_layer", dense.keep_units(SiteKind::Layers, None, &[0, 2]).unwrap(), Layout::Compact, two_layers);
        add("gone", smaller(&dense, &gone), Layout::Compact, record(&dense, Some(&gone)));
        add("gone_padded", smaller(&dense, &gone), Layout::Padded, record(&dense, Some(&gone)));
    }
    out
}

fn verdict(case: &Case, loader: Loader) -> &Verdict {
    &case.saved.loaders.iter().find(|l| l.loader == loader).unwrap().verdict
}

fn weights(dir: &Path) -> VarBuilder<'static> {
    // SAFETY: the file was written by this test and nobody changes it while it is mapped.
    unsafe { VarBuilder::from_mmaped_safetensors(&[dir.join("model.safetensors")], DType::F32, &Device::Cpu).unwrap() }
}

/// candle-transformers' own BERT. It has no sequence classifier (then its encoder is compared), and looks for a copy of the embedding that
/// tied files do not have, which is a name to it.
fn candle_bert(dir: &Path, batch: &Batch) -> candle_core::Result<(Tensor, bool)> {
    let config: bert::Config = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?).map_err(candle_core::Error::wrap)?;
    let types = batch.input_ids.zeros_like()?;
    if weights(dir).contains_tensor("classifier.weight") {
        let model = bert::BertModel::load(weights(dir), &config)?;
        return Ok((model.forward(&batch.input_ids, &types, batch.keep.as_ref())?, false));
    }
    let names = |name: &str| match name {
        "cls.predictions.decoder.weight" => "bert.embeddings.word_embeddings.weight".to_owned(),
        "cls.predictions.decoder.bias" => "cls.predictions.bias".to_owned(),
        other => other.to_owned(),
    };
    let model = bert::BertForMaskedLM::load(weights(dir).rename_f(names), &config)?;
    Ok((model.forward(&batch.input_ids, &types, batch.keep.as_ref())?, true))
}

/// candle-transformers' own Llama, which gives the logits of the last position only: ask for several lengths.
fn candle_llama(dir: &Path, batch: &Batch) -> candle_core::Result<Vec<(usize, Tensor)>> {
    let config: llama::LlamaConfig = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?).map_err(candle_core::Error::wrap)?;
    let config = config.into_config(false);
    // Its loader panics where BERT's returns the error; both refuse.
    let model = std::panic::catch_unwind(|| llama::Llama::load(weights(dir), &config))
        .map_err(|_| candle_core::Error::Msg("candle-transformers' Llama panicked".into()))??;
    [1, 7, 20]
        .into_iter()
        .map(|n| {
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
            Ok((n, model.forward(&batch.input_ids.narrow(0, 0, 1)?.narrow(1, 0, n)?, 0, &mut cache)?))
        })
        .collect()
}

#[test]
fn candle_transformers_loads_what_the_table_says() {
    let folder = tempfile::tempdir().unwrap();
    let batch = Batch { keep: None, ..probe() };
    for case in cases(folder.path()) {
        // What is written as another family is held against its reader in `candle.rs`.
        if matches!(verdict(&case, Loader::Candle), Verdict::Stock { limit: Some(limit), .. } if limit.contains("written as")) {
            continue;
        }
        let stock = matches!(verdict(&case, Loader::Candle), Verdict::Stock { tried: true, .. });
        let mut worst = None;
        if case.name.starts_with("bert") {
            if let Ok((found, tokens)) = candle_bert(&case.saved.dir, &batch) {
                let expected =
                    if tokens { logits(&case.model, &batch) } else { case.model.hidden(&batch, &Gates::default(), &mut ()).unwrap().0 };
                worst = Some(difference(&found, &expected));
            }
        } else if let Ok(found) = candle_llama(&case.saved.dir, &batch) {
            let all = logits(&case.model, &batch);
            let at = |n: usize| all.narrow(0, 0, 1).unwrap().narrow(1, n - 1, 1).unwrap().squeeze(1).unwrap();
            worst = Some(found.iter().map(|(n, l)| difference(l, &at(*n))).fold(0.0, f64::max));
        }
        println!("candle-transformers, {}: {}", case.name, worst.map_or("refused".into(), |w| format!("{w:.1e}")));
        match (stock, worst) {
            (true, Some(worst)) => assert!(worst < TOLERANCE, "{}: {worst}", case.name),
            (true, None) => panic!("{}: the table says that candle-transformers loads it", case.name),
            (false, None) => {}
            (false, Some(worst)) => panic!("{}: the table says refused, candle-transformers loads it ({worst:.1e})", case.name),
        }
    }
}

/// The greedy continuation by our own network, without a cache.
pub fn greedy(model: &Transformer, prompt: &[u32], new: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..new {
        let batch = Batch::new(Tensor::from_vec(ids.clone(), (1, ids.len()), &Device::Cpu).unwrap());
        let last = logits(model, &batch).narrow(1, ids.len() - 1, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let best = (0..last.len()).filter(|i| *i != 2).max_by(|a, b| last[*a].total_cmp(&last[*b]));
        ids.push(best.unwrap() as u32);
    }
    ids
}

fn expected(case: &Case, path: &Path) {
    let batch = probe();
    let whole = |t: &Tensor| t.to_dtype(DType::I64).unwrap();
    let mut tensors = std::collections::HashMap::from([
        ("input_ids".to_owned(), whole(&batch.input_ids)),
        ("attention_mask".to_owned(), whole(batch.keep.as_ref().unwrap())),
        ("logits".to_owned(), logits(&case.model, &batch)),
    ]);
    if case.name.starts_with("llama") {
        let prompt = [5_u32, 90, 31, 77, 12];
        let all = greedy(&case.model, &prompt, 16);
        let row =
            |ids: &[u32]| Tensor::from_vec(ids.iter().map(|i| i64::from(*i)).collect::<Vec<_>>(), (1, ids.len()), &Device::Cpu).unwrap();
        tensors.insert("prompt".into(), row(&prompt));
        tensors.insert("generated".into(), row(&all));
    }
    candle_core::safetensors::save(&tensors, path).unwrap();
}

#[test]
fn transformers_loads_what_the_table_says() {
    let Some(python) = prunectl_testkit::python("transformers loads what save writes") else { return };
    let folder = tempfile::tempdir().unwrap();
    let cases = cases(folder.path());
    let mut asked = Vec::new();
    for case in &cases {
        let answers = folder.path().join(format!("{}.expected.safetensors", case.name));
        expected(case, &answers);
        let auto_class = match case.name.split('-').next().unwrap() {
            "bert_mlm" => "AutoModelForMaskedLM",
            "bert_cls" => "AutoModelForSequenceClassification",
            _ => "AutoModelForCausalLM",
        };
        for trust in [false, true] {
            let name = format!("{}{}", case.name, if trust { " with remote code" } else { "" });
            asked.push(
                json!({"name": name, "dir": case.saved.dir, "expected": answers, "auto_class": auto_class, "trust_remote_code": trust}),
            );
        }
    }
    let results = prunectl_testkit::ask(&python, "check_logits.py", folder.path(), &asked);
    assert_eq!(results.len(), cases.len() * 2);
    let mut wrong = Vec::new();
    for (i, result) in results.iter().enumerate() {
        let (case, trust) = (&cases[i / 2], i % 2 == 1);
        let loads = match verdict(case, Loader::Transformers) {
            Verdict::Stock { tried: true, .. } => true,
            Verdict::RemoteCode { .. } => trust,
            other => panic!("{}: {other:?}", case.name),
        };
        println!("transformers, {result}");
        let close = result["difference"].as_f64().is_some_and(|d| d < TOLERANCE);
        let complete = result["missing"].as_array().is_some_and(Vec::is_empty);
        let right = match loads {
            true => result["loaded"] == true && close && complete && result["generated"] != false,
            false => result["loaded"] == false,
        };
        if !right {
            wrong.push(result.to_string());
        }
    }
    assert!(wrong.is_empty(), "{} of {} are not as the table says:\n{}", wrong.len(), results.len(), wrong.join("\n"));
}

/// A width of the residual stream that Falcon's config class takes with no number of heads: the table says so, and what would be legal.
#[test]
fn a_falcon_of_an_odd_width_is_for_no_stock_loader() {
    let folder = tempfile::tempdir().unwrap();
    let dense = prunectl_model::load(&crate::families::golden("families/falcon"), &LoadOptions::default()).unwrap();
    let mut asked = Vec::new();
    for width in [63, 62] {
        let kept: Vec<usize> = (0..width).collect();
        let model = dense.keep_units(SiteKind::Hidden, None, &kept).unwrap();
        let saved = save(&model, &folder.path().join(width.to_string()), Layout::Compact, &record(&dense, None));
        let verdict = &saved.loaders.iter().find(|l| l.loader == Loader::Transformers).unwrap().verdict;
        match verdict {
            Verdict::Refused { reason, .. } if width == 63 => {
                assert!(reason.contains("hidden size such as 63") && reason.contains("keep 62 or 64 channels (`align = 2`)"), "{reason}");
            }
            Verdict::RemoteCode { .. } if width == 62 => {}
            other => panic!("{width}: {other:?}"),
        }
        let answers = folder.path().join(format!("{width}.safetensors"));
        let batch = probe();
        let whole = |t: &Tensor| t.to_dtype(DType::I64).unwrap();
        let tensors = std::collections::HashMap::from([
            ("input_ids".to_owned(), whole(&batch.input_ids)),
            ("attention_mask".to_owned(), whole(batch.keep.as_ref().unwrap())),
            ("logits".to_owned(), logits(&model, &batch)),
        ]);
        candle_core::safetensors::save(&tensors, &answers).unwrap();
        for trust in [false, true] {
            let name = format!("{width} {trust}");
            asked.push(json!({"name": name, "dir": saved.dir, "expected": answers, "auto_class": "AutoModelForCausalLM", "trust_remote_code": trust}));
        }
    }
    let Some(python) = prunectl_testkit::python("a Falcon of an odd width") else { return };
    for result in prunectl_testkit::ask(&python, "check_logits.py", folder.path(), &asked) {
        let loads = result["name"] == "62 true";
        assert_eq!(result["loaded"], loads, "{result}");
        assert!(!loads || result["difference"].as_f64().unwrap() < TOLERANCE, "{result}");
    }
}
