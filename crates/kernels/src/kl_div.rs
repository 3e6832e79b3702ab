//! Kullback-Leibler divergence between softened distributions (Hinton et al. 2015, section 2): Σᵥ pᵥ (log pᵥ − log qᵥ),
//! p = softmax(teacher / T), q = softmax(student / T).

use crate::{check, plain};
use candle_core::{Result, Tensor};

const OP: &str = "kl_div";

/// student and teacher logits [n, v] → KL(teacher ‖ student) per row [n], in nats. Not multiplied by T²: the loss does that.
/// The result is f32 (f64 for f64 logits). Differentiable in both.
pub fn kl_div(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    check::float(OP, "student", student)?;
    check::like(OP, "teacher", teacher, student)?;
    let (n, v) = student.dims2()?;
    check::shape(OP, "teacher", teacher, &[n, v])?;
    check::positive(OP, "temperature", temperature)?;
    let work = plain::working_dtype(student.dtype());
    if n * v == 0 {
        return Tensor::zeros(n, work, student.device());
    }
    plain::kl_div(&student.to_dtype(work)?, &teacher.to_dtype(work)?, temperature)
}
