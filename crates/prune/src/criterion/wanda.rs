//! Wanda: weights times the norm of their input.
//!
//! Sun et al., A Simple and Effective Pruning Approach for Large Language Models (2023), eq. 1: `S_ij = |W_ij| · ‖X_j‖₂`, ‖X_j‖₂ over all
//! tokens of the calibration data, ranked within each output row. The published code divides ‖X_j‖₂² by the number of sequences
//! (`quirk = "reference"`), which changes scores, not masks.

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Gates, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind};
use prunectl_recipe::plan::Scope;

use super::{Criterion, Layerwise, blocks};
use crate::calibrate::{InputSquares, of_expert};
use crate::data::{Batches, Progress};
use crate::decision::{Decision, Removed};
use crate::error::{PruneError, Result};
use crate::groups::{Fold, same, sums};
use crate::row::{CALIBRATION, INNER_AND_WEIGHTS, QUIRK, criterion, needs_data, sequential};
use crate::scores::Scores;
use crate::selection::{Request, Shape, layer_amounts, select};
use crate::site::Sites;
use crate::surgery;

const NAME: &str = "wanda";

struct Wanda {
    reference: bool,
}

impl Wanda {
    /// `|W| · ‖x‖₂` of a matrix, f32 on the host.
    fn matrix(&self, model: &Transformer, slot: &str, stats: &InputSquares) -> Result<Tensor> {
        let w = model.params().read(slot)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let columns = w.dim(1)?;
        let missing = || PruneError::Invalid {
            what: "matrix that wanda scores",
            found: slot.to_owned(),
            expected: "a projection of an attention or MLP sublayer that the data reaches".into(),
        };
        // No token went to that expert: its inputs have no size.
        let unseen = vec![0.0; columns];
        let sums = match stats.get(slot).map(|s| &s.0) {
            Some(sums) if sums.len() == columns => sums,
            None if of_expert(slot) => &unseen,
            _ => return Err(missing()),
        };
        let n = if self.reference { stats.sequences.max(1) as f64 } else { 1.0 };
        let norms: Vec<f32> = sums.iter().map(|s| (s / n).sqrt() as f32).collect();
        Ok(w.abs()?.broadcast_mul(&Tensor::from_vec(norms, columns, &Device::Cpu)?)?)
    }

    fn scores(&self, model: &Transformer, sites: &Sites, stats: &InputSquares) -> Result<Scores> {
        let entries = |slot: &str| self.matrix(model, slot, stats);
        let mut out = Scores::default();
        for (key, sums) in sums(model, sites, Fold { entry: same, line: same }, &entries)? {
            out.sites.insert(key, sums.iter().map(|g| g.sum as f32).collect());
        }
        for slot in &sites.weights {
            out.weights.insert(slot.clone(), entries(slot)?);
        }
        out.checked(NAME)
    }
}

impl Criterion for Wanda {
    fn needs_data(&self) -> bool {
        true
    }

    fn default_scope(&self, kind: SiteKind) -> Scope {
        if kind == SiteKind::Weights { Scope::Row } else { Scope::Global }
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        let mut stats = InputSquares::new(model.blueprint().mlp.gated, None);
        let mut done = 0;
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            stats.begin(&batch)?;
            model.hidden(&batch, &Gates::default(), &mut stats)?;
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        if stats.sequences == 0 {
            return Err(PruneError::NoData { method: NAME, batches: done as usize });
        }
        self.scores(model, sites, &stats)
    }

    fn layerwise(&self) -> Option<&dyn Layerwise> {
        Some(self)
    }
}

impl Layerwise for Wanda {
    fn prune(
        &self,
        model: &mut Transformer,
        removed: &mut Removed,
        request: &Request<'_>,
        data: &mut dyn Batches,
        progress: &dyn Progress,
    ) -> Result<(Decision, Scores)> {
        // A ranking over all layers needs all scores before the first block is pruned: they come from dense inputs.
        if request.scope == Scope::Global && layer_amounts(request.amount, request.sites)?.is_none() {
            let scores = self.score(model, request.sites, data, progress)?;
            let decision = select(&scores, &Request { removed, ..*request }, &Shape::of(model, request.sites)?)?;
            surgery::mask(model, removed, &decision)?;
            return Ok((decision, scores));
        }
        let amounts = layer_amounts(request.amount, request.sites)?;
        let gated = model.blueprint().mlp.gated;
        let (mut decision, mut scores) = (Decision::beside(model)?, Scores::beside(model)?);
        blocks::each(NAME, model, request.sites, data, progress, |model, layer, own, stream| {
            let stats = stream.inputs(model, layer, InputSquares::new(gated, Some(layer)))?;
            let here = self.scores(model, own, &stats)?;
            let amount = amounts.as_ref().and_then(|a| a.get(&layer)).unwrap_or(request.amount);
            let request = Request { sites: own, amount, removed, ..*request };
            let chosen = select(&here, &request, &Shape::of(model, own)?)?.stored_in(&decision)?;
            scores.add(here)?;
            surgery::mask(model, removed, &chosen)?;
            decision.add(chosen);
            Ok(())
        })?;
        Ok((decision, scores))
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Wanda { reference: args.word("quirk")? == "reference" }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(sequential(criterion(
        "wanda",
        "Sun et al., A Simple and Effective Pruning Approach for Large Language Models (2023), eq. 1",
        &[CALIBRATION, QUIRK],
        INNER_AND_WEIGHTS,
        "Weights times the norm of their input: `|w_ij| · ‖x_j‖₂`, ranked within each output row by default.\n\n\
         A structured site sums the scores of its group. `prune` scores each block on the inputs that its pruned predecessors give; `score` uses dense inputs.\n\n\
         Mind: N:M patterns run along the inputs. The authors divide the squared norm by the number of sequences (`quirk = \"reference\"`): all columns scale alike, masks do not change. Scales differ between layers: units of a whole model are ranked more fairly with `scope = layer`.\n\n\
         ```prune\nprune m.layers[*].linears.weights by 50% using wanda(on = d.train.sample(64, seed = 0))\n```",
    ))),
    build,
};

#[cfg(test)]
mod tests {
    use prunectl_model::{Batch, Point, Tap};

    use super::*;
    use crate::criterion::by_hand::{SLOT, holding, numbers};

    /// Inputs (3, 0) and (4, 1): norms 5 and 1. The reference divides their squares by two sequences.
    #[test]
    fn by_hand() {
        let (model, sites) = holding(&[&[1.0, -2.0], &[3.0, 0.0]]);
        let mut stats = InputSquares::new(true, None);
        for row in [[3f32, 0.0], [4.0, 1.0]] {
            stats.begin(&Batch::new(Tensor::zeros((1, 1), DType::U32, &Device::Cpu).unwrap())).unwrap();
            stats.see(0, Point::AttentionInput, &Tensor::new(&[[row]], &Device::Cpu).unwrap()).unwrap();
        }
        let of = |reference| numbers(&Wanda { reference }.scores(&model, &sites, &stats).unwrap().weights[SLOT]);
        assert_eq!(of(false), [5.0, 2.0, 15.0, 0.0]);
        let root = 2f32.sqrt();
        assert!(of(true).iter().zip([5.0 / root, 2.0 / root, 15.0 / root, 0.0]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
