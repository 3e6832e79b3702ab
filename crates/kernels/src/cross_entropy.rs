//! Cross-entropy straight from logits: nllᵢ = log Σⱼ exp xᵢⱼ − xᵢ,ₜ, t = targetᵢ.

use crate::error::KernelError;
use crate::{check, plain};
use candle_core::{DType, Result, Tensor};

const OP: &str = "cross_entropy";

/// logits [n, v], targets u32 [n], each below v → negative log-likelihoods [n] in nats. Rows to be ignored are left out by the caller.
/// The result is f32 (f64 for f64 logits), whatever half type the logits have: a loss is summed over many rows.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    check::float(OP, "logits", logits)?;
    let (n, v) = logits.dims2()?;
    if targets.dtype() != DType::U32 {
        return Err(KernelError::DType { op: OP, what: "targets", found: targets.dtype(), expected: "u32" }.into());
    }
    check::same_device(OP, "targets", targets, logits)?;
    check::shape(OP, "targets", targets, &[n])?;
    let work = plain::working_dtype(logits.dtype());
    if n == 0 {
        return Tensor::zeros(0, work, logits.device());
    }
    if let Some(bad) = targets.to_vec1::<u32>()?.into_iter().find(|&t| t as usize >= v) {
        return Err(KernelError::Value { op: OP, what: "a target", found: bad.to_string(), expected: format!("a class below {v}") }.into());
    }
    plain::cross_entropy(&logits.to_dtype(work)?, targets)
}
