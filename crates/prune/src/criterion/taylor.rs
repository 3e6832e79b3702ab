//! Taylor: the loss change that a first- or second-order expansion predicts for removing a unit.
//!
//! Molchanov et al., Importance Estimation for Neural Network Pruning (2019), eq. 6-8; Ma et al., LLM-Pruner (2023), eq. 3-5.
//! Our `g` is the gradient of the mean loss over all the data, our `F` their Hessian's diagonal, estimated by the mean over examples
//! of the squared gradient of an example's mean loss.

use candle_core::{DType, Device, Tensor};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::Criterion;
use super::weight_gradients::{Curvature, Gradients, gradients};
use crate::data::{Batches, Progress};
use crate::error::Result;
use crate::groups::{Fold, head_dim, same, slots, sums};
use crate::row::{ALL_SITES, ON, QUIRK, criterion, needs_data, optional, param, within};
use crate::scores::Scores;
use crate::site::Sites;

const NAME: &str = "taylor";

struct Taylor {
    second: bool,
    element: bool,
    reference: bool,
}

impl Criterion for Taylor {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        let slots = slots(model, sites)?;
        let curvature = if self.second { Curvature::Fisher } else { Curvature::None };
        self.of(model, sites, &gradients(NAME, curvature, model, &slots, data, progress)?)
    }
}

impl Taylor {
    fn of(&self, model: &Transformer, sites: &Sites, gradients: &Gradients) -> Result<Scores> {
        // g·w, or g·w − ½·F·w²; zero where the loss does not depend on the weight.
        let entries = |slot: &str| -> Result<Tensor> {
            let w = model.params().require(slot)?;
            let first = match gradients.mean.get(slot) {
                Some(g) => g.mul(w)?,
                None => w.zeros_like()?,
            };
            Ok(match gradients.squares.get(slot) {
                Some(f) => (first - (f.mul(&w.sqr()?)? * 0.5)?)?,
                None => first,
            })
        };
        let fold = match (self.element, self.reference) {
            (true, _) => Fold { entry: f64::abs, line: same },
            (false, true) => Fold { entry: same, line: f64::abs },
            (false, false) => Fold { entry: same, line: same },
        };
        let mut out = Scores::default();
        for (key, sums) in sums(model, sites, fold, &entries)? {
            let divisor = if self.reference { head_dim(model, key) as f64 } else { 1.0 };
            out.sites.insert(key, sums.iter().map(|g| (g.sum.abs() / divisor) as f32).collect());
        }
        for slot in &sites.weights {
            let score = entries(slot)?.abs()?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            out.weights.insert(slot.clone(), score);
        }
        out.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Taylor {
        second: args.count("order")? == 2,
        element: args.word("reduce")? == "element",
        reference: args.word("quirk")? == "reference",
    }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "taylor",
        "Molchanov et al., Importance Estimation for Neural Network Pruning (2019), eq. 6-8; Ma et al., LLM-Pruner (2023), eq. 3",
        &[
            ON,
            within(param("order", Ty::Count, "1", "1: |Σ g·w|; 2: |Σ g·w − ½ Σ F·w²|."), 1.0, 2.0),
            param(
                "reduce",
                Ty::OneOf(&["group", "element"]),
                "group",
                "Where the absolute value is taken: of the sum over the group, or of each weight before the sum.",
            ),
            optional(
                "through",
                Ty::Adapter,
                "An attached adapter. Scores see the weight and its update as one, and the gradient of the sum, whether it is named or not.",
            ),
            QUIRK,
        ],
        ALL_SITES,
        "First-order loss change of removing a unit: `|Σ g·w|` over the weights of its group, g the gradient of the mean loss over all the data. Second order: `|Σ g·w − ½ Σ F·w²|`, F the mean over examples of the squared gradient of the example's mean loss.\n\n\
         Mind: the sum comes before the absolute value; `reduce = element` takes |g·w| weight by weight. torch-pruning's code takes it per member matrix (`quirk = \"reference\"`).\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 30% using taylor(on = d.train.sample(32, seed = 0))\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::by_hand::{SLOT, holding, numbers, tensor};

    /// w = (2, −1), g = (½, 3), F = (4, 2): g·w = (1, −3); less ½·F·w² = (8, 1) that is (−7, −4).
    #[test]
    fn by_hand() {
        let (model, sites) = holding(&[&[2.0, -1.0]]);
        let mut gradients = Gradients { mean: [(SLOT.to_owned(), tensor(&[&[0.5, 3.0]]))].into(), ..Gradients::default() };
        let of = |gradients: &Gradients| {
            let method = Taylor { second: true, element: false, reference: false };
            numbers(&method.of(&model, &sites, gradients).unwrap().weights[SLOT])
        };
        assert_eq!(of(&gradients), [1.0, 3.0]);
        gradients.squares.insert(SLOT.to_owned(), tensor(&[&[4.0, 2.0]]));
        assert_eq!(of(&gradients), [7.0, 4.0]);
    }
}
