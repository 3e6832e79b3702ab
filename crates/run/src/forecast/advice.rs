//! What `plan` advises where a structured prune has no recovery: the statements that train the blocks alone against the whole model.

use std::collections::{BTreeMap, BTreeSet};

use prunectl_prune::{CRITERIA, build};
use prunectl_recipe::Sources;
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{CriterionRef, DataExpr, DataSource, ModelSource, Plan, Prune, Step, StepKind, Value};

use super::{Sim, StepForecast, sites_of};
use crate::data::{describe, splits};
use crate::executor::{longest_of, model_of};
use crate::hub::Door;

/// Names for the whole model, of which the recipe may have taken some.
const TEACHERS: [&str; 4] = ["teacher", "whole", "original", "unpruned_model"];
/// Tokens of a window of a language model.
const WINDOW: usize = 128;
/// What each block is trained with. A block alone often bears more (`recipes/reconstruct_study.prune`); this much is safe.
const TRAINING: &str = "for 120 steps { batch = 8  optimizer = adamw(lr = linear(1e-3 -> 0)) }";

/// Adds the advice to the first prune of each model that nothing behind it recovers.
pub(super) fn advise(plan: &Plan, sims: &BTreeMap<String, Sim>, sources: &Sources, hub: &Door, out: &mut [StepForecast]) {
    let steps = flat(&plan.steps);
    let mut lost: BTreeMap<&str, Vec<(&Step, &Prune)>> = BTreeMap::new();
    for (i, step) in steps.iter().enumerate() {
        let StepKind::Prune(prune) = &step.kind else { continue };
        let model = model_of(&prune.selector);
        if structured(prune, sims) && !recovers_itself(prune) && !recovered(plan, steps.get(i + 1..).unwrap_or_default(), model) {
            lost.entry(model).or_default().push((step, prune));
        }
    }
    let Some(teacher) = free_name(sources) else { return };
    for (model, prunes) in lost {
        let (Some((first, prune)), Some((last, _))) = (prunes.first(), prunes.last()) else { continue };
        let Some(own) = out.iter_mut().find(|s| s.name == first.name && s.line == first.line) else { continue };
        let behind = if last.line == first.line { "behind it".to_owned() } else { format!("behind line {}", last.line) };
        let (data, above) = match data(plan, prune, sims, hub) {
            Some(data) => (data, String::new()),
            None => ("text".to_owned(), "`data text = text(\"some.txt\")`, ".to_owned()),
        };
        own.notes.push(format!(
            "nothing recovers what goes. Blocks trained alone do, at the least cost; above this line: {above}`let {teacher} = frozen({model})`, \
             {behind}: `reconstruct {model}.layers[*] from {teacher} on {data} {TRAINING}`"
        ));
        if fits_in_closed_form(prune, sims) {
            own.notes.push(format!("or in closed form, in a few passes: `reconstruct = least_squares  on = {data}` in its block"));
        }
    }
}

/// Every step in order, those of rounds and cells too.
fn flat(steps: &[Step]) -> Vec<&Step> {
    let mut out = Vec::new();
    for step in steps {
        match &step.kind {
            StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| out.extend(flat(r))),
            StepKind::Sweep { cells, .. } => cells.iter().for_each(|c| out.extend(flat(&c.steps))),
            _ => out.push(step),
        }
    }
    out
}

fn kinds(prune: &Prune, sims: &BTreeMap<String, Sim>) -> BTreeSet<SiteKind> {
    sites_of(&prune.selector, sims).map(|s| s.kinds().into_iter().collect()).unwrap_or_default()
}

/// Whether units go that blocks can learn to do without; a narrower residual stream is none of them.
fn structured(prune: &Prune, sims: &BTreeMap<String, Sim>) -> bool {
    let kinds = kinds(prune, sims);
    !kinds.is_empty() && !kinds.contains(&SiteKind::Weights) && !kinds.contains(&SiteKind::Hidden)
}

fn fits_in_closed_form(prune: &Prune, sims: &BTreeMap<String, Sim>) -> bool {
    kinds(prune, sims).iter().all(|k| matches!(k, SiteKind::Heads | SiteKind::KvGroups | SiteKind::Neurons))
}

/// Whether its own block, or its criterion, changes the weights that stay.
fn recovers_itself(prune: &Prune) -> bool {
    let fitted = prune.options.word("reconstruct").is_ok_and(|how| how != "none");
    fitted || matches!(&prune.criterion, CriterionRef::Method(m) if build(CRITERIA, &m.name, &m.args).is_ok_and(|c| c.updates_weights()))
}

/// Whether a step of these lets the model recover, or a copy that is made of it on the way.
fn recovered(plan: &Plan, steps: &[&Step], model: &str) -> bool {
    steps.iter().enumerate().any(|(i, step)| match &step.kind {
        StepKind::Train(train) => train.model == model,
        StepKind::Reconstruct { selector, .. } => model_of(selector) == model,
        StepKind::Load { model: other } => {
            let copied = plan.models.iter().any(|d| d.name == *other && matches!(&d.source, ModelSource::Copy(of) if of == model));
            copied && recovered(plan, steps.get(i + 1..).unwrap_or_default(), other)
        }
        _ => false,
    })
}

/// A name that no word of the recipe has.
fn free_name(sources: &Sources) -> Option<&'static str> {
    let text = sources.get(0).map_or("", |s| s.text.as_str());
    let words: BTreeSet<&str> = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).collect();
    TEACHERS.into_iter().find(|name| !words.contains(name))
}

/// What the blocks may be trained on: the criterion's data, or else the training part of what the recipe reads.
fn data(plan: &Plan, prune: &Prune, sims: &BTreeMap<String, Sim>, hub: &Door) -> Option<String> {
    if let CriterionRef::Method(m) = &prune.criterion
        && let Some(Value::Data(expr)) = m.args.get("on")
    {
        return Some(describe(expr));
    }
    let used: Vec<(&str, Option<&str>)> = flat(&plan.steps).into_iter().filter_map(read).filter_map(source).collect();
    let declared = plan.data.first().map(|d| (d.name.as_str(), None));
    let (name, split) = used.iter().find(|(_, split)| *split == Some("train")).or(used.first()).copied().or(declared)?;
    let decl = plan.data.iter().find(|d| d.name == name)?;
    let there = splits(decl, hub).unwrap_or_default();
    let split = if there.iter().any(|s| s == "train") { Some("train") } else { split.or(there.first().map(String::as_str)) };
    let rows = split.map_or_else(|| name.to_owned(), |split| format!("{name}.{split}"));
    let file = &sims.get(model_of(&prune.selector))?.file;
    let stream = file.blueprint.attention.causal && !matches!(decl.source, DataSource::Tokens(_));
    let window = WINDOW.min(longest_of(&file.blueprint, &file.config));
    Some(if stream { format!("{rows}.pack({window} tokens)") } else { rows })
}

/// The data that a step reads.
fn read(step: &Step) -> Option<&DataExpr> {
    match &step.kind {
        StepKind::Eval { data, .. } => data.as_ref(),
        StepKind::Train(train) => Some(&train.data),
        StepKind::Reconstruct { data, .. } => Some(data),
        _ => None,
    }
}

/// The source that an expression begins with, and its split.
fn source(expr: &DataExpr) -> Option<(&str, Option<&str>)> {
    match expr {
        DataExpr::Source { name, split } => Some((name, split.as_deref())),
        DataExpr::Sample { of, .. } | DataExpr::Pack { of, .. } | DataExpr::Take { of, .. } | DataExpr::Chat { of, .. } => source(of),
        DataExpr::Mix(parts) => parts.first().and_then(|(_, part)| source(part)),
    }
}
