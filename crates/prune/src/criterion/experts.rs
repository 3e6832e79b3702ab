//! Scores of experts: REAP, and how often the router chooses them.
//!
//! Lasby et al., REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression (2025), eq. 9: mean over the tokens routed to an
//! expert of its router weight times the ℓ2 norm of its output. The baseline is the share of tokens routed to it (Chen et al., Task-Specific
//! Expert Pruning for Sparse Mixture-of-Experts, 2022).

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Gates, ModelError, Point, Tap, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind};

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::{CALIBRATION, criterion, needs_data};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::count;

struct Experts {
    name: &'static str,
    /// Weights times norms, or counts alone.
    norms: bool,
}

/// Sums over the tokens of one layer's experts.
#[derive(Clone, Default)]
struct Sums {
    saliency: Vec<f64>,
    routed: Vec<f64>,
    tokens: f64,
}

#[derive(Default)]
struct Routing {
    layers: BTreeMap<usize, Sums>,
    norms: bool,
    /// 1 where a token counts; None: all.
    real: Option<Vec<u8>>,
    /// The router's weights of the layer that runs, `[tokens · experts]`.
    weights: Vec<f64>,
    /// The tokens of the expert that runs.
    rows: Vec<u32>,
    /// The first weight of a router that is no number: layer, expert and value.
    bad: Option<(usize, usize, f32)>,
}

impl Routing {
    fn counts(&self, token: usize) -> bool {
        self.real.as_ref().is_none_or(|r| r.get(token).is_some_and(|k| *k != 0))
    }

    fn record(&mut self, layer: usize, point: Point, t: &Tensor) -> candle_core::Result<()> {
        match point {
            Point::RouterWeights => {
                self.weights = t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
                let experts = t.dim(2)?.max(1);
                let tokens = self.weights.len() / experts;
                if self.bad.is_none() {
                    let wrong = |(i, w): &(usize, &f64)| !w.is_finite() && self.counts(i / experts);
                    self.bad = self.weights.iter().enumerate().find(wrong).map(|(i, w)| (layer, i % experts, *w as f32));
                }
                let n = (0..tokens).filter(|i| self.counts(*i)).count() as f64;
                if let Some(sums) = self.layers.get_mut(&layer) {
                    sums.tokens += n;
                }
            }
            Point::ExpertRows(expert) => {
                self.rows = t.to_vec1::<u32>()?;
                let n = self.rows.iter().filter(|r| self.counts(**r as usize)).count() as f64;
                if let Some(routed) = self.layers.get_mut(&layer).and_then(|s| s.routed.get_mut(expert)) {
                    *routed += n;
                }
            }
            Point::ExpertOutput(expert) => {
                let norms = t.to_dtype(DType::F64)?.sqr()?.sum(1)?.sqrt()?.to_vec1::<f64>()?;
                let experts = self.layers.get(&layer).map_or(0, |s| s.routed.len());
                let weight = |token: u32| self.weights.get(token as usize * experts + expert).copied().unwrap_or_default();
                let own = self.rows.iter().zip(&norms).filter(|(r, _)| self.counts(**r as usize));
                let sum: f64 = own.map(|(r, n)| weight(*r) * n).sum();
                if let Some(saliency) = self.layers.get_mut(&layer).and_then(|s| s.saliency.get_mut(expert)) {
                    *saliency += sum;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Tap for Routing {
    fn wants(&self, layer: usize, point: Point) -> bool {
        self.layers.contains_key(&layer)
            && (matches!(point, Point::RouterWeights | Point::ExpertRows(_)) || self.norms && matches!(point, Point::ExpertOutput(_)))
    }

    fn see(&mut self, layer: usize, point: Point, t: &Tensor) -> std::result::Result<(), ModelError> {
        Ok(self.record(layer, point, &t.detach())?)
    }
}

impl Criterion for Experts {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| *k != SiteKind::Experts) {
            return Err(PruneError::Site { method: self.name, kind, hint: "it scores experts: `m.layers[*].mlp.experts`" });
        }
        let mut routing = Routing { norms: self.norms, ..Routing::default() };
        for key in sites.units.keys() {
            let n = count(model, *key)?;
            if let Some(layer) = key.layer {
                routing.layers.insert(layer, Sums { saliency: vec![0.0; n], routed: vec![0.0; n], tokens: 0.0 });
            }
        }
        let mut done = 0;
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            routing.real = batch.keep.as_ref().map(|k| k.flatten_all()?.to_vec1()).transpose()?;
            model.hidden(&batch, &Gates::default(), &mut routing)?;
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), self.name);
        }
        if let Some((layer, unit, value)) = routing.bad {
            return Err(PruneError::NotFinite { method: self.name, key: Key::of(SiteKind::Experts, layer), unit, value });
        }
        let mut out = Scores::default();
        for (layer, sums) in routing.layers {
            if sums.tokens == 0.0 {
                return Err(PruneError::NoData { method: self.name, batches: done as usize });
            }
            let score = |(saliency, routed): (&f64, &f64)| match self.norms {
                true if *routed > 0.0 => saliency / routed,
                true => 0.0,
                false => routed / sums.tokens,
            };
            let scores = sums.saliency.iter().zip(&sums.routed).map(|s| score(s) as f32).collect();
            out.sites.insert(Key::of(SiteKind::Experts, layer), scores);
        }
        out.checked(self.name)
    }
}

fn build_reap(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Experts { name: "reap", norms: true }))
}

fn build_frequency(_: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Experts { name: "frequency", norms: false }))
}

pub(super) const REAP: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "reap",
        "Lasby et al., REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression (2025), eq. 9",
        &[CALIBRATION],
        &[SiteKind::Experts],
        "Router-weighted expert activation: mean over the tokens routed to an expert of gate × ‖expert output‖₂.\n\n\
         Mind: an expert that no token reaches scores 0; its row of the router goes with it.\n\n\
         ```prune\nedition 2026\nmodel m = hf(\"mistralai/Mixtral-8x7B-v0.1\")\ndata  d = hf(\"Salesforce/wikitext\", config = \"wikitext-2-raw-v1\")\nprune m.layers[*].mlp.experts by 25% using reap(on = d.train.sample(64, length = 512 tokens, seed = 0)) { scope = layer }\n```",
    )),
    build: build_reap,
};

pub(super) const FREQUENCY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "frequency",
        "Chen et al., Task-Specific Expert Pruning for Sparse Mixture-of-Experts (2022)",
        &[CALIBRATION],
        &[SiteKind::Experts],
        "Share of tokens that the router sends to an expert. The baseline that `reap` must beat.\n\n\
         ```prune\nedition 2026\nmodel m = hf(\"mistralai/Mixtral-8x7B-v0.1\")\ndata  d = hf(\"Salesforce/wikitext\", config = \"wikitext-2-raw-v1\")\nscore m.layers[*].mlp.experts using frequency(on = d.train.sample(64, length = 512 tokens, seed = 0)) as s\n```",
    )),
    build: build_frequency,
};

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Two experts, three tokens, the last one padding: expert 0 gets tokens 0 and 2, expert 1 tokens 0 and 1.
    #[test]
    fn by_hand() {
        let mut routing = Routing { norms: true, real: Some(vec![1, 1, 0]), ..Routing::default() };
        routing.layers.insert(0, Sums { saliency: vec![0.0; 2], routed: vec![0.0; 2], tokens: 0.0 });
        let cpu = &Device::Cpu;
        routing.see(0, Point::RouterWeights, &Tensor::new(&[[[0.25f32, 0.75], [0.0, 1.0], [1.0, 0.0]]], cpu).unwrap()).unwrap();
        routing.see(0, Point::ExpertRows(0), &Tensor::new(&[0u32, 2], cpu).unwrap()).unwrap();
        routing.see(0, Point::ExpertOutput(0), &Tensor::new(&[[3f32, 4.0], [9.0, 9.0]], cpu).unwrap()).unwrap();
        routing.see(0, Point::ExpertRows(1), &Tensor::new(&[0u32, 1], cpu).unwrap()).unwrap();
        routing.see(0, Point::ExpertOutput(1), &Tensor::new(&[[0f32, 4.0], [5.0, 0.0]], cpu).unwrap()).unwrap();
        let sums = &routing.layers[&0];
        assert_eq!((&sums.saliency[..], &sums.routed[..], sums.tokens), (&[1.25, 8.0][..], &[1.0, 2.0][..], 2.0));
    }
}
