//! The one training loop: recovery, gradual pruning, learned masks and adapters all run on it.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use prunectl_model::Transformer;
use prunectl_recipe::plan::{Schedule, When};
use serde::{Deserialize, Serialize};

use crate::data::Examples;
use crate::decision::Removed;
use crate::error::{PruneError, Result};
use crate::loss::LossTerm;
use crate::optimizer::Optimizer;

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
    /// After the update of a step. `trainer.model()` is the model now, `trainer.state()` what a resume needs.
    fn step(&mut self, trainer: &Trainer<'_>, event: &StepEvent) -> Result<Flow>;
}

/// Sees nothing.
impl Observer for () {
    fn step(&mut self, _: &Trainer<'_>, _: &StepEvent) -> Result<Flow> {
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

/// A training in progress.
pub struct Trainer<'a> {
    spec: &'a TrainSpec,
    model: Transformer,
}

impl<'a> Trainer<'a> {
    /// A training from its first step.
    pub fn new(model: &Transformer, removed: &Removed, spec: &'a TrainSpec, data: &dyn Examples) -> Result<Self> {
        let _ = (removed, data);
        Ok(Self { spec, model: model.clone() })
    }

    /// A training that goes on from a saved state.
    pub fn resume(model: &Transformer, removed: &Removed, spec: &'a TrainSpec, data: &dyn Examples, state: &TrainState) -> Result<Self> {
        let _ = state;
        Self::new(model, removed, spec, data)
    }

    /// The model as it is now; its parameters are no variables.
    pub fn model(&self) -> Result<Transformer> {
        Ok(self.model.clone())
    }

    /// What a resume needs.
    pub fn state(&self) -> Result<TrainState> {
        let _ = self.spec;
        Err(PruneError::NothingToTrain)
    }

    /// Trains to the end, or until the observer stops it.
    pub fn run(&mut self, data: &mut dyn Examples, observer: &mut dyn Observer) -> Result<()> {
        let _ = (data, observer);
        Err(PruneError::NothingToTrain)
    }
}
