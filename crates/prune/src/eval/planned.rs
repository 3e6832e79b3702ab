//! Rows of metrics known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, Ty};

use super::Metric;
use crate::row::{metric, needs_data, param};

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn Metric> = Entry { spec: $spec, build: None };
    };
}

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
