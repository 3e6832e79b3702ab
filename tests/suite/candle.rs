//! The loader table's column of candle-transformers, found by trying: its own models open what `save` wrote of every family that they
//! have, and give the logits of the model in memory exactly where the table says so. Prints the table.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models as m;
use prunectl_model::{Batch, Gates, LoadOptions, Task, Transformer, load};
use prunectl_run::save::Layout;
use prunectl_run::stock::{Loader, Verdict};
use serde_json::{Value, json};

use crate::families::{SHAPES, golden, print_table, pruned};
use crate::stock::{logits, random, record, save};

/// Largest relative difference of logits: f32 on both sides, other kernels and another order of summation.
const TOLERANCE: f64 = 1e-4;

/// A model of the table: its row, and the golden folder that it comes from with other values in some fields of the config; or one with
/// random weights of that golden folder's config.
struct Subject {
    row: &'static str,
    golden: &'static str,
    fields: Value,
    random: bool,
}

fn subjects() -> Vec<Subject> {
    let own = |row, golden| Subject { row, golden, fields: json!({}), random: false };
    let with = |row, golden, fields| Subject { row, golden, fields, random: false };
    let random = |row, golden, fields| Subject { row, golden, fields, random: true };
    let labels = json!({"0": "a", "1": "b", "2": "c"});
    vec![
        own("bert_mlm", "families/bert_mlm"),
        own("bert_cls", "families/bert_cls"),
        own("bert_qa", "more/bert_qa"),
        own("bert_encoder", "more/bert_encoder"),
        own("roberta_mlm", "families/roberta_mlm"),
        own("xlm_roberta_mlm", "more/xlm_roberta_mlm"),
        random(
            "xlm_roberta_cls",
            "more/xlm_roberta_mlm",
            json!({"architectures": ["XLMRobertaForSequenceClassification"], "id2label": labels, "initializer_range": 0.2}),
        ),
        random("xlm_roberta_encoder", "more/xlm_roberta_mlm", json!({"architectures": ["XLMRobertaModel"], "initializer_range": 0.2})),
        own("distilbert_mlm", "families/distilbert_mlm"),
        own("electra_cls", "families/electra_cls"),
        own("gpt2", "families/gpt2"),
        own("gpt_neo", "families/gpt_neo"),
        own("gpt_neox", "families/gpt_neox"),
        own("codegen", "families/codegen"),
        own("opt", "families/opt"),
        own("falcon", "families/falcon"),
        // The only shape that its reader has.
        random(
            "falcon, four times",
            "families/falcon",
            json!({"ffn_hidden_size": 256, "tie_word_embeddings": false, "initializer_range": 0.2}),
        ),
        own("llama", "families/llama"),
        own("llama_tied", "families/llama_tied"),
        own("llama_rope3", "families/llama_rope3"),
        own("llama_linear", "more/llama_linear"),
        own("llama_cls", "more/llama_cls"),
        random("llama, biases", "families/llama", json!({"attention_bias": true, "initializer_range": 0.2})),
        own("mistral", "families/mistral"),
        own("qwen2", "families/qwen2"),
        own("qwen3", "families/qwen3"),
        own("gemma2", "families/gemma2"),
        with("gemma2, 1/√width", "families/gemma2", json!({"query_pre_attn_scalar": 12})),
        own("gemma3", "families/gemma3"),
        with("gemma3, 1/√width", "families/gemma3", json!({"query_pre_attn_scalar": 12})),
        // The only number of key/value heads that the cache of its windows takes.
        random(
            "gemma3, one group",
            "families/gemma3",
            json!({"query_pre_attn_scalar": 12, "num_key_value_heads": 1, "initializer_range": 0.2}),
        ),
        own("phi3", "families/phi3"),
        with(
            "phi3, half turned",
            "families/phi3",
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
        ),
        own("phi3_longrope_short", "more/phi3_longrope_short"),
        own("phi3_longrope_long", "more/phi3_longrope_long"),
        own("qwen3_yarn", "more/qwen3_yarn"),
        own("mixtral", "families/mixtral"),
        own("qwen3_moe", "families/qwen3_moe"),
        own("qwen3_moe_mixed", "more/qwen3_moe_mixed"),
    ]
}

/// A loader's own config type, read from the folder.
macro_rules! config {
    ($dir:expr) => {
        serde_json::from_slice(&std::fs::read($dir.join("config.json"))?).map_err(candle_core::Error::wrap)?
    };
}

fn weights(dir: &Path) -> Result<VarBuilder<'static>> {
    // SAFETY: the file was written by this test and nobody changes it while it is mapped.
    unsafe { VarBuilder::from_mmaped_safetensors(&[dir.join("model.safetensors")], DType::F32, &Device::Cpu) }
}

/// What candle-transformers has for a `model_type`.
enum Found {
    /// The last hidden states `[1, seq, hidden]`.
    Hidden(Tensor),
    /// The outputs, or of a decoder those of the last token.
    Logits(Tensor),
}

fn by_candle(model_type: &str, task: Task, dir: &Path, ids: &Tensor) -> Result<Found> {
    let (vb, n) = (weights(dir)?, ids.dim(1)?);
    let ones = Tensor::ones((1, n), DType::F32, &Device::Cpu)?;
    Ok(Found::Logits(match (model_type, task) {
        ("bert", Task::MaskedLm) => {
            // It looks for a copy of the embedding that tied files do not have.
            let names = |name: &str| match name {
                "cls.predictions.decoder.weight" => "bert.embeddings.word_embeddings.weight".to_owned(),
                "cls.predictions.decoder.bias" => "cls.predictions.bias".to_owned(),
                other => other.to_owned(),
            };
            let model = m::bert::BertForMaskedLM::load(vb.rename_f(names), &config!(dir))?;
            model.forward(ids, &ids.zeros_like()?, None)?
        }
        ("bert", _) => return Ok(Found::Hidden(m::bert::BertModel::load(vb, &config!(dir))?.forward(ids, &ids.zeros_like()?, None)?)),
        ("xlm-roberta", Task::Classification) => {
            let model = m::xlm_roberta::XLMRobertaForSequenceClassification::new(3, &config!(dir), vb)?;
            model.forward(ids, &ones, &ids.zeros_like()?)?
        }
        ("xlm-roberta", _) => {
            let vb = if task == Task::Encoder { vb } else { vb.pp("roberta") };
            let model = m::xlm_roberta::XLMRobertaModel::new(&config!(dir), vb)?;
            return Ok(Found::Hidden(model.forward(ids, &ones, &ids.zeros_like()?, None, None, None)?));
        }
        ("distilbert", _) => {
            let names = |name: &str| match name {
                "vocab_projector.weight" => "distilbert.embeddings.word_embeddings.weight".to_owned(),
                other => other.to_owned(),
            };
            let model = m::distilbert::DistilBertForMaskedLM::load(vb.rename_f(names), &config!(dir))?;
            model.forward(ids, &Tensor::zeros((1, 1, 1, n), DType::U8, &Device::Cpu)?)?
        }
        ("llama", _) => {
            let config: m::llama::LlamaConfig = config!(dir);
            let config = config.into_config(false);
            let mut cache = m::llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
            m::llama::Llama::load(vb, &config)?.forward(ids, 0, &mut cache)?
        }
        ("mistral", _) => m::mistral::Model::new(&config!(dir), vb)?.forward(ids, 0)?,
        ("qwen2", _) => m::qwen2::ModelForCausalLM::new(&config!(dir), vb)?.forward(ids, 0)?,
        ("qwen3", _) => m::qwen3::ModelForCausalLM::new(&config!(dir), vb)?.forward(ids, 0)?,
        ("qwen3_moe", _) => m::qwen3_moe::ModelForCausalLM::new(&config!(dir), vb)?.forward(ids, 0)?,
        ("gemma2", _) => m::gemma2::Model::new(false, &config!(dir), vb)?.forward(ids, 0)?,
        ("gemma3_text", _) => m::gemma3::Model::new(false, &config!(dir), vb)?.forward(ids, 0)?,
        ("falcon", _) => m::falcon::Falcon::load(vb, config!(dir))?.forward(ids)?,
        ("phi3", _) => m::phi3::Model::new(&config!(dir), vb)?.forward(ids, 0)?,
        ("mixtral", _) => m::mixtral::Model::new(&config!(dir), vb)?.forward(ids, 0)?,
        _ => candle_core::bail!("no model of that type"),
    }))
}

/// Largest relative difference of the logits, or of the hidden states where it has no such head.
fn difference(model: &Transformer, dir: &Path, ids: &Tensor) -> Result<f64> {
    let config: Value = config!(dir);
    let model_type = config["model_type"].as_str().unwrap_or_default().to_owned();
    let task = model.origin().task;
    // Some of its loaders panic where others return an error; both refuse.
    let found = catch_unwind(AssertUnwindSafe(|| by_candle(&model_type, task, dir, ids)))
        .map_err(|_| candle_core::Error::Msg("candle-transformers panicked".into()))??;
    let batch = Batch::new(ids.clone());
    let (found, expected) = match found {
        Found::Hidden(found) => {
            let (x, context) = model.hidden(&batch, &Gates::default(), &mut ()).map_err(candle_core::Error::wrap)?;
            (found, model.last_norm(&x, &context, &mut ()).map_err(candle_core::Error::wrap)?)
        }
        Found::Logits(found) if task == Task::CausalLm => {
            // [1, seq or 1, vocab], or [1, vocab]
            let rows = found.reshape(((), found.dim(candle_core::D::Minus1)?))?;
            (rows.get(rows.dim(0)? - 1)?, logits(model, &batch).narrow(1, ids.dim(1)? - 1, 1)?)
        }
        Found::Logits(found) => (found, logits(model, &batch)),
    };
    let (found, expected) = (found.flatten_all()?, expected.flatten_all()?);
    let worst = (&found - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    Ok(f64::from(worst / expected.abs()?.max_all()?.to_scalar::<f32>()?))
}

fn dense(subject: &Subject, folder: &Path) -> Transformer {
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden(subject.golden).join("config.json")).unwrap()).unwrap();
    for (key, value) in subject.fields.as_object().unwrap() {
        config[key] = value.clone();
    }
    if subject.random {
        return random(folder, &config, 11);
    }
    let source = folder.join("source");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(golden(subject.golden).join("model.safetensors"), source.join("model.safetensors")).unwrap();
    load(&source, &LoadOptions::default()).unwrap()
}

#[test]
fn candle_transformers_reads_what_the_table_says() {
    let folder = tempfile::tempdir().unwrap();
    let ids = Tensor::new(&[[5_u32, 60, 31, 47, 12, 9, 33]], &Device::Cpu).unwrap();
    let (mut table, mut wrong, mut reasons) = (BTreeMap::new(), Vec::new(), BTreeMap::<String, Vec<String>>::new());
    let subjects = subjects();
    for subject in &subjects {
        let dense = dense(subject, folder.path());
        for &shape in SHAPES {
            let Some(model) = pruned(&dense, shape) else { continue };
            let target = folder.path().join(format!("{}-{shape}", subject.row));
            let saved = save(&model, &target, Layout::Compact, &record(&dense, None));
            let verdict = &saved.loaders.iter().find(|l| l.loader == Loader::Candle).unwrap().verdict;
            let stock = matches!(verdict, Verdict::Stock { tried: true, .. });
            assert!(stock || matches!(verdict, Verdict::Refused { .. }), "{} {shape}: {verdict:?}", subject.row);
            let found = difference(&model, &saved.dir, &ids);
            if stock != matches!(&found, Ok(d) if *d < TOLERANCE) {
                wrong.push(format!("{} {shape}: the table says {verdict:?}, found {found:?}", subject.row));
            }
            if let (Err(e), "dense") = (&found, shape) {
                println!("candle-transformers, {} dense: {}", subject.row, e.to_string().lines().next().unwrap_or_default());
            }
            let text = match (&found, verdict) {
                (Ok(d), Verdict::Stock { limit, .. }) => format!("{d:.1e}{}", if limit.is_some() { "*" } else { "" }),
                (Ok(d), _) => format!("{d:.0e} off"),
                (Err(_), _) => "refuses".into(),
            };
            let why = match verdict {
                Verdict::Stock { limit: Some(limit), .. } => Some(format!("* {limit}")),
                Verdict::Refused { reason, .. } => Some(reason.clone()),
                _ => None,
            };
            if let Some(why) = why {
                reasons.entry(why).or_default().push(format!("{}-{shape}", subject.row));
            }
            table.insert((subject.row.to_owned(), shape.to_owned()), text);
            std::fs::remove_dir_all(&saved.dir).unwrap();
        }
    }
    let rows: Vec<&str> = subjects.iter().map(|s| s.row).collect();
    print_table(
        "candle-transformers: worst error of the logits (*: within a limit; off: it loads and computes something else)",
        &rows,
        SHAPES,
        &table,
    );
    for (why, cells) in reasons {
        println!("  {}: {why}", cells.join(" "));
    }
    assert!(wrong.is_empty(), "{} cells are not as the table says:\n{}", wrong.len(), wrong.join("\n"));
}
