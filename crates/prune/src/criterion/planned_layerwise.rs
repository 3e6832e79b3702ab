//! Rows of layer-wise one-shot criteria, known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, Ty};

use super::Criterion;
use crate::row::{CALIBRATION, INNER_SITES, criterion, needs_data, param, sequential, within};

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn Criterion> = Entry { spec: $spec, build: None };
    };
}

planned!(
    THINET,
    needs_data(sequential(criterion(
        "thinet",
        "Luo et al., ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression (2017), eq. 6-7",
        &[
            CALIBRATION,
            within(param("samples", Ty::Count, "4096", "Rows of the consumer's output that the choice is made on."), 1.0, 1e7),
            param("rescale", Ty::Bool, "true", "Rescale the survivors by least squares."),
            within(param("seed", Ty::Count, "0", "Which rows are drawn."), 0.0, 9e15),
        ],
        INNER_SITES,
        "Greedy removed set T that changes the consumer's output least: `Σ (Σ_{j∈T} x̂_ij)²`; survivors are rescaled by least squares.\n\n\
         Mind: the consumer is `down` for neurons and `o` for heads; ties go to the lowest index.\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 20% using thinet(on = d.train.sample(64, seed = 0)) { scope = layer }\n```",
    )))
);
