//! `loads_in = […]` of a `prune`, held against the loader table before anything runs.

use prunectl_model::LayerDims;
use prunectl_recipe::diagnostic::Diagnostic;
use prunectl_recipe::plan::{Plan, Prune, Step, StepKind};

use super::Sim;
use super::shapes::after;
use crate::stock::{self, Loader, Target, Verdict};

/// The code of what a run would not carry out.
const CODE: &str = "P0414";

/// Models of which every `save` is padded: their shapes on disk are the original ones.
pub(super) fn padded(plan: &Plan) -> Vec<String> {
    fn visit(steps: &[Step], each: &mut dyn FnMut(&str, bool)) {
        for step in steps {
            match &step.kind {
                StepKind::Save { model, layout, .. } => each(model, layout == "padded"),
                StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| visit(r, each)),
                StepKind::Sweep { cells, .. } => cells.iter().for_each(|c| visit(&c.steps, each)),
                _ => {}
            }
        }
    }
    let (mut some, mut compact) = (Vec::new(), Vec::new());
    visit(&plan.steps, &mut |model, padded| if padded { &mut some } else { &mut compact }.push(model.to_owned()));
    some.retain(|model| !compact.contains(model));
    some
}

/// What a loader that the prune names can't read of the model as it is after it.
pub(super) fn check(prune: &Prune, step: &Step, sim: &Sim) -> Vec<Diagnostic> {
    if prune.loads_in.is_empty() || sim.padded {
        return Vec::new();
    }
    let compacted = Sim { compacted: true, ..sim.clone() };
    let (least, most) = (after(&compacted, true), after(&compacted, false));
    let decided = least == most && !sim.vague;
    let blueprint = &most.blueprint;
    let dims = if decided { most.dims.clone() } else { ragged(&least.dims, &most.dims) };
    let target = Target { model_type: &sim.file.model_type, blueprint, dims: &dims, own: None, no_remote_code: None };
    let named = |loader: Loader| prune.loads_in.iter().any(|word| word == loader.word());
    let bad = stock::loaders(&target).into_iter().filter(|l| named(l.loader) && !l.loads());
    bad.map(|l| {
        let how = if decided { "can't read" } else { "can't read in general" };
        let message = format!("`loads_in` names {}, which {how} what this prune leaves", l.loader);
        let (reason, remedy) = match l.verdict {
            Verdict::Refused { reason, remedy } => (reason, remedy),
            other => (format!("{other:?}"), "leave it out of `loads_in`".to_owned()),
        };
        let reason = if decided { reason } else { format!("each layer may keep another number of units: as if {reason}") };
        Diagnostic::error(CODE, message, step.span, reason).hint(remedy)
    })
    .collect()
}

/// Layers that differ wherever the plan lets them.
fn ragged(least: &[LayerDims], most: &[LayerDims]) -> Vec<LayerDims> {
    let vague = least == most;
    let mut dims = most.to_vec();
    for (d, least) in dims.iter_mut().zip(least).skip(1).step_by(2) {
        if (vague || least.ffn < d.ffn) && d.ffn > 1 {
            d.ffn -= 1;
        }
        if (vague || least.q_heads < d.q_heads) && d.kv_heads > 1 {
            let size = d.group_size();
            d.kv_heads -= 1;
            d.q_heads = d.kv_heads * size;
        }
    }
    dims
}
