//! Rows of layer-wise one-shot criteria, known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, Ty};

use super::Criterion;
use crate::row::{CALIBRATION, INNER_SITES, QUIRK, criterion, needs_data, param, sequential, within};

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn Criterion> = Entry { spec: $spec, build: None };
    };
}

planned!(
    FLAP,
    needs_data(sequential(criterion(
        "flap",
        "An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models (2024), eq. 5-8",
        &[
            CALIBRATION,
            param(
                "metric",
                Ty::OneOf(&["wifv", "ifv", "wifn"]),
                "wifv",
                "Weighted input fluctuation (the paper's), the fluctuation alone, or the weighted input norm."
            ),
            param("bias", Ty::Bool, "true", "Add W·mean(removed input) to the consumer's bias."),
            QUIRK,
        ],
        INNER_SITES,
        "Fluctuation of a unit's activation times the consumer's weights: `Var(x_j) · ‖W_:j‖²`, standardised per layer, ranked globally; heads count their share of parameters; what is removed is replaced by its mean in the consumer's bias.\n\n\
         Mind: variances are computed in two passes or by Welford's method. The published code's running mean overwrites itself (`quirk = \"reference\"`).\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 20% using flap(on = d.train.sample(64, seed = 0))\n```",
    )))
);
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
