//! Magnitude.

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
    spec: runs(criterion(
        "magnitude",
        "Han et al., Learning both Weights and Connections for Efficient Neural Networks (2015), sec. 3",
        &[
            param("norm", Ty::OneOf(&["l1", "l2"]), "l2", "`l1` = Σ|w|, `l2` = √Σw²."),
            param(
                "reduce",
                Ty::OneOf(&["sum", "mean"]),
                "sum",
                "Over the group; `mean` divides by its number of weights (inside the root).",
            ),
            param(
                "quirk",
                Ty::OneOf(&["none", "reference"]),
                "none",
                "`reference` is the score of torch-pruning: squares are not rooted, `mean` divides by the number of member matrices, heads average over their entries.",
            ),
        ],
        ALL_SITES,
        "The size of a unit: `Σ|w|` or `√Σw²` over all weights of its group (a query head: its q rows and o columns; a KV group: also k, v and all its query heads; a neuron: its up and gate rows and down column). A single weight: `|w|`.\n\n\
         Mind: biases and norms do not count. Other codes leave squares unrooted or average over members, so sums over groups of different size rank differently (`quirk = \"reference\"`).\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 30% using magnitude(norm = l1)\n```",
    )),
    build: Some(build),
};
