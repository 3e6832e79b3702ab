//! Response distillation: the student imitates the teacher's softened distribution.
//!
//! Hinton et al., Distilling the Knowledge in a Neural Network (2015), sec. 2: `T² · KL(teacher ‖ student)` at temperature T, mean over
//! the tokens (or examples) that count. A head with one output has no distribution: of a value it is the squared difference to the teacher's.

use candle_core::{D, Tensor};
use prunectl_kernels::kl_div;
use prunectl_model::{Batch, Gates, Head, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use prunectl_recipe::plan::{Schedule, Value};

use super::features::{TEACHER, teacher};
use super::{LossInput, LossTerm};
use crate::error::{PruneError, Result};
use crate::labels::{distributions, output_rows};
use crate::optimizer::schedule;
use crate::row::{other, param, within};
use crate::schedule::Clock;

struct Distill {
    teacher: Value,
    temperature: Schedule,
}

impl LossTerm for Distill {
    fn teacher(&self) -> Option<&Value> {
        Some(&self.teacher)
    }

    fn count(&self, model: &Transformer, batch: &Batch, _: u64) -> Result<f64> {
        Ok(output_rows(model, batch)?.len() as f64)
    }

    fn sum(&self, input: &LossInput<'_>, clock: &Clock, step: u64) -> Result<Tensor> {
        let teacher = input.imitated("distill")?;
        let temperature = clock.value(&self.temperature, step);
        if temperature <= 0.0 {
            return Err(PruneError::Invalid {
                what: "`temperature` of distill",
                found: temperature.to_string(),
                expected: "a number above 0".into(),
            });
        }
        let theirs = teacher.forward(input.batch, &Gates::default(), &mut ())?.detach();
        let ours = input.outputs()?;
        alike("distill", ours, &theirs)?;
        let rows = output_rows(input.model, input.batch)?;
        let theirs = theirs.to_dtype(ours.dtype())?;
        let (b, s) = input.batch.size()?;
        let most = matches!(input.model.blueprint().head, Head::Tokens { .. }) && 2 * rows.len() >= b * s;
        let rows = Tensor::new(rows, ours.device())?;
        let each = if most {
            // Picking rows out costs more than computing the others, too.
            response(ours, &theirs, temperature)?.index_select(&rows, 0)?
        } else {
            let pick = |t: &Tensor| -> Result<Tensor> { Ok(distributions(input.model, input.batch, t)?.index_select(&rows, 0)?) };
            response(&pick(ours)?, &pick(&theirs)?, temperature)?
        };
        Ok(each.sum_all()?)
    }
}

/// `T² · KL(teacher ‖ student)` of each row: logits `[.., classes]`. Of one output the squared difference.
pub(super) fn response(ours: &Tensor, theirs: &Tensor, temperature: f64) -> Result<Tensor> {
    if ours.dim(D::Minus1)? == 1 {
        return Ok((ours - theirs)?.sqr()?.flatten_all()?);
    }
    Ok((kl_div(ours, theirs, temperature)? * (temperature * temperature))?)
}

/// Both have the same number of outputs.
fn alike(method: &'static str, ours: &Tensor, theirs: &Tensor) -> Result<()> {
    let (n, m) = (ours.dim(D::Minus1)?, theirs.dim(D::Minus1)?);
    if n == m {
        return Ok(());
    }
    Err(PruneError::Invalid {
        what: "outputs of the teacher",
        found: format!("{m} (`{method}`)"),
        expected: format!("the student's {n}: the same vocabulary (or labels)"),
    })
}

/// The rows of both outputs that count, `[rows, classes]`.
pub(super) fn rows(method: &'static str, input: &LossInput<'_>, ours: &Tensor, theirs: &Tensor) -> Result<(Tensor, Tensor)> {
    alike(method, ours, theirs)?;
    let rows = output_rows(input.model, input.batch)?;
    let rows = Tensor::from_vec(rows.clone(), rows.len(), ours.device())?;
    let pick = |t: &Tensor| -> Result<Tensor> { Ok(distributions(input.model, input.batch, t)?.index_select(&rows, 0)?) };
    Ok((pick(ours)?, pick(theirs)?.to_dtype(ours.dtype())?))
}

fn build(args: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    Ok(Box::new(Distill { teacher: teacher(args)?, temperature: schedule(args, "temperature")? }))
}

pub(super) const ENTRY: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        "distill",
        "Hinton et al., Distilling the Knowledge in a Neural Network (2015), sec. 2",
        &[TEACHER, within(param("temperature", Ty::Scheduled, "1", "T: both distributions are softened by it."), 1e-3, 1e3)],
        "`T² · KL(teacher ‖ student)`, the mean over tokens (or examples). Padding never counts; every real position of a causal model does. Of a model of values (regression) it is the mean squared difference to the teacher's value, whatever T.\n\n\
         ```prune\nlet teacher = frozen(m)\ntrain m on d.train for 20 steps {\n    optimizer = adamw(lr = 1e-4)\n    loss = 0.5 * task() + 0.5 * distill(teacher, temperature = 2)\n}\n```",
    ),
    build,
};
