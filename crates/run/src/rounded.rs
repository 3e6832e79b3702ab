//! A model with its weights quantised until its file is no larger than another's: what a pruned model of that size has to beat.
//!
//! Matrices take GGUF's block types, with the fall-backs of `export`: a row that is no whole number of blocks takes q8_0 or f16; norms,
//! biases, positions and routers stay f32. The weights are then those values in f32, so the model computes what such a file computes with
//! exact activations; neither its speed nor its memory is that of a program for quantised weights.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use prunectl_model::{Params, Transformer};

use crate::commands::export::unpruned;
use crate::error::Result;
use crate::gguf::Quantization;
use crate::models::{Loaded, Place};
use crate::save::{self, Assets, CardFacts, Layout, SHARD_BYTES, SaveRequest};

/// Parts of slots' names that stay f32 whatever their rank.
const FINE: [&str; 3] = ["embeddings.position", "embeddings.token_type", "router"];

/// The type of one parameter.
fn type_of(slot: &str, tensor: &Tensor, asked: GgmlDType) -> GgmlDType {
    if tensor.rank() < 2 || FINE.iter().any(|part| slot.contains(part)) {
        return GgmlDType::F32;
    }
    let row = tensor.dims().last().copied().unwrap_or(1);
    [asked, GgmlDType::Q8_0].into_iter().find(|t| row.is_multiple_of(t.block_size())).unwrap_or(GgmlDType::F16)
}

/// Bytes of the parameters in that type.
fn bytes_as(model: &Transformer, asked: GgmlDType) -> u64 {
    let bytes = |slot: &str, t: &Tensor| {
        let kind = type_of(slot, t, asked);
        (t.elem_count() / kind.block_size() * kind.type_size()) as u64
    };
    model.params().iter().map(|(slot, t)| bytes(slot, t)).sum()
}

/// The finest type in which the parameters take at most `limit` bytes: its word, the type, the bytes. None if even the coarsest takes more.
pub fn finest_within(model: &Transformer, limit: u64) -> Option<(&'static str, GgmlDType, u64)> {
    let fits = Quantization::all().map(|(word, kind)| (word, kind, bytes_as(model, kind))).filter(|(.., bytes)| *bytes <= limit);
    // The first of equals: where all rows fall back to q8_0, that is what the model is called.
    fits.reduce(|best, other| if other.2 > best.2 { other } else { best })
}

/// The same network with its parameters rounded to that type.
pub fn rounded(model: &Transformer, asked: GgmlDType) -> Result<Transformer> {
    let mut params = Params::default();
    for (slot, tensor) in model.params().iter() {
        let wide = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let kind = type_of(slot, &wide, asked);
        let back = if kind == GgmlDType::F32 || wide.elem_count() == 0 {
            wide
        } else {
            QTensor::quantize(&wide, kind)?.dequantize(&Device::Cpu)?
        };
        params.set(slot, back.to_dtype(model.dtype())?.to_device(model.device())?);
    }
    Ok(model.with_shape(model.dims().to_vec(), params)?)
}

/// Writes the rounded model as a folder in f32, with the tokenizer of the original.
pub fn save(loaded: &Loaded, asked: GgmlDType, target: &Path) -> Result<()> {
    let model = rounded(&loaded.model, asked)?;
    let record = unpruned(Path::new("the same model, dense"), &model);
    let assets = match &loaded.files {
        Place::Folder(dir) => Assets::Folder(dir),
        Place::Builtin(files) => Assets::Bytes(files),
        Place::Config(_) => Assets::None,
    };
    let request = SaveRequest {
        target,
        layout: Layout::Compact,
        dtype: Some(DType::F32),
        assets,
        record: &record,
        card: &CardFacts::default(),
        shard_bytes: SHARD_BYTES,
    };
    save::write(&model, &request)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::load;
    use prunectl_recipe::plan::ModelSource;

    #[test]
    fn the_finest_type_that_fits_and_its_rounding() {
        let source = "edition 2026\nmodel m = builtin(\"tiny-llama\")\n";
        let recipe = crate::recipes::RecipeFile { shown: "t".into(), name: "t".into(), base: ".".into(), text: source.into() };
        let hub = crate::hub::Door::cache_only();
        let plan = crate::compile::compile(&recipe, &[], hub.clone()).unwrap().result.unwrap();
        assert!(matches!(plan.models[0].source, ModelSource::Builtin(_)));
        let model = load(&plan.models[0], &Device::Cpu, None, &hub, None).unwrap().model;
        let whole = 4 * model.parameter_count();
        // A limit of all bytes leaves f32 itself, one byte less does not.
        assert_eq!(finest_within(&model, whole).unwrap().0, "f32");
        let (word, kind, bytes) = finest_within(&model, whole - 1).unwrap();
        assert_eq!(word, "f16");
        assert!(bytes > whole / 2 && bytes < whole * 51 / 100, "{bytes} of {whole}: vectors stay f32");
        assert!(finest_within(&model, whole / 20).is_none());
        let near = rounded(&model, kind).unwrap();
        let far = rounded(&model, finest_within(&model, whole / 3).unwrap().1).unwrap();
        let distance = |other: &Transformer| -> f32 {
            let mut most = 0f32;
            for (slot, t) in model.params().iter() {
                let d = (t - other.params().require(slot).unwrap()).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
                most = most.max(d.to_scalar::<f32>().unwrap());
            }
            most
        };
        // The files of the built-in model hold f16.
        assert!(distance(&near) == 0.0 && distance(&far) > 0.0 && distance(&far) < 0.1);
    }
}
