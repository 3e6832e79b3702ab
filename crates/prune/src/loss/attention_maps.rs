//! Feature distillation: the student's attention imitates the teacher's.
//!
//! Jiao et al., TinyBERT (2020), eq. 7: the squared error of the scores before the softmax (`mse`), the mean over pairs of real tokens;
//! Wang et al., MiniLM (2020), eq. 4: KL of the maps (`kl`), the mean over real queries. Both the mean over heads and layers. A causal
//! model's pairs are those that it sees.

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, Point, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use prunectl_recipe::plan::Value;

use super::features::{LAYERS, LayerMap, MAP, Seen, TEACHER, lengths, teacher};
use super::{LossInput, LossTerm, imitate};
use crate::error::{PruneError, Result};
use crate::row::{other, param};
use crate::schedule::Clock;

const NAME: &str = "attention_maps";

struct AttentionMaps {
    teacher: Value,
    map: LayerMap,
    kl: bool,
}

/// Queries and keys of layers.
fn places(layers: impl Iterator<Item = usize>) -> Vec<(usize, Point)> {
    layers.flat_map(|l| [(l, Point::Queries), (l, Point::Keys)]).collect()
}

/// Attention scores of a layer, `[b, h, s, s]`, before the mask, in that type; None where its attention is gone.
fn scores(model: &Transformer, seen: &Seen, layer: usize, dtype: DType) -> Result<Option<Tensor>> {
    let (Some(q), Some(k)) = (seen.get(layer, Point::Queries), seen.get(layer, Point::Keys)) else { return Ok(None) };
    let scale = model.blueprint().layers.get(layer).map_or(1.0, |l| l.scale);
    imitate::products(&q.to_dtype(dtype)?, &k.to_dtype(dtype)?, scale).map(Some)
}

impl LossTerm for AttentionMaps {
    fn teacher(&self) -> Option<&Value> {
        Some(&self.teacher)
    }

    fn places(&self, model: &Transformer) -> Vec<(usize, Point)> {
        places(0..model.n_layers())
    }

    fn count(&self, model: &Transformer, batch: &Batch, _: u64) -> Result<f64> {
        if self.kl {
            return Ok(batch.size()?.0 as f64);
        }
        let causal = model.blueprint().attention.causal;
        Ok(lengths(batch)?.iter().map(|n| if causal { n * (n + 1.0) / 2.0 } else { n * n }).sum())
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        let teacher = input.imitated(NAME)?;
        let map = self.map.of(NAME, input.model.n_layers(), teacher.n_layers())?;
        let theirs = Seen::of(teacher, input.batch, places(map.iter().copied()))?;
        let ours = input.look()?;
        let real = input.real()?;
        let seen = imitate::seen(&real, input.model.blueprint().attention.causal)?;
        let (mut total, mut layers): (Option<Tensor>, usize) = (None, 0);
        for (layer, of) in map.iter().enumerate() {
            let (Some(x), Some(y)) = (scores(input.model, ours, layer, input.wide())?, scores(teacher, &theirs, *of, input.wide())?) else {
                continue;
            };
            let mut y = y.detach();
            let mut x = x;
            if x.dim(1)? != y.dim(1)? {
                // Which head was which is not known any more: the means over the heads are compared.
                (x, y) = (x.mean_keepdim(1)?, y.mean_keepdim(1)?);
            }
            let sum = match self.kl {
                true => imitate::relation_kl(&x, &y, &seen, &real)?.to_dtype(x.dtype())?,
                false => imitate::score_squares(&x, &y, &seen)?,
            };
            layers += 1;
            total = Some(match total {
                Some(total) => (total + sum)?,
                None => sum,
            });
        }
        let total = total.ok_or(PruneError::Missing { method: NAME, needs: "attention in the student and in the teacher".into() })?;
        Ok((total / layers as f64)?)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    Ok(Box::new(AttentionMaps { teacher: teacher(args)?, map: LayerMap::read(args)?, kl: args.word("kind")? == "kl" }))
}

pub(super) const ENTRY: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        NAME,
        "Jiao et al., TinyBERT (2020), eq. 7; Wang et al., MiniLM (2020), eq. 4",
        &[TEACHER, MAP, param("kind", Ty::OneOf(&["mse", "kl"]), "mse", "Squared error of the scores, or KL of the maps."), LAYERS],
        "Distance between attention scores (`mse`) or maps (`kl`): the mean over layers, heads and real tokens. Where a layer has another number \
         of heads than the one that it imitates, the means over the heads are compared.\n\n\
         Mind: soft-caps and windows are left out of the scores. Padding never counts.",
    ),
    build,
};
