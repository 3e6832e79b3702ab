//! What a `prune` inside a training can't be: told before anything runs.

use std::collections::BTreeMap;

use prunectl_prune::{CRITERIA, build};
use prunectl_recipe::diagnostic::Diagnostic;
use prunectl_recipe::plan::{CriterionRef, Part, Selector, Step, Train};

use super::Sim;

/// The code of what a run would not carry out.
const CODE: &str = "P0414";

/// Criteria that move the weights that stay, and what can't stand beside adapters.
pub(super) fn check(train: &Train, step: &Step, sims: &BTreeMap<String, Sim>) -> Vec<Diagnostic> {
    let adapters = sims.get(&train.model).is_some_and(|sim| !sim.adapters.is_empty());
    let mut out = Vec::new();
    for prune in &train.prunes {
        let (criterion, at) = match &prune.criterion {
            CriterionRef::Method(m) => (build(CRITERIA, &m.name, &m.args).ok().map(|c| (m.name.as_str(), c)), m.span),
            CriterionRef::Stored(_) | CriterionRef::Run { .. } => (None, step.span),
        };
        if let Some((name, _)) = criterion.as_ref().filter(|(_, c)| c.updates_weights()) {
            let message = format!("`{name}` makes up for what it removes in the other weights, and a training moves these, too");
            let d = Diagnostic::error(CODE, message, at, "not inside `train`");
            out.push(
                d.hint("prune with it before the `train`, or take a criterion that leaves weights alone, such as `wanda` or `taylor`"),
            );
        }
        let learns = criterion.as_ref().is_some_and(|(_, c)| c.learner().is_some());
        if adapters && (learns || of_weights(&prune.selector)) {
            let what = if learns { "scores are learned from the weights' gradients" } else { "single weights can't be hidden" };
            let d = Diagnostic::error(CODE, format!("{what}, and adapters are attached to the model"), at, "not beside adapters");
            out.push(d.hint("`fuse` them before, or prune whole units by a criterion that does not learn, such as `taylor(through = …)`"));
        }
    }
    out
}

/// Whether a selector names single weights.
fn of_weights(selector: &Selector) -> bool {
    match selector {
        Selector::Union(parts) => parts.iter().any(of_weights),
        Selector::Except(of, _) => of_weights(of),
        Selector::Path { part, .. } => matches!(part, Part::Weights { .. } | Part::Tensors(_)),
    }
}
