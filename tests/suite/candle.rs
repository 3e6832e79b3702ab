//! The loader table's column of candle-transformers, found by trying: its own models open what `save` wrote of every family that they
//! have, and give the logits of the model in memory exactly where the table says so. Prints the table.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models as m;
use prunectl_model::{Batch, LoadOptions, Transformer, load};
use prunectl_run::save::Layout;
use prunectl_run::stock::{Loader, Verdict};
use serde_json::{Value, json};

use crate::families::{SHAPES, golden, print_table, pruned};
use crate::stock::{logits, record, save};

/// Largest relative difference of logits: f32 on both sides, other kernels and another order of summation.
const TOLERANCE: f64 = 1e-4;

/// Golden models, and the fields in which published configs differ from theirs: candle's readers want numbers there, and know no windows.
fn models() -> Vec<(&'static str, Value)> {
    let wide = json!({"sliding_window": 4096});
    vec![
        ("families/distilbert_mlm", json!({})),
        ("more/xlm_roberta_mlm", json!({})),
        ("families/mistral", json!({})),
        ("families/qwen2", json!({"sliding_window": 4096, "use_sliding_window": false})),
        ("families/qwen3", json!({"use_sliding_window": false})),
        ("families/gemma2", json!({"sliding_window": 4096, "query_pre_attn_scalar": 12})),
        ("families/gemma3", json!({"query_pre_attn_scalar": 12})),
        ("families/falcon", json!({})),
        ("families/phi3", json!({})),
        ("families/mixtral", wide),
        ("families/qwen3_moe", json!({"use_sliding_window": false})),
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

/// Logits of the last token `[vocab]`.
fn by_candle(model_type: &str, dir: &Path, ids: &Tensor) -> Result<Tensor> {
    let (vb, n) = (weights(dir)?, ids.dim(1)?);
    let logits = match model_type {
        "distilbert" => {
            let names = |name: &str| match name {
                "vocab_projector.weight" => "distilbert.embeddings.word_embeddings.weight".to_owned(),
                other => other.to_owned(),
            };
            let model = m::distilbert::DistilBertForMaskedLM::load(vb.rename_f(names), &config!(dir))?;
            model.forward(ids, &Tensor::zeros((1, 1, 1, n), DType::U8, &Device::Cpu)?)?
        }
        "xlm-roberta" => {
            let model = m::xlm_roberta::XLMRobertaForMaskedLM::new(&config!(dir), vb)?;
            model.forward(ids, &Tensor::ones((1, n), DType::F32, &Device::Cpu)?, &ids.zeros_like()?, None, None, None)?
        }
        "mistral" => m::mistral::Model::new(&config!(dir), vb)?.forward(ids, 0)?,
        "qwen2" => m::qwen2::ModelForCausalLM::new(&config!(dir), vb)?.forward(ids, 0)?,
        "qwen3" => m::qwen3::ModelForCausalLM::new(&config!(dir), vb)?.forward(ids, 0)?,
        "qwen3_moe" => m::qwen3_moe::ModelForCausalLM::new(&config!(dir), vb)?.forward(ids, 0)?,
        "gemma2" => m::gemma2::Model::new(false, &config!(dir), vb)?.forward(ids, 0)?,
        "gemma3_text" => m::gemma3::Model::new(false, &config!(dir), vb)?.forward(ids, 0)?,
        "falcon" => m::falcon::Falcon::load(vb, config!(dir))?.forward(ids)?,
        "phi3" => m::phi3::Model::new(&config!(dir), vb)?.forward(ids, 0)?,
        _ => m::mixtral::Model::new(&config!(dir), vb)?.forward(ids, 0)?,
    };
    // [1, seq or 1, vocab], or [1, vocab]
    let vocab = logits.dim(candle_core::D::Minus1)?;
    let rows = logits.reshape(((), vocab))?;
    rows.get(rows.dim(0)? - 1)
}

fn difference(model: &Transformer, dir: &Path, ids: &Tensor) -> Result<f64> {
    let model_type = model.origin().model_type.clone();
    // Some of its loaders panic where others return an error; both refuse.
    let found = catch_unwind(AssertUnwindSafe(|| by_candle(&model_type, dir, ids)))
        .map_err(|_| candle_core::Error::Msg("candle-transformers panicked".into()))??;
    let n = ids.dim(1)?;
    let expected = logits(model, &Batch::new(ids.clone())).narrow(1, n - 1, 1)?.flatten_all()?;
    let worst = (&found - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    Ok(f64::from(worst / expected.abs()?.max_all()?.to_scalar::<f32>()?))
}

#[test]
fn candle_transformers_reads_the_families_that_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let ids = Tensor::new(&[[5_u32, 60, 31, 47, 12, 9, 33]], &Device::Cpu).unwrap();
    let (mut table, mut wrong) = (BTreeMap::new(), Vec::new());
    for (place, fields) in models() {
        let family = place.rsplit('/').next().unwrap();
        let source = folder.path().join(family);
        std::fs::create_dir(&source).unwrap();
        let mut own: Value = serde_json::from_slice(&std::fs::read(golden(place).join("config.json")).unwrap()).unwrap();
        for (key, value) in fields.as_object().unwrap() {
            own[key] = value.clone();
        }
        std::fs::write(source.join("config.json"), own.to_string()).unwrap();
        std::fs::copy(golden(place).join("model.safetensors"), source.join("model.safetensors")).unwrap();
        let dense = load(&source, &LoadOptions::default()).unwrap();
        for &shape in SHAPES {
            let Some(model) = pruned(&dense, shape) else { continue };
            let saved = save(&model, &folder.path().join(format!("{family}-{shape}")), Layout::Compact, &record(&dense, None));
            let verdict = &saved.loaders.iter().find(|l| l.loader == Loader::Candle).unwrap().verdict;
            let stock = matches!(verdict, Verdict::Stock { tried: true });
            let found = difference(&model, &saved.dir, &ids);
            let right = matches!(&found, Ok(d) if *d < TOLERANCE);
            if stock != right {
                wrong.push(format!("{family} {shape}: the table says {verdict:?}, found {found:?}"));
            }
            let text = match found {
                Ok(d) if d < TOLERANCE => format!("{d:.1e}"),
                Ok(_) => "differs".into(),
                Err(_) => "refuses".into(),
            };
            table.insert((family.to_owned(), shape.to_owned()), text);
        }
    }
    print_table("candle-transformers: worst error of the logits", SHAPES, &table);
    assert!(wrong.is_empty(), "{} cells are not as the table says:\n{}", wrong.len(), wrong.join("\n"));
}
