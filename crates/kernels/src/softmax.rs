//! Softmax over the last dimension: yᵢ = exp(xᵢ − max x) / Σⱼ exp(xⱼ − max x); ∂/∂xᵢ = yᵢ (gᵢ − Σⱼ gⱼ yⱼ).

use crate::real::Real;
use crate::rows::{Fresh, by_type, fill, per_task, piece_of, slice};
use crate::simd::{self, multiversion};
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

const OP: &str = "softmax";

/// x [.., n] → probabilities [.., n]. A row with a NaN, or of nothing but −∞, is NaN.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    check::last_dim(OP, "x", x)?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let work = x.to_dtype(plain::working_dtype(x.dtype()))?;
    let y = if x.device().is_cpu() { work.contiguous()?.apply_op1(Softmax)? } else { plain::softmax(&work)? };
    y.to_dtype(x.dtype())
}

multiversion! {
    fn forward<T: Real>(x: &[T], y: &mut Fresh<'_, T>, width: usize) {
        for x in x.chunks_exact(width) {
            let max = simd::max(x);
            let y = y.write(x.iter().map(|&v| (v - max).exp()));
            let scale = T::ONE / simd::sum(y, |v| v);
            for v in y {
                *v *= scale;
            }
        }
    }
}

multiversion! {
    fn backward<T: Real>(y: &[T], dy: &[T], dx: &mut Fresh<'_, T>, width: usize) {
        for (y, dy) in y.chunks_exact(width).zip(dy.chunks_exact(width)) {
            let dot = simd::sum2(y, dy, |y, dy| y * dy);
            dx.write(y.iter().zip(dy).map(|(&y, &dy)| y * (dy - dot)));
        }
    }
}

fn width_of(layout: &Layout) -> usize {
    layout.dims().last().copied().unwrap_or(1).max(1)
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = width_of(layout);
        let piece = width * per_task(width);
        by_type!(OP, storage, T => {
            let x = slice::<T>(OP, storage, layout)?;
            let y = fill(x.len(), piece, |i, y: &mut Fresh<'_, T>| forward(piece_of(x, i, piece, y.len()), y, width));
            Ok((<T as candle_core::WithDType>::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        autograd::keep(x, Some(y.detach().apply_op2_no_bwd(&dy.contiguous()?, &SoftmaxBackward)?))
    }
}

/// (y, ∂y) → ∂x
struct SoftmaxBackward;

impl CustomOp2 for SoftmaxBackward {
    fn name(&self) -> &'static str {
        "softmax backward"
    }

    fn cpu_fwd(&self, y: &CpuStorage, y_layout: &Layout, dy: &CpuStorage, dy_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = width_of(y_layout);
        let piece = width * per_task(width);
        by_type!(OP, y, T => {
            let (y, dy) = (slice::<T>(OP, y, y_layout)?, slice::<T>(OP, dy, dy_layout)?);
            let dx = fill(y.len(), piece, |i, dx: &mut Fresh<'_, T>| {
                backward(piece_of(y, i, piece, dx.len()), piece_of(dy, i, piece, dx.len()), dx, width);
            });
            Ok((<T as candle_core::WithDType>::to_cpu_storage_owned(dx), y_layout.shape().clone()))
        })
    }
}
