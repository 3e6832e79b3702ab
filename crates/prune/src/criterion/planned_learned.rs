//! Rows of criteria that learn inside `train`, known to `check` and `plan` and not carried out yet.

use prunectl_recipe::catalogue::{Entry, SiteKind, Ty};

use super::Criterion;
use crate::row::{GATED_SITES, INNER_AND_WEIGHTS, INNER_SITES, criterion, learns, param, required, within};

macro_rules! planned {
    ($name:ident, $spec:expr) => {
        pub(super) const $name: Entry<dyn Criterion> = Entry { spec: $spec, build: None };
    };
}

planned!(
    SLIMMING,
    learns(criterion(
        "slimming",
        "Liu et al., Learning Efficient Convolutional Networks through Network Slimming (2017), eq. 1",
        &[within(param("l1", Ty::Scheduled, "1e-4", "Weight of the l1 subgradient on the gates."), 0.0, 1e6)],
        &[SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Hidden],
        "Trains with an l1 subgradient on gates (norm scales for `hidden`), then ranks |γ|.\n\n\
         Mind: the subgradient is added after backward, sign(0) = 0; a global threshold can empty a layer, so use `at_least`.",
    ))
);
planned!(
    PSP,
    learns(criterion(
        "psp",
        "Schindler et al., Parameterized Structured Pruning for Deep Neural Networks (2019), eq. 2-5",
        &[
            within(param("l1", Ty::Scheduled, "1e-4", "Decay of the structure parameters."), 0.0, 1e6),
            within(param("threshold", Ty::Float, "1e-2", "ε: a smaller |α| switches its structure off."), 0.0, 1e6),
            param("decay", Ty::OneOf(&["l1", "l2"]), "l1", "The regulariser on α."),
        ],
        INNER_SITES,
        "Multiplies every structure by ν(α), zero where |α| < ε; ∂α is the sum of the structure's gradients, straight through the threshold.\n\n\
         Mind: dense weights stay, so a structure can return.",
    ))
);
planned!(
    MOVEMENT,
    learns(criterion(
        "movement",
        "Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning (2020), eq. 3-5",
        &[
            within(param("lr", Ty::Scheduled, "1e-2", "Learning rate of the scores."), 0.0, 1e6),
            param("kind", Ty::OneOf(&["hard", "soft"]), "hard", "Keep the top scores, or those with σ(S) > τ."),
            within(param("penalty", Ty::Scheduled, "0", "λ of soft movement's mean σ(S)."), 0.0, 1e6),
            within(param("threshold", Ty::Float, "0.1", "τ of soft movement."), 0.0, 1.0),
        ],
        INNER_AND_WEIGHTS,
        "Scores learned by the straight-through gradient: `S ← S − η·∂L/∂W′ ⊙ W`, S₀ = 0: weights that move away from zero stay.\n\n\
         On a structured site there is one score per unit, with `∂S = Σ ∂L/∂W′ ⊙ W` over its group.\n\n\
         Mind: scores update **even where masked**, weights only where kept; the scores are a parameter group of their own.\n\n\
         ```prune\ntrain m on d.train for 20 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].linears.weights by cubic(0% -> 50%) using movement(lr = 1e-2) { scope = matrix }\n}\n```",
    ))
);
planned!(
    LEARNED_SCORES,
    learns(criterion(
        "learned_scores",
        "Lagunas et al., Block Pruning For Faster Transformers (2021), eq. 3",
        &[
            within(param("lr", Ty::Scheduled, "1e-2", "Learning rate of the scores."), 0.0, 1e6),
            param(
                "granularity",
                Ty::OneOf(&["weight", "block", "row", "column", "head", "neuron"]),
                "weight",
                "What one score stands for."
            ),
            within(param("rows", Ty::Count, "32", "Height of a block."), 1.0, 65536.0),
            within(param("columns", Ty::Count, "32", "Width of a block."), 1.0, 65536.0),
        ],
        INNER_AND_WEIGHTS,
        "Movement's straight-through scores for blocks, rows, columns, heads or neurons.\n\n\
         Mind: block sizes that do not divide a matrix are an error; products of row and column scores can't start from zero.",
    ))
);
planned!(
    GUM,
    learns(criterion(
        "gum",
        "Santacroce et al., What Matters In The Structured Pruning of Generative Language Models? (2023), eq. 3-5",
        &[
            within(param("uniqueness", Ty::Float, "0.5", "λ_u: weight of similarity inside the regulariser."), 0.0, 1e6),
            within(param("penalty", Ty::Scheduled, "1e-2", "λ(t) of mean |σ(S)·(1 + λ_u·u)|."), 0.0, 1e6),
            within(param("lr", Ty::Scheduled, "1e-2", "Learning rate of the scores."), 0.0, 1e6),
            within(param("memory", Ty::Float, "0.999", "Weight of the newest batch in the running cosines."), 0.0, 1.0),
        ],
        &[SiteKind::Neurons],
        "Globally unique movement: movement scores per neuron with a regulariser that presses on neurons whose activations resemble others', `u_j = Σ_{k≠j} |cos(h_j, h_k)| / (N·v)`; one **global** top-v.\n\n\
         Mind: λ(t) follows the sparsity schedule; running cosines take N² memory per layer, tiled.\n\n\
         ```prune\ntrain m on d.train for 20 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].mlp.neurons by cubic(0% -> 25%) using gum(uniqueness = 0.5) { scope = global }\n}\n```",
    ))
);
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
planned!(
    LOBSTER,
    learns(criterion(
        "lobster",
        "Tartaglione et al., LOss-Based SensiTivity rEgulaRization: towards deep sparse neural networks (2022), eq. 6",
        &[
            required("lambda", Ty::Scheduled, "λ of the decay."),
            within(param("tolerance", Ty::Percent, "1%", "Loss that the threshold's bisection may cost."), 0.0, 100.0),
        ],
        &[SiteKind::Neurons, SiteKind::Weights],
        "Decays insensitive weights: `w ← w − λ·w·relu(1 − |∂L/∂w|)`; then a threshold by bisection on the allowed loss.",
    ))
);
planned!(
    HARD_CONCRETE,
    learns(criterion(
        "hard_concrete",
        "Louizos et al., Learning Sparse Neural Networks through L0 Regularization (2018), eq. 10-12; Xia et al., CoFi (2022); Sheared LLaMA (2023)",
        &[
            within(param("lr", Ty::Scheduled, "1e-1", "Learning rate of the gates' log α and of the multipliers."), 0.0, 1e6),
            within(param("target", Ty::Percent, "50%", "Share of the parameters that may stay."), 0.0, 100.0),
            within(param("temperature", Ty::Float, "0.6667", "β of the concrete distribution, also at evaluation."), 1e-3, 10.0),
        ],
        GATED_SITES,
        "L0 gates from a stretched, clamped concrete distribution, with a Lagrangian on the target size over any mix of sites.\n\n\
         Mind: evaluation uses the gates' deterministic value at the same temperature.",
    ))
);
