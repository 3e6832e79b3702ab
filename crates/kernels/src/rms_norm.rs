//! Root mean square normalisation (Zhang & Sennrich 2019, eq. 4): y = x · r · f, r = 1 / √(mean x² + eps), over the last dimension, with the
//! factor f = w, or 1 + w (`offset_one`). With g = ∂y · f: ∂x = r (g − x r² · mean(g x)), ∂w = Σ ∂y x r.

use crate::real::Real;
use crate::rows::{Fresh, Held, ROWS_PER_PARTIAL, by_type, fill, fill2, per_task, piece_of, slice, sum_pieces, tensor};
use crate::simd::{self, multiversion};
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "rms_norm";

/// x [.., d], w [d] → [.., d].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64, offset_one: bool) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    let d = check::last_dim(OP, "x", x)?;
    check::like(OP, "weight", w, x)?;
    check::shape(OP, "weight", w, &[d])?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let work = plain::working_dtype(x.dtype());
    let (input, w) = (x.to_dtype(work)?, w.to_dtype(work)?);
    let y = if x.device().is_cpu() {
        input.contiguous()?.apply_op2(&w.contiguous()?, RmsNorm { eps, offset: if offset_one { 1.0 } else { 0.0 } })?
    } else {
        plain::rms_norm(&input, &w, eps, offset_one)?
    };
    y.to_dtype(x.dtype())
}

#[inline(always)]
fn inverse_rms<T: Real>(x: &[T], eps: T) -> T {
    T::ONE / (simd::sum(x, |v| v * v) / T::of(x.len() as f64) + eps).sqrt()
}

multiversion! {
    fn forward<T: Real>(x: &[T], w: &[T], y: &mut Fresh<'_, T>, eps: T, offset: T) {
        for x in x.chunks_exact(w.len()) {
            let r = inverse_rms(x, eps);
            y.write(x.iter().zip(w).map(|(&x, &w)| x * r * (w + offset)));
        }
    }
}

multiversion! {
    /// Adds this piece's share of ∂w to `partial` unless it is empty.
    fn backward<T: Real>(x: &[T], w: &[T], dy: &[T], dx: &mut Fresh<'_, T>, partial: &mut [T], eps: T, offset: T) {
        let width = w.len();
        let scale = T::ONE / T::of(width as f64);
        for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
            let r = inverse_rms(x, eps);
            for ((dw, &dy), &x) in partial.iter_mut().zip(dy).zip(x) {
                *dw += dy * (x * r);
            }
            let mean_gx = simd::sum3(dy, w, x, |dy, w, x| dy * (w + offset) * (x * r)) * scale;
            dx.write(dy.iter().zip(w).zip(x).map(|((&dy, &w), &x)| r * (dy * (w + offset) - x * r * mean_gx)));
        }
    }
}

struct RmsNorm {
    eps: f64,
    offset: f64,
}

impl RmsNorm {
    fn gradients<T: Real>(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, dys) = (Held::new(OP, x), Held::new(OP, w), Held::new(OP, dy));
        let (input, w_elements, dy) = (xs.slice::<T>()?, ws.slice::<T>()?, dys.slice::<T>()?);
        let width = w_elements.len().max(1);
        let (eps, offset) = (T::of(self.eps), T::of(self.offset));
        let run = |piece: usize, i: usize, dx: &mut Fresh<'_, T>, partial: &mut [T]| {
            let n = dx.len();
            backward(piece_of(input, i, piece, n), w_elements, piece_of(dy, i, piece, n), dx, partial, eps, offset);
        };
        if !w.track_op() {
            let piece = per_task(width) * width;
            let dx = fill(input.len(), piece, |i, dx: &mut Fresh<'_, T>| run(piece, i, dx, &mut []));
            return Ok((Some(tensor(dx, x)?), None));
        }
        let piece = ROWS_PER_PARTIAL * width;
        let pieces = input.len().div_ceil(piece);
        let (dx, partials) = fill2((input.len(), piece), (pieces * width, width), |i, dx, partial| run(piece, i, dx, partial.zeros(width)));
        Ok((Some(tensor(dx, x)?), Some(tensor(sum_pieces(&partials, width), w)?)))
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_type!(OP, x, T => {
            let (x, w) = (slice::<T>(OP, x, x_layout)?, slice::<T>(OP, w, w_layout)?);
            let piece = w.len() * per_task(w.len());
            let y = fill(x.len(), piece, |i, y: &mut Fresh<'_, T>| {
                forward(piece_of(x, i, piece, y.len()), w, y, <T as Real>::of(self.eps), <T as Real>::of(self.offset));
            });
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (dx, dw) = match dy.dtype() {
            DType::F64 => self.gradients::<f64>(x, w, &dy)?,
            _ => self.gradients::<f32>(x, w, &dy)?,
        };
        Ok((autograd::keep(x, dx)?, autograd::keep(w, dw)?))
    }
}
