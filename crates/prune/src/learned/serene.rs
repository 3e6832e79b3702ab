//! SeReNe: what insensitive neurons read decays until they can go.
//!
//! Tartaglione et al., SeReNe: Sensitivity-based Regularization of Neurons for Structured Sparsity in Neural Networks (2022). The sensitivity
//! of neuron i is that of the network's outputs to its potential p (what its activation function reads), eq. 3:
//! `S_i = α · mean_n Σ_k |∂y_k / ∂p_{n,i}|`, or of the loss instead of the outputs (eq. 7, the lower bound), or 1 where the mean potential is
//! positive (eq. 9, local). Then eq. 6: `w ← w − λ·w·relu(1 − S_i)` for the weights w that the neuron reads with, and neurons whose weights
//! are all below a threshold go, as far as a bisection finds that the loss allows.
//!
//! n counts real tokens here, and y is summed over the batch, so that S does not depend on its size. The neurons are those of dense MLPs;
//! a gated MLP's potential is what its gate's activation function reads, and the rows of both matrices decay.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use prunectl_model::{Batch, Gates, Head, LayerGates, ModelError, Point, Tap, Transformer};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::Schedule;

use super::{Backward, Layout, Moment, Shrink, Values};
use crate::calibrate::real_tokens;
use crate::criterion::Criterion;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::{Key, Sites};

const NAME: &str = "serene";

/// Which sensitivity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Of every output.
    Full,
    /// Of the loss.
    Lower,
    /// Whether the neuron is on.
    Local,
}

/// SeReNe.
pub(crate) struct Serene {
    /// λ.
    pub lambda: Schedule,
    /// The sensitivity.
    pub bound: Bound,
    /// α.
    pub alpha: f64,
    /// Share by which the loss may rise.
    pub tolerance: f64,
}

/// Sums over tokens, by layer.
#[derive(Default)]
struct Sums {
    layers: BTreeMap<usize, Vec<f64>>,
    tokens: f64,
}

impl Sums {
    /// Adds `[b, s, ffn]` over real tokens.
    fn add(&mut self, layer: usize, of: &Tensor, real: Option<&Tensor>) -> candle_core::Result<()> {
        let of = of.detach().to_dtype(DType::F64)?;
        let of = match real {
            Some(real) => of.broadcast_mul(&real.to_dtype(DType::F64)?)?,
            None => of,
        };
        let sums = of.sum((0, 1))?.to_vec1::<f64>()?;
        let own = self.layers.entry(layer).or_insert_with(|| vec![0.0; sums.len()]);
        own.iter_mut().zip(sums).for_each(|(a, b)| *a += b);
        Ok(())
    }
}

struct Potentials<'a> {
    sums: &'a mut Sums,
    real: Option<&'a Tensor>,
}

impl Tap for Potentials<'_> {
    fn wants(&self, _: usize, point: Point) -> bool {
        point == Point::Potential
    }

    fn see(&mut self, layer: usize, _: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        Ok(self.sums.add(layer, x, self.real)?)
    }
}

impl Serene {
    /// Σ_k Σ_n |∂y_k / ∂p_n| of one batch; y the loss where that is asked for.
    fn differentiate(&self, layers: &[usize], model: &Transformer, batch: &Batch, real: Option<&Tensor>, sums: &mut Sums) -> Result<()> {
        let (b, s) = batch.size()?;
        let (mut gates, mut vars) = (vec![LayerGates::default(); model.n_layers()], Vec::with_capacity(layers.len()));
        for layer in layers {
            let var = Var::zeros((b, s, model.layer_dims(*layer)?.ffn), model.dtype(), model.device())?;
            if let Some(gate) = gates.get_mut(*layer) {
                gate.potentials = Some(var.as_tensor().clone());
            }
            vars.push((*layer, var));
        }
        let gates = Gates { layers: gates, hidden: None };
        let targets = match self.bound {
            Bound::Full => {
                let out = model.forward(batch, &gates, &mut ())?; // [b, outputs]
                (0..out.dim(1)?).map(|k| Ok(out.narrow(1, k, 1)?.sum_all()?)).collect::<Result<Vec<_>>>()?
            }
            _ => vec![model.forward_loss(batch, &gates, &mut ())?.sum()?],
        };
        for y in targets {
            let grads = y.backward()?;
            for (layer, var) in &vars {
                if let Some(g) = grads.get(var.as_tensor()) {
                    sums.add(*layer, &g.abs()?, real)?;
                }
            }
        }
        Ok(())
    }
}

impl Criterion for Serene {
    fn score(&self, model: &Transformer, sites: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        let layout = Layout::of(model, sites)?;
        let mut out = Scores::default();
        for (key, units) in &layout.units {
            let mut largest = vec![0f32; units.len()];
            for (slices, own) in units.iter().zip(&mut largest) {
                for slice in slices.iter().filter(|s| s.dim == 0) {
                    let rows = model.params().require(&slice.slot)?.narrow(0, slice.start, slice.len)?;
                    *own = own.max(rows.abs()?.to_dtype(DType::F32)?.max_all()?.to_scalar::<f32>()?);
                }
            }
            out.sites.insert(*key, largest);
        }
        out.checked(NAME)
    }

    fn shrinks(&self) -> Option<&dyn Shrink> {
        Some(self)
    }
}

impl Shrink for Serene {
    fn feel(&self, layout: &Layout, model: &Transformer, batches: &[Batch]) -> Result<Values> {
        let mut layers = Vec::new();
        for layer in layout.units.keys().filter_map(|k| k.layer) {
            let dims = model.layer_dims(layer)?;
            if dims.experts > 0 {
                return Err(PruneError::Site { method: NAME, kind: SiteKind::Neurons, hint: "it knows dense MLPs, not experts" });
            }
            if dims.ffn > 0 {
                layers.push(layer);
            }
        }
        if self.bound == Bound::Full && !matches!(model.blueprint().head, Head::Sequence { .. }) {
            return Err(PruneError::Invalid {
                what: "`bound` of serene",
                found: "full, which takes a backward pass for every output of every token".into(),
                expected: "lower, which takes one pass, or local".into(),
            });
        }
        let mut sums = Sums::default();
        for batch in batches {
            let real = real_tokens(batch)?;
            sums.tokens += match &batch.keep {
                Some(keep) => keep.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?,
                None => batch.input_ids.elem_count() as f64,
            };
            if self.bound == Bound::Local {
                model.hidden(batch, &Gates::default(), &mut Potentials { sums: &mut sums, real: real.as_ref() })?;
            } else {
                self.differentiate(&layers, model, batch, real.as_ref(), &mut sums)?;
            }
        }
        let tokens = sums.tokens.max(1.0);
        let sensitivity = |sum: f64| match self.bound {
            Bound::Local => f32::from(u8::from(sum > 0.0)),
            _ => (self.alpha * sum / tokens) as f32,
        };
        let named = sums.layers.into_iter().map(|(layer, sums)| (Key::of(SiteKind::Neurons, layer), sums));
        let ours = named.filter(|(key, _)| layout.units.contains_key(key));
        Ok(ours.map(|(key, sums)| (key.to_string(), sums.into_iter().map(sensitivity).collect())).collect())
    }

    fn factors(&self, layout: &Layout, backward: &Backward<'_>, moment: &Moment<'_>) -> Result<Values> {
        let lambda = moment.value(&self.lambda);
        let mut out = Values::new();
        for (key, units) in &layout.units {
            // Outputs that none of the step's batches read feel nothing.
            let felt = backward.gradients.get(&key.to_string()).map(Vec::as_slice).unwrap_or_default();
            for (unit, slices) in units.iter().enumerate() {
                let s = f64::from(felt.get(unit).copied().unwrap_or_default());
                let factor = (1.0 - lambda * (1.0 - s).max(0.0)) as f32;
                for slice in slices.iter().filter(|s| s.dim == 0) {
                    let (rows, columns) = layout.shape(&slice.slot)?;
                    let own = out.entry(slice.slot.clone()).or_insert_with(|| vec![1.0; rows * columns]);
                    own.iter_mut().skip(slice.start * columns).take(slice.len * columns).for_each(|f| *f = factor);
                }
            }
        }
        Ok(out)
    }

    fn tolerance(&self) -> f64 {
        self.tolerance
    }
}
