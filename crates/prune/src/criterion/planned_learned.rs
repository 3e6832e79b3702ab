//! Rows of criteria that learn inside `train`, known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, SiteKind, Ty};

use super::Criterion;
use crate::row::{criterion, learns, param, required, within};

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn Criterion> = Entry { spec: $spec, build: None };
    };
}

planned!(
    SERENE,
    learns(criterion(
        "serene",
        "Tartaglione et al., SeReNe: Sensitivity-based Regularization of Neurons for Structured Sparsity in Neural Networks (2022), eq. 9",
        &[
            required("lambda", Ty::Scheduled, "λ of the decay."),
            param("bound", Ty::OneOf(&["full", "lower", "local"]), "full", "Which sensitivity of the neuron."),
            within(param("tolerance", Ty::Percent, "1%", "Loss that the threshold's bisection may cost."), 0.0, 100.0),
        ],
        &[SiteKind::Heads, SiteKind::Neurons, SiteKind::Weights],
        "Decays weights of insensitive neurons: `w ← w − λ·w·relu(1 − S)`, S the neuron's `|∂y/∂p|`; then a threshold by bisection on the allowed loss.\n\n\
         Mind: the published code divides by the batch twice, so its S carries 1/B².",
    ))
);
