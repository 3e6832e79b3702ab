//! Distance to another model's outputs.

use candle_core::{D, DType, Tensor};
use prunectl_kernels::kl_div;
use prunectl_model::{Gates, Head};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::agreement::stderr;
use super::{Inputs, Measured, Metric, Needs};
use crate::error::{PruneError, Result};
use crate::labels::{distributions, output_rows, scored};
use crate::row::{metric, needs_data, required};

struct Kl;

impl Metric for Kl {
    fn needs(&self) -> Needs {
        Needs::BatchesAndTeacher
    }

    fn higher_is_better(&self) -> Option<bool> {
        Some(false)
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let missing = |needs: &str| PruneError::Missing { method: "kl", needs: needs.to_owned() };
        let teacher = inputs.teacher.ok_or_else(|| missing("another model"))?;
        let model = inputs.model;
        let batches = inputs.batches.as_mut().ok_or_else(|| missing("data: `on DATA`"))?;
        batches.reset()?;
        let (mut sum, mut count, mut seen) = (0.0, 0u64, 0);
        let mut per_example = Vec::new();
        while let Some(batch) = batches.next()? {
            inputs.progress.check()?;
            let ours = model.forward(&batch, &Gates::default(), &mut ())?;
            let theirs = teacher.forward(&batch, &Gates::default(), &mut ())?;
            let (n, m) = (ours.dim(D::Minus1)?, theirs.dim(D::Minus1)?);
            if n != m {
                return Err(PruneError::Invalid {
                    what: "teacher of kl",
                    found: format!("{m} outputs"),
                    expected: format!("the model's {n}"),
                });
            }
            let rows = output_rows(model, &batch)?;
            let index = Tensor::from_slice(&rows, rows.len(), ours.device())?;
            let pick =
                |t: &Tensor| -> Result<Tensor> { Ok(distributions(model, &batch, t)?.index_select(&index, 0)?.to_dtype(DType::F32)?) };
            let kl = kl_div(&pick(&ours)?, &pick(&theirs)?, 1.0)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            let mut kl = kl.into_iter();
            let each = if matches!(model.blueprint().head, Head::Spans) { 2 } else { 1 };
            for n in scored(model, &batch)?.into_iter().map(|n| each * n) {
                let own: f64 = kl.by_ref().take(n).sum();
                sum += own;
                count += n as u64;
                per_example.push(own / n.max(1) as f64);
            }
            seen += 1;
        }
        if count == 0 {
            return Err(PruneError::NoData { method: "kl", batches: seen });
        }
        Ok(Measured {
            value: sum / count as f64,
            stderr: Some(stderr(&per_example)),
            protocol: "KL(teacher ‖ model) in nats, mean over scored tokens (or examples)".into(),
            tokens: Some(count),
            examples: Some(per_example.len() as u64),
            per_example,
            ..Measured::default()
        })
    }
}

fn build(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(Kl))
}

pub(super) const KL: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "kl",
        "Kullback and Leibler, On information and sufficiency (1951)",
        &[required("teacher", Ty::Model, "The model that gives the reference distribution.")],
        "KL(teacher ‖ model) in nats: the mean over scored tokens (or examples).",
    )),
    build,
};
