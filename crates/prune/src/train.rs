//! The one training loop: recovery, gradual pruning, learned masks and adapters all run on it.

mod inner;
mod passes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use prunectl_model::Transformer;
use prunectl_recipe::plan::{Schedule, When};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::buffers;
use crate::data::Examples;
use crate::decision::Removed;
use crate::error::{PruneError, Result};
use crate::loss::LossTerm;
use crate::optimizer::{Memory, Optimizer, Update};
use crate::schedule::Clock;
use crate::surgery;

pub use inner::{InnerPrune, Measure};

/// A loss term with its weight and, where it needs one, its teacher.
pub struct Term {
    /// Its weight over time.
    pub weight: Schedule,
    /// The term.
    pub term: Box<dyn LossTerm>,
    /// The model that it imitates.
    pub teacher: Option<Transformer>,
}

/// How to train.
pub struct TrainSpec {
    /// How long.
    pub length: When,
    /// Examples of one forward pass.
    pub batch: usize,
    /// Forward passes of one optimiser step.
    pub accumulate: usize,
    /// The gradient's norm is cut down to it.
    pub clip: Option<f64>,
    /// The update rule.
    pub optimizer: Box<dyn Optimizer>,
    /// What is minimised.
    pub loss: Vec<Term>,
    /// Slots that train; None: all.
    pub only: Option<BTreeSet<String>>,
    /// Seed of the data order and of everything random inside a step.
    pub seed: u64,
    /// Type of the forward and the backward pass; None: the model's. Weights, the optimiser and whatever looks at the model between steps
    /// keep theirs.
    pub dtype: Option<DType>,
    /// Of each block only its input is kept for the backward pass.
    pub recompute: bool,
    /// `prune … inside`, in order.
    pub prunes: Vec<InnerPrune>,
}

/// One optimiser step, for curves and progress.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// Its number, from 1.
    pub step: u64,
    /// Steps of the whole training.
    pub steps: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// The weighted loss before the update.
    pub loss: f64,
    /// The learning rate of the update.
    pub lr: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// Real tokens of the step.
    pub tokens: u64,
    /// Tokens a second, of this step.
    pub tokens_per_second: f64,
    /// Share of the selected units that are masked; None without a `prune` inside.
    pub sparsity: Option<f64>,
}

/// What an observer wants after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End the training here; what was learned stays.
    Stop,
}

/// Sees every step: evaluation inside, checkpoints, curves, `stop` and `keep` live here.
pub trait Observer {
    /// After the update of a step. `trainer.model()` is the model now, `trainer.state()` what a resume needs, `trainer.mask()` prunes.
    fn step(&mut self, trainer: &mut Trainer<'_>, event: &StepEvent) -> Result<Flow>;
}

/// Sees nothing.
impl Observer for () {
    fn step(&mut self, _: &mut Trainer<'_>, _: &StepEvent) -> Result<Flow> {
        Ok(Flow::Continue)
    }
}

/// Where a training stands: with it and the same `TrainSpec`, data and model shape, a training goes on to the same bits.
#[derive(Debug, Clone)]
pub struct TrainState {
    /// Trained parameters (`weights/{slot}`) and the optimiser's buffers (`{buffer}/{slot}`), f32.
    pub tensors: BTreeMap<String, Tensor>,
    /// The rest, for JSON.
    pub meta: TrainMeta,
}

/// A tensor of a training's state, its values where they stand: a copy of all of them would be as large as they are together.
#[derive(Debug)]
pub enum Stored<'a> {
    /// Of a parameter or a buffer of the optimiser.
    Values {
        /// The parameter's shape.
        shape: &'a [usize],
        /// Row by row.
        values: &'a [f32],
    },
    /// Of a `prune` inside.
    Tensor(Tensor),
}

/// The part of a training's state that is not tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainMeta {
    /// Steps done.
    pub step: u64,
    /// Steps of the whole training.
    pub steps: u64,
    /// Seed of the data order.
    pub seed: u64,
    /// Examples in the data.
    pub examples: usize,
}

/// One trained parameter and all that belongs to it.
struct Slot {
    shape: Vec<usize>,
    weights: Vec<f32>,
    memory: Memory,
    /// Whether it is a matrix or a table.
    matrix: bool,
    /// 0 where the weight is masked: it stays zero, or what `held` says, and its gradient does not count.
    keep: Option<Vec<u8>>,
    /// What masked weights stand at; None: zero.
    held: Option<Vec<f32>>,
    /// What the forward pass multiplies it by: 0 where a learner hides it. There the weight keeps its value, without a gradient.
    factor: Option<Vec<f32>>,
    /// Whether it trains; otherwise only its gradient is wanted.
    trains: bool,
}

impl Slot {
    fn mask(&mut self, keep: Option<&Tensor>, held: Option<&Tensor>) -> Result<()> {
        self.keep = keep.map(|k| k.flatten_all()?.to_vec1::<u8>()).transpose()?;
        self.held = held.map(|h| h.flatten_all()?.to_vec1::<f32>()).transpose()?;
        self.hold();
        Ok(())
    }

    fn hold(&mut self) {
        match &self.held {
            None => zero_masked(&mut self.weights, self.keep.as_deref()),
            Some(held) => {
                let places = self.weights.iter_mut().zip(held).zip(self.keep.iter().flatten());
                places.filter(|(_, k)| **k == 0).for_each(|((w, held), _)| *w = *held);
            }
        }
    }

    /// A variable for the passes of a step. It has the weights themselves where it can; [`Self::take_back`] returns them.
    fn variable(&mut self, model: &Transformer) -> Result<Var> {
        if self.factor.is_none() && model.device().is_cpu() && model.dtype() == DType::F32 {
            return Ok(Var::from_vec(std::mem::take(&mut self.weights), self.shape.as_slice(), &Device::Cpu)?);
        }
        Ok(buffers::variable(&self.seen(), &self.shape, model)?)
    }

    /// The weights come back from a variable that nobody reads any more.
    fn take_back(&mut self, variable: &Var) -> Result<()> {
        if self.weights.is_empty() {
            self.weights = buffers::values(variable.as_tensor().clone())?;
        }
        Ok(())
    }

    /// Takes masked and hidden weights out of the gradient; the sum of its squares.
    fn free(&self, gradient: &mut [f32]) -> f64 {
        zero_masked(gradient, self.keep.as_deref());
        gradient.iter_mut().zip(self.factor.iter().flatten()).for_each(|(g, f)| *g *= f);
        buffers::square_sum(gradient)
    }

    fn update(&mut self, optimizer: &dyn Optimizer, gradient: &[f32], step: u64, lr: f64) -> Result<()> {
        let before = self.factor.is_some().then(|| self.weights.clone());
        let (weights, memory) = (&mut self.weights, &mut self.memory);
        optimizer.update(Update { weights, gradient, memory, step: step + 1, lr, matrix: self.matrix, decays: true })?;
        // What is hidden waits as it is: neither momentum nor decay moves it.
        for ((w, f), old) in self.weights.iter_mut().zip(self.factor.iter().flatten()).zip(before.iter().flatten()) {
            if *f == 0.0 {
                *w = *old;
            }
        }
        self.hold();
        Ok(())
    }

    /// The weights as the forward pass uses them.
    fn seen(&self) -> std::borrow::Cow<'_, [f32]> {
        match &self.factor {
            None => (&self.weights).into(),
            Some(factor) => self.weights.iter().zip(factor).map(|(w, f)| w * f).collect(),
        }
    }
}

/// Cuts a group of gradients of that norm down to `limit`.
fn clip<'g>(limit: Option<f64>, norm: f64, gradients: impl Iterator<Item = &'g mut Vec<f32>>) {
    if let Some(limit) = limit.filter(|c| norm > *c) {
        let scale = (limit / (norm + CLIP_EPS)) as f32;
        gradients.flatten().for_each(|g| *g *= scale);
    }
}

fn zero_masked(values: &mut [f32], keep: Option<&[u8]>) {
    for (value, _) in values.iter_mut().zip(keep.unwrap_or_default()).filter(|(_, k)| **k == 0) {
        *value = 0.0;
    }
}

/// A training in progress.
pub struct Trainer<'a> {
    spec: &'a TrainSpec,
    /// Holds what does not train; trained slots are replaced in every step.
    model: Transformer,
    /// The same in the type of the passes, where it is another.
    cast: Option<Transformer>,
    slots: BTreeMap<String, Slot>,
    clock: Clock,
    step: u64,
    examples: usize,
    steps_per_epoch: u64,
    /// The order of one epoch.
    order: (u64, Vec<usize>),
    /// What is masked for good.
    removed: Removed,
    inner: Vec<inner::Inner<'a>>,
    finished: bool,
}

/// Where a state's tensor holds the parameter itself.
const WEIGHTS: &str = "weights";

impl<'a> Trainer<'a> {
    /// A training from its first step. What `removed` masks stays zero.
    pub fn new(model: &Transformer, removed: &Removed, spec: &'a TrainSpec, data: &dyn Examples) -> Result<Self> {
        let examples = data.len();
        let per_step = spec.batch.max(1) * spec.accumulate.max(1);
        if examples == 0 {
            return Err(PruneError::NoData { method: "train", batches: 0 });
        }
        let steps_per_epoch = examples.div_ceil(per_step) as u64;
        let tokens_per_step = data.tokens_hint().map_or(0.0, |n| n as f64 / steps_per_epoch as f64);
        let clock = Clock { steps: 1, steps_per_epoch: steps_per_epoch as f64, tokens_per_step };
        if matches!(spec.length, When::Tokens(_)) && tokens_per_step == 0.0 {
            return Err(PruneError::Missing { method: "train", needs: "data of known size, to train for a number of tokens".into() });
        }
        let steps = match spec.length {
            When::Share(_) => {
                return Err(PruneError::Invalid {
                    what: "length of a training",
                    found: "a share".into(),
                    expected: "steps, epochs or tokens".into(),
                });
            }
            length => (clock.at(length) - 1e-9).ceil().max(1.0) as u64,
        };
        let inner = spec.prunes.iter().map(|p| inner::Inner::new(model, p)).collect::<Result<Vec<_>>>()?;
        let wanted: BTreeSet<&String> = inner.iter().flat_map(inner::Inner::slots).collect();
        if wanted.is_empty() && spec.loss.iter().any(|t| t.term.of_scores()) {
            let needs = "a `prune` inside this `train` that learns its scores, such as `movement()`".into();
            return Err(PruneError::Missing { method: "l1", needs });
        }
        let mut slots = BTreeMap::new();
        for (slot, t) in model.params().iter() {
            let trains = spec.only.as_ref().is_none_or(|only| only.contains(slot));
            if !trains && !wanted.contains(&slot.to_owned()) {
                continue;
            }
            let weights = t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let (shape, matrix) = (t.dims().to_vec(), t.rank() > 1);
            slots.insert(
                slot.to_owned(),
                Slot { shape, weights, memory: Memory::new(), matrix, keep: None, held: None, factor: None, trains },
            );
        }
        if slots.is_empty() {
            return Err(PruneError::NothingToTrain);
        }
        let clock = Clock { steps, ..clock };
        let (model, removed, order) = (model.clone(), removed.clone(), (u64::MAX, Vec::new()));
        let (cast, step, finished) = (None, 0, false);
        let mut trainer = Self { spec, model, cast, slots, clock, step, examples, steps_per_epoch, order, removed, inner, finished };
        trainer.hold()?;
        Ok(trainer)
    }

    /// A training that goes on from a saved state.
    pub fn resume(model: &Transformer, removed: &Removed, spec: &'a TrainSpec, data: &dyn Examples, state: &TrainState) -> Result<Self> {
        let mut trainer = Self::new(model, removed, spec, data)?;
        let here = TrainMeta { step: state.meta.step, ..trainer.meta() };
        if here != state.meta {
            let (found, expected) = (format!("{:?}", state.meta), format!("{here:?}"));
            return Err(PruneError::State { what: "training".into(), found, expected });
        }
        trainer.step = state.meta.step;
        let wrong = |what: &str, found: String, expected: String| PruneError::State { what: format!("tensor `{what}`"), found, expected };
        let buffers = spec.optimizer.buffers();
        for (slot, own) in trainer.slots.iter_mut().filter(|(_, s)| s.trains) {
            for part in std::iter::once(&WEIGHTS).chain(buffers) {
                let name = format!("{part}/{slot}");
                let Some(t) = state.tensors.get(&name) else {
                    // A parameter that never had a gradient has no buffers.
                    if *part == WEIGHTS {
                        return Err(wrong(&name, "nothing".into(), format!("{:?}", own.shape)));
                    }
                    continue;
                };
                if t.dims() != own.shape {
                    return Err(wrong(&name, format!("{:?}", t.dims()), format!("{:?}", own.shape)));
                }
                let values = t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                if *part == WEIGHTS {
                    own.weights = values;
                } else {
                    own.memory.insert(part, values);
                }
            }
        }
        trainer.load_inner(state)?;
        Ok(trainer)
    }

    /// Masks more (or other) units and weights from here on.
    pub fn mask(&mut self, removed: &Removed) -> Result<()> {
        self.removed = removed.clone();
        self.hold()
    }

    fn hold(&mut self) -> Result<()> {
        let other = self.spec.dtype.filter(|dtype| *dtype != self.model.dtype());
        self.cast = other.map(|dtype| self.model.to_dtype(dtype)).transpose()?;
        let mut keeps = surgery::keeps(&self.model, &self.removed)?;
        let mut held = surgery::held(&self.model, &self.removed)?;
        for (slot, own) in &mut self.slots {
            own.mask(keeps.remove(slot).as_ref(), held.remove(slot).as_ref())?;
        }
        Ok(())
    }

    /// The clock that schedules run on.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The model as it is now; its parameters are no variables.
    pub fn model(&self) -> Result<Transformer> {
        let mut model = self.model.clone();
        for (slot, own) in &self.slots {
            model.params_mut().set(slot.clone(), self.tensor(own)?);
        }
        Ok(model)
    }

    fn tensor(&self, slot: &Slot) -> Result<Tensor> {
        let t = Tensor::from_slice(&slot.seen(), slot.shape.as_slice(), self.model.device())?;
        Ok(t.to_dtype(self.model.dtype())?)
    }

    /// The rest of [`Self::state`].
    pub fn meta(&self) -> TrainMeta {
        TrainMeta { step: self.step, steps: self.clock.steps, seed: self.spec.seed, examples: self.examples }
    }

    /// What a resume needs.
    pub fn state(&self) -> Result<TrainState> {
        let copy = |stored: Stored<'_>| match stored {
            Stored::Values { shape, values } => Tensor::from_slice(values, shape, &Device::Cpu),
            Stored::Tensor(tensor) => Ok(tensor),
        };
        let tensors = self.stored()?.into_iter().map(|(name, stored)| Ok((name, copy(stored)?))).collect::<Result<_>>()?;
        Ok(TrainState { tensors, meta: self.meta() })
    }

    /// The tensors of [`Self::state`], without a copy.
    pub fn stored(&self) -> Result<BTreeMap<String, Stored<'_>>> {
        let mut inner = BTreeMap::new();
        self.save_inner(&mut inner)?;
        let mut out: BTreeMap<String, Stored<'_>> = inner.into_iter().map(|(name, t)| (name, Stored::Tensor(t))).collect();
        for (slot, own) in self.slots.iter().filter(|(_, s)| s.trains) {
            out.insert(format!("{WEIGHTS}/{slot}"), Stored::Values { shape: &own.shape, values: &own.weights });
            for (name, values) in &own.memory {
                out.insert(format!("{name}/{slot}"), Stored::Values { shape: &own.shape, values });
            }
        }
        Ok(out)
    }

    /// Numbers that train, and those of the whole model; what is masked counts.
    pub fn trained(&self) -> (u64, u64) {
        let trained = self.slots.values().filter(|s| s.trains).map(|s| s.weights.len() as u64).sum();
        (trained, self.model.parameter_count())
    }

    /// Trains to the end, or until the observer stops it.
    pub fn run(&mut self, data: &mut dyn Examples, observer: &mut dyn Observer) -> Result<()> {
        while self.step < self.clock.steps {
            let event = self.advance(data)?;
            if observer.step(self, &event)? == Flow::Stop {
                break;
            }
        }
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.finished, true) { Ok(()) } else { self.finish() }
    }

    /// One optimiser step.
    pub fn advance(&mut self, data: &mut dyn Examples) -> Result<StepEvent> {
        let start = Instant::now();
        let step = self.step;
        let mut batches = Vec::new();
        data.epoch(step / self.steps_per_epoch);
        for chunk in self.indices(step).chunks(self.spec.batch.max(1)) {
            batches.push(data.batch(chunk)?);
        }
        let mut tokens = 0;
        for batch in &batches {
            tokens += match &batch.keep {
                Some(keep) => keep.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? as u64,
                None => batch.input_ids.elem_count() as u64,
            };
        }
        self.prune(step, &batches)?;
        let lr = self.clock.value(self.spec.optimizer.lr(), step);
        let (loss, grad_norm) = match batches.as_slice() {
            [batch] if self.spec.clip.is_none() && self.inner.is_empty() => self.update_on_the_way(batch, step, lr)?,
            batches => self.update_together(batches, step, lr)?,
        };
        if let Some((slot, _)) = self.slots.iter().find(|(_, own)| own.trains && !buffers::finite(&own.weights)) {
            return Err(PruneError::WeightsDiverged { step: step + 1, slot: slot.clone(), lr });
        }
        self.step += 1;
        match self.step == self.clock.steps {
            true => self.end()?,
            false => self.show(step)?,
        }
        Ok(StepEvent {
            step: self.step,
            steps: self.clock.steps,
            epoch: self.step as f64 / self.steps_per_epoch as f64,
            loss,
            lr,
            grad_norm,
            tokens,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64().max(1e-9),
            sparsity: self.sparsity(),
        })
    }

    /// The examples of a step. Every epoch has its own order, drawn from the seed and the epoch's number alone.
    fn indices(&mut self, step: u64) -> Vec<usize> {
        let epoch = step / self.steps_per_epoch;
        if self.order.0 != epoch {
            let mut order: Vec<usize> = (0..self.examples).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(self.spec.seed);
            rng.set_stream(epoch);
            order.shuffle(&mut rng);
            self.order = (epoch, order);
        }
        let per_step = self.spec.batch.max(1) * self.spec.accumulate.max(1);
        let from = (step % self.steps_per_epoch) as usize * per_step;
        self.order.1.iter().skip(from).take(per_step).copied().collect()
    }
}

/// Keeps the clipping factor finite, as PyTorch does.
const CLIP_EPS: f64 = 1e-6;
