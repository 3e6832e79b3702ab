//! Relational distillation: examples stand to each other in the student as they do in the teacher.
//!
//! Park et al., Relational Knowledge Distillation (2019), eq. 4-9: Huber's loss between distances of all pairs (each side divided by its
//! mean) and cosines of the angles of all triples. An example's embedding is the mean of its real tokens in the last block's output.
//! Pairs are those of a forward pass, so `batch` matters here.

use candle_core::Tensor;
use prunectl_model::{Batch, Point, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use prunectl_recipe::plan::Value;

use super::features::{Seen, TEACHER, teacher};
use super::{LossInput, LossTerm, imitate};
use crate::error::{PruneError, Result};
use crate::row::{other, param, within};
use crate::schedule::Clock;

const NAME: &str = "relation";

struct Relation {
    teacher: Value,
    distance: f64,
    angle: f64,
}

impl LossTerm for Relation {
    fn teacher(&self) -> Option<&Value> {
        Some(&self.teacher)
    }

    fn places(&self, model: &Transformer) -> Vec<(usize, Point)> {
        model.n_layers().checked_sub(1).map(|l| (l, Point::BlockOutput)).into_iter().collect()
    }

    fn count(&self, _: &Transformer, batch: &Batch, _: u64) -> Result<f64> {
        Ok(batch.size()?.0 as f64)
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        let teacher = input.imitated(NAME)?;
        let missing = || PruneError::Missing { method: NAME, needs: "a model with layers".into() };
        let (last, of) = (input.model.n_layers().checked_sub(1), teacher.n_layers().checked_sub(1));
        let (last, of) = last.zip(of).ok_or_else(missing)?;
        let theirs = Seen::of(teacher, input.batch, vec![(of, Point::BlockOutput)])?;
        let ours = input.look()?;
        let real = input.real()?;
        let lengths = real.sum(1)?.maximum(1.0)?;
        let embed = |x: &Tensor| -> Result<Tensor> { Ok(x.broadcast_mul(&real)?.sum(1)?.broadcast_div(&lengths)?) };
        let y = embed(&theirs.fixed(of, Point::BlockOutput, input.wide())?.ok_or_else(missing)?)?;
        let x = embed(&ours.get(last, Point::BlockOutput).ok_or_else(missing)?.to_dtype(input.wide())?)?;
        let loss = ((imitate::distance_relation(&x, &y)? * self.distance)? + (imitate::angle_relation(&x, &y)? * self.angle)?)?;
        Ok((loss * input.batch.size()?.0 as f64)?)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    Ok(Box::new(Relation { teacher: teacher(args)?, distance: args.float("distance")?, angle: args.float("angle")? }))
}

pub(super) const ENTRY: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        NAME,
        "Park et al., Relational Knowledge Distillation (2019), eq. 4-9",
        &[
            TEACHER,
            within(param("distance", Ty::Float, "1", "Weight of the distance term."), 0.0, 1e6),
            within(param("angle", Ty::Float, "2", "Weight of the angle term."), 0.0, 1e6),
        ],
        "Huber's loss between pairwise distances (normalised by their mean) and angles of examples' embeddings, the means of their tokens in the \
         last layer. Widths need not agree.\n\n\
         Mind: pairs and triples are those of one forward pass, so this loss depends on `batch`.",
    ),
    build,
};
