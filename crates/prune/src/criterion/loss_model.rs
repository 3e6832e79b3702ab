//! Local models of the loss: Optimal Brain Damage, and the linear and quadratic models.
//!
//! LeCun et al., Optimal Brain Damage (1990), eq. 5: at a minimum, setting a weight to zero costs `½·h·w²`. Laurent et al., Revisiting
//! Loss Modelling for Unstructured Pruning (2020), eq. 4-6: away from one it changes the loss by `−g·w` (linear) or `−g·w + ½·h·w²`
//! (quadratic), and the absolute value of that is the score, g averaged over all the data first; their step-size penalty is `½·λ·w²`.

use candle_core::{DType, Device, Tensor};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::weight_gradients::{Curvature, Gradients, gradients};
use super::{Criterion, Formula};
use crate::data::{Batches, Progress};
use crate::error::Result;
use crate::groups::{Fold, same, slots, sums};
use crate::network::Network;
use crate::row::{INNER_AND_WEIGHTS, ON, criterion, needs_data, param, within};
use crate::scores::Scores;
use crate::site::Sites;

const HESSIAN: prunectl_recipe::catalogue::Param = param(
    "hessian",
    Ty::OneOf(&["empirical_fisher", "ggn"]),
    "empirical_fisher",
    "Diagonal used for the curvature: squared gradients of the labels' loss, or (classifiers only) the generalised Gauss-Newton of the model's own probabilities.",
);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// ½·h·w²
    Damage,
    /// |g·w|
    Linear,
    /// |−g·w + ½·h·w²|
    Quadratic,
}

struct LossModel {
    name: &'static str,
    kind: Kind,
    curvature: Curvature,
    penalty: f64,
}

impl Criterion for LossModel {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        self.scores(model, sites, data, progress)
    }

    fn formula(&self) -> Option<&dyn Formula> {
        Some(self)
    }
}

impl Formula for LossModel {
    fn scores(&self, network: &dyn Network, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        let slots = slots(network, sites)?;
        self.of(network, sites, &gradients(self.name, self.curvature, network, &slots, data, progress)?)
    }
}

impl LossModel {
    fn of(&self, network: &dyn Network, sites: &Sites, gradients: &Gradients) -> Result<Scores> {
        let params = network.params();
        let change = |slot: &str| -> Result<Tensor> {
            Ok(match self.kind {
                Kind::Damage => gradients.half_curvature(params, slot)?,
                Kind::Linear => gradients.times_weight(params, slot)?.neg()?,
                Kind::Quadratic => (gradients.half_curvature(params, slot)? - gradients.times_weight(params, slot)?)?,
            })
        };
        let penalty = |slot: &str| -> Result<Tensor> { Ok((params.require(slot)?.sqr()? * (0.5 * self.penalty))?) };
        let plain = Fold { entry: same, line: same };
        let mut out = Scores::default();
        let penalties = sums(network, sites, plain, &penalty)?;
        for (key, sums) in sums(network, sites, plain, &change)? {
            let extra = penalties.get(&key).map(Vec::as_slice).unwrap_or_default();
            out.sites.insert(key, sums.iter().zip(extra).map(|(g, p)| (g.sum.abs() + p.sum) as f32).collect());
        }
        for slot in &sites.weights {
            let score = (change(slot)?.abs()? + penalty(slot)?)?;
            out.weights.insert(slot.clone(), score.to_dtype(DType::F32)?.to_device(&Device::Cpu)?);
        }
        out.checked(self.name)
    }
}

fn build_obd(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(LossModel { name: "obd", kind: Kind::Damage, curvature: Curvature::of(args.word("hessian")?), penalty: 0.0 }))
}

fn build_loss_model(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let quadratic = args.word("kind")? == "quadratic";
    let (kind, curvature) =
        if quadratic { (Kind::Quadratic, Curvature::of(args.word("hessian")?)) } else { (Kind::Linear, Curvature::None) };
    Ok(Box::new(LossModel { name: "loss_model", kind, curvature, penalty: args.float("penalty")? }))
}

pub(super) const OBD: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "obd",
        "LeCun et al., Optimal Brain Damage (1990), eq. 5",
        &[ON, HESSIAN],
        INNER_AND_WEIGHTS,
        "Loss increase of setting a weight to zero under a diagonal quadratic model at a minimum: `½ · h · w²`, summed over a unit's group.\n\n\
         h is the mean over examples of the squared gradient of the example's mean loss, or the GGN diagonal.\n\n\
         Mind: squares are per example (the square of a batch's gradient is another number).\n\n\
         ```prune\nprune m.layers[*].linears.weights by 50% using obd(on = d.train.sample(64, seed = 0)) { scope = global }\n```",
    )),
    build: build_obd,
};

pub(super) const LOSS_MODEL: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "loss_model",
        "Laurent et al., Revisiting Loss Modelling for Unstructured Pruning (2020), eq. 4-6",
        &[
            ON,
            param("kind", Ty::OneOf(&["linear", "quadratic"]), "linear", "Order of the loss model."),
            HESSIAN,
            within(param("penalty", Ty::Float, "0", "λ of the step-size penalty ½·λ·w², added outside the absolute value."), 0.0, 1e30),
        ],
        INNER_AND_WEIGHTS,
        "The loss change that a local model predicts: `|g·w|` (linear) or `|−g·w + ½·h·w²|` (quadratic, absolute value of the **sum**, for a unit of the sum over its group).\n\n\
         Mind: g is averaged over all the data before the absolute value; the authors' experiments iterate over many small prunings (`rescore`).\n\n\
         ```prune\nprune m.layers[*].linears.weights by 50% using loss_model(on = d.train.sample(64, seed = 0), kind = quadratic) { scope = global  rescore = 10% }\n```",
    )),
    build: build_loss_model,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::by_hand::{SLOT, holding, numbers, tensor};

    /// w = (2, −1), g = (½, 3), h = (4, 2): ½·h·w² = (8, 1), g·w = (1, −3); with λ = 2 the penalty adds w² = (4, 1).
    #[test]
    fn by_hand() {
        let (model, sites) = holding(&[&[2.0, -1.0]]);
        let one = |row: &[f32]| [(SLOT.to_owned(), tensor(&[row]))].into();
        let gradients = Gradients { mean: one(&[0.5, 3.0]), squares: one(&[4.0, 2.0]) };
        let of = |kind, penalty| {
            let method = LossModel { name: "loss_model", kind, curvature: Curvature::Fisher, penalty };
            numbers(&method.of(&model, &sites, &gradients).unwrap().weights[SLOT])
        };
        assert_eq!(of(Kind::Damage, 0.0), [8.0, 1.0]);
        assert_eq!(of(Kind::Linear, 0.0), [1.0, 3.0]);
        assert_eq!(of(Kind::Quadratic, 0.0), [7.0, 4.0]);
        assert_eq!(of(Kind::Quadratic, 2.0), [11.0, 5.0]);
    }
}
