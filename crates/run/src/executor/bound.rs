//! `prune … to BOUND`: what a limit means on this machine, and what came of it.

use prunectl_model::Transformer;
use prunectl_prune::{Batches, Decision, Inputs, METRICS, Metric, Request, Scores, Shape, build, site, surgery, to_limits, to_shape};
use prunectl_recipe::plan::{Bound, Limit, LimitValue, Prune, Step, Value};
use serde_json::{Value as Json, json};

use crate::data::Need;
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::executor::inputs::{Wanted, batches};
use crate::executor::state::ModelState;
use crate::report::figure;

/// A limit in its metric's unit.
struct Known {
    metric: Box<dyn Metric>,
    name: String,
    most: f64,
}

impl Executor<'_> {
    /// Decides and masks; says how, for the journal and the report.
    pub(super) fn bounded(
        &self,
        state: &mut ModelState,
        bound: &Bound,
        scores: &Scores,
        request: &Request<'_>,
        prune: &Prune,
        own: Option<&mut dyn Batches>,
    ) -> Result<(Decision, Json)> {
        let limits = match bound {
            Bound::Limits(limits) => limits,
            Bound::Shape(wanted) => {
                let decision = to_shape(scores, request, &Shape::of(&state.model, request.sites)?, wanted)?;
                surgery::mask(&mut state.model, &mut state.removed, &decision)?;
                let shape = wanted.iter().map(|(kind, n)| (site::part(*kind).to_owned(), json!(n))).collect::<serde_json::Map<_, _>>();
                return Ok((decision, json!({"shape": shape})));
            }
        };
        let known = limits.iter().map(|l| self.limit(l, &state.dense)).collect::<Result<Vec<_>>>()?;
        let mut given = match prune.options.get("on") {
            Some(Value::Data(expr)) => {
                let wanted = Wanted { need: Need::Required, labels: true, batch: prune.batch, backward: false, apart: false };
                Some(batches(&self.data, state, expr, wanted)?)
            }
            _ => None,
        };
        let data = match (&mut given, own) {
            (Some(given), _) => given as &mut dyn Batches,
            (None, Some(own)) => own,
            (None, None) => {
                return Err(Error::Refused {
                    what: "a bound is met from sensitivity curves, which are measured on data, and none is given".to_owned(),
                    remedy: "give it in the step's block: `{ on = DATA }`".to_owned(),
                });
            }
        };
        let progress = self.progress("sensitivity");
        let names: Vec<&str> = known.iter().map(|k| k.name.as_str()).collect();
        let mut measure = |model: &Transformer| {
            known.iter().map(|k| Ok(value(&*k.metric, model)? / k.most)).collect::<prunectl_prune::Result<Vec<f64>>>()
        };
        let found = to_limits(&state.model, scores, request, (&names, &mut measure), data, &progress)?;
        surgery::mask(&mut state.model, &mut state.removed, &found.decision)?;
        let (dense, pruned, uniform) = found.losses;
        for (limit, share) in known.iter().zip(&found.reached) {
            let unit = crate::executor::unit_of(&limit.name);
            self.options.ui.note(format!("{}: {} of at most {}", limit.name, figure(share * limit.most, unit), figure(limit.most, unit)));
        }
        let even = uniform.map_or_else(
            || "an equal share of every layer can't meet it".to_owned(),
            |u| format!("{u:.4} with an equal share of every layer"),
        );
        self.options.ui.note(format!("loss {pruned:.4}, dense {dense:.4}, {even}"));
        let how = json!({
            "limits": known.iter().zip(&found.reached).map(|(k, r)| json!({"metric": k.name, "at_most": k.most, "reached": r * k.most})).collect::<Vec<_>>(),
            "loss": {"dense": dense, "pruned": pruned, "uniform": uniform},
            "curves": found.curves.iter().map(|c| json!({"site": c.key.to_string(), "points": c.points})).collect::<Vec<_>>(),
        });
        Ok((found.decision, how))
    }

    fn limit(&self, limit: &Limit, dense: &Transformer) -> Result<Known> {
        let metric = build(METRICS, &limit.metric.name, &limit.metric.args)?;
        let most = match limit.value {
            LimitValue::Absolute(most) => most,
            LimitValue::OfDense(share) => value(&*metric, dense)? * share.fraction(),
        };
        Ok(Known { metric, name: limit.metric.name.clone(), most })
    }

    /// What stands between `to` and `using`.
    pub(super) fn goal_text(&self, step: &Step) -> String {
        let text = self.sources.slice(step.span).split_whitespace().collect::<Vec<_>>().join(" ");
        let goal = text.split_once(" to ").map_or("", |(_, rest)| rest);
        format!("to {}", goal.split(" using ").next().unwrap_or(goal))
    }
}

/// A metric of the model alone.
fn value(metric: &dyn Metric, model: &Transformer) -> prunectl_prune::Result<f64> {
    let mut inputs = Inputs { model, batches: None, stream: None, questions: None, asked: None, teacher: None, batch: 1, progress: &() };
    Ok(metric.measure(&mut inputs)?.value)
}
