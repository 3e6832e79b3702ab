//! Rows of criteria that score from data and gradients, known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, SiteKind, Ty};

use super::Criterion;
use crate::row::{CALIBRATION, INNER_SITES, criterion, needs_data, param};

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
