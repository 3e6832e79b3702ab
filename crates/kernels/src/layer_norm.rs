//! Layer normalisation (Ba et al. 2016): y = x̂ · w + b, x̂ = (x − mean x) · r, r = 1 / √(var x + eps), var biased, over the last dimension.
//! With g = ∂y · w: ∂x = r (g − mean g − x̂ · mean(g x̂)), ∂w = Σ ∂y x̂, ∂b = Σ ∂y.

use crate::real::Real;
use crate::rows::{Fresh, Held, ROWS_PER_PARTIAL, by_type, fill, fill2, per_task, piece_of, slice, sum_pieces, tensor};
use crate::simd::{self, multiversion};
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "layer_norm";

/// x [.., d], w [d], b [d] → [.., d].
pub fn layer_norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    let d = check::last_dim(OP, "x", x)?;
    check::like(OP, "weight", w, x)?;
    check::shape(OP, "weight", w, &[d])?;
    if let Some(b) = b {
        check::like(OP, "bias", b, x)?;
        check::shape(OP, "bias", b, &[d])?;
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let work = plain::working_dtype(x.dtype());
    let b = b.map(|b| b.to_dtype(work)).transpose()?;
    let (input, w) = (x.to_dtype(work)?, w.to_dtype(work)?);
    let y = if x.device().is_cpu() {
        let b = b.map_or_else(|| Tensor::zeros(d, work, x.device()), |b| b.contiguous())?;
        input.contiguous()?.apply_op3(&w.contiguous()?, &b, LayerNorm { eps })?
    } else {
        plain::layer_norm(&input, &w, b.as_ref(), eps)?
    };
    y.to_dtype(x.dtype())
}

/// (mean, 1 / standard deviation) of a row
#[inline(always)]
fn statistics<T: Real>(x: &[T], eps: T) -> (T, T) {
    let scale = T::ONE / T::of(x.len() as f64);
    let mean = simd::sum(x, |v| v) * scale;
    let variance = simd::sum(x, |v| (v - mean) * (v - mean)) * scale;
    (mean, T::ONE / (variance + eps).sqrt())
}

multiversion! {
    fn forward<T: Real>(x: &[T], w: &[T], b: &[T], y: &mut Fresh<'_, T>, eps: T) {
        for x in x.chunks_exact(w.len()) {
            let (mean, r) = statistics(x, eps);
            y.write(x.iter().zip(w).zip(b).map(|((&x, &w), &b)| (x - mean) * r * w + b));
        }
    }
}

multiversion! {
    /// Adds this piece's share of ∂w and ∂b to `partial`, ∂w first, unless it is empty.
    fn backward<T: Real>(x: &[T], w: &[T], dy: &[T], dx: &mut Fresh<'_, T>, partial: &mut [T], eps: T) {
        let width = w.len();
        let scale = T::ONE / T::of(width as f64);
        for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
            let (mean, r) = statistics(x, eps);
            let normal = |x: T| (x - mean) * r;
            if let Some((dw, db)) = partial.split_at_mut_checked(width) {
                for (((dw, db), &dy), &x) in dw.iter_mut().zip(db).zip(dy).zip(x) {
                    *dw += dy * normal(x);
                    *db += dy;
                }
            }
            let mean_g = simd::sum2(dy, w, |dy, w| dy * w) * scale;
            let mean_gx = simd::sum3(dy, w, x, |dy, w, x| dy * w * normal(x)) * scale;
            dx.write(dy.iter().zip(w).zip(x).map(|((&dy, &w), &x)| r * (dy * w - mean_g - normal(x) * mean_gx)));
        }
    }
}

struct LayerNorm {
    eps: f64,
}

impl LayerNorm {
    fn gradients<T: Real>(&self, x: &Tensor, w: &Tensor, b: &Tensor, dy: &Tensor) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, dys) = (Held::new(OP, x), Held::new(OP, w), Held::new(OP, dy));
        let (input, w_elements, dy) = (xs.slice::<T>()?, ws.slice::<T>()?, dys.slice::<T>()?);
        let width = w_elements.len().max(1);
        let eps = T::of(self.eps);
        let run = |piece: usize, i: usize, dx: &mut Fresh<'_, T>, partial: &mut [T]| {
            let n = dx.len();
            backward(piece_of(input, i, piece, n), w_elements, piece_of(dy, i, piece, n), dx, partial, eps);
        };
        if !(w.track_op() || b.track_op()) {
            let piece = per_task(width) * width;
            let dx = fill(input.len(), piece, |i, dx: &mut Fresh<'_, T>| run(piece, i, dx, &mut []));
            return Ok((tensor(dx, x)?, None, None));
        }
        let piece = ROWS_PER_PARTIAL * width;
        let pieces = input.len().div_ceil(piece);
        let (dx, partials) = fill2((input.len(), piece), (pieces * 2 * width, 2 * width), |i, dx, partial| {
            run(piece, i, dx, partial.zeros(2 * width));
        });
        let mut dw = sum_pieces(&partials, 2 * width);
        let db = dw.split_off(width);
        let dw = w.track_op().then(|| tensor(dw, w)).transpose()?;
        let db = b.track_op().then(|| tensor(db, b)).transpose()?;
        Ok((tensor(dx, x)?, dw, db))
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_type!(OP, x, T => {
            let (x, w, b) = (slice::<T>(OP, x, x_layout)?, slice::<T>(OP, w, w_layout)?, slice::<T>(OP, b, b_layout)?);
            let piece = w.len() * per_task(w.len());
            let y = fill(x.len(), piece, |i, y: &mut Fresh<'_, T>| {
                forward(piece_of(x, i, piece, y.len()), w, b, y, <T as Real>::of(self.eps));
            });
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (dx, dw, db) = match dy.dtype() {
            DType::F64 => self.gradients::<f64>(x, w, b, &dy)?,
            _ => self.gradients::<f32>(x, w, b, &dy)?,
        };
        Ok((autograd::keep(x, Some(dx))?, autograd::keep(w, dw)?, autograd::keep(b, db)?))
    }
}
