//! Rows of metrics known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, Ty};

use super::Metric;
use crate::row::{metric, needs_data, param, required, within};

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn Metric> = Entry { spec: $spec, build: None };
    };
}

planned!(
    BARRIER,
    needs_data(metric(
        "barrier",
        "Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis (2020), sec. 2",
        &[
            required("a", Ty::Model, "One end."),
            required("b", Ty::Model, "The other end."),
            within(param("points", Ty::Count, "30", "Points on the line, the ends included."), 2.0, 1e4),
        ],
        "Highest loss on the straight line between two models' weights, minus the mean of the ends.",
    ))
);
planned!(
    ZERO_COST,
    needs_data(metric(
        "zero_cost",
        "Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS (2021), sec. 3",
        &[param(
            "kind",
            Ty::OneOf(&["synflow", "snip", "grasp", "fisher", "grad_norm", "jacob_cov", "vote"]),
            "synflow",
            "The proxy, or the vote of synflow, jacob_cov and snip.",
        )],
        "Scores an untrained shape; a sweep's table gives Spearman's correlation with the trained result.",
    ))
);
