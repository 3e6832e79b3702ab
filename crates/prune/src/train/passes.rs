//! The passes of a step, and the updates that follow from them.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor, TensorId, Var};
use prunectl_kernels::autograd;
use prunectl_model::{Batch, Kept, Transformer};

use super::{Term, TrainSpec, Trainer, clip};
use crate::buffers;
use crate::error::{PruneError, Result};
use crate::loss::{LossInput, Shared};
use crate::schedule::Clock;

/// What a step minimises: Σ weight · (Σ sums / Σ counts), so that it does not matter how the step is cut into micro-batches.
struct Objective<'s> {
    seed: u64,
    clock: Clock,
    step: u64,
    /// With what each one's sum is multiplied.
    terms: Vec<(&'s Term, f64)>,
    /// Whether a term has a weight just now.
    weighed: bool,
}

impl<'s> Objective<'s> {
    fn new(spec: &'s TrainSpec, clock: &Clock, model: &Transformer, batches: &[Batch], step: u64) -> Result<Self> {
        let mut objective = Self { seed: spec.seed, clock: *clock, step, terms: Vec::new(), weighed: false };
        for term in spec.loss.iter().filter(|t| !t.term.of_scores()) {
            let mut count = 0.0;
            for (micro, batch) in batches.iter().enumerate() {
                count += term.term.count(model, batch, objective.seed_of(micro))?;
            }
            let weight = clock.value(&term.weight, step);
            objective.weighed |= weight != 0.0;
            objective.terms.push((term, if count > 0.0 { weight / count } else { 0.0 }));
        }
        Ok(objective)
    }

    /// A seed of its own for each micro-batch.
    fn seed_of(&self, micro: usize) -> u64 {
        mix(self.seed, self.step, micro as u64)
    }

    /// The loss of a micro-batch, a scalar in the graph, and its value; None where no term weighs anything.
    fn loss(&self, model: &Transformer, batch: &Batch, micro: usize) -> Result<Option<(Tensor, f64)>> {
        let shared = Shared::of(self.terms.iter().map(|(t, _)| &*t.term), model);
        let alone = self.terms.len() == 1;
        let mut total: Option<Tensor> = None;
        for (term, scale) in self.terms.iter().filter(|(_, s)| *s != 0.0) {
            let input = LossInput::new(model, batch, term.teacher.as_ref(), self.seed_of(micro), alone, &shared);
            let sum = (term.term.sum(&input, &self.clock, self.step)?.to_dtype(DType::F32)? * *scale)?;
            total = Some(match total {
                Some(total) => (total + sum)?,
                None => sum,
            });
        }
        let Some(total) = total else { return Ok(None) };
        let value = f64::from(total.to_scalar::<f32>()?);
        Ok(Some((total, value)))
    }
}

impl Trainer<'_> {
    /// The model of a step's passes and its variables, by slot. [`Self::take_back`] must follow.
    fn lend(&mut self) -> Result<(Transformer, BTreeMap<String, Var>)> {
        let mut model = self.cast.as_ref().unwrap_or(&self.model).clone();
        let mut variables = BTreeMap::new();
        for (slot, own) in &mut self.slots {
            let variable = own.variable(&model)?;
            model.params_mut().set(slot.clone(), variable.as_tensor().clone());
            variables.insert(slot.clone(), variable);
        }
        let kept = if self.spec.recompute { Kept::Input } else { Kept::Activations };
        Ok((model.blockwise(kept), variables))
    }

    fn take_back(&mut self, variables: &BTreeMap<String, Var>) -> Result<()> {
        self.slots.values_mut().zip(variables.values()).try_for_each(|(own, variable)| own.take_back(variable))
    }

    fn diverged(step: u64, loss: f64, lr: f64) -> Result<()> {
        if loss.is_finite() { Ok(()) } else { Err(PruneError::Diverged { step: step + 1, loss, lr }) }
    }

    /// An update with the gradients of all micro-batches together. The loss and the gradient's norm before clipping.
    pub(super) fn update_together(&mut self, batches: &[Batch], step: u64, lr: f64) -> Result<(f64, f64)> {
        let (loss, mut gradients) = self.gradients(batches, step)?;
        let (learned, penalty) = self.learn(&gradients, step)?;
        let felt = self.feel(&gradients, batches)?;
        let loss = loss + penalty;
        Self::diverged(step, loss, lr)?;
        gradients.retain(|slot, _| self.slots.get(slot).is_some_and(|s| s.trains));
        // In f64 in a fixed order.
        let norm = gradients.iter_mut().map(|(slot, g)| self.slots.get(slot).map_or(0.0, |own| own.free(g))).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(PruneError::GradientDiverged { step: step + 1, norm, lr });
        }
        clip(self.spec.clip, norm, gradients.values_mut());
        self.observe(batches, step)?;
        self.update_learned(learned, step)?;
        for (slot, gradient) in &gradients {
            if let Some(own) = self.slots.get_mut(slot) {
                own.update(&*self.spec.optimizer, gradient, step, lr)?;
            }
        }
        self.shrink(&felt, step)?;
        Ok((loss, norm))
    }

    /// The loss of a step and its gradients.
    fn gradients(&mut self, batches: &[Batch], step: u64) -> Result<(f64, BTreeMap<String, Vec<f32>>)> {
        let objective = Objective::new(self.spec, &self.clock, &self.model, batches, step)?;
        let (model, variables) = self.lend()?;
        let found = added_up(&objective, &model, batches, &variables);
        drop(model);
        self.take_back(&variables)?;
        let (loss, gradients) = found?;
        // Where every weight of the loss is 0 just now, nothing moves.
        if gradients.is_empty() && objective.weighed && loss.is_finite() {
            return Err(PruneError::NoData { method: "train", batches: batches.len() });
        }
        Ok((loss, gradients))
    }

    /// The same update where nothing looks at the gradients together: each parameter moves as soon as its gradient is complete, which then
    /// goes, so that the gradients of one block stand in memory and not those of the model.
    pub(super) fn update_on_the_way(&mut self, batch: &Batch, step: u64, lr: f64) -> Result<(f64, f64)> {
        let objective = Objective::new(self.spec, &self.clock, &self.model, std::slice::from_ref(batch), step)?;
        let (model, variables) = self.lend()?;
        let moved = self.moved(&objective, model, batch, &variables, lr);
        self.take_back(&variables)?;
        let (loss, squares) = moved?;
        if squares.is_empty() && objective.weighed {
            return Err(PruneError::NoData { method: "train", batches: 1 });
        }
        Ok((loss, squares.values().sum::<f64>().sqrt()))
    }

    /// The loss, and the sum of squares of each slot's gradient.
    fn moved(
        &mut self,
        objective: &Objective<'_>,
        model: Transformer,
        batch: &Batch,
        variables: &BTreeMap<String, Var>,
        lr: f64,
    ) -> Result<(f64, BTreeMap<String, f64>)> {
        let step = objective.step;
        let mut squares = BTreeMap::new();
        let Some((total, loss)) = objective.loss(&model, batch, 0)? else { return Ok((0.0, squares)) };
        Self::diverged(step, loss, lr)?;
        let names: HashMap<TensorId, &String> = variables.iter().map(|(slot, variable)| (variable.id(), slot)).collect();
        let mut failed = None;
        let mut receive = |variable: &Tensor, gradient: Tensor| -> Result<()> {
            let Some(slot) = names.get(&variable.id()).copied() else { return Ok(()) };
            let (Some(own), Some(variable)) = (self.slots.get_mut(slot), variables.get(slot)) else { return Ok(()) };
            if squares.contains_key(slot) {
                let (what, expected) = (format!("gradient by `{slot}`"), "all of it at once".into());
                return Err(PruneError::State { what, found: "more of it after the update".into(), expected });
            }
            own.take_back(variable)?;
            let mut gradient = buffers::values(gradient)?;
            let sum = own.free(&mut gradient);
            if !sum.is_finite() {
                return Err(PruneError::GradientDiverged { step: step + 1, norm: sum.sqrt(), lr });
            }
            squares.insert(slot.clone(), sum);
            own.update(&*self.spec.optimizer, &gradient, step, lr)
        };
        let left = autograd::backward_with(&total, &mut |variable: &Tensor, gradient: Tensor| {
            receive(variable, gradient).map_err(|error| candle_core::Error::msg(failed.insert(error)))
        });
        // What the graph still holds of the variables must not be read again.
        drop((total, model));
        let mut left = match (left, failed) {
            (_, Some(error)) => return Err(error),
            (left, None) => left?,
        };
        for variable in variables.values() {
            if let Some(gradient) = left.take(variable.as_tensor())? {
                receive(variable.as_tensor(), gradient)?;
            }
        }
        Ok((loss, squares))
    }
}

/// The loss of all micro-batches and their gradients by slot.
fn added_up(
    objective: &Objective<'_>,
    model: &Transformer,
    batches: &[Batch],
    variables: &BTreeMap<String, Var>,
) -> Result<(f64, BTreeMap<String, Vec<f32>>)> {
    let mut loss = 0.0;
    let mut gradients: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (micro, batch) in batches.iter().enumerate() {
        let Some((total, value)) = objective.loss(model, batch, micro)? else { continue };
        loss += value;
        let mut found = autograd::backward(&total)?;
        for (slot, variable) in variables {
            let Some(gradient) = found.take(variable.as_tensor())? else { continue };
            let gradient = buffers::values(gradient)?;
            match gradients.get_mut(slot) {
                Some(sum) => sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += g),
                None => _ = gradients.insert(slot.clone(), gradient),
            }
        }
    }
    Ok((loss, gradients))
}

/// SplitMix64 over a seed and two counters: a seed of its own for each micro-batch.
pub(super) fn mix(seed: u64, step: u64, micro: u64) -> u64 {
    let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(micro.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
