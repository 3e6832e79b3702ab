//! Models that don't fit in memory: when a plan's weights stay on the disk and pass through memory block by block, and what that takes.

use prunectl_model::{Facts, LayerDims};
use prunectl_prune::{CRITERIA, TOKENS_SIDE_BY_SIDE, build};
use prunectl_recipe::plan::{CriterionRef, Goal, Plan, Scope, Step, StepKind};

use crate::data::{AutoBatch, USUAL_TOKENS, memory_bytes};
use crate::executor::longest_of;

/// Copies of the weights that a plan in memory holds at once: as loaded, as pruned, their scores, and masks with what makes them.
const COPIES: u64 = 4;
/// The same of one block: as it was, as it is, its scores, and masks with what makes them.
const COPIES_OF_A_BLOCK: u64 = 4;
/// f64 matrices of the widest input's size that a second-order method has at once: the sum of its products, its factor, that one's inverse.
const PRODUCTS: u64 = 4;
/// What the process takes without a model.
const PROCESS_BYTES: u64 = 64 << 20;
/// Bytes of a weight and of an entry of such a matrix.
const WEIGHT_BYTES: u64 = 4;
const ENTRY_BYTES: u64 = 8;

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
    let widest = widest(model);
    let of_blocks = |dims: &[LayerDims]| blueprint.parameter_count(dims);
    let rest = of_blocks(&[]);
    let block = model.dims.iter().map(|d| of_blocks(std::slice::from_ref(d)).saturating_sub(rest)).max().unwrap_or(0);
    let table = (blueprint.vocab * blueprint.hidden) as u64;
    let rows = activations(model, plan.steps.iter().any(measures));
    let products = if plan.steps.iter().any(holds_products) { PRODUCTS * ENTRY_BYTES * widest * widest } else { 0 };
    // A table is read while no block is there.
    let weights = WEIGHT_BYTES * (COPIES_OF_A_BLOCK * block).max(3 * table);
    let passes = rows.rows(memory).max(TOKENS_SIDE_BY_SIDE / length_of(model));
    PROCESS_BYTES + weights + products + passes as u64 * rows.row_bytes()
}

/// Inputs of the widest linear layer.
pub fn widest(model: &Facts) -> u64 {
    model.dims.iter().map(|d| d.ffn.max(d.q_width())).fold(model.blueprint.hidden, usize::max) as u64
}

/// Every step of a plan, those of rounds and cells too, that this holds of.
fn any(step: &Step, holds: &dyn Fn(&Step) -> bool) -> bool {
    match &step.kind {
        StepKind::Repeat { rounds, .. } => rounds.iter().flatten().any(|s| any(s, holds)),
        StepKind::Sweep { cells, .. } => cells.iter().flat_map(|c| &c.steps).any(|s| any(s, holds)),
        _ => holds(step),
    }
}

fn measures(step: &Step) -> bool {
    any(step, &|s| matches!(s.kind, StepKind::Eval { .. }))
}

fn holds_products(step: &Step) -> bool {
    any(step, &|s| match &s.kind {
        StepKind::Prune(prune) => match &prune.criterion {
            CriterionRef::Method(m) => build(CRITERIA, &m.name, &m.args).is_ok_and(|criterion| criterion.holds_products()),
            _ => false,
        },
        _ => false,
    })
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
