//! Relation distillation inside attention: how tokens' queries, keys and values relate to each other.
//!
//! Wang et al., MiniLMv2 (2021), eq. 5-8: of one teacher layer and the student's last, queries (keys, values) of all heads together are cut
//! into `relation_heads` of equal width d, `R = softmax(X Xᵀ / √d)` over the real tokens, and KL(R_teacher ‖ R_student) is averaged over
//! relation heads and tokens; the three relations weigh a third each. Our queries and keys are those behind rotary positions.

use candle_core::Tensor;
use prunectl_model::{Batch, Point, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use prunectl_recipe::plan::Value;

use super::features::{Seen, TEACHER, teacher};
use super::{LossInput, LossTerm, imitate};
use crate::error::{PruneError, Result};
use crate::row::{optional, other, param, within};
use crate::schedule::Clock;

const NAME: &str = "minilm";

struct MiniLm {
    teacher: Value,
    heads: usize,
    points: Vec<Point>,
    layer: Option<usize>,
}

/// The last layer that attends.
fn last_attention(model: &Transformer) -> Option<usize> {
    model.dims().iter().rposition(|d| d.q_heads > 0)
}

/// Relations of a layer's vectors, `[b, relation heads, s, s]`, before the softmax.
fn relations(x: &Tensor, heads: usize, whose: &str) -> Result<Tensor> {
    let width = x.dim(1)? * x.dim(3)?;
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(PruneError::Invalid {
            what: "`relation_heads` of minilm",
            found: heads.to_string(),
            expected: format!("a divisor of the {width} numbers that a token has in the {whose}'s layer"),
        });
    }
    let x = imitate::regroup(x, heads)?;
    imitate::products(&x, &x, 1.0 / ((width / heads) as f64).sqrt())
}

impl LossTerm for MiniLm {
    fn teacher(&self) -> Option<&Value> {
        Some(&self.teacher)
    }

    fn places(&self, model: &Transformer) -> Vec<(usize, Point)> {
        last_attention(model).into_iter().flat_map(|l| self.points.iter().map(move |p| (l, *p))).collect()
    }

    fn count(&self, _: &Transformer, batch: &Batch, _: u64) -> Result<f64> {
        Ok(batch.size()?.0 as f64)
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        let teacher = input.imitated(NAME)?;
        let missing = |whose: &str| PruneError::Missing { method: NAME, needs: format!("attention in the {whose}") };
        let last = last_attention(input.model).ok_or_else(|| missing("student"))?;
        let of = match self.layer {
            Some(layer) if layer < teacher.n_layers() => layer,
            Some(layer) => {
                let expected = format!("one of the teacher's {}, from 0", teacher.n_layers());
                return Err(PruneError::Invalid { what: "`layer` of minilm", found: layer.to_string(), expected });
            }
            None => last_attention(teacher).ok_or_else(|| missing("teacher"))?,
        };
        let theirs = Seen::of(teacher, input.batch, self.points.iter().map(|p| (of, *p)).collect())?;
        let ours = input.look()?;
        let real = input.real()?;
        let seen = imitate::seen(&real, false)?;
        let mut total: Option<Tensor> = None;
        for point in &self.points {
            let y = theirs.fixed(of, *point, input.wide())?.ok_or_else(|| missing("teacher's layer"))?;
            let x = ours.get(last, *point).ok_or_else(|| missing("student's last layer"))?.to_dtype(input.wide())?;
            let (x, y) = (relations(&x, self.heads, "student")?, relations(&y, self.heads, "teacher")?);
            let sum = imitate::relation_kl(&x, &y, &seen, &real)?;
            total = Some(match total {
                Some(total) => (total + sum)?,
                None => sum,
            });
        }
        let total = total.ok_or_else(|| missing("student"))?;
        Ok((total / self.points.len() as f64)?)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    let points = match args.word("relations")? {
        "queries" => vec![Point::Queries],
        "keys" => vec![Point::Keys],
        "values" => vec![Point::Values],
        _ => vec![Point::Queries, Point::Keys, Point::Values],
    };
    let layer = args.get("layer").map(|_| args.count("layer")).transpose()?.map(|l| l as usize);
    Ok(Box::new(MiniLm { teacher: teacher(args)?, heads: args.count("relation_heads")? as usize, points, layer }))
}

pub(super) const ENTRY: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        NAME,
        "Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation (2021), eq. 5-8",
        &[
            TEACHER,
            within(param("relation_heads", Ty::Count, "12", "Relation heads; must divide both layers' widths."), 1.0, 4096.0),
            param(
                "relations",
                Ty::OneOf(&["all", "queries", "keys", "values"]),
                "all",
                "Which relations: all three, a third each, or one of them; `values` alone is MiniLM's.",
            ),
            optional(
                "layer",
                Ty::Count,
                "The teacher's layer, from 0; left out, its last. For large teachers the authors take one above the middle.",
            ),
        ],
        "KL between the self-relations of queries, keys and values of one teacher layer and the student's last, over real tokens. Neither the \
         number of heads nor of layers nor widths need agree.\n\n\
         Mind: relation heads need not equal attention heads.",
    ),
    build,
};
