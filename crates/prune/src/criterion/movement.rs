//! Rows of movement pruning and of learned scores; the formulas are in `learned::scores`.

use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::Schedule;

use super::Criterion;
use crate::learned::InTrain;
use crate::learned::scores::{Bar, Granularity, ScoreLearner};
use crate::optimizer::schedule;
use crate::row::{INNER_AND_WEIGHTS, criterion, learns, param, within};

fn movement(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let bar = if args.word("kind")? == "soft" { Bar::Soft(schedule(args, "threshold")?) } else { Bar::Hard };
    let (lr, penalty) = (schedule(args, "lr")?, schedule(args, "penalty")?);
    Ok(Box::new(InTrain(ScoreLearner { name: "movement", lr, granularity: Granularity::Weight, bar, penalty })))
}

fn learned_scores(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let size = |name: &str| -> std::result::Result<usize, ArgError> { Ok(args.count(name)? as usize) };
    let granularity = match args.word("granularity")? {
        "block" => Granularity::Block { rows: size("rows")?, columns: size("columns")? },
        "row" => Granularity::Row,
        "column" => Granularity::Column,
        "head" => Granularity::Unit(SiteKind::Heads),
        "neuron" => Granularity::Unit(SiteKind::Neurons),
        _ => Granularity::Weight,
    };
    let penalty = Schedule::Hold { value: 0.0, length: None };
    Ok(Box::new(InTrain(ScoreLearner { name: "learned_scores", lr: schedule(args, "lr")?, granularity, bar: Bar::Hard, penalty })))
}

/// The page's line of every `lr` of scores.
pub(super) const SCORES_LR: &str = "Learning rate of the scores, a constant or a schedule. The authors' one scheduler moves it with the weights' rate: \
     `linear(0 -> 1e-2, for = 5%) then linear(1e-2 -> 0)`.";

pub(super) const MOVEMENT: Entry<dyn Criterion> = Entry {
    spec: learns(criterion(
        "movement",
        "Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning (2020), eq. 3-5",
        &[
            within(param("lr", Ty::Scheduled, "1e-2", SCORES_LR), 0.0, 1e6),
            param("kind", Ty::OneOf(&["hard", "soft"]), "hard", "Keep the top scores, or those with σ(S) > τ."),
            within(param("penalty", Ty::Scheduled, "0", "λ of soft movement's mean σ(S)."), 0.0, 1e6),
            within(param("threshold", Ty::Scheduled, "0.1", "τ of soft movement."), 0.0, 1.0),
        ],
        INNER_AND_WEIGHTS,
        "Scores learned by the straight-through gradient: `S ← S − η·∂L/∂W′ ⊙ W`, S₀ = 0: weights that move away from zero stay.\n\n\
         On a structured site there is one score per unit, with `∂S = Σ ∂L/∂W′ ⊙ W` over its group.\n\n\
         The training's optimizer moves the scores, as a parameter group of their own: `lr` is theirs, clipping too, no decay.\n\n\
         `kind = soft` decides by σ(S) > τ, where S₀ = 0 is σ = 0.5; raise τ with a schedule, or press with `penalty`. The amount is what must have gone in the end: the lowest scores follow.\n\n\
         Mind: scores update **even where masked**, weights only where kept. A masked weight keeps its value while the training lasts and may come back.\n\n\
         ```prune\ntrain m on d.train for 20 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].linears.weights by cubic(0% -> 50%) using movement(lr = 1e-2) { scope = matrix }\n}\n```",
    )),
    build: movement,
};

pub(super) const LEARNED_SCORES: Entry<dyn Criterion> = Entry {
    spec: learns(criterion(
        "learned_scores",
        "Lagunas et al., Block Pruning For Faster Transformers (2021), eq. 3",
        &[
            within(param("lr", Ty::Scheduled, "1e-2", SCORES_LR), 0.0, 1e6),
            param(
                "granularity",
                Ty::OneOf(&["weight", "block", "row", "column", "head", "neuron"]),
                "weight",
                "What one score stands for.",
            ),
            within(param("rows", Ty::Count, "32", "Height of a block."), 1.0, 65536.0),
            within(param("columns", Ty::Count, "32", "Width of a block."), 1.0, 65536.0),
        ],
        INNER_AND_WEIGHTS,
        "Movement's straight-through scores for blocks, rows, columns, heads or neurons.\n\n\
         Weights are cut into blocks of `rows` × `columns`, into rows or into columns; heads, groups and neurons are selected as such and have one score each.\n\n\
         Mind: block sizes that do not divide a matrix are an error; an amount counts blocks, rows or columns, not their entries.\n\n\
         ```prune\ntrain m on d.train for 20 steps {\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].linears.weights by cubic(0% -> 50%) using learned_scores(granularity = block, rows = 8, columns = 8) { scope = layer }\n}\n```",
    )),
    build: learned_scores,
};
