//! Group Fisher: the Fisher information of coupled units, over what their removal saves.
//!
//! Liu et al., Group Fisher Pruning for Practical Network Compression (2021), eq. 6-9. Contributions of coupled members are added before
//! they are squared: a gate on a KV group multiplies all its heads. The costs are ours, since the paper's count convolutions: parameters;
//! multiply-adds of the removed weights for each token, counted as 2; activations for each token that disappear.

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::gate_gradients::{Of, score};
use super::{Criterion, Formula};
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::groups::{Fold, same, sums};
use crate::network::Network;
use crate::row::{INNER_SITES, ON, QUIRK, criterion, needs_data, param};
use crate::scores::Scores;
use crate::site::Sites;

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

impl Criterion for GroupFisher {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        self.scores(model, sites, data, progress)
    }

    fn formula(&self) -> Option<&dyn Formula> {
        Some(self)
    }
}

impl Formula for GroupFisher {
    fn scores(&self, network: &dyn Network, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| !INNER_SITES.contains(k)) {
            return Err(PruneError::Site { method: NAME, kind, hint: "it scores heads, KV groups and neurons" });
        }
        let mut scores = score(NAME, self.of, network, sites, data, progress)?;
        if self.per != Per::Nothing {
            let weights = |slot: &str| Ok(network.params().require(slot)?.clone());
            for (key, groups) in sums(network, sites, Fold { entry: same, line: same }, &weights)? {
                let activations = network.activations(key)?;
                let cost = |entries: usize| match self.per {
                    Per::Nothing => 1,
                    Per::Params => entries,
                    Per::Flops => 2 * entries,
                    Per::Memory => activations,
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
    use crate::criterion::by_hand::{UNITS, gated};

    /// Gradients by gates (6, 4) and (6, 0): (36 + 36)/2 and (16 + 0)/2. A unit is a row of two weights and a column of one: three
    /// parameters, six operations a token, one activation. The authors differentiate the mean of both, half of it, and add the squares.
    #[test]
    fn by_hand() {
        let (network, sites, mut data) = gated();
        let mut of = |per, of| {
            let scores = GroupFisher { per, of }.scores(&network, &sites, &mut data, &()).unwrap();
            scores.get(UNITS).unwrap().to_vec()
        };
        assert_eq!(of(Per::Nothing, Of::Square), [36.0, 8.0]);
        assert_eq!(of(Per::Memory, Of::Square), [36.0, 8.0]);
        assert_eq!(of(Per::Params, Of::Square), [12.0, 8.0 / 3.0]);
        assert_eq!(of(Per::Flops, Of::Square), [6.0, 4.0 / 3.0]);
        assert_eq!(of(Per::Nothing, Of::SquareOfBatchMean), [18.0, 4.0]);
    }
}
