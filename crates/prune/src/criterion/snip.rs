//! SNIP: how much the loss depends on a connection being there.
//!
//! Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity (2019), eq. 4: `|∂L/∂c| = |g·w|` at c = 1, g the gradient
//! of the mean loss over all the data. The published codes divide by the sum over all connections, which leaves the order as it is.

use candle_core::{DType, Device};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry};

use super::weight_gradients::{Curvature, Gradients, gradients};
use super::{Criterion, Formula};
use crate::data::{Batches, Progress};
use crate::error::Result;
use crate::groups::{Fold, same, slots, sums};
use crate::network::Network;
use crate::row::{INNER_AND_WEIGHTS, ON, criterion, needs_data};
use crate::scores::Scores;
use crate::site::Sites;

const NAME: &str = "snip";

struct Snip;

impl Criterion for Snip {
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

impl Formula for Snip {
    fn scores(&self, network: &dyn Network, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        of(network, sites, &gradients(NAME, Curvature::None, network, &slots(network, sites)?, data, progress)?)
    }
}

fn of(network: &dyn Network, sites: &Sites, gradients: &Gradients) -> Result<Scores> {
    let entries = |slot: &str| gradients.times_weight(network.params(), slot);
    let mut out = Scores::default();
    for (key, sums) in sums(network, sites, Fold { entry: f64::abs, line: same }, &entries)? {
        out.sites.insert(key, sums.iter().map(|g| g.sum as f32).collect());
    }
    for slot in &sites.weights {
        out.weights.insert(slot.clone(), entries(slot)?.abs()?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?);
    }
    out.checked(NAME)
}

fn build(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Snip))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "snip",
        "Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity (2019), eq. 4",
        &[ON],
        INNER_AND_WEIGHTS,
        "Connection sensitivity: `|g·w|` with g the gradient of the mean loss over all the data; units sum over their group.\n\n\
         Mind: published codes re-initialise the weights first and divide by the sum; the order is the same, the given weights are used here.\n\n\
         ```prune\nprune m.layers[*].linears.weights by 50% using snip(on = d.train.sample(64, seed = 0)) { scope = global }\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::by_hand::{SLOT, holding, numbers, tensor};

    #[test]
    fn by_hand() {
        let (model, sites) = holding(&[&[2.0, -1.0]]);
        let gradients = Gradients { mean: [(SLOT.to_owned(), tensor(&[&[0.5, 3.0]]))].into(), ..Gradients::default() };
        assert_eq!(numbers(&of(&model, &sites, &gradients).unwrap().weights[SLOT]), [1.0, 3.0]);
        // A weight that the loss does not depend on.
        assert_eq!(numbers(&of(&model, &sites, &Gradients::default()).unwrap().weights[SLOT]), [0.0, 0.0]);
    }
}
