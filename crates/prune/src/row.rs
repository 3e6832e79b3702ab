//! Short constructors for catalogue rows, so that a method's file states only what is its own.

use prunectl_recipe::catalogue::{Kind, Param, SiteKind, Spec, Ty};

/// Every unit whose coupled slices can be listed, single weights included.
pub(crate) const ALL_SITES: &[SiteKind] = &[
    SiteKind::Heads,
    SiteKind::KvGroups,
    SiteKind::Neurons,
    SiteKind::Experts,
    SiteKind::Attention,
    SiteKind::Mlp,
    SiteKind::Layers,
    SiteKind::Hidden,
    SiteKind::Weights,
];
/// Units that a gate on the forward pass can switch off.
pub(crate) const GATED_SITES: &[SiteKind] =
    &[SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Experts, SiteKind::Attention, SiteKind::Mlp, SiteKind::Layers];
/// Heads, KV groups, neurons and single weights.
pub(crate) const INNER_AND_WEIGHTS: &[SiteKind] = &[SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Weights];
/// Heads, KV groups and neurons.
pub(crate) const INNER_SITES: &[SiteKind] = &[SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons];
/// Neurons only.
pub(crate) const NEURONS: &[SiteKind] = &[SiteKind::Neurons];
/// Single weights only.
pub(crate) const WEIGHTS: &[SiteKind] = &[SiteKind::Weights];

/// A parameter with a default, written as in a recipe.
pub(crate) const fn param(name: &'static str, ty: Ty, default: &'static str, doc: &'static str) -> Param {
    Param { name, ty, default: Some(default), optional: false, range: None, doc }
}

/// A parameter that must be given.
pub(crate) const fn required(name: &'static str, ty: Ty, doc: &'static str) -> Param {
    Param { name, ty, default: None, optional: false, range: None, doc }
}

/// A parameter that may be left out without a default value.
pub(crate) const fn optional(name: &'static str, ty: Ty, doc: &'static str) -> Param {
    Param { name, ty, default: None, optional: true, range: None, doc }
}

/// The same parameter with inclusive bounds (a percent counts as 0..=100).
pub(crate) const fn within(p: Param, low: f64, high: f64) -> Param {
    Param { range: Some((low, high)), ..p }
}

/// The data of a criterion that also works inside `train`, where it is left out: the training batches are used.
pub(crate) const ON: Param = optional(
    "on",
    Ty::Data,
    "Data that the score is measured on. Required outside `train`; inside it, the training batches are used when left out.",
);
/// The data of a criterion that can't borrow training batches.
pub(crate) const CALIBRATION: Param = required("on", Ty::Data, "Calibration data. Labels are not used.");

/// The switch between the paper's formula and the published code's.
pub(crate) const QUIRK: Param = param(
    "quirk",
    Ty::OneOf(&["none", "reference"]),
    "none",
    "`reference` gives the numbers of the authors' code where they differ from the paper's formula.",
);

const fn plain(kind: Kind, name: &'static str, source: &'static str, params: &'static [Param], doc: &'static str) -> Spec {
    Spec { name, kind, source, doc, params, sites: &[], sequential: false, learns: false, turns: false, needs_data: false }
}

/// A criterion's row.
pub(crate) const fn criterion(
    name: &'static str,
    source: &'static str,
    params: &'static [Param],
    sites: &'static [SiteKind],
    doc: &'static str,
) -> Spec {
    Spec { sites, ..plain(Kind::Criterion, name, source, params, doc) }
}

/// A metric's row.
pub(crate) const fn metric(name: &'static str, source: &'static str, params: &'static [Param], doc: &'static str) -> Spec {
    plain(Kind::Metric, name, source, params, doc)
}

/// Any other row.
pub(crate) const fn other(kind: Kind, name: &'static str, source: &'static str, params: &'static [Param], doc: &'static str) -> Spec {
    plain(kind, name, source, params, doc)
}

/// The same row, scored block by block on the inputs that pruned blocks give.
pub(crate) const fn sequential(s: Spec) -> Spec {
    Spec { sequential: true, ..s }
}

/// The same row, usable inside `train` only.
pub(crate) const fn learns(s: Spec) -> Spec {
    Spec { learns: true, ..s }
}

/// The same row, scoring nothing apart from its prune, which turns the residual stream.
pub(crate) const fn turns(s: Spec) -> Spec {
    Spec { turns: true, ..s }
}

/// The same row, with data needed (for a criterion: outside `train`).
pub(crate) const fn needs_data(s: Spec) -> Spec {
    Spec { needs_data: true, ..s }
}
