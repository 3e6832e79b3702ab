//! Activation: how strongly a unit answers on average.
//!
//! Zhao et al., Adaptive Activation-based Structured Pruning (2023), eq. 2: the attention map `mean |a|^p` of a unit, over all tokens that
//! count and the entries of its activation (one for a neuron, head_dim for a head). Written from the paper's description.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Gates, ModelError, Point, Tap, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::{CALIBRATION, INNER_SITES, criterion, needs_data, param, within};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::count;

const NAME: &str = "activation";

pub(super) struct Activation {
    pub(super) p: f64,
}

/// Σ |a|^p over tokens, by site.
struct Powers {
    p: f64,
    /// Sums, and the entries of a unit.
    sums: BTreeMap<Key, (Vec<f64>, usize)>,
    real: Option<Vec<u8>>,
    tokens: f64,
}

impl Powers {
    fn add(&mut self, key: Key, x: &Tensor) -> candle_core::Result<()> {
        let Some((sums, size)) = self.sums.get_mut(&key) else { return Ok(()) };
        let width = (sums.len() * *size).max(1);
        let values = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        for (token, row) in values.chunks(width).enumerate() {
            if self.real.as_ref().is_some_and(|r| r.get(token).is_none_or(|k| *k == 0)) {
                continue;
            }
            for (sum, unit) in sums.iter_mut().zip(row.chunks((*size).max(1))) {
                *sum += unit.iter().map(|a| a.abs().powf(self.p)).sum::<f64>();
            }
        }
        Ok(())
    }
}

impl Tap for Powers {
    fn wants(&self, layer: usize, point: Point) -> bool {
        let has = |kind| self.sums.contains_key(&Key::of(kind, layer));
        match point {
            Point::HeadContext => has(SiteKind::Heads) || has(SiteKind::KvGroups),
            Point::Intermediate => has(SiteKind::Neurons),
            _ => false,
        }
    }

    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        if point == Point::Intermediate {
            self.add(Key::of(SiteKind::Neurons, layer), x)?;
        } else {
            self.add(Key::of(SiteKind::Heads, layer), x)?;
            self.add(Key::of(SiteKind::KvGroups, layer), x)?;
        }
        Ok(())
    }
}

impl Criterion for Activation {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        let mut powers = Powers { p: self.p, sums: BTreeMap::new(), real: None, tokens: 0.0 };
        let wrong = |kind| PruneError::Site { method: NAME, kind, hint: "it scores heads, KV groups and the neurons of dense MLPs" };
        if !sites.weights.is_empty() {
            return Err(wrong(SiteKind::Weights));
        }
        for key in sites.units.keys() {
            let d = key.layer.and_then(|l| model.dims().get(l)).copied().unwrap_or_default();
            let size = match key.kind {
                SiteKind::Heads => d.head_dim,
                SiteKind::KvGroups => d.head_dim * d.group_size(),
                SiteKind::Neurons if d.experts == 0 => 1,
                kind => return Err(wrong(kind)),
            };
            powers.sums.insert(*key, (vec![0.0; count(model, *key)?], size));
        }
        let mut done = 0;
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            powers.real = batch.keep.as_ref().map(|k| k.flatten_all()?.to_vec1()).transpose()?;
            let all = batch.input_ids.elem_count();
            powers.tokens += powers.real.as_ref().map_or(all, |r| r.iter().filter(|k| **k != 0).count()) as f64;
            model.hidden(&batch, &Gates::default(), &mut powers)?;
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        if powers.tokens == 0.0 {
            return Err(PruneError::NoData { method: NAME, batches: done as usize });
        }
        let mean = |(sums, size): (Vec<f64>, usize)| sums.into_iter().map(|s| (s / (powers.tokens * size.max(1) as f64)) as f32).collect();
        Scores { sites: powers.sums.into_iter().map(|(k, s)| (k, mean(s))).collect(), ..Scores::default() }.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Activation { p: if args.word("stat")? == "mean" { 1.0 } else { args.float("p")? } }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "activation",
        "Zhao et al., Adaptive Activation-based Structured Pruning (2023), eq. 2",
        &[
            CALIBRATION,
            param("stat", Ty::OneOf(&["mean", "attention"]), "attention", "`mean` of |a|, or the attention map mean |a|^p."),
            within(param("p", Ty::Float, "2", "The exponent of `attention`."), 0.1, 16.0),
        ],
        INNER_SITES,
        "Mean of |a|^p of a unit's activation over all tokens that count.\n\n\
         Mind: padding never counts; scales differ by layer, so `scope = layer` is the fair comparison.\n\n\
         ```prune\nscore m.layers[*].mlp.neurons using activation(on = d.train.sample(64, seed = 0)) as s\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::Device;

    use super::*;

    /// Recorded activations through the tap that the criterion uses.
    #[test]
    fn equals_the_formula() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods/12_adaptive_activation");
        let load = |file: &str| candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap();
        let (inputs, expected) = (load("inputs.safetensors"), load("expected.safetensors"));
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
        let mut worst = 0f64;
        for p in [1, 2, 4] {
            for layer in 0..3 {
                let key = Key::of(SiteKind::Neurons, layer);
                let mut powers = Powers { p: f64::from(p), sums: [(key, (vec![0.0; 48], 1))].into(), real: None, tokens: 40.0 };
                powers.see(layer, Point::Intermediate, &inputs[&format!("activations.{layer}")].unsqueeze(0).unwrap()).unwrap();
                let name = format!("attention.p{p}.{layer}");
                let (rtol, atol) = (json["expected"][&name]["rtol"].as_f64().unwrap(), json["expected"][&name]["atol"].as_f64().unwrap());
                let theirs = expected[&name].to_vec1::<f32>().unwrap();
                for (a, b) in powers.sums[&key].0.iter().map(|s| s / powers.tokens).zip(theirs) {
                    assert!((a - f64::from(b)).abs() <= atol + rtol * f64::from(b), "{name}: {a} {b}");
                    worst = worst.max((a / f64::from(b) - 1.0).abs());
                }
            }
        }
        println!("golden 12_adaptive_activation (attention): worst relative error {worst:.1e}");
    }

    /// Two neurons over three tokens, the last one padding: mean squares of (1, 3) and (−2, 0).
    #[test]
    fn by_hand() {
        let key = Key::of(SiteKind::Neurons, 0);
        let mut powers = Powers { p: 2.0, sums: [(key, (vec![0.0; 2], 1))].into(), real: Some(vec![1, 1, 0]), tokens: 2.0 };
        let x = Tensor::new(&[[[1f32, -2.0], [3.0, 0.0], [9.0, 9.0]]], &Device::Cpu).unwrap();
        powers.see(0, Point::Intermediate, &x).unwrap();
        assert_eq!(powers.sums[&key].0, [10.0, 4.0]);
    }
}
