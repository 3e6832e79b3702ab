//! The golden pack: what Hugging Face transformers computes with tiny random models of each family.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Labels, LoadOptions, Slice, Transformer};

pub type Tensors = HashMap<String, Tensor>;

/// Every family of the pack.
pub const GOLDEN: &[&str] = &[
    "bert_mlm",
    "bert_cls",
    "roberta_mlm",
    "distilbert_mlm",
    "distilbert_cls",
    "electra_cls",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "codegen",
    "opt",
    "opt_postnorm",
    "falcon",
    "llama",
    "llama_tied",
    "llama_rope3",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "mixtral",
    "qwen3_moe",
];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families")
}

/// A folder with the golden weights and one of the two spellings of the config.
pub fn folder(family: &str, config: &str) -> tempfile::TempDir {
    let from = root().join(family);
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join(config), dir.path().join("config.json")).unwrap();
    std::fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    dir
}

pub fn model(family: &str, config: &str, dtype: DType) -> Transformer {
    let dir = folder(family, config);
    prunectl_model::load(dir.path(), &LoadOptions { dtype, ..LoadOptions::default() }).unwrap()
}

pub fn expected(family: &str) -> Tensors {
    candle_core::safetensors::load(root().join(family).join("expected.safetensors"), &Device::Cpu).unwrap()
}

pub fn batch(expected: &Tensors) -> Batch {
    let get = |name: &str| expected.get(name).cloned();
    let labels = get("labels").unwrap();
    Batch {
        input_ids: get("input_ids").unwrap().to_dtype(DType::U32).unwrap(),
        keep: get("attention_mask").map(|t| t.to_dtype(DType::U8).unwrap()),
        token_type_ids: get("token_type_ids").map(|t| t.to_dtype(DType::U32).unwrap()),
        labels: Some(if labels.rank() == 1 { Labels::Classes(labels) } else { Labels::Tokens(labels) }),
    }
}

/// The manifest's tolerance of a quantity.
pub fn tolerance(family: &str, quantity: &str) -> f64 {
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(root().join("manifest.json")).unwrap()).unwrap();
    let families = manifest["families"].as_array().unwrap();
    let row = families.iter().find(|f| f["family"] == family).unwrap();
    row["tolerance"][quantity].as_f64().unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// max |a − b| / max |b|.
pub fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    relative(&flat(found), &flat(expected))
}

pub fn relative(found: &[f64], expected: &[f64]) -> f64 {
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0_f64, |m, x| if x.is_nan() { f64::INFINITY } else { m.max(x) });
    let difference = most(&mut found.iter().zip(expected).map(|(a, b)| (a - b).abs()));
    difference / most(&mut expected.iter().map(|b| b.abs()))
}

/// The same over real tokens of `[.., batch, seq, width]`.
pub fn error_where_real(found: &Tensor, expected: &Tensor, keep: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let keep: Vec<u8> = keep.flatten_all().unwrap().to_vec1().unwrap();
    let width = found.dim(found.rank() - 1).unwrap();
    let pick = |t: &Tensor| -> Vec<f64> {
        flat(t).chunks(width).enumerate().filter(|(i, _)| keep[i % keep.len()] != 0).flat_map(|(_, row)| row.to_vec()).collect()
    };
    relative(&pick(found), &pick(expected))
}

/// Zeroes slices of parameters.
pub fn zero(model: &mut Transformer, slices: &[Slice]) {
    for s in slices {
        let t = model.params().require(&s.slot).unwrap().clone();
        let mut keep = vec![1.0_f64; t.dim(s.dim).unwrap()];
        keep[s.start..s.start + s.len].fill(0.0);
        let mut shape = vec![1; t.rank()];
        shape[s.dim] = keep.len();
        let keep = Tensor::new(keep, &Device::Cpu).unwrap().to_dtype(t.dtype()).unwrap().reshape(shape).unwrap();
        model.params_mut().set(s.slot.clone(), t.broadcast_mul(&keep).unwrap());
    }
}

/// Writes what `to_checkpoint` gives and loads it.
pub fn saved_and_loaded(model: &Transformer) -> Transformer {
    let (config, tensors) = prunectl_model::to_checkpoint(model).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let tensors: HashMap<String, Tensor> = tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    prunectl_model::load(dir.path(), &LoadOptions { dtype: model.dtype(), ..LoadOptions::default() }).unwrap()
}

/// Whether two models have the same parameters, bit for bit.
pub fn same_parameters(a: &Transformer, b: &Transformer) -> bool {
    let names = |m: &Transformer| m.params().iter().map(|(n, _)| n.to_owned()).collect::<Vec<_>>();
    names(a) == names(b)
        && a.params().iter().all(|(n, t)| {
            let other = b.params().require(n).unwrap();
            t.dims() == other.dims() && flat(t).iter().zip(flat(other)).all(|(x, y)| x.to_bits() == y.to_bits())
        })
}

/// Whether two tensors have the same bits.
pub fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    a.dims() == b.dims() && flat(a).iter().zip(flat(b)).all(|(x, y)| x.to_bits() == y.to_bits())
}
