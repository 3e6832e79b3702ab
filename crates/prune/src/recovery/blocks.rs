//! Block-local training: each block (or sublayer) alone learns to give the teacher's output on the pruned model's own inputs.
//!
//! He et al., Channel Pruning for Accelerating Very Deep Neural Networks (2017), sec. 3.2 (the asymmetric target); Romero et al., FitNets
//! (2015), sec. 2.2 (a block's output as the hint). The target of a block is the teacher's residual stream behind that block, made by the
//! teacher from the tokens; the input is the stream that the student's earlier blocks, already rebuilt, give. The loss is the mean square
//! over real tokens and channels. No gradient leaves the block, so a step costs one block's backward pass, and only one block's optimiser
//! state is in memory. Streams are kept between blocks up to a limit, and made again from the tokens beyond it; that changes no bit. A block
//! that gives what the teacher gives already (the first ones, where later layers went) is left as it is: a decay of its weights could only
//! harm it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor, TensorId};
use prunectl_model::adapter::{is_adapter, trains};
use prunectl_model::{Batch, Context, Point, Transformer};
use prunectl_recipe::Units;
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Schedule, When};
use serde::{Deserialize, Serialize};

use super::sublayer::{Part, Seen};
use crate::calibrate::real_tokens;
use crate::data::Examples;
use crate::decision::Removed;
use crate::error::{PruneError, Result};
use crate::loss::{LossInput, LossTerm};
use crate::optimizer::Optimizer;
use crate::schedule::Clock;
use crate::site::{Key, Sites};
use crate::train::{Flow, Observer, StepEvent, Term, TrainSpec, TrainState, Trainer};

/// Bytes of residual streams that are kept between blocks.
const KEPT_BYTES: usize = 1 << 30;
const NAME: &str = "reconstruct";

/// What is trained at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Block,
    Sublayer(Part),
}

/// One block or sublayer that is trained alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    layer: usize,
    scope: Scope,
}

impl Stage {
    /// `layers.3`, `layers.3.attention`, `layers.3.mlp`.
    pub fn name(&self) -> String {
        let part = match self.scope {
            Scope::Block => "",
            Scope::Sublayer(Part::Attention) => ".attention",
            Scope::Sublayer(Part::Mlp) => ".mlp",
        };
        format!("layers.{}{part}", self.layer)
    }

    /// The parameters that train: all of the block's, or those of its adapters alone where it has some. Prototypes that blocks share stay.
    pub fn slots(&self, model: &Transformer) -> BTreeSet<String> {
        let prefix = format!("{}.", self.name());
        let all = || model.params().slots().filter(|slot| slot.starts_with(&prefix)).map(str::to_owned);
        match all().any(|slot| is_adapter(&slot)) {
            true => all().filter(|slot| trains(slot)).collect(),
            false => all().collect(),
        }
    }
}

/// The stages that a selection of layers and sublayers asks for, in the order in which they run. What is masked whole has none.
///
/// # Errors
/// Other units than layers, attention and MLP sublayers; nothing left to train.
pub fn stages(sites: &Sites, model: &Transformer, removed: &Removed) -> Result<Vec<Stage>> {
    let mut scopes: BTreeMap<usize, BTreeSet<Scope>> = BTreeMap::new();
    for (key, units) in sites.units.iter().filter(|(_, u)| !u.is_empty()) {
        let (layers, scope) = match (key.kind, key.layer) {
            (SiteKind::Layers, _) => (units.clone(), Scope::Block),
            (SiteKind::Attention, Some(l)) => (Units::from_iter([l]), Scope::Sublayer(Part::Attention)),
            (SiteKind::Mlp, Some(l)) => (Units::from_iter([l]), Scope::Sublayer(Part::Mlp)),
            (kind, _) => return Err(unfit(kind)),
        };
        for layer in layers {
            scopes.entry(layer).or_default().insert(scope);
        }
    }
    if !sites.weights.is_empty() {
        return Err(unfit(SiteKind::Weights));
    }
    let mut out = Vec::new();
    for (layer, scopes) in scopes {
        let d = *model.layer_dims(layer)?;
        let there = |kind: SiteKind, any: bool| any && !removed.has(Key::of(kind, layer), 0);
        let (attention, mlp) = (there(SiteKind::Attention, d.has_attention()), there(SiteKind::Mlp, d.has_mlp()));
        for scope in scopes.iter().copied() {
            let left = match scope {
                Scope::Block => attention || mlp,
                // A block that trains whole takes its sublayers along.
                Scope::Sublayer(_) if scopes.contains(&Scope::Block) => false,
                Scope::Sublayer(Part::Attention) => attention,
                Scope::Sublayer(Part::Mlp) => mlp,
            };
            if left && !removed.has(Key { kind: SiteKind::Layers, layer: None }, layer) {
                out.push(Stage { layer, scope });
            }
        }
    }
    if out.is_empty() { Err(PruneError::NothingToTrain) } else { Ok(out) }
}

fn unfit(kind: SiteKind) -> PruneError {
    PruneError::Site { method: NAME, kind, hint: "it trains whole layers or sublayers: `m.layers[*]`, `.attention`, `.mlp`" }
}

/// How each block is trained.
pub struct BlockSpec<'a> {
    /// What the blocks imitate.
    pub teacher: &'a Transformer,
    /// How long, each block.
    pub length: When,
    /// Examples of one forward pass. They stand together in every epoch; the order of the batches is drawn.
    pub batch: usize,
    /// Forward passes of one optimiser step.
    pub accumulate: usize,
    /// The gradient's norm is cut down to it.
    pub clip: Option<f64>,
    /// Makes the update rule, anew for each block.
    pub optimizer: &'a dyn Fn() -> Result<Box<dyn Optimizer>>,
    /// Seed of the data order.
    pub seed: u64,
    /// Type of the passes; None: the model's.
    pub dtype: Option<DType>,
    /// The teacher's layer of each of the model's.
    pub teacher_layers: Vec<usize>,
}

/// What became of one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rebuilt {
    /// The stage's name.
    pub name: String,
    /// Numbers that trained.
    pub parameters: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// The loss of its first step: mean square over tokens and channels.
    pub first: f64,
    /// The mean loss of its last tenth.
    pub last: f64,
}

/// Sees every step; checkpoints live here.
pub trait BlockObserver {
    /// After a step of a stage. `model` has what the stages before learned.
    fn step(&mut self, stage: usize, model: &Transformer, trainer: &mut Trainer<'_>, event: &StepEvent) -> Result<()>;
    /// After a stage.
    fn done(&mut self, stage: usize, rebuilt: &Rebuilt, model: &Transformer) -> Result<()>;
}

/// The residual streams of one batch.
struct Streams {
    /// `[batch, seq, hidden]` before the student's block of that number.
    student: (usize, Tensor, Context),
    teacher: (usize, Tensor, Context),
    /// The teacher's stream behind the stage of that number.
    target: Option<(usize, Tensor)>,
}

/// Batches that always hold the same examples, so that their streams can be found again.
struct Fixed<'d> {
    data: &'d mut dyn Examples,
    size: usize,
    made: HashMap<usize, Batch>,
}

impl Examples for Fixed<'_> {
    fn len(&self) -> usize {
        self.data.len().div_ceil(self.size)
    }

    fn batch(&mut self, indices: &[usize]) -> Result<Batch> {
        let index = indices.first().copied().unwrap_or_default();
        if let Some(batch) = self.made.get(&index) {
            return Ok(batch.clone());
        }
        let rows: Vec<usize> = (index * self.size..((index + 1) * self.size).min(self.data.len())).collect();
        let batch = Batch { labels: None, ..self.data.batch(&rows)? };
        self.made.insert(index, batch.clone());
        Ok(batch)
    }

    fn tokens_hint(&self) -> Option<u64> {
        self.data.tokens_hint()
    }
}

/// Streams by batch.
type Kept = Arc<Mutex<HashMap<TensorId, Streams>>>;

/// The loss of one stage.
struct Local {
    number: usize,
    stage: Stage,
    teacher: Transformer,
    teacher_layer: usize,
    kept: Kept,
}

impl Local {
    fn kept(&self) -> MutexGuard<'_, HashMap<TensorId, Streams>> {
        // Whole entries are put in and taken out, so a thread that died left none half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The streams of a batch before this stage.
    fn streams(&self, model: &Transformer, batch: &Batch) -> Result<Streams> {
        let before = self.kept().remove(&batch.input_ids.id());
        let mut streams = match before {
            Some(streams) if streams.student.0 <= self.stage.layer && streams.teacher.0 <= self.teacher_layer => streams,
            _ => {
                let (student, context) = model.embed(batch)?;
                let (teacher, own) = self.teacher.embed(batch)?;
                Streams { student: (0, student.detach(), context), teacher: (0, teacher.detach(), own), target: None }
            }
        };
        for (network, to, (at, x, context)) in
            [(model, self.stage.layer, &mut streams.student), (&self.teacher, self.teacher_layer, &mut streams.teacher)]
        {
            while *at < to {
                *x = network.block(*at, x, context, None, &mut ())?.detach();
                *at += 1;
            }
        }
        Ok(streams)
    }

    /// What a block leaves where this stage looks.
    fn look(&self, network: &Transformer, layer: usize, x: &Tensor, context: &Context) -> Result<Tensor> {
        let mut seen = Seen::default();
        let y = network.block(layer, x, context, None, &mut seen)?;
        match self.stage.scope {
            Scope::Sublayer(Part::Attention) => seen.stream(Part::Attention, network.blueprint().layout)?.ok_or(PruneError::Missing {
                method: NAME,
                needs: format!("{:?} in the teacher's layer {layer}, too: train `.mlp` there, or the whole layer", Point::AttentionOutput),
            }),
            _ => Ok(y),
        }
    }
}

impl LossTerm for Local {
    fn count(&self, _: &Transformer, batch: &Batch, _: u64) -> Result<f64> {
        Ok(match &batch.keep {
            Some(keep) => keep.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?,
            None => batch.input_ids.elem_count() as f64,
        })
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        let mut streams = self.streams(input.model, input.batch)?;
        let target = match streams.target.take() {
            Some((number, target)) if number == self.number => target,
            _ => self.look(&self.teacher, self.teacher_layer, &streams.teacher.1, &streams.teacher.2)?.detach(),
        };
        let (_, x, context) = &streams.student;
        let y = self.look(input.model, self.stage.layer, x, context)?;
        let apart = (y.to_dtype(DType::F32)? - target.to_dtype(DType::F32)?)?.sqr()?;
        let apart = match real_tokens(input.batch)? {
            Some(real) => apart.broadcast_mul(&real.to_dtype(DType::F32)?)?,
            None => apart,
        };
        let width = apart.dim(2)?.max(1) as f64;
        let loss = (apart.sum_all()? / width)?;
        let mut kept = self.kept();
        let bytes = 3 * x.elem_count() * x.dtype().size_in_bytes();
        if (kept.len() + 1) * bytes <= KEPT_BYTES {
            kept.insert(input.batch.input_ids.id(), Streams { target: Some((self.number, target)), ..streams });
        }
        Ok(loss)
    }
}

/// Remembers what the report says of a stage.
struct Watch<'o> {
    stage: usize,
    model: &'o Transformer,
    observer: &'o mut dyn BlockObserver,
    losses: &'o mut Vec<f64>,
}

impl Observer for Watch<'_> {
    fn step(&mut self, trainer: &mut Trainer<'_>, event: &StepEvent) -> Result<Flow> {
        self.losses.push(event.loss);
        self.observer.step(self.stage, self.model, trainer, event)?;
        Ok(if same(self.losses) { Flow::Stop } else { Flow::Continue })
    }
}

/// Whether the stage gave the teacher's numbers before its first update.
fn same(losses: &[f64]) -> bool {
    losses.first() == Some(&0.0)
}

/// Where a reconstruction stood when it was cut off.
pub struct Progressed {
    /// The stage that was at work; the model has what those before learned.
    pub stage: usize,
    /// Its state, where it had begun.
    pub state: Option<TrainState>,
    /// Its losses so far.
    pub losses: Vec<f64>,
}

/// Trains the stages, one after the other; `model` holds what they learned.
///
/// # Errors
/// A teacher of another width or vocabulary; an optimiser or data that can't be used; a loss that diverges; whatever `observer` returns.
pub fn reconstruct(
    model: &mut Transformer,
    removed: &Removed,
    stages: &[Stage],
    spec: &BlockSpec<'_>,
    data: &mut dyn Examples,
    from: Option<Progressed>,
    observer: &mut dyn BlockObserver,
) -> Result<()> {
    fits(model, spec)?;
    let kept = Kept::default();
    let mut data = Fixed { data, size: spec.batch.max(1), made: HashMap::new() };
    let mut from = from.unwrap_or(Progressed { stage: 0, state: None, losses: Vec::new() });
    for (number, stage) in stages.iter().enumerate().skip(from.stage) {
        let teacher_layer = spec.teacher_layers.get(stage.layer).copied().unwrap_or(stage.layer);
        let local = Local { number, stage: *stage, teacher: spec.teacher.clone(), teacher_layer, kept: kept.clone() };
        let only = stage.slots(model);
        let parameters = only.iter().filter_map(|s| model.params().get(s)).map(|t| t.elem_count() as u64).sum();
        let train = TrainSpec {
            length: spec.length,
            batch: 1,
            accumulate: spec.accumulate.max(1),
            clip: spec.clip,
            optimizer: (spec.optimizer)()?,
            loss: vec![Term { weight: Schedule::Hold { value: 1.0, length: None }, term: Box::new(local), teacher: None }],
            only: Some(only),
            seed: spec.seed,
            dtype: spec.dtype,
            recompute: false,
            prunes: Vec::new(),
        };
        let mut losses = std::mem::take(&mut from.losses);
        let mut trainer = match from.state.take() {
            Some(state) => Trainer::resume(model, removed, &train, &data, &state)?,
            None => Trainer::new(model, removed, &train, &data)?,
        };
        let mut watch = Watch { stage: number, model, observer, losses: &mut losses };
        trainer.run(&mut data, &mut watch)?;
        if !same(&losses) {
            *model = trainer.model()?;
        }
        let tail = losses.len().div_ceil(10).max(1);
        let last = losses.iter().rev().take(tail).sum::<f64>() / tail as f64;
        let first = losses.first().copied().unwrap_or_default();
        let rebuilt = Rebuilt { name: stage.name(), parameters, steps: losses.len() as u64, first, last };
        observer.done(number, &rebuilt, model)?;
    }
    Ok(())
}

fn fits(model: &Transformer, spec: &BlockSpec<'_>) -> Result<()> {
    let teacher = spec.teacher;
    for (what, found, expected) in [
        ("width of the teacher", teacher.blueprint().hidden, model.blueprint().hidden),
        ("vocabulary of the teacher", teacher.blueprint().vocab, model.blueprint().vocab),
    ] {
        if found != expected {
            return Err(PruneError::Invalid { what, found: found.to_string(), expected: format!("{expected}, as in the model") });
        }
    }
    match spec.teacher_layers.iter().find(|l| **l >= teacher.n_layers()) {
        Some(layer) => Err(PruneError::Invalid {
            what: "layer of the teacher",
            found: layer.to_string(),
            expected: format!("one of its {}", teacher.n_layers()),
        }),
        None => Ok(()),
    }
}
