//! Adapters: small trained matrices beside a frozen weight, pruned with it and fused into it.

use prunectl_recipe::catalogue::{Entry, Kind, SiteKind, Ty};

use crate::row::{other, param, within};

/// A way to attach trained low-rank matrices to frozen weights. No row is carried out yet, so it has no operations.
pub trait Adapter: Send + Sync {}

const SITES: &[SiteKind] = &[SiteKind::Attention, SiteKind::Mlp, SiteKind::Layers, SiteKind::Weights];

/// Every adapter that the language knows.
pub static ADAPTERS: &[Entry<dyn Adapter>] = &[
    Entry {
        spec: prunectl_recipe::catalogue::Spec {
            sites: SITES,
            ..other(
                Kind::Adapter,
                "lora",
                "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), eq. 3",
                &[
                    within(param("rank", Ty::Count, "16", "Columns of B, rows of A."), 1.0, 65536.0),
                    within(param("alpha", Ty::Float, "16", "The update is scaled by alpha / rank."), 0.0, 1e6),
                    within(param("seed", Ty::Count, "0", "Of A's first values; B starts at zero."), 0.0, 9e15),
                ],
                "`W + (alpha/rank)·B·A`, B zero at first.",
            )
        },
        build: None,
    },
    Entry {
        spec: prunectl_recipe::catalogue::Spec {
            sites: SITES,
            ..other(
                Kind::Adapter,
                "splora",
                "Hedegaard et al., Structured Pruning Adapters (2023), eq. 4",
                &[
                    within(param("rank", Ty::Count, "16", "Columns of B, rows of A."), 1.0, 65536.0),
                    within(param("seed", Ty::Count, "0", "Of the first values."), 0.0, 9e15),
                ],
                "`W + B·A`, pruned with the weight: rows of B, columns of A.\n\nMind: the start is not exactly zero, unlike LoRA's.",
            )
        },
        build: None,
    },
    Entry {
        spec: prunectl_recipe::catalogue::Spec {
            sites: SITES,
            ..other(
                Kind::Adapter,
                "splopa",
                "Hedegaard et al., Structured Pruning Adapters (2023), eq. 6",
                &[
                    within(param("prototypes", Ty::Count, "64", "Prototype blocks, shared by the model's layers."), 1.0, 65536.0),
                    param("shape", Ty::List(&Ty::Count), "[32, 32]", "Rows and columns of a block."),
                    within(param("rank", Ty::Count, "1", "Rank of a prototype."), 1.0, 65536.0),
                    within(param("seed", Ty::Count, "0", "Of the first values."), 0.0, 9e15),
                ],
                "`W + Σ_n pos_n ⊗ P_n`: each block of the weight is a mix of prototypes.\n\nMind: block sizes must divide the weight; prototypes are shared per model.",
            )
        },
        build: None,
    },
];
