//! Gradients of the loss by weights over all the data: what Taylor, OBD, loss models, SNIP and GraSP have in common.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor, Var};
use prunectl_kernels::autograd;
use prunectl_model::{Batch, Labels, Params};

use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::network::Network;

/// The diagonal that is wanted beside the gradient; each takes every example's gradient on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curvature {
    /// None.
    None,
    /// Mean over examples of the squared gradient of the example's mean loss.
    Fisher,
    /// Mean over examples of `Σ_c p_c (∂ log p_c / ∂w)²`, p the model's own probabilities: the generalised Gauss-Newton of a classifier.
    Ggn,
}

impl Curvature {
    /// The word of a recipe.
    pub fn of(word: &str) -> Self {
        if word == "ggn" { Self::Ggn } else { Self::Fisher }
    }
}

/// By slot; weights that the loss does not depend on are not there.
#[derive(Default)]
pub(super) struct Gradients {
    /// Of the mean loss over all scored tokens.
    pub mean: BTreeMap<String, Tensor>,
    /// The diagonal.
    pub squares: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// `g·w`, zero where the loss does not depend on the weight.
    pub fn times_weight(&self, params: &Params, slot: &str) -> Result<Tensor> {
        product(&self.mean, params.require(slot)?, slot)
    }

    /// `½·h·w²`.
    pub fn half_curvature(&self, params: &Params, slot: &str) -> Result<Tensor> {
        Ok((product(&self.squares, &params.require(slot)?.sqr()?, slot)? * 0.5)?)
    }
}

fn product(by_slot: &BTreeMap<String, Tensor>, w: &Tensor, slot: &str) -> Result<Tensor> {
    Ok(match by_slot.get(slot) {
        Some(g) => g.mul(w)?,
        None => w.zeros_like()?,
    })
}

/// The same parameters, those of `slots` as variables.
pub(super) fn variables(params: &Params, slots: &BTreeSet<String>) -> Result<(Params, Vec<(String, Var)>)> {
    let mut params = params.clone();
    let mut vars = Vec::with_capacity(slots.len());
    for slot in slots {
        let var = Var::from_tensor(params.require(slot)?)?;
        params.set(slot.clone(), var.as_tensor().clone());
        vars.push((slot.clone(), var));
    }
    Ok((params, vars))
}

fn add(sums: &mut BTreeMap<String, Tensor>, slot: &str, t: Tensor) -> Result<()> {
    let t = match sums.get(slot) {
        Some(sum) => (sum + t)?,
        None => t,
    };
    sums.insert(slot.to_owned(), t.detach());
    Ok(())
}

/// Gradients by the parameters `slots`.
pub(super) fn gradients(
    method: &'static str,
    curvature: Curvature,
    network: &dyn Network,
    slots: &BTreeSet<String>,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Gradients> {
    let (params, vars) = variables(network.params(), slots)?;
    let network = network.with(params);
    let mut sums = Sums { out: Gradients::default(), tokens: 0, examples: 0 };
    let mut done = 0;
    data.reset()?;
    while let Some(batch) = data.next()? {
        progress.check()?;
        if curvature == Curvature::None {
            sums.whole(&*network, &vars, &batch)?;
        } else {
            for row in 0..batch.size()?.0 {
                sums.example(method, curvature, &*network, &vars, &batch.rows(&[row as u32])?)?;
            }
        }
        done += 1;
        progress.advance(done, data.len_hint().map_or(done, |n| n as u64), method);
    }
    if sums.tokens == 0 {
        return Err(PruneError::NoData { method, batches: done as usize });
    }
    for t in sums.out.mean.values_mut() {
        *t = (&*t / sums.tokens as f64)?;
    }
    for t in sums.out.squares.values_mut() {
        *t = (&*t / sums.examples as f64)?;
    }
    Ok(sums.out)
}

/// ‖g‖₂ of each of the parameters `slots` that the loss depends on, g the gradient of the mean loss over all the data.
pub(crate) fn norms(
    method: &'static str,
    network: &dyn Network,
    slots: &BTreeSet<String>,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    let found = gradients(method, Curvature::None, network, slots, data, progress)?;
    found.mean.values().map(|g| Ok(g.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())).collect()
}

struct Sums {
    out: Gradients,
    /// Scored tokens, or examples of a classifier.
    tokens: usize,
    examples: usize,
}

impl Sums {
    fn whole(&mut self, network: &dyn Network, vars: &[(String, Var)], batch: &Batch) -> Result<()> {
        let loss = network.loss(batch)?;
        if loss.count() == 0 {
            return Ok(());
        }
        self.tokens += loss.count();
        let mut grads = autograd::backward(&loss.sum()?)?;
        for (slot, var) in vars {
            if let Some(g) = grads.take(var.as_tensor())? {
                add(&mut self.out.mean, slot, g)?;
            }
        }
        Ok(())
    }

    fn example(
        &mut self,
        method: &'static str,
        curvature: Curvature,
        network: &dyn Network,
        vars: &[(String, Var)],
        one: &Batch,
    ) -> Result<()> {
        let loss = network.loss(one)?;
        let n = loss.count();
        if n == 0 {
            return Ok(());
        }
        self.tokens += n;
        self.examples += 1;
        let mut grads = autograd::backward(&loss.sum()?)?;
        for (slot, var) in vars {
            if let Some(g) = grads.take(var.as_tensor())? {
                add(&mut self.out.mean, slot, g.clone())?;
                if curvature == Curvature::Fisher {
                    add(&mut self.out.squares, slot, (&g / n as f64)?.sqr()?)?;
                }
            }
        }
        if curvature == Curvature::Ggn { self.own_probabilities(method, network, vars, one) } else { Ok(()) }
    }

    /// One backward pass a class.
    fn own_probabilities(&mut self, method: &'static str, network: &dyn Network, vars: &[(String, Var)], one: &Batch) -> Result<()> {
        if !matches!(one.labels, Some(Labels::Classes(_))) {
            return Err(PruneError::Missing {
                method,
                needs: "a classifier and its classes for `hessian = ggn`; use empirical_fisher".into(),
            });
        }
        let classes = network.outputs(one)?.dims().last().copied().unwrap_or_default();
        for class in 0..classes {
            let mut asked = one.clone();
            asked.labels = Some(Labels::Classes(Tensor::new(&[class as i64], one.input_ids.device())?));
            let loss = network.loss(&asked)?.sum()?;
            let p = (-loss.to_dtype(DType::F64)?.to_scalar::<f64>()?).exp();
            let mut grads = autograd::backward(&loss)?;
            for (slot, var) in vars {
                if let Some(g) = grads.take(var.as_tensor())? {
                    add(&mut self.out.squares, slot, (g.sqr()? * p)?)?;
                }
            }
        }
        Ok(())
    }
}
