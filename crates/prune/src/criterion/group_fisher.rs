//! Group Fisher: the Fisher information of coupled units, over what their removal saves.
//!
//! Liu et al., Group Fisher Pruning for Practical Network Compression (2021), eq. 6-9. Contributions of coupled members are added before
//! they are squared: a gate on a KV group multiplies all its heads. The costs are ours, since the paper's count convolutions: parameters;
//! multiply-adds of the removed weights for each token, counted as 2; activations for each token that disappear.

use prunectl_model::{LayerDims, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};

use super::Criterion;
use super::gate_gradients::{Of, score};
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::groups::{Fold, same, sums};
use crate::row::{INNER_SITES, ON, QUIRK, criterion, needs_data, param};
use crate::scores::Scores;
use crate::site::{Key, Sites};

const NAME: &str = "group_fisher";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    Nothing,
    Params,
    Flops,
    Memory,
}

struct GroupFisher {
    per: Per,
    of: Of,
}

/// Activations of one token that a unit's removal saves.
fn activations(key: Key, d: &LayerDims, gated: bool) -> usize {
    let r = d.group_size();
    match key.kind {
        SiteKind::Neurons => 1 + usize::from(gated),
        SiteKind::KvGroups => (2 + r) * d.head_dim,
        // A query head with keys and values of its own takes them along.
        _ if r == 1 => 3 * d.head_dim,
        _ => d.head_dim,
    }
}

impl Criterion for GroupFisher {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| !INNER_SITES.contains(k)) {
            return Err(PruneError::Site { method: NAME, kind, hint: "it scores heads, KV groups and neurons" });
        }
        let mut scores = score(NAME, self.of, model, sites, data, progress)?;
        if self.per != Per::Nothing {
            let weights = |slot: &str| Ok(model.params().require(slot)?.clone());
            for (key, groups) in sums(model, sites, Fold { entry: same, line: same }, &weights)? {
                let d = *model.layer_dims(key.layer.unwrap_or_default())?;
                let gated = model.blueprint().mlp.gated;
                let cost = |entries: usize| match self.per {
                    Per::Nothing => 1,
                    Per::Params => entries,
                    Per::Flops => 2 * entries,
                    Per::Memory => activations(key, &d, gated),
                };
                for (score, group) in scores.sites.entry(key).or_default().iter_mut().zip(groups) {
                    *score = (f64::from(*score) / cost(group.entries).max(1) as f64) as f32;
                }
            }
        }
        scores.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let per = match args.word("per")? {
        "params" => Per::Params,
        "flops" => Per::Flops,
        "memory" => Per::Memory,
        _ => Per::Nothing,
    };
    let of = if args.word("quirk")? == "reference" { Of::SquareOfBatchMean } else { Of::Square };
    Ok(Box::new(GroupFisher { per, of }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "group_fisher",
        "Liu et al., Group Fisher Pruning for Practical Network Compression (2021), eq. 6-9",
        &[ON, param("per", Ty::OneOf(&["none", "params", "flops", "memory"]), "none", "Divide by what removing the unit saves."), QUIRK],
        INNER_SITES,
        "Fisher information of coupled units, divided by the cost that their removal saves.\n\n\
         `E_x[(Σ_members ∂L(x)/∂ξ)²] / cost`: contributions of coupled members (a KV group's heads, a residual channel's writers) are added **before** squaring.\n\n\
         Mind: the authors' code takes the gradient of the batch mean, so its scores carry 1/N, and divides integers by integers; both behind `quirk = \"reference\"`.\n\n\
         ```prune\nscore m.layers[*].mlp.neurons using group_fisher(on = d.train.sample(64, seed = 0), per = params) as s\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads of 4 entries, two a group: a group saves its keys, values and two heads' outputs; a gated neuron two activations.
    #[test]
    fn activations_by_hand() {
        let d = LayerDims { q_heads: 4, kv_heads: 2, head_dim: 4, ffn: 6, ..LayerDims::default() };
        assert_eq!(activations(Key::of(SiteKind::KvGroups, 0), &d, true), 16);
        assert_eq!(activations(Key::of(SiteKind::Heads, 0), &d, true), 4);
        assert_eq!((activations(Key::of(SiteKind::Neurons, 0), &d, true), activations(Key::of(SiteKind::Neurons, 0), &d, false)), (2, 1));
        let alone = LayerDims { kv_heads: 4, ..d };
        assert_eq!(activations(Key::of(SiteKind::Heads, 0), &alone, true), 12);
    }
}
