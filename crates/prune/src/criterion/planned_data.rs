//! Rows of criteria that score from data and gradients, known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, SiteKind, Ty};

use super::Criterion;
use crate::row::{CALIBRATION, INNER_SITES, WEIGHTS, criterion, needs_data, optional, param, required, within};

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn Criterion> = Entry { spec: $spec, build: None };
    };
}

planned!(
    LRP,
    needs_data(criterion(
        "lrp",
        "Yeom et al., Pruning by explaining: a novel criterion for deep neural network pruning (2021), eq. 3-5",
        &[CALIBRATION, param("rule", Ty::OneOf(&["epsilon", "zplus"]), "epsilon", "How relevance is shared among a layer's inputs."),],
        INNER_SITES,
        "Layer-wise relevance propagation: relevance that flows through a unit, `Σ_x |R|`.\n\n\
         Mind: relevance is conserved, Σ in = Σ out, up to the share of biases; the published code's rule named epsilon is z⁺.\n\n\
         ```prune\nscore m.layers[*].mlp.neurons using lrp(on = d.train.sample(64, seed = 0), rule = zplus) as s\n```",
    ))
);
planned!(
    SUPERMASK,
    criterion(
        "supermask",
        "Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask (2019), table 1",
        &[
            param(
                "kind",
                Ty::OneOf(&[
                    "large_final",
                    "small_final",
                    "large_init",
                    "large_init_large_final",
                    "small_init_small_final",
                    "magnitude_increase",
                    "movement",
                ]),
                "large_final",
                "The mask criterion, from a weight's first and final values.",
            ),
            required("initial", Ty::Snapshot, "The snapshot that holds the first values."),
            param(
                "fill",
                Ty::OneOf(&["zero", "init", "sign"]),
                "zero",
                "What removed weights become: zero, their first value, or a signed constant."
            ),
        ],
        WEIGHTS,
        "Masks from a weight's first value w_i and final value w_f, such as `|w_f|`, `|w_f| − |w_i|`, `|w_f − w_i|`.\n\n\
         Mind: its `movement` is |w_f − w_i|, not movement pruning (Sanh 2020).\n\n\
         ```prune\nsnapshot m as first\nprune m.layers[*].linears.weights by 50% using supermask(kind = magnitude_increase, initial = first) { scope = global }\n```",
    )
);
planned!(
    SLICE,
    needs_data(criterion(
        "slice",
        "Ashkboos et al., SliceGPT: Compress Large Language Models by Deleting Rows and Columns (2024), sec. 3",
        &[CALIBRATION],
        &[SiteKind::Hidden],
        "Rotates the residual stream onto its principal components and cuts the smallest directions.\n\n\
         Mind: layer norms are turned into RMS norms first; the rotation is orthogonal, so the uncut model's outputs do not change.",
    ))
);
planned!(
    ADAPTIVE,
    needs_data(criterion(
        "adaptive",
        "Zhao et al., Adaptive Activation-based Structured Pruning (2023), algorithm 2",
        &[
            CALIBRATION,
            param("target", Ty::OneOf(&["accuracy", "params", "flops"]), "accuracy", "What the loop aims at."),
            within(param("step", Ty::Percent, "5%", "λ: how much the threshold grows in a round; halved after a miss."), 0.0, 100.0),
            optional("bound", Ty::Percent, "The target's value: accuracy to keep, or share of parameters or FLOPs to reach."),
        ],
        INNER_SITES,
        "Grows an activation threshold until the target is missed, rolls back to the last accepted weights and halves the step.\n\n\
         Mind: written from the paper's description; each round restores the last accepted weights.",
    ))
);
