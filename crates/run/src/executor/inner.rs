//! `prune` inside `train`, on the executor's side: from the plan to what the training loop takes, and from its last decisions to files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use prunectl_model::Transformer;
use prunectl_prune::{Decision, InnerPrune, Measure, PruneError, Scores, Shape, Sites, TrainMeta, surgery};
use prunectl_recipe::plan::{CriterionRef, Goal, Prune, Scope, Step, Train, Value};

use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::executor::book::Scored;
use crate::executor::pruning::{at_least, default_scope, scope};
use crate::executor::state::ModelState;
use crate::executor::store::{read_decision, read_scores, write_decision, write_scores};
use crate::files::file_name_of;
use crate::journal::StepDone;
use crate::rundir::{DECISIONS, SCORES};

/// What each `prune` inside decided, and on which scores; None where it never came to that.
pub(super) type Decided = Vec<Option<(Decision, Scores)>>;

/// Where keep masks stand among the best weights of a training.
pub(super) const KEPT: &str = "kept/";

impl Executor<'_> {
    pub(super) fn inner_prunes(&self, train: &Train, state: &ModelState) -> Result<Vec<InnerPrune>> {
        let labelled = !train.loss.iter().any(|(_, m)| m.name == "masked_lm");
        train.prunes.iter().map(|p| self.inner_prune(p, state, labelled)).collect()
    }

    /// `labelled`: whether the training's batches have labels.
    fn inner_prune(&self, prune: &Prune, state: &ModelState, labelled: bool) -> Result<InnerPrune> {
        let Goal::By(amount) = &prune.goal else {
            return Err(Error::Refused {
                what: "`prune … to BOUND` is not carried out by this build".to_owned(),
                remedy: "say how much goes: `by 40%`".to_owned(),
            });
        };
        let sites = state.sites(&prune.selector)?;
        let (measure, scope): (Measure, Scope) = match &prune.criterion {
            CriterionRef::Method(method) => {
                let ready = self.criterion(state, method, prune.batch, true)?;
                let given = matches!(method.args.get("on"), Some(Value::Data(_)));
                if ready.criterion.needs_data() && !given && !labelled {
                    return Err(Error::Refused {
                        what: format!(
                            "`{}` is measured on the training's batches, and `masked_lm` takes these without labels",
                            method.name
                        ),
                        remedy: format!("name its data: {}(on = DATA)", method.name),
                    });
                }
                let scope = scope(prune, &*ready.criterion, &sites);
                let on = given.then(|| RefCell::new(ready.data));
                (Measure::Criterion { criterion: ready.criterion, on }, scope)
            }
            CriterionRef::Stored(name) => (Measure::Stored(self.scores_named(name)?), prune.scope.unwrap_or_else(|| default_scope(&sites))),
            CriterionRef::Run { .. } => {
                return Err(Error::Refused {
                    what: "scores of another run can't be used inside `train`".to_owned(),
                    remedy: "write `score … from \"runs/…\" as s` before the `train`, and `using s` inside".to_owned(),
                });
            }
        };
        Ok(InnerPrune {
            protect: prune.protect.as_ref().map(|p| state.sites(p)).transpose()?.unwrap_or_default(),
            sites,
            amount: amount.clone(),
            scope,
            at_least: at_least(prune.at_least.as_ref())?,
            align: prune.align.and_then(|a| usize::try_from(a).ok()),
            every: prune.every,
            measure,
        })
    }

    /// Masks what the training decided in the model, and writes decisions and scores.
    pub(super) fn put_decisions(&mut self, step: &Step, train: &Train, decisions: Decided) -> Result<Vec<(String, String)>> {
        let mut files = Vec::new();
        for (i, decided) in decisions.into_iter().enumerate() {
            let Some((decision, scores)) = decided else { continue };
            let name = name_of(step, i, train.prunes.len());
            let map = self.state.model(&train.model)?.map.clone();
            let model = self.state.model(&train.model)?.model.clone();
            files.extend(write_decision(&self.dir, &name, &decision, &map, &model)?);
            files.push(write_scores(&self.dir, &name, &scores, &model)?);
            self.mask_inner(train, i, name, &decision, scores)?;
        }
        Ok(files)
    }

    /// The same from the files of a training that was finished before.
    pub(super) fn replay_inner(&mut self, step: &Step, train: &Train, done: &StepDone) -> Result<()> {
        for i in 0..train.prunes.len() {
            let name = name_of(step, i, train.prunes.len());
            let stem = file_name_of(&name);
            let own = |folder: &str| -> Vec<(String, String)> {
                let is = |file: &str| file == format!("{folder}/{stem}.json") || file == format!("{folder}/{stem}.safetensors");
                done.files.iter().filter(|(f, _)| is(f)).cloned().collect()
            };
            let (decision, scores) = (own(DECISIONS), own(SCORES));
            let Some((file, hash)) = scores.first() else { continue };
            let state = self.state.model(&train.model)?;
            let decision = read_decision(&self.dir, &decision, &state.map, &state.model)?;
            let scores = read_scores(&self.dir.read_checked(file, hash)?, &self.dir.join(file), &state.model)?;
            self.mask_inner(train, i, name, &decision, scores)?;
        }
        Ok(())
    }

    fn mask_inner(&mut self, train: &Train, i: usize, name: String, decision: &Decision, scores: Scores) -> Result<()> {
        let criterion = train.prunes.get(i).map(|p| self.criterion_call(&p.criterion)).unwrap_or_default();
        let state = self.state.model_mut(&train.model)?;
        surgery::mask(&mut state.model, &mut state.removed, decision)?;
        state.changed = true;
        let map = state.map.clone();
        let state = state.clone();
        let sites = train.prunes.get(i).map(|p| state.sites(&p.selector)).transpose()?.unwrap_or_default();
        self.say_what_went(&name, &sites, &state);
        self.book.scored.push(Scored { name, criterion, model: train.model.clone(), scores, map });
        Ok(())
    }
}

/// `train-1`, or `train-1.2` where several `prune`s stand inside.
fn name_of(step: &Step, i: usize, of: usize) -> String {
    if of == 1 { step.name.clone() } else { format!("{}.{}", step.name, i + 1) }
}

/// Decisions as tensors, to be kept beside the best weights.
pub(super) fn kept(decisions: &Decided, model: &Transformer) -> Result<BTreeMap<String, Tensor>> {
    let mut out = BTreeMap::new();
    for (i, (decision, _)) in decisions.iter().enumerate().filter_map(|(i, d)| Some((i, d.as_ref()?))) {
        let shape = Shape::of(model, &Sites::default())?;
        out.extend(decision.to_tensors(&shape)?.into_iter().map(|(name, t)| (format!("{KEPT}{i}/{name}"), t)));
    }
    Ok(out)
}

/// Puts the decisions that belong to the best weights in the place of the last ones.
pub(super) fn choose(decisions: &mut Decided, best: &BTreeMap<String, Tensor>) -> Result<()> {
    for (i, decided) in decisions.iter_mut().enumerate() {
        let stem = format!("{KEPT}{i}/");
        let own: BTreeMap<String, Tensor> =
            best.iter().filter_map(|(name, t)| Some((name.strip_prefix(&stem)?.to_owned(), t.clone()))).collect();
        if let (Some((decision, _)), false) = (decided, own.is_empty()) {
            *decision = Decision::from_tensors(&own)?;
        }
    }
    Ok(())
}

/// An error that ended a training, with what there is to go back to: a step's state in that file.
pub(super) fn stopped(error: PruneError, saved: Option<&TrainMeta>, file: &Path) -> Error {
    // What was computed with the weights of the step before, and so speaks of these.
    let by_those = match error {
        PruneError::Diverged { step, .. } | PruneError::GradientDiverged { step, .. } => step.checked_sub(1),
        PruneError::WeightsDiverged { .. } => None,
        other => return other.into(),
    };
    let kept = match saved {
        None => "no checkpoint of it was written before".to_owned(),
        Some(m) if Some(m.step) == by_those => format!("the only checkpoint, of step {} of {}, is where it went wrong", m.step, m.steps),
        Some(m) => format!("the last good checkpoint, of step {} of {}, is {}", m.step, m.steps, file.display()),
    };
    Error::Refused { what: error.to_string(), remedy: format!("{kept}; change the recipe and run it again") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prunectl_prune::Key;
    use prunectl_recipe::catalogue::SiteKind;

    #[test]
    fn the_best_decision_takes_the_place_of_the_last() {
        let key = Key::of(SiteKind::Neurons, 0);
        let of = |kept: &[usize]| Decision { sites: [(key, kept.to_vec())].into(), ..Decision::default() };
        let mut decisions: Decided = vec![Some((of(&[0, 1]), Scores::default())), None];
        let best = [(format!("{KEPT}0/{key}"), Tensor::new(&[0u8, 1, 1], &candle_core::Device::Cpu).unwrap())].into();
        choose(&mut decisions, &best).unwrap();
        assert_eq!(decisions[0].as_ref().unwrap().0.sites[&key], [1, 2]);
        choose(&mut decisions, &BTreeMap::new()).unwrap();
        assert_eq!(decisions[0].as_ref().unwrap().0.sites[&key], [1, 2]);
    }

    /// A checkpoint whose own loss is no number is not called good.
    #[test]
    fn a_diverging_training_says_what_is_left() {
        let meta = |step| TrainMeta { step, steps: 9, seed: 0, examples: 1 };
        let said = |saved: Option<u64>| {
            let error = PruneError::Diverged { step: 5, loss: f64::NAN, lr: 1.0 };
            stopped(error, saved.map(meta).as_ref(), Path::new("c/t")).to_string()
        };
        assert!(said(None).contains("no checkpoint of it"), "{}", said(None));
        assert!(said(Some(3)).contains("the last good checkpoint, of step 3 of 9, is c/t"), "{}", said(Some(3)));
        assert!(!said(Some(4)).contains("good") && said(Some(4)).contains("of step 4 of 9"), "{}", said(Some(4)));
        let other = PruneError::NothingToTrain;
        assert!(!stopped(other, None, Path::new("c/t")).to_string().contains("checkpoint"));
    }
}
