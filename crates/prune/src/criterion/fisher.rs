//! Fisher pruning: the second-order loss change of removing a unit, from squared gradients of its gate.
//!
//! Theis et al., Faster gaze prediction with dense networks and Fisher pruning (2018), eq. 9: `½ · E (Σ a·∂L/∂a)²`; our `∂L/∂ξ` is
//! their Σ a·∂L/∂a, over the example's tokens.

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry};

use super::gate_gradients::{Of, score};
use super::{Criterion, Formula};
use crate::data::{Batches, Progress};
use crate::error::Result;
use crate::network::Network;
use crate::row::{GATED_SITES, ON, criterion, needs_data};
use crate::scores::Scores;
use crate::site::Sites;

const NAME: &str = "fisher";

struct Fisher;

impl Criterion for Fisher {
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

impl Formula for Fisher {
    fn scores(&self, network: &dyn Network, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        let mut scores = score(NAME, Of::Square, network, sites, data, progress)?;
        scores.sites.values_mut().flatten().for_each(|s| *s *= 0.5);
        scores.checked(NAME)
    }
}

fn build(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Fisher))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "fisher",
        "Theis et al., Faster gaze prediction with dense networks and Fisher pruning (2018), eq. 9; Crowley et al., A closer look at structured pruning (2018)",
        &[ON],
        GATED_SITES,
        "Fisher pruning: the second-order loss change of removing a unit, from the squared gradient of its gate.\n\n\
         `½ · E_x[(∂L(x)/∂ξ)²]`, with `∂L/∂ξ = Σ a·∂L/∂a` summed over the example's tokens before squaring.\n\n\
         Mind: L(x) is the mean over the example's scored tokens and the square is taken per example, so the score does not depend on the batch.\n\n\
         ```prune\nscore m.layers[*].attention.heads using fisher(on = d.train.sample(64, seed = 0)) as s\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::by_hand::{UNITS, gated};

    /// Gradients by gates (6, 4) and (6, 0): ½·(36 + 36)/2 and ½·(16 + 0)/2.
    #[test]
    fn by_hand() {
        let (network, sites, mut data) = gated();
        let scores = Fisher.scores(&network, &sites, &mut data, &()).unwrap();
        assert_eq!(scores.get(UNITS).unwrap(), [18.0, 4.0]);
    }
}
