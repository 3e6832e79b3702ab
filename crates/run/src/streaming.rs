//! Models that don't fit in memory: when a plan's weights stay on the disk and pass through memory block by block, and what that takes.

use prunectl_model::{Facts, LayerDims};
use prunectl_prune::{CRITERIA, TOKENS_SIDE_BY_SIDE, build};
use prunectl_recipe::plan::{CriterionRef, Goal, Plan, Prune, Scope, Step, StepKind};

use crate::data::{AutoBatch, USUAL_TOKENS, memory_bytes};
use crate::executor::longest_of;
use crate::held::{COPIES, PROCESS_BYTES, WEIGHT_BYTES, products};

/// The memory that a command may use: as asked for, or the machine's.
pub fn budget(asked: Option<u64>) -> u64 {
    asked.unwrap_or_else(memory_bytes)
}

/// Whether a model's weights stay on the disk: every step of the plan can work block by block, and they are too large for `memory`.
pub fn streams(plan: &Plan, model: &Facts, memory: u64) -> bool {
    COPIES * WEIGHT_BYTES * model.parameters > memory && plan.steps.iter().all(block_by_block)
}

fn block_by_block(step: &Step) -> bool {
    match &step.kind {
        StepKind::Load { .. } | StepKind::Eval { .. } | StepKind::Expect { .. } | StepKind::Compact { .. } | StepKind::Freeze { .. } => {
            true
        }
        StepKind::Save { format, layout, .. } => matches!(format.as_str(), "" | "hf") && layout != "padded",
        StepKind::Prune(prune) => {
            let layerwise = |criterion: &CriterionRef| match criterion {
                CriterionRef::Method(m) => build(CRITERIA, &m.name, &m.args).is_ok_and(|criterion| criterion.layerwise().is_some()),
                _ => false,
            };
            // A ranking over all layers needs all scores at once.
            layerwise(&prune.criterion)
                && prune.scope != Some(Scope::Global)
                && matches!(prune.goal, Goal::By(_))
                && prune.rescore.is_none()
                && prune.dense_inputs != Some(true)
                && prune.options.get("reconstruct").is_none()
        }
        StepKind::Repeat { rounds, .. } => rounds.iter().flatten().all(block_by_block),
        StepKind::Sweep { cells, .. } => cells.iter().flat_map(|c| &c.steps).all(block_by_block),
        _ => false,
    }
}

/// An estimate from above of a streamed plan's peak: the largest block with its copies, its statistics, the table of embeddings, and
/// the activations of a batch in a block.
pub fn peak(plan: &Plan, model: &Facts, memory: u64) -> u64 {
    let blueprint = &model.blueprint;
    let of_blocks = |dims: &[LayerDims]| blueprint.parameter_count(dims);
    let rest = of_blocks(&[]);
    let block = model.dims.iter().map(|d| of_blocks(std::slice::from_ref(d)).saturating_sub(rest)).max().unwrap_or(0);
    let table = (blueprint.vocab * blueprint.hidden) as u64;
    let rows = activations(model, plan.steps.iter().any(measures));
    let products = plan.steps.iter().map(|step| most(step, &|s| held_products(s, model))).max().unwrap_or(0);
    // A table is read while no block is there.
    let weights = WEIGHT_BYTES * (COPIES * block).max(3 * table);
    let passes = rows.rows(memory).max(TOKENS_SIDE_BY_SIDE / length_of(model));
    PROCESS_BYTES + weights + products + passes as u64 * rows.row_bytes()
}

/// The most that a step comes to, or one of its rounds and cells.
fn most(step: &Step, of: &dyn Fn(&Step) -> u64) -> u64 {
    match &step.kind {
        StepKind::Repeat { rounds, .. } => rounds.iter().flatten().map(|s| most(s, of)).max().unwrap_or(0),
        StepKind::Sweep { cells, .. } => cells.iter().flat_map(|c| &c.steps).map(|s| most(s, of)).max().unwrap_or(0),
        _ => of(step),
    }
}

fn measures(step: &Step) -> bool {
    most(step, &|s| u64::from(matches!(s.kind, StepKind::Eval { .. }))) > 0
}

fn held_products(step: &Step, model: &Facts) -> u64 {
    match &step.kind {
        StepKind::Prune(Prune { criterion: CriterionRef::Method(m), .. }) => {
            build(CRITERIA, &m.name, &m.args).map_or(0, |criterion| products(criterion.as_ref(), model))
        }
        _ => 0,
    }
}

/// Tokens of a row where the data does not say them.
fn length_of(model: &Facts) -> usize {
    longest_of(&model.blueprint, &model.config).clamp(1, USUAL_TOKENS)
}

/// What a batch takes in a block, without a backward pass, and in the head where something is measured.
fn activations(model: &Facts, measured: bool) -> AutoBatch {
    let auto = AutoBatch::new(&model.blueprint, &model.dims, length_of(model), false, true);
    AutoBatch { vocabulary: if measured { auto.vocabulary } else { 0 }, ..auto }
}

/// `2GiB` as a person writes it, in bytes.
///
/// # Errors
/// It is no amount of memory.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let wrong = || format!("found `{text}`, expected an amount such as 2GiB or 1500MiB");
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let unit = match text.get(digits.len()..).unwrap_or_default().trim() {
        "KiB" => 1u64 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number * unit as f64;
    if bytes.is_finite() && bytes >= 1.0 { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_its_unit() {
        assert_eq!(parse_memory("2GiB"), Ok(2 << 30));
        assert_eq!(parse_memory("1.5 MiB"), Ok(3 << 19));
        for text in ["", "2", "GiB", "-1GiB", "2GB", "nanGiB"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }
}
