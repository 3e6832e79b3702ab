//! Rows of methods that train a gate on every unit, or press on weights while they train; the formulas are in `learned`.

use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::Value;

use super::Criterion;
use crate::learned::InTrain;
use crate::learned::hard_concrete::HardConcrete;
use crate::learned::lobster::Lobster;
use crate::learned::psp::Psp;
use crate::learned::serene::{Bound, Serene};
use crate::learned::slimming::Slimming;
use crate::optimizer::schedule;
use crate::row::{INNER_SITES, NEURONS, criterion, learns, optional, param, required, within};

fn slimming(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(InTrain(Slimming { l1: schedule(args, "l1")? })))
}

fn psp(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let squared = args.word("decay")? == "l2";
    Ok(Box::new(InTrain(Psp { l1: schedule(args, "l1")?, threshold: args.float("threshold")?, squared })))
}

fn hard_concrete(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let target = args.get("target").and_then(Value::as_f64);
    Ok(Box::new(InTrain(HardConcrete { lr: schedule(args, "lr")?, target, temperature: args.float("temperature")? })))
}

fn lobster(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let tolerance = args.get("tolerance").and_then(Value::as_f64).unwrap_or_default();
    Ok(Box::new(Lobster { lambda: schedule(args, "lambda")?, tolerance }))
}

fn serene(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let bound = match args.word("bound")? {
        "lower" => Bound::Lower,
        "local" => Bound::Local,
        _ => Bound::Full,
    };
    let tolerance = args.get("tolerance").and_then(Value::as_f64).unwrap_or_default();
    Ok(Box::new(Serene { lambda: schedule(args, "lambda")?, bound, alpha: args.float("alpha")?, tolerance }))
}

pub(super) const SLIMMING: Entry<dyn Criterion> = Entry {
    spec: learns(criterion(
        "slimming",
        "Liu et al., Learning Efficient Convolutional Networks through Network Slimming (2017), eq. 1",
        &[within(param("l1", Ty::Scheduled, "1e-4", "Weight of the l1 subgradient on the gates."), 0.0, 1e6)],
        INNER_SITES,
        "Trains with an l1 subgradient on a gate γ of every unit, and ranks |γ|; in the end γ is multiplied into the weights.\n\n\
         Mind: the subgradient is added after backward, sign(0) = 0; a global threshold can empty a layer, so use `at_least`.\n\n\
         ```prune\ntrain m on d.train for 100 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].mlp.neurons by 40% using slimming(l1 = 1e-4) { every = 20 steps  at_least = 10% }\n}\n```",
    )),
    build: slimming,
};

pub(super) const PSP: Entry<dyn Criterion> = Entry {
    spec: learns(criterion(
        "psp",
        "Schindler et al., Parameterized Structured Pruning for Deep Neural Networks (2019), eq. 2-5",
        &[
            within(param("l1", Ty::Scheduled, "1e-4", "Decay of the structure parameters."), 0.0, 1e6),
            within(param("threshold", Ty::Float, "1e-2", "ε: a smaller |α| switches its structure off."), 0.0, 1e6),
            param("decay", Ty::OneOf(&["l1", "l2"]), "l1", "The regulariser on α."),
        ],
        INNER_SITES,
        "Multiplies every structure by ν(α), zero where |α| < ε; ∂α is the sum of the structure's gradients, straight through the threshold.\n\n\
         The amount is what must have gone in the end: the smallest |α| follow those under ε.\n\n\
         Mind: dense weights stay, so a structure can return while the training lasts.\n\n\
         ```prune\ntrain m on d.train for 100 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].mlp.neurons by 40% using psp(l1 = 1e-4) { every = 20 steps }\n}\n```",
    )),
    build: psp,
};

pub(super) const HARD_CONCRETE: Entry<dyn Criterion> = Entry {
    spec: learns(criterion(
        "hard_concrete",
        "Louizos et al., Learning Sparse Neural Networks through L0 Regularization (2018), eq. 10-12; Xia et al., CoFi (2022); Sheared LLaMA (2023)",
        &[
            within(param("lr", Ty::Scheduled, "1e-1", "Learning rate of the gates' log α and of the multipliers."), 0.0, 1e6),
            within(
                optional(
                    "target",
                    Ty::Percent,
                    "Share of the selected units' parameters that may stay; the rest of the amount if left out.",
                ),
                0.0,
                100.0,
            ),
            within(param("temperature", Ty::Float, "0.6667", "β of the concrete distribution, also at evaluation."), 1e-3, 10.0),
        ],
        INNER_SITES,
        "L0 gates from a stretched, clamped concrete distribution, with a Lagrangian on the target size over any mix of sites.\n\n\
         The target follows the amount's schedule; after the last step the lowest gates go, as many as the amount says, and the others are multiplied into the weights.\n\n\
         Mind: evaluation uses the gates' deterministic value at the same temperature.\n\n\
         ```prune\ntrain m on d.train for 100 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].mlp.neurons by 40% using hard_concrete(lr = 1e-1) { every = 20 steps }\n}\n```",
    )),
    build: hard_concrete,
};

pub(super) const LOBSTER: Entry<dyn Criterion> = Entry {
    spec: learns(criterion(
        "lobster",
        "Tartaglione et al., LOss-Based SensiTivity rEgulaRization: towards deep sparse neural networks (2022), eq. 6",
        &[
            required("lambda", Ty::Scheduled, "λ of the decay."),
            within(param("tolerance", Ty::Percent, "1%", "Loss that the threshold's bisection may cost."), 0.0, 100.0),
        ],
        &[SiteKind::Neurons, SiteKind::Weights],
        "Decays insensitive weights: `w ← w − λ·w·relu(1 − |∂L/∂w|)`; the smallest go. Before the last update a bisection finds how many may go, up to the amount, while the loss of the step's batches rises by no more than `tolerance`.\n\n\
         Mind: the last update has the whole amount, whatever it costs.\n\n\
         ```prune\ntrain m on d.train for 100 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].mlp.neurons by 40% using lobster(lambda = 1e-4) { every = 20 steps }\n}\n```",
    )),
    build: lobster,
};

pub(super) const SERENE: Entry<dyn Criterion> = Entry {
    spec: learns(criterion(
        "serene",
        "Tartaglione et al., SeReNe: Sensitivity-based Regularization of Neurons for Structured Sparsity in Neural Networks (2022), eq. 3-9",
        &[
            required("lambda", Ty::Scheduled, "λ of the decay."),
            param(
                "bound",
                Ty::OneOf(&["full", "lower", "local"]),
                "full",
                "Which sensitivity S: of every output, of the loss alone, or 1 where the mean potential is positive and 0 elsewhere.",
            ),
            within(
                param("alpha", Ty::Float, "1", "α: multiplies the sensitivity. The paper's eq. 3 has 1 over the number of outputs."),
                0.0,
                1e9,
            ),
            within(param("tolerance", Ty::Percent, "1%", "Loss that the threshold's bisection may cost."), 0.0, 100.0),
        ],
        NEURONS,
        "Decays what insensitive neurons read: `w ← w − λ·w·relu(1 − S)`, S the mean over tokens of α·Σ|∂y/∂p|, p what the neuron's activation \
         function reads. Neurons whose largest incoming weight is smallest go. Before the last update a bisection finds how many may go, up \
         to the amount, while the loss of the step's batches rises by no more than `tolerance`.\n\n\
         `full` takes a backward pass for each output of a classifier, and is refused for a language model: `lower` takes one.\n\n\
         Mind: the published code divides by the batch twice, so its S carries 1/B²; ours is the paper's, whatever the batch.\n\n\
         ```prune\ntrain m on d.train for 100 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].mlp.neurons by 40% using serene(lambda = 1e-4, bound = lower) { every = 20 steps }\n}\n```",
    )),
    build: serene,
};
