//! What can be found wrong before a run directory is made: models and data that are not there, targets that belong to somebody else.

use std::path::PathBuf;

use prunectl_recipe::Sources;
use prunectl_recipe::plan::{CriterionRef, DataExpr, Method, ModelSource, Plan, Span, Step, StepKind, Value};

use crate::data::DataStore;
use crate::error::Result;
use crate::executor::at;
use crate::hub::Door;
use crate::models::read_facts;
use crate::save::check_target;

/// Reads configs and headers, looks for data files and targets; no weight and no row is read.
pub fn preflight(plan: &Plan, sources: &Sources, hub: &Door) -> Result<()> {
    for decl in plan.models.iter().filter(|d| !matches!(d.source, ModelSource::Copy(_))) {
        read_facts(decl, hub).map_err(|e| at(sources, decl.span, e))?;
    }
    let mut found = Found::default();
    found.steps(&plan.steps);
    let data = DataStore::new(&plan.data, hub);
    for (span, expr) in found.data {
        data.check(expr).map_err(|e| at(sources, span, e.into()))?;
    }
    for (span, to) in found.saves {
        check_target(&PathBuf::from(to), &plan.name).map_err(|e| at(sources, span, e.into()))?;
    }
    Ok(())
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
}

impl<'p> Found<'p> {
    fn steps(&mut self, steps: &'p [Step]) {
        for step in steps {
            match &step.kind {
                StepKind::Save { to, .. } => self.saves.push((step.span, to)),
                StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| self.steps(r)),
                StepKind::Sweep { cells, .. } => cells.iter().for_each(|c| self.steps(&c.steps)),
                StepKind::Score { criterion, .. } => self.criterion(criterion),
                StepKind::Prune(prune) => {
                    self.criterion(&prune.criterion);
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
                    train.evals.iter().for_each(|(s, _)| self.steps(std::slice::from_ref(s)));
                }
                _ => {}
            }
        }
    }

    fn criterion(&mut self, criterion: &'p CriterionRef) {
        if let CriterionRef::Method(method) = criterion {
            self.method(method);
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
