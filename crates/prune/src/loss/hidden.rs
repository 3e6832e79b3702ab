//! Feature distillation: the student's hidden states imitate the teacher's.
//!
//! Jiao et al., TinyBERT (2020), eq. 8: the mean squared error over real tokens and channels, the mean over layers; through a learned
//! projection where widths differ. `cosine` is Sanh et al., DistilBERT (2019), sec. 3: 1 − cos of each token's states; `first` Sun et al.,
//! Patient Knowledge Distillation (2019), eq. 7: squared distance of the normalised states of the first token.

use candle_core::Tensor;
use prunectl_kernels::linear;
use prunectl_model::{Batch, Point, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use prunectl_recipe::plan::Value;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::features::{LAYERS, LayerMap, MAP, Seen, TEACHER, teacher, tokens};
use super::{LossInput, LossTerm, imitate};
use crate::error::{PruneError, Result};
use crate::row::{other, param};
use crate::schedule::Clock;

const NAME: &str = "hidden";
/// Where the projection is among the parameters that train.
const WEIGHT: &str = "projection.weight";
const BIAS: &str = "projection.bias";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Distance {
    Mse,
    Cosine,
    First,
}

struct Hidden {
    teacher: Value,
    map: LayerMap,
    distance: Distance,
}

impl LossTerm for Hidden {
    fn teacher(&self) -> Option<&Value> {
        Some(&self.teacher)
    }

    /// One projection for all layers, as in TinyBERT, uniform in ±1/√width.
    fn parameters(&self, model: &Transformer, teacher: Option<&Transformer>, seed: u64) -> Result<Vec<(String, Tensor)>> {
        let ours = model.blueprint().hidden;
        let Some(theirs) = teacher.map(|t| t.blueprint().hidden).filter(|t| *t != ours) else { return Ok(Vec::new()) };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bound = 1.0 / (ours.max(1) as f32).sqrt();
        let weight: Vec<f32> = (0..theirs * ours).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect();
        let weight = Tensor::from_vec(weight, (theirs, ours), model.device())?.to_dtype(model.dtype())?;
        let bias = Tensor::zeros(theirs, model.dtype(), model.device())?;
        Ok(vec![(WEIGHT.into(), weight), (BIAS.into(), bias)])
    }

    fn places(&self, model: &Transformer) -> Vec<(usize, Point)> {
        (0..model.n_layers()).map(|l| (l, Point::BlockOutput)).collect()
    }

    fn count(&self, _: &Transformer, batch: &Batch, _: u64) -> Result<f64> {
        match self.distance {
            Distance::First => Ok(batch.size()?.0 as f64),
            _ => tokens(batch),
        }
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        let teacher = input.imitated(NAME)?;
        let map = self.map.of(NAME, input.model.n_layers(), teacher.n_layers())?;
        let theirs = Seen::of(teacher, input.batch, map.iter().map(|l| (*l, Point::BlockOutput)).collect())?;
        let ours = input.look()?;
        let real = input.real()?;
        let mut total: Option<Tensor> = None;
        for (layer, of) in map.iter().enumerate() {
            let missing = || PruneError::Missing { method: NAME, needs: format!("the output of layer {layer}") };
            let y = theirs.fixed(*of, Point::BlockOutput, input.wide())?.ok_or_else(missing)?;
            let mut x = ours.get(layer, Point::BlockOutput).ok_or_else(missing)?.clone();
            if x.dim(2)? != y.dim(2)? {
                let weight = input.parameter(WEIGHT).ok_or(PruneError::Missing { method: NAME, needs: "its projection".into() })?;
                x = linear(&x, weight, input.parameter(BIAS))?;
            }
            let x = x.to_dtype(input.wide())?;
            let sum = match self.distance {
                Distance::Mse => imitate::squares(&x, &y, &real)?,
                Distance::Cosine => imitate::cosines(&x, &y, &real)?,
                Distance::First => imitate::first_tokens(&x, &y)?,
            };
            total = Some(match total {
                Some(total) => (total + sum)?,
                None => sum,
            });
        }
        let total = total.ok_or(PruneError::Missing { method: NAME, needs: "a model with layers".into() })?;
        Ok((total / map.len() as f64)?)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    let distance = match args.word("distance")? {
        "cosine" => Distance::Cosine,
        "first" => Distance::First,
        _ => Distance::Mse,
    };
    Ok(Box::new(Hidden { teacher: teacher(args)?, map: LayerMap::read(args)?, distance }))
}

pub(super) const ENTRY: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        NAME,
        "Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding (2020), eq. 8",
        &[
            TEACHER,
            MAP,
            param(
                "distance",
                Ty::OneOf(&["mse", "cosine", "first"]),
                "mse",
                "Squared error per channel, 1 − cosine per token (DistilBERT), or squared distance of the first token's normalised states (PKD).",
            ),
            LAYERS,
        ],
        "Distance between the outputs of the student's layers and of those that they imitate: the mean over layers, real tokens and channels. \
         Where widths differ, a projection is learned along; it is not saved.\n\n\
         ```prune\nlet teacher = frozen(m)\ntrain m on d.train for 20 steps {\n    optimizer = adamw(lr = 1e-4)\n    loss = distill(teacher) + 0.1 * hidden(teacher)\n}\n```",
    ),
    build,
};
