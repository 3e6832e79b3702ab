//! Low-rank adapters alone, as the peft library lays them out: `adapter_config.json` beside `adapter_model.safetensors`, whose names are
//! those of the model's modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{AdapterPart, Transformer, to_file_tensors};
use serde_json::json;

use super::record::RECORD_FILE;
use super::{PruneRecord, SaveError, folder, weights};
use crate::executor::{from_bytes, to_bytes};

/// The weights of an adapter.
const TENSORS_FILE: &str = "adapter_model.safetensors";
const CONFIG_FILE: &str = "adapter_config.json";
/// What peft puts in front of a module's name.
const PREFIX: &str = "base_model.model.";

fn unfit(reason: String) -> SaveError {
    SaveError::Adapter { reason }
}

/// The module of a stem in the model's files (`model.layers.0.self_attn.q_proj`).
fn module(model: &Transformer, stem: &str) -> Result<String, SaveError> {
    let slot = format!("{stem}.weight");
    let weight = model.params().require(&slot)?.clone();
    let named = to_file_tensors(model, &BTreeMap::from([(slot, weight)]))?;
    let name = named.into_keys().next().unwrap_or_default();
    match name.strip_suffix(".weight") {
        Some(module) => Ok(module.to_owned()),
        None => Err(unfit(format!("`{stem}` is a part of `{name}` in this family's files: fuse the adapter into the model"))),
    }
}

/// Both matrices of each stem, under the names of the files.
fn tensors(model: &Transformer, stems: &BTreeSet<String>) -> Result<BTreeMap<String, Tensor>, SaveError> {
    let mut out = BTreeMap::new();
    for stem in stems {
        let module = module(model, stem)?;
        for (part, name) in [(AdapterPart::Rows, "lora_A"), (AdapterPart::Cols, "lora_B")] {
            let slot = part.slot(stem);
            let tensor = model.params().get(&slot).ok_or_else(|| {
                unfit(format!("`{stem}` carries prototypes, which the peft layout does not know: fuse the adapter into the model"))
            })?;
            let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            out.insert(format!("{PREFIX}{module}.{name}.weight"), tensor);
        }
    }
    Ok(out)
}

/// Writes the folder; the bytes of its weights.
///
/// # Errors
/// An adapter that is no product of two matrices, or whose matrices differ in rank or scale; a folder that belongs to somebody else.
pub fn write_adapter(model: &Transformer, stems: &BTreeSet<String>, target: &Path, record: &PruneRecord) -> Result<u64, SaveError> {
    folder::check_target(target, &record.run.recipe.name)?;
    let tensors = tensors(model, stems)?;
    let mut shapes = BTreeSet::new();
    for stem in stems {
        let rank = model.params().require(&AdapterPart::Cols.slot(stem))?.dim(1)?;
        let scale = match model.params().get(&AdapterPart::Scale.slot(stem)) {
            Some(scale) => scale.to_dtype(DType::F64)?.to_scalar::<f64>()?,
            None => 1.0,
        };
        shapes.insert((rank, (scale * rank as f64 * 1e6).round() as i64));
    }
    let mut shapes = shapes.into_iter();
    let (Some((rank, alpha)), None) = (shapes.next(), shapes.next()) else {
        return Err(unfit("its matrices differ in rank or scale: save adapters of different ranks one by one".into()));
    };
    let modules = stems.iter().map(|stem| module(model, stem)).collect::<Result<Vec<_>, _>>()?;
    let config = json!({
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha as f64 / 1e6,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "target_modules": modules,
        "base_model_name_or_path": serde_json::Value::Null,
        "task_type": serde_json::Value::Null,
    });
    let mut draft = folder::Draft::beside(target)?;
    draft.write_bytes(CONFIG_FILE, &weights::pretty(&config))?;
    let bytes = to_bytes(&tensors).map_err(|e| unfit(e.to_string()))?;
    let length = draft.write_bytes(TENSORS_FILE, &bytes)?;
    let json = serde_json::to_value(record).map_err(|e| SaveError::BadRecord { path: target.into(), reason: e.to_string() })?;
    draft.write_bytes(RECORD_FILE, &weights::pretty(&json))?;
    draft.publish()?;
    Ok(length)
}

/// Gives the adapters of these stems the values of a folder that [`write_adapter`] or peft wrote.
///
/// # Errors
/// Files that are not there or not understood; a module without values; another rank or width.
pub fn read_adapter(model: &mut Transformer, stems: &BTreeSet<String>, folder: &Path) -> Result<(), SaveError> {
    let path = folder.join(CONFIG_FILE);
    let text = std::fs::read(&path).map_err(|e| SaveError::io("read", &path, e))?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(|e| unfit(format!("{}: {e}", path.display())))?;
    let number = |name: &str| config.get(name).and_then(serde_json::Value::as_f64).filter(|x| *x > 0.0);
    let (Some(rank), Some(alpha)) = (number("r"), number("lora_alpha")) else {
        return Err(unfit(format!("{} has no `r` and `lora_alpha`", path.display())));
    };
    let path = folder.join(TENSORS_FILE);
    let bytes = std::fs::read(&path).map_err(|e| SaveError::io("read", &path, e))?;
    let found = from_bytes(&bytes, &path).map_err(|e| unfit(e.to_string()))?;
    for (name, tensor) in tensors(model, stems)? {
        let there = found.get(&name).ok_or_else(|| unfit(format!("{} has no `{name}`", path.display())))?;
        if there.dims() != tensor.dims() {
            let (a, b) = (there.dims(), tensor.dims());
            return Err(unfit(format!(
                "`{name}` is {a:?} in {}, expected {b:?}: give the rank and the model that it was made with",
                path.display()
            )));
        }
    }
    for stem in stems {
        let module = module(model, stem)?;
        for (part, name) in [(AdapterPart::Rows, "lora_A"), (AdapterPart::Cols, "lora_B")] {
            if let Some(tensor) = found.get(&format!("{PREFIX}{module}.{name}.weight")) {
                let tensor = tensor.to_device(model.device())?.to_dtype(model.dtype())?;
                model.params_mut().set(part.slot(stem), tensor);
            }
        }
        let scale = Tensor::new(alpha / rank, model.device())?.to_dtype(model.dtype())?;
        model.params_mut().set(AdapterPart::Scale.slot(stem), scale);
    }
    Ok(())
}
