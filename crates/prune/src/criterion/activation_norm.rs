//! Activation norm: how large a unit's activation is.
//!
//! Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation (Minitron, 2024), sec. 2.2: the ℓ2 norm over the
//! tokens of an example, the mean over examples. A head's activation is its context vector, a channel's are the outputs of the norms
//! before both sublayers, summed over layers.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Gates, ModelError, Point, Tap, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind};

use super::Criterion;
use crate::calibrate::real_tokens;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::{CALIBRATION, criterion, needs_data};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::count;

const NAME: &str = "activation_norm";

struct ActivationNorm;

/// Σ over examples of norms, by site.
struct Norms<'a> {
    sums: BTreeMap<Key, Vec<f64>>,
    model: &'a Transformer,
    keep: Option<Tensor>,
}

impl Norms<'_> {
    /// Adds the norms of `[b, s, units · size]`: over tokens and the `size` entries of a unit.
    fn add(&mut self, key: Key, x: &Tensor, size: usize) -> candle_core::Result<()> {
        let Some(sums) = self.sums.get_mut(&key) else { return Ok(()) };
        let x = x.to_dtype(DType::F64)?.flatten_from(2)?;
        let x = match &self.keep {
            Some(keep) => x.broadcast_mul(keep)?,
            None => x,
        };
        for example in x.sqr()?.sum(1)?.to_vec2::<f64>()? {
            for (sum, unit) in sums.iter_mut().zip(example.chunks(size.max(1))) {
                *sum += unit.iter().sum::<f64>().sqrt();
            }
        }
        Ok(())
    }
}

impl Tap for Norms<'_> {
    fn wants(&self, _: usize, point: Point) -> bool {
        matches!(point, Point::HeadContext | Point::Intermediate | Point::AttentionInput | Point::MlpInput)
    }

    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        let dims = *self.model.layer_dims(layer)?;
        match point {
            Point::HeadContext => {
                self.add(Key::of(SiteKind::Heads, layer), x, dims.head_dim)?;
                self.add(Key::of(SiteKind::KvGroups, layer), x, dims.head_dim * dims.group_size())?;
            }
            Point::Intermediate => self.add(Key::of(SiteKind::Neurons, layer), x, 1)?,
            _ => self.add(Key::of(SiteKind::Hidden, layer), x, 1)?,
        }
        Ok(())
    }
}

impl Criterion for ActivationNorm {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        let mut sums = BTreeMap::new();
        for key in sites.units.keys() {
            let known = matches!(key.kind, SiteKind::Heads | SiteKind::KvGroups | SiteKind::Neurons | SiteKind::Hidden);
            let routed = key.kind == SiteKind::Neurons && key.layer.is_some_and(|l| model.dims().get(l).is_some_and(|d| d.experts > 0));
            if !known || routed {
                return Err(PruneError::Site {
                    method: NAME,
                    kind: key.kind,
                    hint: "it scores heads, KV groups, hidden channels and the neurons of dense MLPs",
                });
            }
            sums.insert(*key, vec![0.0; count(model, *key)?]);
        }
        let mut norms = Norms { sums, model, keep: None };
        let (mut examples, mut done) = (0usize, 0);
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            norms.keep = real_tokens(&batch)?;
            model.hidden(&batch, &Gates::default(), &mut norms)?;
            examples += batch.size()?.0;
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        if examples == 0 {
            return Err(PruneError::NoData { method: NAME, batches: done as usize });
        }
        let mean = |sums: Vec<f64>| sums.into_iter().map(|s| (s / examples as f64) as f32).collect();
        Scores { sites: norms.sums.into_iter().map(|(k, s)| (k, mean(s))).collect(), ..Scores::default() }.checked(NAME)
    }
}

fn build(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(ActivationNorm))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "activation_norm",
        "Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation (Minitron, 2024), sec. 2.2",
        &[CALIBRATION],
        &[SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Hidden],
        "Mean over examples of the ℓ2 norm over tokens of a unit's activation; heads take the norm of their context vector, `hidden` the norms' outputs summed over the layers.\n\n\
         Mind: `hidden` is one score for the whole model. Padding never counts.\n\n\
         ```prune\nscore m.layers[*].mlp.neurons using activation_norm(on = d.train.sample(64, seed = 0)) as s\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::criterion::by_hand::holding;

    /// Neurons of two examples of two tokens: the norms of (3, 4) and (0, 0), and of (1, 0) and (0, 2) with the second token padding.
    #[test]
    fn by_hand() {
        let (model, _) = holding(&[&[1.0]]);
        let key = Key::of(SiteKind::Neurons, 0);
        let keep = Tensor::new(&[[[1f64], [1.0]], [[1.0], [0.0]]], &Device::Cpu).unwrap();
        let mut norms = Norms { sums: [(key, vec![0.0; 2])].into(), model: &model, keep: Some(keep) };
        let x = Tensor::new(&[[[3f32, 0.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]], &Device::Cpu).unwrap();
        norms.see(0, Point::Intermediate, &x).unwrap();
        assert_eq!(norms.sums[&key], [6.0, 0.0]);
    }
}
