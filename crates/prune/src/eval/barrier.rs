//! Linear mode connectivity: how much higher the loss climbs on the straight line between two models' weights.
//!
//! Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis (2020), sec. 2: with `W(α) = (1 − α)·W_a + α·W_b`, the barrier is
//! `max_α L(W(α)) − (L(W_a) + L(W_b)) / 2`. Our value is that of the loss; the paper's figures are of the error, which is among the details
//! where the model classifies, as is the height over the line between the ends (Entezari et al., 2022, eq. 1).

use std::collections::BTreeMap;

use candle_core::{D, DType};
use prunectl_model::{Gates, Labels, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::{Inputs, Measured, Metric, Needs};
use crate::error::{PruneError, Result};
use crate::row::{metric, needs_data, param, required, within};

const NAME: &str = "barrier";

struct Barrier {
    points: usize,
}

/// The heights of the line's highest point over the mean of its ends, and over the straight line between them.
fn heights(values: &[f64]) -> (f64, f64) {
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return (f64::NAN, f64::NAN) };
    let steps = (values.len() - 1).max(1) as f64;
    let highest = |base: &dyn Fn(usize) -> f64| {
        let over = values.iter().enumerate().map(|(i, v)| v - base(i));
        // A loss that is no number on the way is a barrier, too.
        over.fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
    };
    (highest(&|_| (first + last) / 2.0), highest(&|i| first + (last - first) * i as f64 / steps))
}

/// `(1 − α)·a + α·b`; at the ends the models themselves.
fn between(a: &Transformer, b: &Transformer, alpha: f64) -> Result<Transformer> {
    let mut model = a.clone();
    if alpha == 0.0 {
        return Ok(model);
    }
    for (slot, x) in a.params().iter() {
        let y = b.params().require(slot)?;
        let mixed = if alpha == 1.0 { y.clone() } else { ((x * (1.0 - alpha))? + (y * alpha)?)? };
        model.params_mut().set(slot, mixed);
    }
    Ok(model)
}

fn alike(a: &Transformer, b: &Transformer) -> Result<()> {
    let apart = |found: String, expected: String| Err(PruneError::Invalid { what: "ends of barrier", found, expected });
    for (slot, x) in a.params().iter() {
        match b.params().get(slot) {
            Some(y) if x.dims() == y.dims() => {}
            Some(y) => return apart(format!("`{slot}` {:?}", y.dims()), format!("{:?}, as in the other model", x.dims())),
            None => return apart(format!("no `{slot}`"), "models of one shape".into()),
        }
    }
    if b.params().iter().count() == a.params().iter().count() {
        Ok(())
    } else {
        apart("more parameters".into(), "models of one shape".into())
    }
}

impl Metric for Barrier {
    fn needs(&self) -> Needs {
        Needs::BatchesAndEnds
    }

    fn higher_is_better(&self) -> Option<bool> {
        Some(false)
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let missing = |needs: &str| PruneError::Missing { method: NAME, needs: needs.to_owned() };
        let (a, b) = (inputs.model, inputs.teacher.ok_or_else(|| missing("two models"))?);
        alike(a, b)?;
        let batches = inputs.batches.as_mut().ok_or_else(|| missing("data: `on DATA`"))?;
        let (mut losses, mut errors) = (Vec::with_capacity(self.points), Vec::with_capacity(self.points));
        let (mut counted, mut examples, mut seen) = (0u64, 0u64, 0);
        for point in 0..self.points {
            let model = between(a, b, point as f64 / (self.points - 1) as f64)?;
            let (mut sum, mut wrong, mut classes) = (0.0, 0u64, 0u64);
            (counted, examples) = (0, 0);
            batches.reset()?;
            while let Some(batch) = batches.next()? {
                inputs.progress.check()?;
                let out = match &batch.labels {
                    Some(Labels::Classes(labels)) => {
                        let outputs = model.forward(&batch, &Gates::default(), &mut ())?;
                        let said = outputs.argmax(D::Minus1)?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
                        let truth = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
                        classes += truth.len() as u64;
                        wrong += said.iter().zip(&truth).filter(|(s, t)| s != t).count() as u64;
                        model.loss(&batch, &outputs)?
                    }
                    _ => model.forward_loss(&batch, &Gates::default(), &mut ())?,
                };
                sum += out.per_example_sum.to_dtype(DType::F64)?.to_vec1::<f64>()?.iter().sum::<f64>();
                counted += out.count() as u64;
                examples += out.per_example_count.len() as u64;
                seen += 1;
            }
            losses.push(sum / counted as f64);
            if classes > 0 {
                errors.push(wrong as f64 / classes as f64);
            }
            inputs.progress.advance(point as u64 + 1, self.points as u64, NAME);
        }
        if counted == 0 {
            return Err(PruneError::NoData { method: NAME, batches: seen });
        }
        let (value, over_line) = heights(&losses);
        let mut details: BTreeMap<String, f64> =
            losses.iter().enumerate().map(|(i, l)| (format!("loss-{i}"), *l)).chain([("over-line".to_owned(), over_line)]).collect();
        if !errors.is_empty() {
            let (height, over_line) = heights(&errors);
            details.extend(errors.iter().enumerate().map(|(i, e)| (format!("error-{i}"), *e)));
            details.extend([("error".to_owned(), height), ("error-over-line".to_owned(), over_line)]);
        }
        Ok(Measured {
            value,
            protocol: format!(
                "highest mean loss at {} points on the line between the weights, the ends among them, minus the mean of the ends",
                self.points
            ),
            tokens: Some(counted),
            examples: Some(examples),
            details,
            ..Measured::default()
        })
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(Barrier { points: args.count("points")? as usize }))
}

pub(super) const ENTRY: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "barrier",
        "Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis (2020), sec. 2",
        &[
            required("a", Ty::Model, "One end: a model, a snapshot, or `frozen(m)`."),
            required("b", Ty::Model, "The other end, of the same shape."),
            within(param("points", Ty::Count, "30", "Points on the line, the ends included."), 2.0, 1e4),
        ],
        "Highest loss on the straight line between two models' weights, minus the mean of the ends. 0 where nothing rises: the two lie in one \
         valley. Of a classifier the same of the error stands among the details.\n\n\
         ```prune\nsnapshot m as early\ntrain m on d.train for 20 steps { optimizer = adamw(lr = 1e-4) }\neval barrier(early, m, points = 11) on d.validation as wall\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::Device;

    use super::*;

    /// Losses and errors on a line of two SGD runs of a small network, and its barriers.
    #[test]
    fn heights_equal_the_reference() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods/09_linear_mode_connectivity");
        let expected = candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
        let of = |name: &str| expected[name].to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (values, what) in [("losses", "loss"), ("errors", "error")] {
            let (height, over_line) = heights(&of(values));
            for (found, wanted) in [(height, of(&format!("barrier.{what}"))[0]), (over_line, of(&format!("barrier_linear.{what}"))[0])] {
                assert!((found - wanted).abs() <= 1e-6 + 1e-3 * wanted.abs(), "{what}: {found} {wanted}");
            }
        }
    }

    #[test]
    fn a_line_that_leads_through_nowhere_is_a_barrier() {
        assert!(heights(&[1.0, f64::NAN, 1.0]).0.is_nan());
        assert_eq!(heights(&[2.0, 1.0, 4.0]), (1.0, 0.0));
    }
}
