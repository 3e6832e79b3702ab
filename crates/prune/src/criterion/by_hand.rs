//! A matrix small enough to check by hand, in the place of one of a tiny model's, for the tests of several criteria.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use prunectl_model::{LoadOptions, Transformer};

use crate::site::Sites;

/// The matrix.
pub(super) const SLOT: &str = "layers.0.attention.q.weight";

/// The model with that matrix, and a selection of its single weights.
pub(super) fn holding(rows: &[&[f32]]) -> (Transformer, Sites) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods/models/llama-tiny");
    let mut model = prunectl_model::load(&dir, &LoadOptions::default()).unwrap();
    model.params_mut().set(SLOT, tensor(rows));
    (model, Sites { weights: [SLOT.to_owned()].into(), ..Sites::default() })
}

pub(super) fn tensor(rows: &[&[f32]]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

pub(super) fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}
