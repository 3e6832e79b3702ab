//! Rows of `keep = …` and `stop = …` in `train`, and of `adopt … by …`. The executor carries them out; nothing is constructed.

use prunectl_recipe::catalogue::{Kind, Spec, Ty};

use crate::row::{other, param, required, within};

/// Every rule that the language knows.
pub static RULES: &[Spec] = &[
    other(
        Kind::Rule,
        "lowest",
        "",
        &[required("metric", Ty::Metric, "A metric's recorded name.")],
        "Keep the model at the point where the metric was lowest. Inside `train` it counts only once the final sparsity is reached.",
    ),
    other(
        Kind::Rule,
        "highest",
        "",
        &[required("metric", Ty::Metric, "A metric's recorded name.")],
        "Keep the model at the point where the metric was highest. Inside `train` it counts only once the final sparsity is reached.",
    ),
    other(
        Kind::Rule,
        "stale",
        "",
        &[
            required("metric", Ty::Metric, "A metric's recorded name."),
            within(param("after", Ty::Count, "3", "Evaluations without a better value."), 1.0, 1e6),
        ],
        "Stop when the metric has not improved for so many evaluations.",
    ),
];
