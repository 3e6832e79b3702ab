//! Loss delta.

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
        "loss_delta",
        "Michel et al., Are Sixteen Heads Really Better than One? (2019), eq. 3-4",
        &[
            ON,
            param(
                "estimate",
                Ty::OneOf(&["exact", "gradient"]),
                "exact",
                "Measure each removal, or estimate all from one backward pass a batch.",
            ),
            param("normalize", Ty::OneOf(&["none", "layer"]), "none", "`layer` divides the scores of each layer by their ℓ2 norm."),
            param("absolute", Ty::Bool, "false", "Size of the change instead of the change, for `exact`."),
            param(
                "quirk",
                Ty::OneOf(&["none", "reference", "bertology"]),
                "none",
                "For `gradient`: the authors' code (absolute value per token) or the one of transformers' bertology (absolute value of each batch's sum).",
            ),
        ],
        GATED_SITES,
        "What a unit's absence costs. `exact`: L(without the unit) − L, the token-weighted mean loss over **all** the data, unit by unit, the others present; the sign is kept, so a unit whose absence helps goes first. \
         `gradient`: the mean over examples of |∂L(x)/∂ξ|, ξ a gate on the unit's output, L(x) the mean over the example's scored tokens.\n\n\
         Mind: the absolute value is taken per example. Published scripts take it per token or per batch, so their scores depend on the batch size; both are behind `quirk`. Padding never counts.\n\n\
         ```prune\nprune m.layers[*].attention.heads by 40% using loss_delta(on = d.train.sample(32, seed = 0)) { rescore = 10%  at_least = 1 head }\n```",
    ))),
    build: Some(build),
};
