//! Cross-entropy straight from logits: nllᵢ = log Σⱼ exp xᵢⱼ − xᵢ,ₜ, t = targetᵢ; ∂/∂xᵢⱼ = gᵢ (softmax(xᵢ)ⱼ − [j = t]).
//! Log-probabilities are never stored.

use crate::error::KernelError;
use crate::real::Real;
use crate::rows::{Fresh, Held, by_type, fill, per_task, piece_of, slice, tensor};
use crate::simd::{self, multiversion};
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "cross_entropy";

/// logits [.., v], targets u32 [n], each below v → negative log-likelihoods [n] in nats, n the rows of all leading dimensions. Rows to be ignored are left out by the caller.
/// The result is f32 (f64 for f64 logits), whatever half type the logits have: a loss is summed over many rows.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    check::float(OP, "logits", logits)?;
    let v = check::last_dim(OP, "logits", logits)?;
    let n = logits.dims().iter().rev().skip(1).product::<usize>();
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
    let logits = logits.to_dtype(work)?;
    if logits.device().is_cpu() {
        logits.contiguous()?.apply_op2(&targets.contiguous()?, CrossEntropy)
    } else {
        plain::cross_entropy(&logits.reshape((n, v))?, targets)
    }
}

/// (max x, Σ exp(x − max x))
#[inline(always)]
pub(crate) fn max_and_sum<T: Real>(x: &[T], rate: T) -> (T, T) {
    let max = simd::max(x);
    (max, simd::sum(x, |v| ((v - max) * rate).exp()))
}

multiversion! {
    fn forward<T: Real>(x: &[T], targets: &[u32], nll: &mut Fresh<'_, T>, width: usize) {
        for (x, &target) in x.chunks_exact(width).zip(targets) {
            let (max, sum) = max_and_sum(x, T::ONE);
            nll.push(x.get(target as usize).map_or(T::ZERO, |&chosen| (max - chosen) + sum.ln()));
        }
    }
}

multiversion! {
    fn backward<T: Real>(x: &[T], targets: &[u32], dy: &[T], dx: &mut Fresh<'_, T>, width: usize) {
        for ((x, &target), &dy) in x.chunks_exact(width).zip(targets).zip(dy) {
            let max = simd::max(x);
            let dx = dx.write(x.iter().map(|&v| (v - max).exp()));
            let scale = dy / simd::sum(dx, |v| v);
            for d in dx.iter_mut() {
                *d *= scale;
            }
            if let Some(d) = dx.get_mut(target as usize) {
                *d -= dy;
            }
        }
    }
}

struct CrossEntropy;

impl CrossEntropy {
    fn gradient<T: Real>(&self, logits: &Tensor, targets: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let width = check::last_dim(OP, "logits", logits)?;
        let rows = per_task(width);
        let (x, t, dy) = (Held::new(OP, logits), Held::new(OP, targets), Held::new(OP, dy));
        let (x, t, dy) = (x.slice::<T>()?, t.slice::<u32>()?, dy.slice::<T>()?);
        let dx = fill(x.len(), rows * width, |i, dx: &mut Fresh<'_, T>| {
            let n = dx.len() / width.max(1);
            backward(piece_of(x, i, rows * width, dx.len()), piece_of(t, i, rows, n), piece_of(dy, i, rows, n), dx, width);
        });
        tensor(dx, logits)
    }
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout, targets: &CpuStorage, targets_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let n = targets_layout.shape().elem_count();
        let rows = per_task(width);
        by_type!(OP, logits, T => {
            let x = slice::<T>(OP, logits, layout)?;
            let t = slice::<u32>(OP, targets, targets_layout)?;
            let nll = fill(n, rows, |i, nll: &mut Fresh<'_, T>| {
                forward(piece_of(x, i, rows * width, nll.len() * width), piece_of(t, i, rows, nll.len()), nll, width);
            });
            Ok((T::to_cpu_storage_owned(nll), Shape::from(n)))
        })
    }

    fn bwd(&self, logits: &Tensor, targets: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let dx = match dy.dtype() {
            DType::F64 => self.gradient::<f64>(logits, targets, &dy)?,
            _ => self.gradient::<f32>(logits, targets, &dy)?,
        };
        Ok((autograd::keep(logits, Some(dx))?, None))
    }
}
