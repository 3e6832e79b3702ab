//! `score` and `prune`: from a selector and a criterion to scores, from scores to a decision, from a decision to zeros.

use std::path::Path;

use prunectl_model::Transformer;
use prunectl_prune::{
    AtLeast, Batches, CRITERIA, Criterion, Decision, Fit, InMemory, Request, Scores, Shape, Sites, build, rescore, select, surgery,
};
use prunectl_recipe::plan::{Amount, CriterionRef, Goal, Method, Prune, Scope, Selector, Share, Step, Value};
use serde_json::json;

use crate::data::Need;
use crate::error::{Error, Result};
use crate::executor::book::Scored;
use crate::executor::inputs::{Wanted, batches};
use crate::executor::state::{ModelState, model_of};
use crate::executor::store::{read_decision, read_scores, write_decision, write_scores};
use crate::executor::{Executor, Outcome};
use crate::files::file_name_of;
use crate::journal::StepDone;
use crate::rundir::SCORES;

/// A criterion ready to be called, and its data.
pub(super) struct Ready {
    pub criterion: Box<dyn Criterion>,
    pub data: Box<dyn Batches>,
}

impl Executor<'_> {
    pub(super) fn score(
        &mut self,
        step: &Step,
        selector: &Selector,
        criterion: &CriterionRef,
        batch: Option<u64>,
        done: Option<&StepDone>,
    ) -> Result<Outcome> {
        let name = model_of(selector).to_owned();
        let state = self.state.model(&name)?.clone();
        let sites = state.sites(selector)?;
        let call = self.criterion_call(criterion);
        let mut result = json!({"criterion": call, "model": name});
        let (scores, reused) = match (done, criterion) {
            (Some(done), _) => {
                result = done.result.clone();
                (self.stored_scores(done, &state.model)?, Some("finished before the interruption".to_owned()))
            }
            (None, CriterionRef::Method(method)) => {
                let mut ready = self.criterion(&state, method, batch, false)?;
                let progress = self.progress(&method.name);
                let scores = ready.criterion.score(&state.without_adapters()?.model, &sites, ready.data.as_mut(), &progress)?;
                result["standing"] = json!(ready.criterion.standing());
                (scores, None)
            }
            (None, CriterionRef::Stored(of)) => (self.scores_named(of)?, Some(format!("the scores of `{of}`"))),
            (None, CriterionRef::Run { dir, name: of }) => {
                let (scores, path) = scores_of_run(dir, of.as_deref(), &step.name, &state.model)?;
                self.lock_files(std::slice::from_ref(&path))?;
                fits(&scores, &state.model, &sites, &path)?;
                let reason = format!("the scores in {}", path.display());
                (scores, Some(reason))
            }
        };
        let file = write_scores(&self.dir, &step.name, &scores, &state.model)?;
        self.book.scored.push(Scored { name: step.name.clone(), criterion: call, model: name, scores: scores.clone(), map: state.map });
        self.state.scores.insert(step.name.clone(), scores.clone());
        self.state.scores.insert(super::book::plain_name(&step.name).to_owned(), scores);
        Ok(Outcome { files: vec![file], result, reused })
    }

    pub(super) fn prune(&mut self, step: &Step, prune: &Prune, done: Option<&StepDone>) -> Result<Outcome> {
        let name = model_of(&prune.selector).to_owned();
        let mut state = self.state.model(&name)?.clone();
        let call = self.criterion_call(&prune.criterion);
        // Weights that a method updated stand in no decision: such a step is done again.
        if let Some(done) = done.filter(|_| !updates_weights(prune)) {
            let decision = read_decision(&self.dir, &done.files, &state.map, &state.model)?;
            let scores = self.stored_scores(done, &state.model)?;
            self.book.scored.push(Scored { name: step.name.clone(), criterion: call, model: name.clone(), scores, map: state.map.clone() });
            surgery::mask(&mut state.model, &mut state.removed, &decision)?;
            state.changed = true;
            self.state.models.insert(name, state);
            if let Some(how) = done.result.get("bound") {
                self.book.bounds.push((step.name.clone(), how.clone()));
            }
            return Ok(Outcome {
                files: done.files.clone(),
                result: done.result.clone(),
                reused: Some("finished before the interruption".to_owned()),
            });
        }
        let sites = state.sites(&prune.selector)?;
        let protect = prune.protect.as_ref().map(|p| state.sites(p)).transpose()?.unwrap_or_default();
        // Up to a bound anything selected may go.
        let anything = Amount::Share { share: Share::ONE, each: true };
        let (amount, bound) = match &prune.goal {
            Goal::By(amount) => (amount, None),
            Goal::To(bound) => (&anything, Some(bound)),
        };
        let before = state.removed.clone();
        let dense = state.model.clone();
        let fit = refit(prune);
        let request = Request {
            sites: &sites,
            amount,
            scope: Scope::Global,
            at_least: at_least(prune.at_least.as_ref())?,
            align: prune.align.and_then(|a| usize::try_from(a).ok()),
            protect: &protect,
            removed: &before,
            step: prune.rescore,
        };
        let mut result =
            json!({"criterion": call, "model": name, "amount": bound.map_or_else(|| amount_text(amount), |_| self.goal_text(step))});
        let (decision, scores, reused, data) = match &prune.criterion {
            CriterionRef::Method(method) => {
                let mut ready = self.criterion(&state, method, prune.batch, false)?;
                let request = Request { scope: scope(prune, &*ready.criterion, &sites), ..request };
                let progress = self.progress(&method.name);
                let (decision, scores) = match bound {
                    Some(_) if !state.adapters.is_empty() => return Err(bound_beside_adapters()),
                    Some(bound) => {
                        let scores = ready.criterion.score(&dense, &sites, ready.data.as_mut(), &progress)?;
                        let (decision, how) = self.bounded(&mut state, bound, &scores, &request, prune, Some(ready.data.as_mut()))?;
                        self.book.bounds.push((step.name.clone(), how.clone()));
                        result["bound"] = how;
                        (decision, scores)
                    }
                    None if state.adapters.is_empty() => compute(&mut state, &dense, &mut ready, request, prune, &progress)?,
                    None => beside_adapters(&mut state, &mut ready, request, prune, &progress)?,
                };
                result["standing"] = json!(ready.criterion.standing());
                if bound.is_none() && block_by_block(method, prune, request.scope) {
                    let amount = amount_text(amount);
                    self.options.ui.detail(format!("{}: its scores were made block by block; they hold for {amount} alone", step.name));
                    result["holds_for"] = json!(amount);
                }
                (decision, scores, None, ready.data)
            }
            stored => {
                let (scores, reason) = match stored {
                    CriterionRef::Run { dir, name: of } => {
                        let (scores, path) = scores_of_run(dir, of.as_deref(), &step.name, &state.model)?;
                        self.lock_files(std::slice::from_ref(&path))?;
                        fits(&scores, &state.model, &sites, &path)?;
                        (scores, format!("the scores in {}", path.display()))
                    }
                    CriterionRef::Stored(of) => (self.scores_named(of)?, format!("the scores of `{of}`")),
                    CriterionRef::Method(_) => return Err(Error::Internal("a method is no stored score".to_owned())),
                };
                let request = Request { scope: prune.scope.unwrap_or_else(|| default_scope(&sites)), step: None, ..request };
                let decision = match bound {
                    Some(bound) => {
                        let (decision, how) = self.bounded(&mut state, bound, &scores, &request, prune, None)?;
                        self.book.bounds.push((step.name.clone(), how.clone()));
                        result["bound"] = how;
                        decision
                    }
                    None => {
                        let decision = select(&scores, &request, &Shape::of(&state.model, &sites)?)?;
                        surgery::mask(&mut state.model, &mut state.removed, &decision)?;
                        decision
                    }
                };
                let none: Box<dyn Batches> = Box::new(InMemory::default());
                (decision, scores, Some(reason), none)
            }
        };
        if let Some(fit) = fit {
            let fitted = self.refit(step, prune, fit, &dense, &mut state, &decision, data)?;
            result["reconstruct"] = fitted.to_json();
            self.book.recovered.push(fitted);
        }
        let mut files = write_decision(&self.dir, &step.name, &decision, &state.map, &state.model)?;
        files.push(write_scores(&self.dir, &step.name, &scores, &state.model)?);
        // A report shows units; those of a streamed model's weights are in the file.
        let scores = if state.model.params().streamed() { Scores { sites: scores.sites, ..Scores::default() } } else { scores };
        result["gone"] = self.say_what_went(&step.name, &sites, &state);
        self.book.scored.push(Scored { name: step.name.clone(), criterion: call, model: name.clone(), scores, map: state.map.clone() });
        state.changed = true;
        self.state.models.insert(name, state);
        // A step whose scores were reused has still decided and masked; it is the scoring that cost nothing.
        if let Some(reason) = reused {
            result["scores"] = json!(reason);
        }
        Ok(Outcome { files, result, reused: None })
    }

    /// `prune-1: 19 of 48 heads are masked`; the same as data, by kind: `{"attention.heads": [19, 48]}`.
    pub(super) fn say_what_went(&self, name: &str, sites: &Sites, state: &ModelState) -> serde_json::Value {
        let mut out = serde_json::Map::new();
        for kind in sites.kinds() {
            let total = sites.count(kind);
            if total == 0 {
                continue;
            }
            let gone: usize = sites.of_kind(kind).map(|(key, units)| units.iter().filter(|u| state.removed.has(key, *u)).count()).sum();
            self.options.ui.note(format!("{name}: {gone} of {total} {} are masked", prunectl_prune::site::plural(kind)));
            out.insert(prunectl_prune::site::part(kind).to_owned(), json!([gone, total]));
        }
        if !sites.weights.is_empty() {
            self.options.ui.note(format!("{name}: weights of {} matrices are masked", sites.weights.len()));
        }
        serde_json::Value::Object(out)
    }

    /// `inside` a `train` the batches of the training stand in for data that the recipe doesn't give.
    pub(super) fn criterion(&self, state: &ModelState, method: &Method, batch: Option<u64>, inside: bool) -> Result<Ready> {
        let mut criterion = build(CRITERIA, &method.name, &method.args)?;
        if let Some(name) = criterion.snapshot().map(str::to_owned) {
            criterion.set_snapshot(self.state.snapshot(&name)?.network.clone());
        }
        let data: Box<dyn Batches> = match method.args.get("on") {
            Some(Value::Data(expr)) => {
                // Gradients are at most needed once per batch; the batch never changes a result, only memory.
                let backward = !state.model.params().streamed();
                let wanted = Wanted { need: Need::Required, labels: true, batch, backward, apart: false };
                let batches = batches(&self.data, state, expr, wanted)?;
                for note in batches.notes() {
                    self.options.ui.note(note);
                }
                Box::new(batches)
            }
            _ if criterion.needs_data() && !inside => {
                return Err(Error::Refused {
                    what: format!("`{}` is measured on data, and none is given", method.name),
                    remedy: format!("write {}(on = DATA)", method.name),
                });
            }
            _ => Box::new(InMemory::default()),
        };
        Ok(Ready { criterion, data })
    }

    pub(super) fn criterion_call(&self, criterion: &CriterionRef) -> String {
        match criterion {
            CriterionRef::Method(m) => self.call(m.span, &m.name),
            CriterionRef::Stored(name) => name.clone(),
            CriterionRef::Run { dir, .. } => format!("from \"{}\"", dir.display()),
        }
    }

    pub(super) fn scores_named(&self, name: &str) -> Result<Scores> {
        let found = self.state.scores.get(name).cloned();
        found.ok_or_else(|| Error::Internal(format!("scores `{name}` are used before they are made")))
    }

    pub(super) fn stored_scores(&self, done: &StepDone, model: &Transformer) -> Result<Scores> {
        let found = done.files.iter().find(|(f, _)| f.starts_with(SCORES));
        let (file, hash) = found.ok_or_else(|| Error::Damaged {
            path: self.dir.join(crate::journal::JOURNAL),
            what: format!("step {} has no scores", done.index),
        })?;
        let bytes = self.dir.read_checked(file, hash)?;
        read_scores(&bytes, &self.dir.join(file), model)
    }
}

/// What `reconstruct = …` asks for.
fn refit(prune: &Prune) -> Option<Fit> {
    prune.options.word("reconstruct").ok().and_then(Fit::of)
}

/// Whether a criterion that works block by block is to score all blocks on dense inputs; of others `inputs` says nothing.
fn on_dense_inputs(prune: &Prune) -> bool {
    let CriterionRef::Method(method) = &prune.criterion else { return false };
    prune.dense_inputs == Some(true) && CRITERIA.iter().any(|e| e.spec.name == method.name && e.spec.sequential)
}

/// Whether the step changes weights that stay.
fn updates_weights(prune: &Prune) -> bool {
    if refit(prune).is_some() {
        return true;
    }
    match &prune.criterion {
        CriterionRef::Method(m) => {
            !on_dense_inputs(prune) && build(CRITERIA, &m.name, &m.args).is_ok_and(|criterion| criterion.updates_weights())
        }
        _ => false,
    }
}

/// Scores, decides and masks; the state is left masked.
fn compute(
    state: &mut ModelState,
    dense: &Transformer,
    ready: &mut Ready,
    request: Request<'_>,
    prune: &Prune,
    progress: &dyn prunectl_prune::Progress,
) -> Result<(Decision, Scores)> {
    if let Some(layerwise) = ready.criterion.layerwise().filter(|_| !on_dense_inputs(prune)) {
        let (decision, scores) = layerwise.prune(&mut state.model, &mut state.removed, &request, ready.data.as_mut(), progress)?;
        return Ok((decision, scores));
    }
    if request.step.is_some() {
        let rescored = rescore(&mut state.model, &mut state.removed, &*ready.criterion, &request, ready.data.as_mut(), progress)?;
        // The first round scored the model as it was: the map that the report shows.
        let scores = rescored.rounds.into_iter().next().unwrap_or_default();
        return Ok((rescored.decision, scores));
    }
    let scores = ready.criterion.score(dense, request.sites, ready.data.as_mut(), progress)?;
    let decision = select(&scores, &request, &Shape::of(dense, request.sites)?)?;
    surgery::mask(&mut state.model, &mut state.removed, &decision)?;
    Ok((decision, scores))
}

/// An amount as a recipe writes it.
pub(super) fn amount_text(amount: &Amount) -> String {
    let percent = |s: &Share| format!("{}%", s.0 as f64 / 1e7);
    let each = |each: &bool| if *each { " each" } else { "" };
    match amount {
        Amount::Share { share, each: e } => format!("{}{}", percent(share), each(e)),
        Amount::OfRemaining { share, each: e } => format!("{} of remaining{}", percent(share), each(e)),
        Amount::OfParams(share) => format!("{} of params", percent(share)),
        Amount::NofM { removed, group } => format!("{removed} of {group}"),
        Amount::Units { n, unit } => format!("{n} {}", format!("{unit:?}").to_lowercase()),
        Amount::PerLayer(list) => format!("[{}]", list.iter().map(amount_text).collect::<Vec<_>>().join(", ")),
        Amount::AcrossLayers { from, to } => format!("linear({} -> {}, across = layers)", percent(from), percent(to)),
        Amount::Scheduled { .. } => "a schedule".to_owned(),
    }
}

fn bound_beside_adapters() -> Error {
    Error::Refused {
        what: "`prune … to BOUND` is not carried out beside an adapter".to_owned(),
        remedy: "fuse the adapter first, or say how much goes: `by 40%`".to_owned(),
    }
}

/// The same where adapters are attached: scores are of the weights with their updates; weights and adapters are masked together.
fn beside_adapters(
    state: &mut ModelState,
    ready: &mut Ready,
    request: Request<'_>,
    prune: &Prune,
    progress: &dyn prunectl_prune::Progress,
) -> Result<(Decision, Scores)> {
    if !request.sites.weights.is_empty() || ready.criterion.updates_weights() && !on_dense_inputs(prune) {
        return Err(Error::Refused {
            what: "single weights, and criteria that update the weights that stay, can't be pruned beside an adapter".to_owned(),
            remedy: "fuse the adapter first".to_owned(),
        });
    }
    let mut fused = state.without_adapters()?;
    let dense = fused.model.clone();
    let (decision, scores) = compute(&mut fused, &dense, ready, request, prune, progress)?;
    surgery::mask(&mut state.model, &mut state.removed, &decision)?;
    Ok((decision, scores))
}

pub(super) fn at_least(value: Option<&Value>) -> Result<Option<AtLeast>> {
    match value {
        None => Ok(None),
        Some(Value::Percent(share)) => Ok(Some(AtLeast::Share(*share))),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(AtLeast::Units(n))),
            None => Err(Error::Internal(format!("`at_least` is {value:?}"))),
        },
    }
}

pub(super) fn scope(prune: &Prune, criterion: &dyn Criterion, sites: &Sites) -> Scope {
    let first = sites.kinds().into_iter().next();
    prune.scope.unwrap_or_else(|| first.map_or(Scope::Global, |kind| criterion.default_scope(kind)))
}

/// The scope where neither the recipe nor a criterion says.
pub(super) fn default_scope(sites: &Sites) -> Scope {
    if sites.weights.is_empty() { Scope::Global } else { Scope::Matrix }
}

/// Whether a prune scores each block on what its pruned predecessors give, so that the scores belong to this amount.
fn block_by_block(method: &Method, prune: &Prune, scope: Scope) -> bool {
    let sequential = CRITERIA.iter().any(|e| e.spec.name == method.name && e.spec.sequential);
    sequential && !on_dense_inputs(prune) && scope != Scope::Global
}

/// Refuses scores that a prune made block by block: at another amount the blocks would have seen other inputs.
fn reusable(dir: &Path, name: &str) -> Result<()> {
    for event in crate::journal::Journal::read(dir)? {
        let crate::journal::Event::Step(done) = event else { continue };
        if file_name_of(&done.name) != name || done.kind != "prune" {
            continue;
        }
        if let Some(amount) = done.result.get("holds_for").and_then(serde_json::Value::as_str) {
            return Err(Error::Refused {
                what: format!(
                    "the scores `{name}` of {} were made block by block on pruned inputs: they hold for {amount} alone",
                    dir.display()
                ),
                remedy: "score it with `score … using … as NAME`, on dense inputs, or prune by the criterion itself".to_owned(),
            });
        }
    }
    Ok(())
}

/// Scores in another run's directory: by name, by the same step's name, or the only ones there.
fn scores_of_run(dir: &Path, name: Option<&str>, step: &str, model: &Transformer) -> Result<(Scores, std::path::PathBuf)> {
    let path = stored_in(dir, name, step)?;
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    Ok((read_scores(&bytes, &path, model)?, path))
}

/// The file of a run's scores of that name, or of the only ones that it has.
pub(super) fn stored_in(dir: &Path, name: Option<&str>, step: &str) -> Result<std::path::PathBuf> {
    let folder = dir.join(SCORES);
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .map_err(Error::io("read", &folder))?
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok()?.strip_suffix(".safetensors").map(str::to_owned))
        .collect();
    names.sort();
    let wanted = name.map_or_else(|| file_name_of(step), file_name_of);
    let chosen = match names.as_slice() {
        _ if names.contains(&wanted) => wanted,
        [only] if name.is_none() => only.clone(),
        _ => {
            return Err(Error::Refused {
                what: format!(
                    "{} holds no scores `{wanted}`; found {}",
                    folder.display(),
                    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
                ),
                remedy: "give the step the name of one of them with `as`".to_owned(),
            });
        }
    };
    if dir.join(crate::journal::JOURNAL).exists() {
        reusable(dir, &chosen)?;
    }
    Ok(folder.join(format!("{chosen}.safetensors")))
}

/// Refuses stored scores that lack a selected site or have another shape.
fn fits(scores: &Scores, model: &Transformer, sites: &Sites, path: &Path) -> Result<()> {
    let wrong = |site: String, found: String, expected: String| {
        Err(Error::Refused {
            what: format!("{}: scores of {site}: found {found}, expected {expected}", path.display()),
            remedy: "score again on this model, with this selector".to_owned(),
        })
    };
    for key in sites.units.keys() {
        let Some(kind) = prunectl_prune::site::to_model(key.kind) else { continue };
        let expected = model.units(kind, key.layer)?;
        match scores.get(*key) {
            Some(found) if found.len() == expected => {}
            Some(found) => return wrong(key.to_string(), format!("{} units", found.len()), expected.to_string()),
            None => return wrong(key.to_string(), "none".to_owned(), format!("{expected} units")),
        }
    }
    for slot in &sites.weights {
        let expected = model.params().shape(slot)?.to_vec();
        match scores.weights.shape(slot) {
            Some(found) if found == expected => {}
            Some(found) => return wrong(slot.clone(), format!("{found:?}"), format!("{expected:?}")),
            None => return wrong(slot.clone(), "none".to_owned(), format!("{expected:?}")),
        }
    }
    Ok(())
}
