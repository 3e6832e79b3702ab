//! `train`: the one training loop with what surrounds it here: evals inside, `keep`, `stop`, checkpoints, curves.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Transformer, cost};
use prunectl_prune::{
    Examples, Flow, LOSSES, METRICS, Metric, OPTIMIZERS, Observer, PruneError, StepEvent, Stored, Term, TrainMeta, TrainSpec, TrainState,
    Trainer, build,
};
use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{Method, Step, StepKind, Train, Value, When};
use safetensors::View;
use serde::{Deserialize, Serialize};

use crate::data::{DataBatches, Need};
use crate::error::{Error, Result};
use crate::executor::book::{Curve, plain_name};
use crate::executor::imitation::{alone, beside};
use crate::executor::inner::{KEPT, choose, kept, stopped};
use crate::executor::inputs::{Wanted, batches};
use crate::executor::state::ModelState;
use crate::executor::store::from_bytes;
use crate::executor::{Executor, Outcome};
use crate::files::file_name_of;
use crate::journal::{Event, StepDone};
use crate::rundir::CHECKPOINTS;
use crate::session::Dtype;

/// Seconds between checkpoints where the recipe doesn't say.
const CHECKPOINT_SECONDS: u64 = 300;
/// Points of a curve in the report.
const CURVE_POINTS: u64 = 400;

/// What a resumed training needs besides tensors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Watch {
    meta: Option<TrainMeta>,
    curve: Curve,
    /// The best value of `keep`'s metric so far.
    best: Option<f64>,
    /// The best value of `stop`'s metric so far, and evaluations since.
    stale: (Option<f64>, u64),
}

impl Executor<'_> {
    pub(super) fn train(&mut self, step: &Step, train: &Train, done: Option<&StepDone>) -> Result<Outcome> {
        let state = self.state.model(&train.model)?.clone();
        if let Some(done) = done {
            let (file, hash) = done.files.first().ok_or_else(|| Error::Internal("a finished training has no checkpoint".to_owned()))?;
            let tensors = from_bytes(&self.dir.read_checked(file, hash)?, &self.dir.join(file))?;
            self.book.curves.push(serde_json::from_value(done.result.clone()).unwrap_or_default());
            self.put_weights(&train.model, tensors)?;
            self.replay_inner(step, train, done)?;
            return Ok(Outcome {
                files: done.files.clone(),
                result: done.result.clone(),
                reused: Some("trained before the interruption".to_owned()),
            });
        }
        let mut spec = self.train_spec(train, &state)?;
        let start = beside(&state.model, &mut spec)?;
        // `masked_lm` hides tokens itself, so the data gives none.
        let labels = !train.loss.iter().any(|(_, m)| m.name == "masked_lm");
        let wanted = Wanted { need: Need::Optional, labels, batch: Some(spec.batch as u64), backward: true, apart: false };
        let mut data = batches(&self.data, &state, &train.data, wanted)?;
        if matches!(train.length, When::Tokens(_)) {
            data.count_tokens()?;
        }
        spec.length = self.stretched(step, train, &state, &mut data)?;
        let path = format!("{CHECKPOINTS}/{}.safetensors", file_name_of(&step.name));
        let resumed = self.read_checkpoint(&path)?;
        let mut watch = Watch { curve: Curve { name: step.name.clone(), ..Curve::default() }, ..Watch::default() };
        let mut best = None;
        let mut trainer = match resumed {
            Some(resumed) => {
                let (at, of) = (resumed.state.meta.step, resumed.state.meta.steps);
                self.options.ui.note(format!("{}: goes on after step {at} of {of}", step.name));
                self.dir.log(&Event::Continue { name: step.name.clone(), step: at, of })?;
                watch = resumed.watch;
                best = resumed.best;
                Trainer::resume(&start, &state.removed, &spec, &data, &resumed.state)?
            }
            None => Trainer::new(&start, &state.removed, &spec, &data)?,
        };
        watch.curve.trained = trainer.trained().0;
        if let (trained, all) = trainer.trained()
            && trained < all
        {
            self.options.ui.note(format!("{}: {trained} of {all} parameters train", step.name));
        }
        let evals = self.inner_evals(train)?;
        let progress = self.options.ui.bar(&step.name);
        let mut observer = TrainObserver {
            executor: self,
            train,
            evals,
            every: checkpoint_every(&train.options),
            last_checkpoint: std::time::Instant::now(),
            path: &path,
            watch: &mut watch,
            best: &mut best,
            bar: progress,
        };
        let ran = trainer.run(&mut data, &mut observer);
        observer.bar.finish_and_clear();
        ran.map_err(|e| stopped(e, watch.meta.as_ref(), &self.dir.join(&path)))?;
        for note in data.notes() {
            self.options.ui.note(note);
        }
        let mut model = alone(trainer.model()?);
        let mut decisions = trainer.decisions();
        if let Some(best) = best {
            choose(&mut decisions, &best)?;
            for (slot, tensor) in best.into_iter().filter(|(slot, _)| !slot.starts_with(KEPT)) {
                let tensor = tensor.to_device(model.device())?.to_dtype(model.dtype())?;
                model.params_mut().set(slot, tensor);
            }
        }
        let trained: BTreeMap<String, Tensor> = model.params().iter().map(|(k, t)| (k.to_owned(), t.clone())).collect();
        let file = format!("{CHECKPOINTS}/{}-done.safetensors", file_name_of(&step.name));
        let hash = self.dir.write_tensors(&file, whole(&trained)?)?;
        let result = serde_json::to_value(&watch.curve).map_err(|e| Error::Internal(format!("a curve can't be written as JSON: {e}")))?;
        self.book.curves.push(watch.curve);
        self.put_weights(&train.model, trained)?;
        let mut files = vec![(file, hash)];
        files.extend(self.put_decisions(step, train, decisions)?);
        Ok(Outcome { files, result, reused: None })
    }

    pub(super) fn put_weights(&mut self, name: &str, tensors: BTreeMap<String, Tensor>) -> Result<()> {
        let device = self.device.clone();
        let state = self.state.model_mut(name)?;
        let dtype = state.model.dtype();
        for (slot, tensor) in tensors {
            state.model.params_mut().set(slot, tensor.to_device(&device)?.to_dtype(dtype)?);
        }
        state.changed = true;
        Ok(())
    }

    fn train_spec(&self, train: &Train, state: &ModelState) -> Result<TrainSpec> {
        let count = |name: &str| train.options.get(name).and_then(Value::as_u64);
        let mut loss = Vec::with_capacity(train.loss.len());
        for (weight, method) in &train.loss {
            let args = self.with_mask_token(method, state)?;
            let term = build(LOSSES, &method.name, &args)?;
            let teacher = term.teacher().map(|t| self.state.network(t).map(|(m, _)| m)).transpose()?;
            term.teacher().map(|t| self.same_tokens(t, state)).transpose()?;
            loss.push(Term { weight: weight.clone(), term, teacher });
        }
        let only = self.trained(state, train.only.as_ref())?;
        Ok(TrainSpec {
            length: train.length,
            batch: count("batch").unwrap_or(1).max(1) as usize,
            accumulate: count("accumulate").unwrap_or(1).max(1) as usize,
            clip: train.options.get("clip").and_then(Value::as_f64),
            optimizer: build(OPTIMIZERS, &train.optimizer.name, &train.optimizer.args)?,
            loss,
            only,
            seed: count("seed").unwrap_or(0),
            dtype: passes(&train.options),
            recompute: matches!(train.options.get("recompute"), Some(Value::Bool(true))),
            prunes: self.inner_prunes(train, state)?,
        })
    }

    /// The training's length; with `flops_of` as many FLOPs as it would be of that model. Both are those of an example of average length.
    fn stretched(&self, step: &Step, train: &Train, state: &ModelState, data: &mut DataBatches) -> Result<When> {
        let Some(of) = train.options.get("flops_of") else { return Ok(train.length) };
        let (other, name) = self.state.network(of)?;
        let tokens = (data.count_tokens()? as usize).div_ceil(data.len().max(1)).max(1);
        let cost = |m: &Transformer| cost::flops(m.blueprint(), m.dims(), tokens) as f64;
        let ratio = cost(&other) / cost(&state.model).max(1.0);
        self.options.ui.note(format!("{}: as many FLOPs as `{name}` would take, {ratio:.3} times the length", step.name));
        Ok(match train.length {
            When::Steps(n) => When::Steps((n as f64 * ratio).round().max(1.0) as u64),
            When::Tokens(n) => When::Tokens((n as f64 * ratio).round().max(1.0) as u64),
            When::Epochs(n) => When::Epochs(n * ratio),
            When::Share(share) => When::Share(share),
        })
    }

    /// The mask token of the tokenizer, where a loss wants one and the recipe names none.
    fn with_mask_token(&self, method: &Method, state: &ModelState) -> Result<Args> {
        let mut args = method.args.clone();
        if method.name == "masked_lm"
            && args.get("mask").is_none()
            && let Some(tokenizer) = &state.tokenizer
        {
            args.0.insert("mask".to_owned(), Value::Number(f64::from(tokenizer.mask()?)));
        }
        Ok(args)
    }

    fn inner_evals<'t>(&self, train: &'t Train) -> Result<Vec<InnerEval<'t>>> {
        let mut out = Vec::with_capacity(train.evals.len());
        for (step, every) in &train.evals {
            let StepKind::Eval { metric, model, data, batch } = &step.kind else { continue };
            out.push(InnerEval {
                name: plain_name(&step.name).to_owned(),
                step,
                metric,
                model,
                data: data.as_ref(),
                batch: *batch,
                every: *every,
                built: build(METRICS, &metric.name, &metric.args)?,
            });
        }
        Ok(out)
    }

    fn read_checkpoint(&self, path: &str) -> Result<Option<Resumed>> {
        let full = self.dir.join(path);
        let bytes = match std::fs::read(&full) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &full)(e)),
        };
        let damaged = |what: String| Error::Damaged { path: full.clone(), what };
        let mut state = BTreeMap::new();
        let mut best = BTreeMap::new();
        let mut watch = None;
        for (name, tensor) in from_bytes(&bytes, &full)? {
            if name == WATCH {
                let text = tensor.to_vec1::<u8>()?;
                watch = Some(serde_json::from_slice::<Watch>(&text).map_err(|e| damaged(e.to_string()))?);
            } else if let Some(slot) = name.strip_prefix(BEST) {
                best.insert(slot.to_owned(), tensor);
            } else if let Some(slot) = name.strip_prefix(STATE) {
                state.insert(slot.to_owned(), tensor);
            }
        }
        let watch = watch.ok_or_else(|| damaged("it has no record of the training".to_owned()))?;
        let meta = watch.meta.clone().ok_or_else(|| damaged("it has no step number".to_owned()))?;
        Ok(Some(Resumed { state: TrainState { tensors: state, meta }, watch, best: (!best.is_empty()).then_some(best) }))
    }
}

const STATE: &str = "state/";
const BEST: &str = "best/";
const WATCH: &str = "watch";

/// What a checkpoint of a training holds.
struct Resumed {
    state: TrainState,
    watch: Watch,
    /// Weights of the best evaluation so far, by slot.
    best: Option<BTreeMap<String, Tensor>>,
}

/// An `eval` inside `train`.
struct InnerEval<'t> {
    name: String,
    step: &'t Step,
    metric: &'t Method,
    model: &'t Value,
    data: Option<&'t prunectl_recipe::plan::DataExpr>,
    batch: Option<u64>,
    every: When,
    built: Box<dyn Metric>,
}

/// Sees every step of a training.
struct TrainObserver<'t, 'e, 'p> {
    executor: &'t mut Executor<'p>,
    train: &'e Train,
    evals: Vec<InnerEval<'e>>,
    every: Option<When>,
    last_checkpoint: std::time::Instant,
    path: &'t str,
    watch: &'t mut Watch,
    best: &'t mut Option<BTreeMap<String, Tensor>>,
    bar: indicatif::ProgressBar,
}

impl Observer for TrainObserver<'_, '_, '_> {
    fn step(&mut self, trainer: &mut Trainer<'_>, event: &StepEvent) -> prunectl_prune::Result<Flow> {
        self.after(trainer, event).map_err(|e| PruneError::Data(Box::new(e)))
    }
}

impl TrainObserver<'_, '_, '_> {
    fn after(&mut self, trainer: &Trainer<'_>, event: &StepEvent) -> Result<Flow> {
        self.bar.set_length(event.steps);
        self.bar.set_position(event.step);
        let gone = event.sparsity.map_or_else(String::new, |s| format!(", {:.1}% masked", s * 100.0));
        self.bar.set_message(format!("loss {:.4}{gone}, lr {:.1e}, {:.0} tokens/s", event.loss, event.lr, event.tokens_per_second));
        let at = event.step as f64;
        let stride = event.steps.div_ceil(CURVE_POINTS).max(1);
        if event.step.is_multiple_of(stride) || event.step == 1 || event.step == event.steps {
            self.watch.curve.loss.push((at, event.loss));
            self.watch.curve.sparsity.extend(event.sparsity.map(|s| (at, s)));
        }
        if event.step.is_multiple_of(stride.max(1) * 10) {
            let line = format!("step {}/{}: loss {:.4}{gone}, lr {:.2e}", event.step, event.steps, event.loss, event.lr);
            self.executor.options.ui.detail(line);
        }
        let mut flow = Flow::Continue;
        for i in 0..self.evals.len() {
            let due = self.evals.get(i).is_some_and(|e| due(e.every, event));
            if due && self.evaluate(i, trainer, at)? == Flow::Stop {
                flow = Flow::Stop;
            }
        }
        let timed = self.every.is_none() && self.last_checkpoint.elapsed().as_secs() >= CHECKPOINT_SECONDS;
        if event.step < event.steps && (timed || self.every.is_some_and(|every| due(every, event))) {
            self.checkpoint(trainer)?;
        }
        Ok(flow)
    }

    fn evaluate(&mut self, i: usize, trainer: &Trainer<'_>, at: f64) -> Result<Flow> {
        let Some(eval) = self.evals.get(i) else { return Ok(Flow::Continue) };
        let model = alone(trainer.model()?);
        let mut trained: BTreeMap<String, Tensor> = model.params().iter().map(|(k, t)| (k.to_owned(), t.clone())).collect();
        // The metric sees the model as it is now under its own name; other models are as they were.
        let before = self.executor.state.model(&self.train.model)?.model.clone();
        self.executor.state.model_mut(&self.train.model)?.model = model;
        let measured = self.executor.measure(&*eval.built, eval.metric, eval.model, eval.data, eval.batch);
        self.executor.state.model_mut(&self.train.model)?.model = before.clone();
        let value = measured?.value;
        self.executor.options.ui.note(format!(
            "step {at}: {} = {}",
            eval.step.name,
            crate::report::figure(value, super::book::unit_of(&eval.metric.name))
        ));
        self.watch.curve.evals.entry(eval.name.clone()).or_default().push((at, value));
        self.executor.metrics.insert(eval.name.clone(), value);
        // What was measured before the last units went speaks of another model.
        if !trainer.settled() {
            return Ok(Flow::Continue);
        }
        if let Some((name, lowest)) = &self.train.keep
            && plain_name(name) == eval.name
            && better(value, self.watch.best, *lowest)
        {
            self.watch.best = Some(value);
            trained.extend(kept(&trainer.decisions(), &before)?);
            *self.best = Some(trained);
        }
        if let Some(stop) = &self.train.stop
            && matches!(stop.args.get("metric"), Some(Value::Name(n) | Value::Word(n) | Value::Text(n)) if plain_name(n) == eval.name)
        {
            let lowest = eval.built.higher_is_better() != Some(true);
            if better(value, self.watch.stale.0, lowest) {
                self.watch.stale = (Some(value), 0);
            } else {
                self.watch.stale.1 += 1;
            }
            if stop.args.count("after").is_ok_and(|n| self.watch.stale.1 >= n) {
                self.executor.options.ui.note(format!(
                    "step {at}: {} has not improved for {} evaluations; the training ends here",
                    eval.name, self.watch.stale.1
                ));
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    fn checkpoint(&mut self, trainer: &Trainer<'_>) -> Result<()> {
        self.watch.meta = Some(trainer.meta());
        let text = serde_json::to_vec(&self.watch).map_err(|e| Error::Internal(format!("a checkpoint can't be written as JSON: {e}")))?;
        let mut tensors: Vec<(String, Part<'_>)> = trainer.stored()?.into_iter().map(|(k, t)| (format!("{STATE}{k}"), Part(t))).collect();
        for (slot, tensor) in self.best.iter().flatten() {
            tensors.push((format!("{BEST}{slot}"), Part(Stored::Tensor(tensor.contiguous()?))));
        }
        let length = text.len();
        let watch = Tensor::from_vec(text, length, &candle_core::Device::Cpu)?;
        tensors.push((WATCH.to_owned(), Part(Stored::Tensor(watch))));
        self.executor.dir.write_tensors(self.path, tensors)?;
        self.last_checkpoint = std::time::Instant::now();
        Ok(())
    }
}

/// A tensor of a checkpoint, turned into bytes when its turn comes.
struct Part<'a>(Stored<'a>);

impl View for Part<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match &self.0 {
            Stored::Values { .. } => safetensors::Dtype::F32,
            Stored::Tensor(tensor) => View::dtype(&tensor),
        }
    }

    fn shape(&self) -> &[usize] {
        match &self.0 {
            Stored::Values { shape, .. } => shape,
            Stored::Tensor(tensor) => tensor.dims(),
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.0 {
            Stored::Values { values, .. } => Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Stored::Tensor(tensor) => Cow::Owned(View::data(&tensor).into_owned()),
        }
    }

    fn data_len(&self) -> usize {
        match &self.0 {
            Stored::Values { values, .. } => size_of_val(*values),
            Stored::Tensor(tensor) => View::data_len(&tensor),
        }
    }
}

/// Tensors as files take them.
fn whole(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<(String, Tensor)>> {
    tensors.iter().map(|(name, t)| Ok((name.clone(), t.contiguous()?))).collect()
}

fn better(value: f64, than: Option<f64>, lowest: bool) -> bool {
    !value.is_nan() && than.is_none_or(|t| if lowest { value < t } else { value > t })
}

/// Whether something is due after this step; the last step is always due.
fn due(every: When, event: &StepEvent) -> bool {
    if event.step == event.steps {
        return true;
    }
    let crossed = |now: f64, per_step: f64, length: f64| length > 0.0 && (now / length).floor() > ((now - per_step) / length).floor();
    let per_step_epochs = event.epoch / event.step.max(1) as f64;
    match every {
        When::Steps(n) => n > 0 && event.step.is_multiple_of(n),
        When::Share(share) => crossed(event.step as f64, 1.0, share * event.steps as f64),
        When::Epochs(epochs) => crossed(event.epoch + 1e-9, per_step_epochs, epochs),
        When::Tokens(tokens) => crossed(event.step as f64 * event.tokens as f64, event.tokens as f64, tokens as f64),
    }
}

/// The type that a training's passes are computed in, where the recipe names one.
pub(super) fn passes(options: &Args) -> Option<DType> {
    options.word("dtype").ok().and_then(|word| word.parse::<Dtype>().ok()).map(|dtype| dtype.0)
}

fn checkpoint_every(options: &Args) -> Option<When> {
    use prunectl_recipe::plan::Unit;
    match options.get("checkpoint_every") {
        Some(Value::Quantity(n, Unit::Steps)) => Some(When::Steps(*n as u64)),
        Some(Value::Quantity(n, Unit::Epochs)) => Some(When::Epochs(*n)),
        _ => None,
    }
}
