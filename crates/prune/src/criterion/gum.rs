//! The row of GUM; the formulas are in `learned::gum`.

use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};

use super::Criterion;
use super::movement::SCORES_LR;
use crate::learned::InTrain;
use crate::learned::gum::{Follow, Gum};
use crate::optimizer::schedule;
use crate::row::{criterion, learns, param, within};

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(InTrain(Gum {
        lr: schedule(args, "lr")?,
        uniqueness: args.float("uniqueness")?,
        penalty: schedule(args, "penalty")?,
        follow: match args.word("follow")? {
            "kept" => Follow::Kept,
            "nothing" => Follow::Nothing,
            _ => Follow::Removed,
        },
        memory: args.float("memory")?,
    })))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: learns(criterion(
        "gum",
        "Santacroce et al., What Matters In The Structured Pruning of Generative Language Models? (2023), eq. 3-5",
        &[
            within(param("uniqueness", Ty::Float, "0.5", "λ_u: weight of similarity inside the regulariser."), 0.0, 1e6),
            within(param("penalty", Ty::Scheduled, "2", "λ(t) of mean |σ(S)·(1 + λ_u·u)|."), 0.0, 1e6),
            within(param("lr", Ty::Scheduled, "1e-2", SCORES_LR), 0.0, 1e6),
            param(
                "follow",
                Ty::OneOf(&["sparsity", "kept", "nothing"]),
                "sparsity",
                "What multiplies λ(t): the share removed now over that removed in the end; the share kept now over that kept in the end, as in the authors' code; or nothing.",
            ),
            within(param("memory", Ty::Float, "0.999", "Weight of the newest batch in the running cosines."), 0.0, 1.0),
        ],
        &[SiteKind::Neurons],
        "Globally unique movement: movement scores per neuron with a regulariser that presses on neurons whose activations resemble others', `u_j = Σ_{k≠j} |cos(h_j, h_k)| / (N·v)`; one **global** top-v.\n\n\
         Mind: λ(t) follows the sparsity schedule; running cosines take N² memory per layer, and one more forward pass a step. A masked neuron is cut at `down` alone, so that its score still learns.\n\n\
         ```prune\ntrain m on d.train for 20 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].mlp.neurons by cubic(0% -> 25%) using gum(uniqueness = 0.5) { scope = global }\n}\n```",
    )),
    build,
};
