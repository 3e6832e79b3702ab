//! Taylor.

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::*;
use crate::scores::Scores;
use crate::site::Sites;

struct It;

impl Criterion for It {
    fn score(&self, _: &Transformer, _: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        Err(PruneError::NothingSelected)
    }
}

fn build(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(It))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: runs(needs_data(criterion(
        "taylor",
        "Molchanov et al., Importance Estimation for Neural Network Pruning (2019), eq. 6-8; Ma et al., LLM-Pruner (2023), eq. 3",
        &[
            ON,
            within(param("order", Ty::Count, "1", "1: |Σ g·w|; 2: |Σ g·w − ½ Σ F·w²|."), 1.0, 2.0),
            param(
                "reduce",
                Ty::OneOf(&["group", "element"]),
                "group",
                "Where the absolute value is taken: of the sum over the group, or of each weight before the sum.",
            ),
            optional("through", Ty::Adapter, "Gradients of this adapter's matrices stand for the weight's."),
            QUIRK,
        ],
        ALL_SITES,
        "First-order loss change of removing a unit: `|Σ g·w|` over the weights of its group, g the gradient of the mean loss over all the data. Second order: `|Σ g·w − ½ Σ F·w²|`, F the mean over examples of the squared gradient of the example's mean loss.\n\n\
         Mind: the sum comes before the absolute value; `reduce = element` takes |g·w| weight by weight. torch-pruning's code takes it per member matrix (`quirk = \"reference\"`).\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 30% using taylor(on = d.train.sample(32, seed = 0))\n```",
    ))),
    build: Some(build),
};
