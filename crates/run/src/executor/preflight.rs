//! What can be found wrong before a run directory is made: models and data that are not there, targets that belong to somebody else.

use std::path::{Path, PathBuf};

use prunectl_prune::{OPTIMIZERS, build};
use prunectl_recipe::Sources;
use prunectl_recipe::plan::{CriterionRef, DataExpr, Method, ModelDecl, ModelSource, Plan, Span, Step, StepKind, Train, Value};

use crate::data::DataStore;
use crate::error::{Error, Result};
use crate::executor::at;
use crate::executor::pruning::stored_in;
use crate::models::read_facts;
use crate::save::{adapter_files, check_adapter, check_target};
use crate::session::{DeviceChoice, Dtype, Options};
use crate::streaming;

/// Reads configs and headers, looks for data files and targets; no weight and no row is read.
pub fn preflight(plan: &Plan, sources: &Sources, options: &Options) -> Result<()> {
    let hub = &options.hub;
    for decl in plan.models.iter().filter(|d| !matches!(d.source, ModelSource::Copy(_))) {
        read_facts(decl, hub).map_err(|e| at(sources, decl.span, e))?;
    }
    let mut found = Found::default();
    found.steps(&plan.steps);
    let data = DataStore::new(&plan.data, hub);
    for (span, expr) in found.data {
        data.check(expr).map_err(|e| at(sources, span, e.into()))?;
    }
    for (span, folder) in &found.adapters {
        if !found.saves.iter().any(|(_, to)| same_place(to, folder)) {
            check_adapter(folder).map_err(|e| at(sources, *span, e.into()))?;
        }
    }
    room(plan, sources, options)?;
    for (span, to) in found.saves {
        check_target(&PathBuf::from(to), &plan.name).map_err(|e| at(sources, span, e.into()))?;
    }
    Ok(())
}

/// Refuses to train, all of its parameters at once, a model that with its gradients and the optimizer's state takes more than there is:
/// a bound from below, activations left out, so what is refused could not have run.
fn room(plan: &Plan, sources: &Sources, options: &Options) -> Result<()> {
    // Of another device nothing is known before it is opened.
    if !matches!(options.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
        return Ok(());
    }
    let mut trainings = Vec::new();
    trained(&plan.steps, &mut trainings);
    let have = streaming::budget(options.memory);
    for (span, train) in trainings {
        let origin = |name: &str| plan.models.iter().find(|d| d.name == name);
        let mut decl = origin(&train.model);
        // A copy has the shapes of what it copies.
        while let Some(ModelSource::Copy(of)) = decl.map(|d| &d.source) {
            decl = origin(of);
        }
        let Some(decl) = decl.filter(|_| train.only.is_none()) else { continue };
        let buffers = build(OPTIMIZERS, &train.optimizer.name, &train.optimizer.args).map_or(0, |o| o.buffers().len() as u64);
        // The parameters, their gradients, and the optimizer's buffers.
        let need = read_facts(decl, &options.hub)?.parameters.saturating_mul((2 + buffers) * value_bytes(decl, options));
        if need > have {
            let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
            let refused = Error::Refused {
                what: format!(
                    "training all of `{}` takes {:.1} GiB for parameters, gradients and {}'s state alone; this run may use {:.1} GiB",
                    train.model,
                    gib(need),
                    train.optimizer.name,
                    gib(have)
                ),
                remedy: "train a part of it (`only = …`) or adapters (`attach lora(…)`), a smaller model, or on a larger machine"
                    .to_owned(),
            };
            return Err(at(sources, span, refused));
        }
    }
    Ok(())
}

/// Bytes of a value as the run computes: f32 unless the command line or the model says otherwise.
fn value_bytes(decl: &ModelDecl, options: &Options) -> u64 {
    let stated = decl.dtype.as_deref().and_then(|d| d.parse::<Dtype>().ok());
    options.dtype.or(stated).map_or(4, |d| d.0.size_in_bytes() as u64)
}

fn trained<'p>(steps: &'p [Step], into: &mut Vec<(Span, &'p Train)>) {
    for step in steps {
        match &step.kind {
            StepKind::Train(train) => into.push((step.span, train)),
            StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| trained(r, into)),
            StepKind::Sweep { cells, .. } => cells.iter().for_each(|c| trained(&c.steps, into)),
            _ => {}
        }
    }
}

/// Whether both name one folder; what is saved starts from the working directory.
fn same_place(saved: &str, folder: &Path) -> bool {
    let whole = |path: &Path| std::path::absolute(path).ok();
    whole(Path::new(saved)).is_some_and(|saved| Some(saved) == whole(folder))
}

/// Whether a step of the plan saves to that folder.
pub(super) fn saves_to(plan: &Plan, folder: &Path) -> bool {
    let mut found = Found::default();
    found.steps(&plan.steps);
    found.saves.iter().any(|(_, to)| same_place(to, folder))
}

/// Files that steps of a plan read besides models and data, as far as they are there before it runs: adapters, scores of earlier runs.
pub fn others_of(plan: &Plan) -> Vec<PathBuf> {
    let mut found = Found::default();
    found.steps(&plan.steps);
    let Found { adapters, saves, mut scores, .. } = found;
    let from_elsewhere = |folder: &&Path| !saves.iter().any(|(_, to)| same_place(to, folder));
    scores.extend(adapters.iter().map(|(_, folder)| *folder).filter(from_elsewhere).flat_map(adapter_files));
    scores.sort();
    scores.dedup();
    scores.retain(|path| path.is_file());
    scores
}

/// Every data expression that the steps of a plan read.
pub fn data_of(plan: &Plan) -> Vec<&DataExpr> {
    let mut found = Found::default();
    found.steps(&plan.steps);
    found.data.into_iter().map(|(_, expr)| expr).collect()
}

/// What the steps of a plan read and write.
#[derive(Default)]
struct Found<'p> {
    data: Vec<(Span, &'p DataExpr)>,
    saves: Vec<(Span, &'p str)>,
    /// Folders that adapters are read from.
    adapters: Vec<(Span, &'p Path)>,
    /// Scores of earlier runs, where they can be found.
    scores: Vec<PathBuf>,
}

impl<'p> Found<'p> {
    fn steps(&mut self, steps: &'p [Step]) {
        for step in steps {
            match &step.kind {
                StepKind::Save { to, .. } => self.saves.push((step.span, to)),
                StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| self.steps(r)),
                StepKind::Sweep { cells, .. } => cells.iter().for_each(|c| self.steps(&c.steps)),
                StepKind::Attach { adapter, .. } => {
                    if let Some(Value::Path(folder)) = adapter.args.get("from") {
                        self.adapters.push((adapter.span, folder));
                    }
                }
                StepKind::Score { criterion, .. } => self.criterion(criterion, &step.name),
                StepKind::Prune(prune) => {
                    self.criterion(&prune.criterion, &step.name);
                    if let Some(Value::Data(expr)) = prune.options.get("on") {
                        self.data.push((step.span, expr));
                    }
                }
                StepKind::Eval { metric, data, .. } => {
                    self.data.extend(data.iter().map(|d| (step.span, d)));
                    self.method(metric);
                }
                StepKind::Reconstruct { data, .. } => self.data.push((step.span, data)),
                StepKind::Train(train) => {
                    self.data.push((step.span, &train.data));
                    train.loss.iter().for_each(|(_, m)| self.method(m));
                    train.prunes.iter().for_each(|p| self.criterion(&p.criterion, &step.name));
                    train.evals.iter().for_each(|(s, _)| self.steps(std::slice::from_ref(s)));
                }
                _ => {}
            }
        }
    }

    fn criterion(&mut self, criterion: &'p CriterionRef, step: &str) {
        match criterion {
            CriterionRef::Method(method) => self.method(method),
            CriterionRef::Run { dir, name } => self.scores.extend(stored_in(dir, name.as_deref(), step)),
            CriterionRef::Stored(_) => {}
        }
    }

    fn method(&mut self, method: &'p Method) {
        for value in method.args.0.values() {
            if let Value::Data(expr) = value {
                self.data.push((method.span, expr));
            }
        }
    }
}
