//! What is small enough to check by hand, for the tests of several criteria: a matrix in the place of one of a tiny model's, and a product of
//! matrices as a network.

use std::collections::BTreeSet;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor, Var};
use prunectl_model::{Batch, Labels, LoadOptions, LossOut, Params, Slice, Transformer};
use prunectl_recipe::catalogue::SiteKind;

use crate::data::InMemory;
use crate::decision::{Decision, Removed};
use crate::error::Result;
use crate::network::{GateGradients, Network, Total};
use crate::site::{Key, Sites};

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

/// Matrices `0`, `1`, … applied one after another to what stands in place of token ids; the loss is the squared error.
pub(super) struct Product(pub Params);

impl Product {
    pub fn of(matrices: &[&[&[f32]]]) -> Self {
        let mut params = Params::default();
        for (i, rows) in matrices.iter().enumerate() {
            params.set(i.to_string(), tensor(rows).to_dtype(DType::F64).unwrap());
        }
        Self(params)
    }

    pub fn weights(&self) -> Sites {
        Sites { weights: self.0.slots().map(str::to_owned).collect(), ..Sites::default() }
    }

    /// A gate multiplies what the first matrix gives.
    fn apply(&self, x: &Tensor, gate: Option<&Tensor>) -> Result<Tensor> {
        self.0.slots().try_fold(x.to_dtype(DType::F64)?, |x, slot| {
            let x = x.matmul(&self.0.require(slot)?.t()?)?;
            Ok(match gate {
                Some(gate) if slot == "0" => x.mul(gate)?,
                _ => x,
            })
        })
    }
}

impl Network for Product {
    fn params(&self) -> &Params {
        &self.0
    }

    fn with(&self, params: Params) -> Box<dyn Network> {
        Box::new(Self(params))
    }

    fn wide(&self) -> Result<Box<dyn Network>> {
        Ok(self.with(self.0.clone()))
    }

    fn outputs(&self, batch: &Batch) -> Result<Tensor> {
        self.apply(&batch.input_ids, None)
    }

    fn loss_of(&self, batch: &Batch, outputs: &Tensor) -> Result<LossOut> {
        let Some(Labels::Values(values)) = &batch.labels else { panic!("values") };
        let error = (outputs.squeeze(1)? - values.to_dtype(DType::F64)?)?;
        Ok(LossOut { per_example_sum: error.sqr()?, per_example_count: vec![1; outputs.dim(0)?] })
    }

    fn flow(&self) -> Result<Tensor> {
        let (_, inputs) = self.0.require("0")?.dims2()?;
        Ok(self.apply(&Tensor::ones((1, inputs), DType::F64, &Device::Cpu)?, None)?.sum_all()?)
    }

    fn masked(&self, _: &mut Removed, _: &Decision) -> Result<Box<dyn Network>> {
        unimplemented!()
    }

    /// Units are the rows of the first matrix.
    fn count(&self, _: Key) -> Result<usize> {
        Ok(self.0.require("0")?.dim(0)?)
    }

    fn group(&self, _: Key, unit: usize) -> Result<Vec<Slice>> {
        Ok([("0", 0), ("1", 1)].map(|(slot, dim)| Slice { slot: slot.into(), dim, start: unit, len: 1 }).into())
    }

    fn jacobians(&self, _: &Batch) -> Result<Tensor> {
        unimplemented!()
    }

    fn gate_gradients(&self, sites: &BTreeSet<Key>, batch: &Batch, _: bool, total: Total) -> Result<GateGradients> {
        let key = *sites.first().unwrap();
        let gate = Var::ones((batch.size()?.0, self.count(key)?), DType::F64, &Device::Cpu)?;
        let loss = self.loss_of(batch, &self.apply(&batch.input_ids, Some(gate.as_tensor()))?)?;
        let grads = total(&loss)?.backward()?;
        Ok(GateGradients { loss, sites: [(key, grads.get(gate.as_tensor()).unwrap().clone())].into() })
    }

    fn coupled(&self, _: Key) -> Result<usize> {
        Ok(1)
    }

    fn every_token(&self, _: Key) -> bool {
        true
    }

    fn activations(&self, _: Key) -> Result<usize> {
        Ok(1)
    }
}

/// `y = 3·h₁ + h₂`, `h = (x₁, 2·x₂)`, with two examples: x = (1, 1) and (1, 0), y = 5 and 3 where 4 and 2 are asked for. Errors of 1, so
/// that gradients by gates are 2·(3·h₁, h₂): (6, 4) and (6, 0). The sites are both units.
pub(super) fn gated() -> (Product, Sites, InMemory) {
    let network = Product::of(&[&[&[1.0, 0.0], &[0.0, 2.0]], &[&[3.0, 1.0]]]);
    let mut sites = Sites::default();
    sites.add(UNITS, 0..2);
    let asked = Labels::Values(Tensor::new(&[4f32, 2.0], &Device::Cpu).unwrap());
    let both = Batch { labels: Some(asked), ..Batch::new(tensor(&[&[1.0, 1.0], &[1.0, 0.0]])) };
    (network, sites, InMemory::new(vec![both]))
}

/// Where [`gated`] has its units.
pub(super) const UNITS: Key = Key { kind: SiteKind::Neurons, layer: Some(0) };
