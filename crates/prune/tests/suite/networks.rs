//! The small networks that authors published numbers for, as [`Network`]s: what scores them is what scores transformers.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{D, DType, Device, Tensor, Var};
use prunectl_model::{Batch, Labels, LossOut, Params, Slice};
use prunectl_prune::{Decision, GateGradients, InMemory, Key, Network, PruneError, Removed, Sites, Total};
use prunectl_recipe::catalogue::SiteKind;

use crate::common::Case;

/// Features `[examples, …]` stand where token ids do.
pub fn batch(features: &Tensor, classes: &Tensor) -> Batch {
    Batch { labels: Some(Labels::Classes(classes.clone())), ..Batch::new(features.flatten_from(1).unwrap()) }
}

/// The first `n` batches of a case.
pub fn batches(case: &Case, n: usize) -> InMemory {
    InMemory::new((0..n).map(|i| batch(&case.input("x").get(i).unwrap(), &case.input("y").get(i).unwrap())).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `fc0`, ReLU, `fc1`, ReLU, …: the units of layer l are the outputs of `fc{l}`.
    Perceptron { layers: usize },
    /// 1×1 convolutions: `h0 = relu(c0 x)`, `h1 = relu(c1 h0 + c2 h0)`, `h2 = relu(c3 h1)`, outputs the mean of `c4 h2` over so many
    /// positions. The units of layer l are the channels of h l; those of layers 3 and 4 what c1 and c2 alone read.
    Branches { positions: usize },
}

/// A network in f64.
#[derive(Debug, Clone)]
pub struct Small {
    params: Params,
    form: Form,
}

impl Small {
    fn new(case: &Case, prefix: &str, names: &[String], form: Form) -> Self {
        let mut params = Params::default();
        for name in names {
            for part in ["weight", "bias"] {
                let t = case.input(&format!("{prefix}{name}.{part}")).to_dtype(DType::F64).unwrap();
                let t = if part == "weight" { t.flatten_from(1).unwrap() } else { t };
                params.set(format!("{name}.{part}"), t);
            }
        }
        Self { params, form }
    }

    pub fn perceptron(case: &Case, prefix: &str) -> Self {
        let layers = (0..).take_while(|i| case.has(&format!("{prefix}fc{i}.weight"))).count();
        let names: Vec<String> = (0..layers).map(|i| format!("fc{i}")).collect();
        Self::new(case, prefix, &names, Form::Perceptron { layers })
    }

    pub fn branches(case: &Case, positions: usize) -> Self {
        let names: Vec<String> = (0..5).map(|i| format!("c{i}")).collect();
        Self::new(case, "", &names, Form::Branches { positions })
    }

    /// All matrices, and the units of these layers.
    pub fn sites(&self, layers: &[usize]) -> Sites {
        let mut sites = Sites::default();
        sites.weights.extend(self.params.slots().filter(|s| s.ends_with("weight")).map(str::to_owned));
        for layer in layers {
            let key = Key::of(SiteKind::Neurons, *layer);
            sites.add(key, 0..self.count(key).unwrap());
        }
        sites
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.params.get(&format!("{name}.weight")).unwrap()
    }

    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        x.broadcast_matmul(&self.weight(name).t().unwrap())
            .unwrap()
            .broadcast_add(self.params.get(&format!("{name}.bias")).unwrap())
            .unwrap()
    }

    /// Outputs `[examples, classes]` of features `[examples, …]`; a gate of a layer `[examples, units]`.
    fn run(&self, x: &Tensor, gates: &BTreeMap<usize, Tensor>) -> Tensor {
        let gated = |layer: usize, h: Tensor| match gates.get(&layer) {
            Some(gate) if h.rank() == 3 => h.broadcast_mul(&gate.unsqueeze(1).unwrap()).unwrap(),
            Some(gate) => h.mul(gate).unwrap(),
            None => h,
        };
        match self.form {
            Form::Perceptron { layers } => (0..layers).fold(x.clone(), |h, layer| {
                let h = gated(layer, self.linear(&format!("fc{layer}"), &h));
                if layer + 1 < layers { h.relu().unwrap() } else { h }
            }),
            Form::Branches { positions } => {
                let n = x.dim(0).unwrap();
                let x = x.reshape((n, (), positions)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap(); // [n, positions, channels]
                let h0 = gated(0, self.linear("c0", &x).relu().unwrap());
                let both = self.linear("c1", &gated(3, h0.clone())) + self.linear("c2", &gated(4, h0));
                let h1 = gated(1, both.unwrap().relu().unwrap());
                let h2 = gated(2, self.linear("c3", &h1).relu().unwrap());
                self.linear("c4", &h2).mean(1).unwrap()
            }
        }
    }

    /// The matrix whose rows are the units of a layer, and those whose columns they are.
    fn around(&self, layer: usize) -> (String, Vec<String>) {
        match (self.form, layer) {
            (Form::Perceptron { layers }, l) => (format!("fc{l}"), (l + 1 < layers).then(|| format!("fc{}", l + 1)).into_iter().collect()),
            (_, 0) => ("c0".into(), vec!["c1".into(), "c2".into()]),
            (_, 1) => ("c1".into(), vec!["c3".into()]),
            (_, 2) => ("c3".into(), vec!["c4".into()]),
            (_, 3) => ("c0".into(), vec!["c1".into()]),
            _ => ("c0".into(), vec!["c2".into()]),
        }
    }

    fn features(batch: &Batch) -> Tensor {
        batch.input_ids.to_dtype(DType::F64).unwrap()
    }
}

impl Network for Small {
    fn params(&self) -> &Params {
        &self.params
    }

    fn with(&self, params: Params) -> Box<dyn Network> {
        Box::new(Self { params, form: self.form })
    }

    fn wide(&self) -> Result<Box<dyn Network>, PruneError> {
        Ok(Box::new(self.clone()))
    }

    fn masked(&self, removed: &mut Removed, decision: &Decision) -> Result<Box<dyn Network>, PruneError> {
        assert!(decision.sites.is_empty());
        removed.add(decision, &[], 0)?;
        let mut params = self.params.clone();
        for (slot, keep) in &decision.weights {
            params.set(slot.clone(), self.params.get(slot).unwrap().mul(&keep.to_dtype(DType::F64)?)?);
        }
        Ok(self.with(params))
    }

    fn count(&self, key: Key) -> Result<usize, PruneError> {
        Ok(self.weight(&self.around(key.layer.unwrap()).0).dim(0)?)
    }

    fn group(&self, key: Key, unit: usize) -> Result<Vec<Slice>, PruneError> {
        let (writes, reads) = self.around(key.layer.unwrap());
        let slice = |name: &str, dim| Slice { slot: format!("{name}.weight"), dim, start: unit, len: 1 };
        let mut out = vec![slice(&writes, 0)];
        // c1 and c2 are added: a channel of h1 is a row of both.
        if writes == "c1" {
            out.push(slice("c2", 0));
        }
        out.extend(reads.iter().map(|name| slice(name, 1)));
        Ok(out)
    }

    fn outputs(&self, batch: &Batch) -> Result<Tensor, PruneError> {
        Ok(self.run(&Self::features(batch), &BTreeMap::new()))
    }

    fn loss_of(&self, batch: &Batch, outputs: &Tensor) -> Result<LossOut, PruneError> {
        let Some(Labels::Classes(classes)) = &batch.labels else { panic!("classes") };
        let own = outputs.gather(&classes.to_dtype(DType::U32)?.unsqueeze(1)?, 1)?.squeeze(1)?;
        Ok(LossOut { per_example_sum: (outputs.log_sum_exp(D::Minus1)? - own)?, per_example_count: vec![1; outputs.dim(0)?] })
    }

    fn flow(&self) -> Result<Tensor, PruneError> {
        let ones = Tensor::ones((1, self.weight("fc0").dim(1)?), DType::F64, &Device::Cpu)?;
        Ok(self.run(&ones, &BTreeMap::new()).sum_all()?)
    }

    fn jacobians(&self, batch: &Batch) -> Result<Tensor, PruneError> {
        let x = Var::from_tensor(&Self::features(batch))?;
        let grads = self.run(x.as_tensor(), &BTreeMap::new()).sum_all()?.backward()?;
        Ok(grads.get(x.as_tensor()).unwrap().clone())
    }

    fn gate_gradients(&self, sites: &BTreeSet<Key>, batch: &Batch, by_token: bool, total: Total) -> Result<GateGradients, PruneError> {
        assert!(!by_token);
        let x = Self::features(batch);
        let mut vars = BTreeMap::new();
        for key in sites {
            vars.insert(*key, Var::ones((x.dim(0)?, self.count(*key)?), DType::F64, &Device::Cpu)?);
        }
        let gates = vars.iter().map(|(key, var)| (key.layer.unwrap(), var.as_tensor().clone())).collect();
        let loss = self.loss_of(batch, &self.run(&x, &gates))?;
        let grads = total(&loss)?.backward()?;
        let of = |var: &Var| grads.get(var.as_tensor()).unwrap().clone();
        Ok(GateGradients { loss, sites: vars.iter().map(|(key, var)| (*key, of(var))).collect() })
    }

    fn coupled(&self, _: Key) -> Result<usize, PruneError> {
        Ok(1)
    }

    fn every_token(&self, _: Key) -> bool {
        true
    }

    /// Channels that are written: those of h1 by two convolutions.
    fn activations(&self, key: Key) -> Result<usize, PruneError> {
        Ok(if key.layer == Some(1) { 2 } else { 1 })
    }
}
