//! Noisy student: the teacher's soft pseudo-labels, learned by a student whose units are dropped at random.
//!
//! Xie et al., Self-training with Noisy Student improves ImageNet classification (2020), algorithm 1 and eq. 1: the cross-entropy of the
//! student, noised, with the teacher's probabilities, the teacher not noised. The noise is dropout of query heads and FFN neurons: each
//! example loses each unit with the probability `noise`, the others are scaled up. A further round is a further `train` whose teacher is
//! `frozen` of the last one's student.

use candle_core::{D, Tensor};
use prunectl_kernels::{kl_div, softmax_last_dim};
use prunectl_model::{Batch, Gates, LayerGates, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use prunectl_recipe::plan::Value;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::distill::{response, rows};
use super::features::{TEACHER, teacher};
use super::{LossInput, LossTerm};
use crate::error::Result;
use crate::labels::output_rows;
use crate::row::{other, param, within};
use crate::schedule::Clock;

const NAME: &str = "noisy_student";
/// Keeps the logarithm of a probability of 0 finite.
const LEAST_PROBABILITY: f64 = 1e-30;

struct NoisyStudent {
    teacher: Value,
    noise: f64,
}

impl NoisyStudent {
    /// Gates of a batch: 0 with the probability `noise`, 1 / (1 − noise) otherwise, the same for all tokens of an example.
    fn gates(&self, model: &Transformer, examples: usize, seed: u64) -> Result<Gates> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |n: usize| -> Result<Option<Tensor>> {
            let left = (1.0 / (1.0 - self.noise)) as f32;
            let values: Vec<f32> = (0..examples * n).map(|_| if rng.random::<f64>() < self.noise { 0.0 } else { left }).collect();
            Ok(if n == 0 { None } else { Some(Tensor::from_vec(values, (examples, n), model.device())?) })
        };
        let mut layers = Vec::with_capacity(model.n_layers());
        for d in model.dims() {
            let heads = draw(d.q_heads)?;
            let neurons = if d.experts == 0 { draw(d.ffn)? } else { None };
            layers.push(LayerGates { heads, neurons, ..LayerGates::default() });
        }
        Ok(Gates { layers, hidden: None })
    }
}

impl LossTerm for NoisyStudent {
    fn teacher(&self) -> Option<&Value> {
        Some(&self.teacher)
    }

    fn count(&self, model: &Transformer, batch: &Batch, _: u64) -> Result<f64> {
        Ok(output_rows(model, batch)?.len() as f64)
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        let teacher = input.imitated(NAME)?;
        let theirs = teacher.forward(input.batch, &Gates::default(), &mut ())?.detach();
        let gates = self.gates(input.model, input.batch.size()?.0, input.seed)?;
        let ours = input.model.forward(input.batch, &gates, &mut ())?;
        let (ours, theirs) = rows(NAME, input, &ours, &theirs)?;
        if ours.dim(D::Minus1)? == 1 {
            // A value is no distribution.
            return Ok(response(&ours, &theirs, 1.0)?.sum_all()?);
        }
        // The cross-entropy is the divergence and the teacher's entropy, a constant.
        let p = softmax_last_dim(&theirs)?;
        let entropy = p.mul(&p.maximum(LEAST_PROBABILITY)?.log()?)?.neg()?.sum(D::Minus1)?;
        let divergence = kl_div(&ours, &theirs, 1.0)?;
        Ok((&divergence + entropy.to_dtype(divergence.dtype())?)?.sum_all()?)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    Ok(Box::new(NoisyStudent { teacher: teacher(args)?, noise: args.float("noise")? }))
}

pub(super) const ENTRY: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        NAME,
        "Xie et al., Self-training with Noisy Student improves ImageNet classification (2020), algorithm 1",
        &[
            TEACHER,
            within(param("noise", Ty::Percent, "10%", "Share of the student's heads and neurons that each example drops."), 0.0, 90.0),
        ],
        "Cross-entropy with the teacher's soft pseudo-labels while the student is noised: heads and FFN neurons drop out, anew for each example \
         and step. Labels in the data are not used. Of a model of values (regression) it is the squared difference.\n\n\
         For further rounds the student becomes the teacher:\n\n\
         ```prune\nrepeat round in 1..=2 {\n    let teacher = frozen(m)\n    train m on d.train for 20 steps { optimizer = adamw(lr = 1e-4)  loss = noisy_student(teacher, noise = 10%) }\n}\n```",
    ),
    build,
};
