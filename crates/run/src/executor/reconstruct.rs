//! Recovery: `reconstruct = …` of a prune, and `reconstruct … from teacher`: blocks trained one by one, with checkpoints between and
//! within them.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use indicatif::ProgressBar;
use prunectl_model::Transformer;
use prunectl_prune::{
    Batches, BlockObserver, BlockSpec, Decision, Fit, OPTIMIZERS, Progressed, PruneError, Rebuilt, Stage, StepEvent, TrainMeta, TrainState,
    Trainer, build, fit, stages,
};
use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{DataExpr, Prune, Selector, Step, Value, When};
use serde::{Deserialize, Serialize};

use crate::data::Need;
use crate::error::{Error, Result};
use crate::executor::book::{Curve, Recovered};
use crate::executor::inner::stopped;
use crate::executor::inputs::{Wanted, batches};
use crate::executor::state::{ModelState, model_of};
use crate::executor::store::{from_bytes, to_bytes};
use crate::executor::training::passes;
use crate::executor::{Executor, Outcome};
use crate::files::file_name_of;
use crate::journal::StepDone;
use crate::report::{FigureUnit, figure};
use crate::rundir::CHECKPOINTS;

/// Steps between checkpoints inside a block.
const EVERY_STEPS: u64 = 50;
/// Points of a curve in the report.
const CURVE_POINTS: u64 = 400;
/// What the names of a checkpoint's tensors begin with.
const LEARNED: &str = "learned/";
const STATE: &str = "state/";
const WATCH: &str = "watch";

/// What stands in a checkpoint besides tensors, and in the journal when the step is done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Done {
    curve: Curve,
    blocks: Vec<Rebuilt>,
    /// The stage at work and its losses; its state, where it has begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    losses: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    meta: Option<TrainMeta>,
}

impl Executor<'_> {
    pub(super) fn reconstruct(
        &mut self,
        step: &Step,
        selector: &Selector,
        teacher: &Value,
        data: &DataExpr,
        (length, options): (When, &Args),
        done: Option<&StepDone>,
    ) -> Result<Outcome> {
        let name = model_of(selector).to_owned();
        let state = self.state.model(&name)?.clone();
        if let Some(done) = done {
            let (file, hash) = done.files.first().ok_or_else(|| Error::Internal("a finished reconstruction has no weights".to_owned()))?;
            let tensors = from_bytes(&self.dir.read_checked(file, hash)?, &self.dir.join(file))?;
            self.put_weights(&name, tensors)?;
            let found: Done = serde_json::from_value(done.result.clone()).unwrap_or_default();
            self.book_blocks(step, found);
            return Ok(Outcome {
                files: done.files.clone(),
                result: done.result.clone(),
                reused: Some("trained before the interruption".to_owned()),
            });
        }
        self.same_tokens(teacher, &state)?;
        let (teacher, _) = self.state.network(teacher)?;
        let all = stages(&state.sites(selector)?, &state.model, &state.removed)?;
        let count = |name: &str| options.get(name).and_then(Value::as_u64);
        let batch = count("batch").unwrap_or(1).max(1) as usize;
        let optimizer = options.method("optimizer").map_err(|e| Error::Internal(e.to_string()))?;
        let make = || build(OPTIMIZERS, &optimizer.name, &optimizer.args);
        let spec = BlockSpec {
            teacher: &teacher,
            length,
            batch,
            accumulate: count("accumulate").unwrap_or(1).max(1) as usize,
            clip: options.get("clip").and_then(Value::as_f64),
            optimizer: &make,
            seed: count("seed").unwrap_or(0),
            dtype: passes(options),
            teacher_layers: teacher_layers(&state, &teacher)?,
        };
        let wanted = Wanted { need: Need::Optional, labels: false, batch: Some(batch as u64), backward: true, apart: false };
        let mut data = batches(&self.data, &state, data, wanted)?;
        if matches!(length, When::Tokens(_)) {
            data.count_tokens()?;
        }
        let path = format!("{CHECKPOINTS}/{}.safetensors", file_name_of(&step.name));
        let mut model = state.model.clone();
        let mut record = Done { curve: Curve { name: step.name.clone(), ..Curve::default() }, ..Done::default() };
        let mut from = None;
        if let Some((tensors, found)) = self.read_blocks(&path)? {
            from = Some(take_up(&mut model, tensors, &found)?);
            let at = all.get(found.blocks.len()).map_or_else(String::new, Stage::name);
            let steps = found.meta.as_ref().map_or(0, |m| m.step);
            self.options.ui.note(format!("{}: goes on with {at} after step {steps}", step.name));
            record = found;
        }
        let bar = self.options.ui.bar(&step.name);
        let mut watch = Watching { executor: self, stages: &all, path: &path, record, bar };
        let ran = prunectl_prune::reconstruct(&mut model, &state.removed, &all, &spec, &mut data, from, &mut watch);
        watch.bar.finish_and_clear();
        let record = watch.record;
        if let (Err(_), Some(at)) = (&ran, all.get(record.blocks.len())) {
            self.options.ui.note(format!("{}: stopped in {}, after {} of {} parts", step.name, at.name(), record.blocks.len(), all.len()));
        }
        ran.map_err(|e| stopped(e, record.meta.as_ref(), &self.dir.join(&path)))?;
        for note in data.notes() {
            self.options.ui.note(note);
        }
        let record = Done { losses: Vec::new(), meta: None, ..record };
        let learned = learned(&model, &all);
        let file = format!("{CHECKPOINTS}/{}-done.safetensors", file_name_of(&step.name));
        let hash = self.dir.write(&file, &to_bytes(&learned)?)?;
        let result = serde_json::to_value(&record).map_err(|e| Error::Internal(format!("a curve can't be written as JSON: {e}")))?;
        self.put_weights(&name, learned)?;
        self.book_blocks(step, record);
        Ok(Outcome { files: vec![(file, hash)], result, reused: None })
    }

    /// Fits the writers of what was removed, on the data of `on`, or the criterion's.
    #[expect(clippy::too_many_arguments, reason = "what a prune has at hand")]
    pub(super) fn refit(
        &self,
        step: &Step,
        prune: &Prune,
        kind: Fit,
        dense: &Transformer,
        state: &mut ModelState,
        decision: &Decision,
        mut data: Box<dyn Batches>,
    ) -> Result<Recovered> {
        if let Some(Value::Data(expr)) = prune.options.get("on") {
            let wanted = Wanted { need: Need::Optional, labels: false, batch: prune.batch, backward: false, apart: false };
            data = Box::new(batches(&self.data, state, expr, wanted)?);
        }
        let progress = self.progress("reconstruct");
        let writers = fit(kind, dense, &mut state.model, &state.removed, decision, data.as_mut(), &progress)?;
        drop(progress);
        let method = prune.options.word("reconstruct").unwrap_or_default().to_owned();
        let recovered = Recovered { name: step.name.clone(), method, writers };
        if let Some((before, after)) = recovered.lost() {
            let percent = |x: f64| figure(x, FigureUnit::Percent);
            self.options.ui.note(format!(
                "{}: reconstruct fitted {} matrices; behind them the residual stream was off by {} of its square, now by {}",
                step.name,
                recovered.writers.len(),
                percent(before),
                percent(after)
            ));
        }
        Ok(recovered)
    }

    fn book_blocks(&mut self, step: &Step, done: Done) {
        self.book.rebuilt.push((step.name.clone(), done.blocks));
        self.book.curves.push(done.curve);
    }

    fn read_blocks(&self, path: &str) -> Result<Option<(BTreeMap<String, Tensor>, Done)>> {
        let full = self.dir.join(path);
        let bytes = match std::fs::read(&full) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &full)(e)),
        };
        let mut tensors = from_bytes(&bytes, &full)?;
        let damaged = |what: &str| Error::Damaged { path: full.clone(), what: what.to_owned() };
        let watch = tensors.remove(WATCH).ok_or_else(|| damaged("it has no record of the reconstruction"))?;
        let done = serde_json::from_slice(&watch.to_vec1::<u8>()?).map_err(|e| damaged(&e.to_string()))?;
        Ok(Some((tensors, done)))
    }
}

/// The teacher's layer of each of the model's: the same one, or the one that it was before others were compacted away.
fn teacher_layers(state: &ModelState, teacher: &Transformer) -> Result<Vec<usize>> {
    let (own, theirs) = (state.model.n_layers(), teacher.n_layers());
    if own == theirs {
        return Ok((0..own).collect());
    }
    if theirs == state.dense.n_layers() {
        return Ok((0..own).map(|l| state.map.layer(l)).collect());
    }
    Err(Error::Refused {
        what: format!("the teacher has {theirs} layers, the model {own} of {}: nothing says which imitates which", state.dense.n_layers()),
        remedy: "take `frozen(m)` before layers go, or a teacher with the model's number of layers".to_owned(),
    })
}

/// What the stages train, as it is now.
fn learned(model: &Transformer, stages: &[Stage]) -> BTreeMap<String, Tensor> {
    let slots = stages.iter().flat_map(|s| s.slots(model));
    slots.filter_map(|slot| model.params().get(&slot).map(|t| (slot.clone(), t.clone()))).collect()
}

/// Puts what was learned back into the model.
fn take_up(model: &mut Transformer, tensors: BTreeMap<String, Tensor>, found: &Done) -> Result<Progressed> {
    let mut state = BTreeMap::new();
    for (name, tensor) in tensors {
        if let Some(slot) = name.strip_prefix(LEARNED) {
            let tensor = tensor.to_device(model.device())?.to_dtype(model.dtype())?;
            model.params_mut().set(slot, tensor);
        } else if let Some(name) = name.strip_prefix(STATE) {
            state.insert(name.to_owned(), tensor);
        }
    }
    let state = found.meta.clone().map(|meta| TrainState { tensors: state, meta });
    Ok(Progressed { stage: found.blocks.len(), state, losses: found.losses.clone() })
}

struct Watching<'w, 'p> {
    executor: &'w mut Executor<'p>,
    stages: &'w [Stage],
    path: &'w str,
    record: Done,
    bar: ProgressBar,
}

impl Watching<'_, '_> {
    fn write(&mut self, model: &Transformer, state: Option<TrainState>) -> Result<()> {
        let before = self.stages.get(..self.record.blocks.len()).unwrap_or_default();
        let mut tensors: BTreeMap<String, Tensor> = learned(model, before).into_iter().map(|(k, t)| (format!("{LEARNED}{k}"), t)).collect();
        self.record.meta = state.as_ref().map(|s| s.meta.clone());
        tensors.extend(state.into_iter().flat_map(|s| s.tensors).map(|(k, t)| (format!("{STATE}{k}"), t)));
        let text = serde_json::to_vec(&self.record).map_err(|e| Error::Internal(format!("a checkpoint can't be written as JSON: {e}")))?;
        let length = text.len();
        tensors.insert(WATCH.to_owned(), Tensor::from_vec(text, length, &Device::Cpu)?);
        self.executor.dir.write(self.path, &to_bytes(&tensors)?)?;
        Ok(())
    }
}

fn inside(e: Error) -> PruneError {
    PruneError::Data(Box::new(e))
}

impl BlockObserver for Watching<'_, '_> {
    fn step(&mut self, stage: usize, model: &Transformer, trainer: &mut Trainer<'_>, event: &StepEvent) -> prunectl_prune::Result<()> {
        let steps = event.steps * self.stages.len() as u64;
        let at = stage as u64 * event.steps + event.step;
        let name = self.stages.get(stage).map_or_else(String::new, Stage::name);
        self.bar.set_length(steps);
        self.bar.set_position(at);
        self.bar.set_message(format!("{name}: loss {:.3e}, {:.0} tokens/s", event.loss, event.tokens_per_second));
        if at.is_multiple_of(steps.div_ceil(CURVE_POINTS).max(1)) || event.step == 1 || event.step == event.steps {
            self.record.curve.loss.push((at as f64, event.loss));
        }
        self.record.losses.push(event.loss);
        if event.step.is_multiple_of(EVERY_STEPS) && event.step < event.steps {
            self.write(model, Some(trainer.state()?)).map_err(inside)?;
        }
        Ok(())
    }

    fn done(&mut self, _: usize, rebuilt: &Rebuilt, model: &Transformer) -> prunectl_prune::Result<()> {
        self.executor.options.ui.note(format!(
            "{}: {} steps, {} parameters, mean square {:.3e} at first, {:.3e} at last",
            rebuilt.name, rebuilt.steps, rebuilt.parameters, rebuilt.first, rebuilt.last
        ));
        self.record.blocks.push(rebuilt.clone());
        self.record.losses.clear();
        self.write(model, None).map_err(inside)
    }
}
