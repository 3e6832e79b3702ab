//! How much memory each step takes: what stays resident, and what the step needs beside it. Estimates from above, for the CPU, from
//! shapes alone; `tests/suite/memory.rs` holds them against what runs measure.

use std::collections::{BTreeMap, BTreeSet};

use prunectl_prune::{CRITERIA, OPTIMIZERS, TOKENS_SIDE_BY_SIDE, build};
use prunectl_recipe::plan::{CriterionRef, DataExpr, Method, Plan, Prune, Selector, Step, StepKind, Train, Value};

use super::{Sim, sites_of};
use crate::data::{AutoBatch, SEGMENT_BYTES, USUAL_TOKENS, row_count, row_tokens};
use crate::executor::{longest_of, model_of};
use crate::held::{MASKED, PROCESS_BYTES, SCORES, WEIGHT_BYTES, products};

/// What a tokenizer holds for each byte of the text that it works on.
const TOKENIZER_BYTES: u64 = 400;

/// What a batch keeps of its activations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// A block's at a time.
    Forward,
    /// All, for the backward pass.
    Backward,
    /// The blocks' inputs, and a block's at a time.
    Recomputed,
}

/// Whether a training computes its blocks again in the backward pass.
pub(super) fn recomputes(train: &Train) -> bool {
    matches!(train.options.get("recompute"), Some(Value::Bool(true)))
}

/// What is there during every step: the program, the models, and the dense copies that the recipe keeps.
pub(super) fn resident(plan: &Plan, sims: &BTreeMap<String, Sim>) -> Option<u64> {
    let mut kept = BTreeSet::new();
    copies(&plan.steps, &mut kept);
    let loaded = sims.values().map(weights).sum::<u64>();
    let copied = kept.iter().map(|(model, _)| sims.get(model).map(weights)).sum::<Option<u64>>()?;
    (!sims.is_empty()).then_some(PROCESS_BYTES + loaded + copied)
}

fn weights(sim: &Sim) -> u64 {
    WEIGHT_BYTES * sim.file.parameters
}

/// (model, what keeps a copy): snapshots, frozen teachers, the state on entry of a sweep.
fn copies(steps: &[Step], out: &mut BTreeSet<(String, String)>) {
    for step in steps {
        match &step.kind {
            StepKind::Snapshot { model, name } => _ = out.insert((model.clone(), name.clone())),
            StepKind::Freeze { model, id } => _ = out.insert((model.clone(), format!("frozen {id}"))),
            StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| copies(r, out)),
            StepKind::Sweep { cells, .. } => cells.iter().for_each(|c| {
                copies(&c.steps, out);
                touched(&c.steps, out);
            }),
            _ => {}
        }
    }
}

/// Models that steps of a sweep's cell change: each cell starts from the state on entry, which stays.
fn touched(steps: &[Step], out: &mut BTreeSet<(String, String)>) {
    for step in steps {
        match &step.kind {
            StepKind::Prune(prune) => _ = out.insert((model_of(&prune.selector).to_owned(), "entry".to_owned())),
            StepKind::Train(train) => _ = out.insert((train.model.clone(), "entry".to_owned())),
            StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| touched(r, out)),
            _ => {}
        }
    }
}

/// Bytes that a step takes beside what is resident; `None` where its model is not at hand.
pub(super) fn of(step: &Step, sims: &BTreeMap<String, Sim>) -> Option<u64> {
    Some(match &step.kind {
        StepKind::Load { model } => sims.get(model)?.file.file_bytes,
        StepKind::Score { selector, criterion, batch } => scoring(selector, criterion, *batch, sims)?,
        StepKind::Prune(prune) => pruning(prune, sims)?,
        StepKind::Reconstruct { selector, data, options, .. } => {
            let sim = sims.get(model_of(selector))?;
            let block = weights(sim) / sim.file.dims.len().max(1) as u64;
            let batch = options.get("batch").and_then(Value::as_u64);
            // The block's weights, gradients and moments; its inputs for both models.
            4 * block + 2 * states(sim, data) + activations(sim, Some(data), batch, Rows::Backward)
        }
        StepKind::Train(train) => {
            let sim = sims.get(&train.model)?;
            let batch = train.options.get("batch").and_then(Value::as_u64);
            let teachers = train.loss.iter().filter(|(_, term)| term.args.get("teacher").is_some()).count() as u64;
            let buffers = build(OPTIMIZERS, &train.optimizer.name, &train.optimizer.args).map_or(2, |o| o.buffers().len() as u64);
            let rows = if recomputes(train) { Rows::Recomputed } else { Rows::Backward };
            // The weights as they are beside those of the start, at most as many gradients, and the optimiser's buffers.
            (2 + buffers) * weights(sim)
                + activations(sim, Some(&train.data), batch, rows)
                + teachers * activations(sim, Some(&train.data), batch, Rows::Forward)
        }
        StepKind::Eval { metric, model, data, batch } => {
            let sim = match model {
                Value::Model(name) | Value::Frozen { model: name, .. } | Value::Name(name) => sims.get(name),
                _ => None,
            };
            sim.map_or(0, |sim| evaluating(sim, metric, data.as_ref(), *batch))
        }
        // The written files are opened again and their model is compared with the one in memory.
        StepKind::Save { model, .. } => {
            let sim = sims.get(model)?;
            weights(sim) + sim.file.file_bytes
        }
        StepKind::Rewind { model, .. }
        | StepKind::Reinit { model, .. }
        | StepKind::Compact { model }
        | StepKind::Quantize { model, .. } => weights(sims.get(model)?),
        _ => 0,
    })
}

fn scoring(selector: &Selector, criterion: &CriterionRef, batch: Option<u64>, sims: &BTreeMap<String, Sim>) -> Option<u64> {
    let sim = sims.get(model_of(selector))?;
    let CriterionRef::Method(method) = criterion else { return Some(0) };
    let Ok(criterion) = build(CRITERIA, &method.name, &method.args) else { return Some(0) };
    let sites = sites_of(selector, sims).unwrap_or_default();
    // Scores of weights are as large as the weights.
    let scores = if sites.weights.is_empty() { 0 } else { SCORES * weights(sim) };
    if !criterion.needs_data() {
        return Some(scores);
    }
    let data = match method.args.get("on") {
        Some(Value::Data(expr)) => Some(expr),
        _ => None,
    };
    if criterion.layerwise().is_some() {
        let held = data.map_or(0, |d| 2 * states(sim, d)) + products(criterion.as_ref(), &sim.file);
        let length = data.and_then(row_tokens).unwrap_or(longest(sim)).max(1);
        let beside = (TOKENS_SIDE_BY_SIDE as u64 / length).max(1);
        let passes = activations(sim, data, batch, Rows::Forward).max(activations(sim, data, Some(beside), Rows::Forward));
        return Some(scores + held + passes);
    }
    let gradients = if sites.weights.is_empty() { 0 } else { 2 * weights(sim) };
    let tokens = criterion.parallel_tokens() as u64 * threads();
    let ablations = tokens * AutoBatch::new(&sim.file.blueprint, &sim.file.dims, 1, false, true).row_bytes();
    Some(scores + gradients + ablations + activations(sim, data, batch, Rows::Backward))
}

fn pruning(prune: &Prune, sims: &BTreeMap<String, Sim>) -> Option<u64> {
    let sim = sims.get(model_of(&prune.selector))?;
    let scoring = scoring(&prune.selector, &prune.criterion, prune.batch, sims)?;
    let by_weight = sites_of(&prune.selector, sims).is_some_and(|s| !s.weights.is_empty());
    // Masked weights are written beside the ones that they replace.
    Some(scoring + if by_weight { MASKED * weights(sim) } else { weights(sim) / sim.file.dims.len().max(1) as u64 })
}

fn evaluating(sim: &Sim, metric: &Method, data: Option<&DataExpr>, batch: Option<u64>) -> u64 {
    let count = |name: &str| metric.args.count(name).ok();
    match (count("window"), count("batch").zip(count("length"))) {
        (Some(window), _) => run(sim, window, batch, Rows::Forward),
        (None, Some((rows, length))) => run(sim, length, Some(rows), Rows::Forward),
        (None, None) => data.map_or(0, |d| activations(sim, Some(d), batch, Rows::Forward)),
    }
}

/// Rows of a batch through the network, and the tokenizer at work where windows are cut from texts.
fn activations(sim: &Sim, data: Option<&DataExpr>, batch: Option<u64>, rows: Rows) -> u64 {
    let said = data.and_then(row_tokens);
    let tokenizing = if said.is_some() { threads() * SEGMENT_BYTES as u64 * TOKENIZER_BYTES } else { 0 };
    tokenizing + run(sim, said.unwrap_or(longest(sim)), batch, rows)
}

fn run(sim: &Sim, length: u64, batch: Option<u64>, rows: Rows) -> u64 {
    let auto = AutoBatch::new(&sim.file.blueprint, &sim.file.dims, length as usize, rows != Rows::Forward, true);
    let each = if rows == Rows::Recomputed { auto.recomputed_row_bytes() } else { auto.row_bytes() };
    batch.unwrap_or_else(|| auto.rows(sim.budget) as u64) * each
}

/// Tokens of a row where the data does not say them.
fn longest(sim: &Sim) -> u64 {
    longest_of(&sim.file.blueprint, &sim.file.config).min(USUAL_TOKENS) as u64
}

/// The residual stream of all rows, held between two blocks.
fn states(sim: &Sim, data: &DataExpr) -> u64 {
    let tokens = row_count(data).unwrap_or(0) * row_tokens(data).unwrap_or(longest(sim));
    tokens * sim.file.blueprint.hidden as u64 * WEIGHT_BYTES
}

/// The machine's, whatever the run is told to use: the plan of a recipe is the same for any number of threads.
fn threads() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64)
}
