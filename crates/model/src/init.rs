//! Random weights, as transformers initialises: matrices and embeddings normal with the config's `initializer_range`, biases 0, norms 1
//! (0 where the factor is 1 + w). The same seed gives the same weights: each slot has a stream of its own.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::blueprint::{Blueprint, NormKind, Slot, SlotKind};
use crate::checkpoint::LoadOptions;
use crate::dims::LayerDims;
use crate::error::{ModelError, Result};
use crate::params::Params;

/// transformers' default.
const DEFAULT_STD: f64 = 0.02;

/// Parameters for every slot.
pub(crate) fn parameters(blueprint: &Blueprint, dims: &[LayerDims], config: &Value, seed: u64, options: &LoadOptions) -> Result<Params> {
    let mut params = Params::default();
    for (stream, slot) in blueprint.slots(dims).into_iter().enumerate() {
        let tensor = values(blueprint, &slot, config, seed, stream as u64, options)?;
        params.set(slot.name, tensor);
    }
    Ok(params)
}

/// One slot's parameters: those that [`parameters`] would give it.
pub(crate) fn slot(
    blueprint: &Blueprint,
    dims: &[LayerDims],
    config: &Value,
    name: &str,
    seed: u64,
    options: &LoadOptions,
) -> Result<Tensor> {
    let found = blueprint.slots(dims).into_iter().enumerate().find(|(_, s)| s.name == name);
    let (stream, slot) = found.ok_or_else(|| ModelError::MissingSlot { slot: name.to_owned() })?;
    values(blueprint, &slot, config, seed, stream as u64, options)
}

fn values(blueprint: &Blueprint, slot: &Slot, config: &Value, seed: u64, stream: u64, options: &LoadOptions) -> Result<Tensor> {
    let std = ["initializer_range", "init_std"].iter().find_map(|k| config.get(*k).and_then(Value::as_f64)).unwrap_or(DEFAULT_STD);
    let n = slot.shape.iter().product();
    let values = match slot.kind {
        SlotKind::Embedding | SlotKind::Matrix => normal(seed, stream, n, std),
        SlotKind::NormWeight if blueprint.norm.kind == NormKind::RmsOffsetOne => vec![0.0; n],
        SlotKind::NormWeight => vec![1.0; n],
        SlotKind::Bias | SlotKind::NormBias => vec![0.0; n],
    };
    Ok(Tensor::from_vec(values, slot.shape.as_slice(), &Device::Cpu)?.to_dtype(options.dtype)?.to_device(&options.device)?)
}

/// Normal numbers by Box and Muller (1958), in f64, narrowed.
fn normal(seed: u64, stream: u64, n: usize, std: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        // In (0, 1]: the logarithm of 0 is not a number.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
        let (sin, cos) = (2.0 * std::f64::consts::PI * rng.random::<f64>()).sin_cos();
        values.push((radius * cos) as f32);
        values.push((radius * sin) as f32);
    }
    values.truncate(n);
    values
}
