//! `prune` inside `train`: when it is due, on what it scores, and how what it decides reaches the weights.
//!
//! Zhu and Gupta, To prune, or not to prune (2017), sec. 3 for the loop around any criterion: what is removed grows with the schedule, and a
//! masked weight is zero from then on. What learns its scores (see `learned`) only hides weights while the training lasts: they keep their
//! values, and come back if their score rises. After the last step its decision is final, too.
//!
//! An update comes *before* the forward pass of a step: of the first, of every `every`-th, and of the last, which has the schedule's last
//! value. So the model that the training ends with has trained at least one step at its final sparsity.

mod state;

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, Gates, ModelError, Point, Tap, Transformer};
use prunectl_recipe::plan::{Amount, Scope, Share, When};

use super::Trainer;
use crate::criterion::Criterion;
use crate::data::{Batches, InMemory};
use crate::decision::Decision;
use crate::error::{PruneError, Result};
use crate::learned::{Backward, Layout, Learned, Learner, Moment, Shrink, Values};
use crate::optimizer::{Memory, Update};
use crate::rescore::{filled, left};
use crate::schedule::{Clock, last_value};
use crate::scores::Scores;
use crate::selection::{AtLeast, Request, Shape, select};
use crate::site::{Key, Sites};
use crate::surgery;

/// How often what does not learn is scored, where the recipe doesn't say: a hundredth of the training.
const SCORED_EVERY: When = When::Share(0.01);
/// How often what learns decides again, where the recipe doesn't say.
const DECIDED_EVERY: When = When::Steps(1);

/// Where scores come from.
pub enum Measure {
    /// A criterion; without data of its own it is measured on the batches of the step.
    Criterion {
        /// The criterion.
        criterion: Box<dyn Criterion>,
        /// Its `on`.
        on: Option<RefCell<Box<dyn Batches>>>,
    },
    /// Scores that were made before.
    Stored(Scores),
}

/// One `prune` inside `train`.
pub struct InnerPrune {
    /// The units that the selector names.
    pub sites: Sites,
    /// Units that stay.
    pub protect: Sites,
    /// How much goes, over the clock of the training. An amount that does not change is applied once, at the first update.
    pub amount: Amount,
    /// Over which units scores are ranked.
    pub scope: Scope,
    /// What must stay in each layer.
    pub at_least: Option<AtLeast>,
    /// Kept counts of each layer are rounded up to a multiple.
    pub align: Option<usize>,
    /// How often.
    pub every: Option<When>,
    /// The measure.
    pub measure: Measure,
}

impl InnerPrune {
    fn learner(&self) -> Option<&dyn Learner> {
        match &self.measure {
            Measure::Criterion { criterion, .. } => criterion.learner(),
            Measure::Stored(_) => None,
        }
    }

    fn shrinks(&self) -> Option<&dyn Shrink> {
        match &self.measure {
            Measure::Criterion { criterion, .. } => criterion.shrinks(),
            Measure::Stored(_) => None,
        }
    }

    /// The amount of a step, and its share where it is one.
    fn amount(&self, clock: &Clock, step: u64) -> (Amount, Option<f64>) {
        match &self.amount {
            Amount::Scheduled { schedule, each } => {
                let value = clock.value(schedule, step);
                (Amount::Share { share: Share::from_fraction(value), each: *each }, Some(value))
            }
            Amount::Share { share, .. } => (self.amount.clone(), Some(share.fraction())),
            other => (other.clone(), None),
        }
    }

    /// The share in the end, where it is one.
    fn last(&self) -> Option<f64> {
        match &self.amount {
            Amount::Scheduled { schedule, .. } => Some(last_value(schedule)),
            Amount::Share { share, .. } => Some(share.fraction()),
            _ => None,
        }
    }

    fn due(&self, clock: &Clock, step: u64) -> bool {
        let usual = if self.learner().is_some() { DECIDED_EVERY } else { SCORED_EVERY };
        step == 0 || step + 1 >= clock.steps || clock.fires(self.every.unwrap_or(usual), step - 1)
    }

    fn request<'r>(&'r self, amount: &'r Amount, removed: &'r crate::decision::Removed) -> Request<'r> {
        Request {
            sites: &self.sites,
            amount,
            scope: self.scope,
            at_least: self.at_least,
            align: self.align,
            protect: &self.protect,
            removed,
            step: None,
        }
    }
}

/// A `prune` in progress.
pub(super) struct Inner<'a> {
    prune: &'a InnerPrune,
    layout: Layout,
    shape: Shape,
    learned: Learned,
    /// The optimiser's buffers of learned parameters.
    memories: BTreeMap<String, Memory>,
    /// What stays now, and the scores that said so.
    decision: Option<(Decision, Scores)>,
    /// Shares of the last update: the one asked for, and units gone among those selected.
    asked: Option<f64>,
    gone: (usize, usize),
}

impl<'a> Inner<'a> {
    pub(super) fn new(model: &Transformer, prune: &'a InnerPrune) -> Result<Self> {
        let layout = Layout::of(model, &prune.sites)?;
        let learned = prune.learner().map(|l| l.start(&layout)).transpose()?.unwrap_or_default();
        if let Measure::Criterion { criterion, .. } = &prune.measure
            && criterion.updates_weights()
        {
            return Err(PruneError::Missing {
                method: "prune inside train",
                needs: "a criterion that leaves the other weights alone; prune with this one before the training".into(),
            });
        }
        if !model.adapted().is_empty() && (prune.learner().is_some() || !prune.sites.weights.is_empty()) {
            return Err(PruneError::Missing {
                method: "prune inside train",
                needs: "whole units and a criterion that learns no scores where adapters are attached; fuse them first for the others"
                    .into(),
            });
        }
        let shape = Shape::of(model, &prune.sites)?;
        Ok(Self { prune, layout, shape, learned, memories: BTreeMap::new(), decision: None, asked: None, gone: (0, 0) })
    }

    /// Matrices whose gradients it needs.
    pub(super) fn slots(&self) -> impl Iterator<Item = &String> {
        self.layout.shapes.keys().filter(|_| self.prune.learner().is_some())
    }

    /// Score vectors that `l1(scores)` averages over.
    fn vectors(&self) -> usize {
        if self.prune.learner().is_some() { self.layout.units.len() + self.layout.weights.len() } else { 0 }
    }

    fn share(&self) -> f64 {
        if self.gone.1 == 0 { 0.0 } else { self.gone.0 as f64 / self.gone.1 as f64 }
    }

    fn settled(&self, finished: bool) -> bool {
        let exact = finished || self.prune.learner().is_none_or(Learner::exact);
        exact && self.asked.is_some() && self.prune.last().is_none_or(|last| self.asked == Some(last))
    }

    fn moment<'m>(&self, clock: &'m Clock, step: u64, l1: f64, seed: u64) -> Moment<'m> {
        let removed = self.prune.amount(clock, step).1.unwrap_or_else(|| self.share());
        Moment { clock, step, removed, finally: self.prune.last().unwrap_or(removed), l1, noise: super::passes::mix(seed, step, NOISE) }
    }

    fn decided(&mut self, decision: Decision, scores: Scores, asked: Option<f64>) -> Result<()> {
        self.gone = self.layout.gone(&decision)?;
        self.asked = Some(asked.unwrap_or_else(|| self.share()));
        self.decision = Some((decision, scores));
        Ok(())
    }
}

/// Activations in front of the down projections, padding left out.
struct Activations<'b> {
    batch: &'b Batch,
    seen: BTreeMap<usize, Tensor>,
}

impl Tap for Activations<'_> {
    fn wants(&self, _: usize, point: Point) -> bool {
        point == Point::Intermediate
    }

    fn see(&mut self, layer: usize, _: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        let x = x.detach().flatten_to(1)?; // [tokens, ffn]
        let x = match &self.batch.keep {
            None => x,
            Some(keep) => {
                let keep = keep.flatten_all()?.to_vec1::<u8>()?;
                let rows: Vec<u32> = keep.iter().enumerate().filter(|(_, k)| **k != 0).map(|(i, _)| i as u32).collect();
                x.index_select(&Tensor::new(rows, x.device())?, 0)?
            }
        };
        self.seen.insert(layer, x);
        Ok(())
    }
}

impl Trainer<'_> {
    /// Share of the selected units that are gone, over all `prune`s inside; None without any.
    pub fn sparsity(&self) -> Option<f64> {
        let total: usize = self.inner.iter().map(|i| i.layout_total()).sum();
        (total > 0).then(|| self.inner.iter().map(|i| i.gone.0).sum::<usize>() as f64 / total as f64)
    }

    /// Whether every `prune` inside has reached its last value.
    pub fn settled(&self) -> bool {
        self.inner.iter().all(|i| i.settled(self.finished))
    }

    /// What each `prune` inside has decided last, in order, and on which scores; None before its first update.
    pub fn decisions(&self) -> Vec<Option<(Decision, Scores)>> {
        self.inner.iter().map(|i| i.decision.clone()).collect()
    }

    /// Updates what is masked, where that is due before this step.
    pub(super) fn prune(&mut self, step: u64, batches: &[Batch]) -> Result<()> {
        let mut inner = std::mem::take(&mut self.inner);
        let clock = self.clock;
        let done = inner.iter_mut().filter(|i| i.prune.due(&clock, step)).try_for_each(|i| match i.prune.learner() {
            Some(learner) => self.decide(i, learner, step, false),
            None => self.gradual(i, step, batches),
        });
        self.inner = inner;
        done?;
        if self.inner.iter().any(|i| i.prune.learner().is_some()) { self.hide(step, true) } else { Ok(()) }
    }

    /// Between steps the model is seen with the gates of the parameters that it has now.
    pub(super) fn show(&mut self, step: u64) -> Result<()> {
        if self.inner.iter().any(|i| i.prune.learner().is_some_and(Learner::gated)) { self.hide(step, false) } else { Ok(()) }
    }

    fn decide(&mut self, inner: &mut Inner<'_>, learner: &dyn Learner, step: u64, finish: bool) -> Result<()> {
        let (amount, asked) = inner.prune.amount(&self.clock, step);
        let moment = inner.moment(&self.clock, step, 0.0, self.spec.seed);
        let request = inner.prune.request(&amount, &self.removed);
        let decision = learner.decide(&inner.layout, &inner.learned, &request, &inner.shape, &moment, finish)?;
        let scores = learner.scores(&inner.layout, &inner.learned)?;
        inner.decided(decision, scores, asked)
    }

    /// Any criterion under a schedule: scored on the model as it is, and what goes stays gone.
    fn gradual(&mut self, inner: &mut Inner<'_>, step: u64, batches: &[Batch]) -> Result<()> {
        let prune = inner.prune;
        let (mut amount, mut asked) = prune.amount(&self.clock, step);
        let grows = match (&prune.amount, inner.asked) {
            (_, None) => asked != Some(0.0),
            (Amount::Scheduled { .. }, Some(before)) => asked.is_some_and(|a| a > before),
            // As much as the loss allowed; the rest goes later, at the latest with the last update.
            (_, Some(before)) => prune.shrinks().is_some() && asked.is_some_and(|a| a > before),
        };
        if !grows {
            return Ok(());
        }
        let sites = left(&prune.sites, &self.removed);
        // Scores are of the weights with their adapters' updates.
        let model = self.model()?;
        let model = model.fused(&model.adapted())?;
        let scores = match &prune.measure {
            Measure::Stored(scores) => scores.clone(),
            Measure::Criterion { criterion, on: Some(on) } => criterion.score(&model, &sites, on.borrow_mut().as_mut(), &())?,
            Measure::Criterion { criterion, on: None } => criterion.score(&model, &sites, &mut InMemory::new(batches.to_vec()), &())?,
        };
        let scores = filled(scores, &prune.sites, &inner.shape);
        if let (Some(shrink), Some(most), Amount::Share { each, .. }) = (prune.shrinks(), asked, &amount)
            && step + 1 < self.clock.steps
        {
            let each = *each;
            let may = self.bearable(inner, &scores, most, each, shrink.tolerance(), batches)?;
            (amount, asked) = (Amount::Share { share: Share::from_fraction(may), each }, Some(may));
        }
        let decision = select(&scores, &prune.request(&amount, &self.removed), &inner.shape)?;
        surgery::mask(&mut self.model, &mut self.removed, &decision)?;
        self.hold()?;
        inner.decided(decision, scores, asked)
    }

    /// The largest share up to `most`, by bisection from the share gone, with which the loss of the batches rises by no more than `tolerance`.
    fn bearable(&self, inner: &Inner<'_>, scores: &Scores, most: f64, each: bool, tolerance: f64, batches: &[Batch]) -> Result<f64> {
        let model = self.model()?;
        let loss = |model: &Transformer| -> Result<f64> {
            let (mut sum, mut count) = (0.0, 0);
            for batch in batches {
                let out = model.forward_loss(batch, &Gates::default(), &mut ())?;
                sum += f64::from(out.sum()?.to_dtype(DType::F32)?.to_scalar::<f32>()?);
                count += out.count();
            }
            Ok(sum / count.max(1) as f64)
        };
        let limit = loss(&model)? * (1.0 + tolerance);
        let bears = |share: f64| -> Result<bool> {
            let amount = Amount::Share { share: Share::from_fraction(share), each };
            let decision = select(scores, &inner.prune.request(&amount, &self.removed), &inner.shape)?;
            let (mut model, mut removed) = (model.clone(), self.removed.clone());
            surgery::mask(&mut model, &mut removed, &decision)?;
            Ok(loss(&model)? <= limit)
        };
        if bears(most)? {
            return Ok(most);
        }
        let (mut low, mut high) = (inner.asked.unwrap_or(0.0), most);
        for _ in 0..BISECTIONS {
            let middle = (low + high) / 2.0;
            if bears(middle)? { low = middle } else { high = middle }
        }
        Ok(low)
    }

    /// What each decay will want to know after the update of a step: the gradients by the weights as the step saw them, and what it asks for.
    pub(super) fn feel(&self, gradients: &Values, batches: &[Batch]) -> Result<Vec<Values>> {
        let feel = |inner: &Inner<'_>| -> Result<Values> {
            let Some(shrink) = inner.prune.shrinks() else { return Ok(Values::new()) };
            let mut felt = gradients.clone();
            felt.extend(shrink.feel(&inner.layout, &self.model()?, batches)?);
            Ok(felt)
        };
        self.inner.iter().map(feel).collect()
    }

    /// Multiplies weights by what criteria ask for after an update.
    pub(super) fn shrink(&mut self, felt: &[Values], step: u64) -> Result<()> {
        for (inner, gradients) in self.inner.iter().zip(felt) {
            let Some(shrink) = inner.prune.shrinks() else { continue };
            let weights = BTreeMap::new();
            let moment = inner.moment(&self.clock, step, 0.0, self.spec.seed);
            for (slot, factor) in shrink.factors(&inner.layout, &Backward { gradients, weights: &weights }, &moment)? {
                if let Some(own) = self.slots.get_mut(&slot).filter(|s| s.trains) {
                    own.weights.iter_mut().zip(factor).for_each(|(w, f)| *w *= f);
                }
            }
        }
        Ok(())
    }

    /// Puts what learners decided, and their gates, in front of the weights; `drawn` for the passes of this step.
    fn hide(&mut self, step: u64, drawn: bool) -> Result<()> {
        let mut factors = Values::new();
        for inner in &mut self.inner {
            let (Some(learner), Some((decision, _))) = (inner.prune.learner(), &inner.decision) else { continue };
            for (slot, factor) in inner.layout.factors(decision)? {
                match factors.get_mut(&slot) {
                    Some(own) => own.iter_mut().zip(factor).for_each(|(a, b)| *a *= b),
                    None => {
                        factors.insert(slot, factor);
                    }
                }
            }
            if !learner.gated() {
                continue;
            }
            let moment = inner.moment(&self.clock, step, 0.0, self.spec.seed);
            let gates = learner.gates(&inner.layout, &inner.learned, &moment, drawn)?;
            for (key, gates) in &gates {
                inner.layout.spread(*key, gates, &mut factors)?;
            }
            if !drawn {
                let kept = |key: &Key, u: &usize| gates.get(key).and_then(|g| g.get(*u)).is_none_or(|g| *g != 0.0);
                let sites = decision.sites.iter().map(|(key, units)| (*key, units.iter().copied().filter(|u| kept(key, u)).collect()));
                inner.gone = inner.layout.gone(&Decision { sites: sites.collect(), weights: decision.weights.clone() })?;
            }
        }
        for (slot, own) in &mut self.slots {
            own.factor = factors.remove(slot);
        }
        Ok(())
    }

    /// Gradients of learned parameters by `prune`, and the penalties on them. `gradients` are those by the masked weights.
    pub(super) fn learn(&self, gradients: &Values, step: u64) -> Result<(Vec<Values>, f64)> {
        let vectors = self.inner.iter().map(Inner::vectors).sum::<usize>().max(1);
        let terms = self.spec.loss.iter().filter(|t| t.term.of_scores());
        let l1 = terms.map(|t| self.clock.value(&t.weight, step)).sum::<f64>() / vectors as f64;
        let weights = self.slots.iter().map(|(slot, own)| (slot.as_str(), own.weights.as_slice())).collect();
        let backward = Backward { gradients, weights: &weights };
        let (mut out, mut penalty) = (Vec::new(), 0.0);
        for inner in &self.inner {
            let Some(learner) = inner.prune.learner() else {
                out.push(Values::new());
                continue;
            };
            let moment = inner.moment(&self.clock, step, l1, self.spec.seed);
            let (values, own) = learner.gradients(&inner.layout, &inner.learned, &backward, &moment)?;
            penalty += own;
            out.push(values);
        }
        Ok((out, penalty))
    }

    /// Shows the step's activations to those who want them: one more forward pass.
    pub(super) fn observe(&mut self, batches: &[Batch], step: u64) -> Result<()> {
        let wants = |i: &Inner<'_>| i.prune.learner().is_some_and(Learner::observes);
        if !self.inner.iter().any(wants) {
            return Ok(());
        }
        let model = self.model()?;
        let mut all: BTreeMap<usize, Vec<Tensor>> = BTreeMap::new();
        for batch in batches {
            let mut tap = Activations { batch, seen: BTreeMap::new() };
            model.hidden(batch, &Gates::default(), &mut tap)?;
            for (layer, x) in tap.seen {
                all.entry(layer).or_default().push(x);
            }
        }
        let all = all.into_iter().map(|(l, x)| Ok((l, Tensor::cat(&x, 0)?))).collect::<Result<BTreeMap<_, _>>>()?;
        for inner in &mut self.inner {
            if let Some(learner) = inner.prune.learner().filter(|l| l.observes()) {
                let moment = inner.moment(&self.clock, step, 0.0, self.spec.seed);
                learner.observe(&inner.layout, &mut inner.learned, &all, &moment)?;
            }
        }
        Ok(())
    }

    /// One optimiser step of learned parameters, a group with its own learning rate and its own clipping.
    pub(super) fn update_learned(&mut self, mut gradients: Vec<Values>, step: u64) -> Result<()> {
        let squares = gradients.iter().flat_map(|g| g.values()).flatten().map(|g| f64::from(*g) * f64::from(*g));
        let norm = squares.sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(PruneError::GradientDiverged { step: step + 1, norm, lr: self.clock.value(self.spec.optimizer.lr(), step) });
        }
        super::clip(self.spec.clip, norm, gradients.iter_mut().flat_map(|g| g.values_mut()));
        for (inner, gradients) in self.inner.iter_mut().zip(&gradients) {
            let Some(learner) = inner.prune.learner() else { continue };
            let lr = self.clock.value(learner.lr().unwrap_or(self.spec.optimizer.lr()), step);
            for (name, gradient) in gradients {
                let Some(weights) = inner.learned.params.get_mut(name) else { continue };
                let memory = inner.memories.entry(name.clone()).or_default();
                self.spec.optimizer.update(Update { weights, gradient, memory, step: step + 1, lr, matrix: false, decays: false })?;
            }
        }
        Ok(())
    }

    /// After the last step: what learners hide goes for good, by their last scores and the last amount.
    pub(super) fn finish(&mut self) -> Result<()> {
        let last = self.clock.steps.saturating_sub(1);
        let mut inner = std::mem::take(&mut self.inner);
        let done = inner.iter_mut().try_for_each(|i| {
            let Some(learner) = i.prune.learner() else { return Ok(()) };
            let moment = i.moment(&self.clock, last, 0.0, self.spec.seed);
            let mut factors = Values::new();
            for (key, gates) in &learner.gates(&i.layout, &i.learned, &moment, false)? {
                i.layout.spread(*key, gates, &mut factors)?;
            }
            for (slot, factor) in factors {
                if let Some(own) = self.slots.get_mut(&slot) {
                    own.weights.iter_mut().zip(factor).for_each(|(w, f)| *w *= f);
                }
            }
            self.decide(i, learner, last, true)?;
            match &i.decision {
                Some((decision, _)) => surgery::mask(&mut self.model, &mut self.removed, decision),
                None => Ok(()),
            }
        });
        self.inner = inner;
        done?;
        for own in self.slots.values_mut() {
            own.factor = None;
        }
        self.hold()
    }
}

impl Inner<'_> {
    fn layout_total(&self) -> usize {
        let units: usize = self.prune.sites.units.values().map(|u| u.len() as usize).sum();
        let weights: usize = self.prune.sites.weights.iter().filter_map(|s| self.layout.shapes.get(s)).map(|(r, c)| r * c).sum();
        units + weights
    }
}

/// Halvings of the interval in which the bearable share is looked for.
const BISECTIONS: usize = 7;
/// The place of learners' draws among a step's seeds, behind every micro-batch.
const NOISE: u64 = u64::MAX;
