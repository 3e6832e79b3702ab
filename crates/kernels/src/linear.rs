//! Affine map y = x·wᵀ + b on a flattened two-dimensional view; ∂x = ∂y·w, ∂w = ∂yᵀ·x, ∂b = Σ ∂y.
//!
//! candle's own matrix product always computes the gradient of both factors. Here a factor that is neither a variable nor depends on
//! one gets none, which halves the backward pass of a model whose weights are constants.

use crate::matrix::{Matrix, add_product, product};
use crate::real::Real;
use crate::rows::{Fresh, Held, ROWS_PER_PARTIAL, by_type, fill, piece_of, slice, sum_pieces, tensor};
use crate::simd::multiversion;
use crate::{autograd, check, plain};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Tensor, WithDType};

const OP: &str = "linear";

/// x [.., in], w [out, in], b [out] → [.., out]. No gradient is computed for an argument that is neither a variable nor depends on one.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    check::like(OP, "weight", w, x)?;
    let (out, features) = w.dims2()?;
    let mut dims = x.dims().to_vec();
    check::last_dim(OP, "x", x)?;
    dims.pop();
    let rows = dims.iter().product::<usize>();
    dims.push(features);
    check::shape(OP, "x", x, &dims)?;
    if let Some(b) = b {
        check::like(OP, "bias", b, x)?;
        check::shape(OP, "bias", b, &[out])?;
    }
    if rows * out * features == 0 {
        return plain::linear(x, w, b);
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let fused = x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64);
    match b {
        Some(b) if fused => x.apply_op3(&w, &b.contiguous()?, Linear),
        Some(b) => x.apply_op2(&w, Linear)?.broadcast_add(b),
        None => x.apply_op2(&w, Linear),
    }
}

multiversion! {
    fn add_rows_up<T: Real>(rows: &[T], total: &mut [T]) {
        for row in rows.chunks_exact(total.len()) {
            for (t, &x) in total.iter_mut().zip(row) {
                *t += x;
            }
        }
    }
}

/// Σ over the rows of a contiguous [n, width], in a fixed order.
fn column_sums<T: Real>(x: &[T], width: usize) -> Vec<T> {
    let piece = ROWS_PER_PARTIAL * width;
    let partials = fill(x.len().div_ceil(piece.max(1)) * width, width, |i, total: &mut Fresh<'_, T>| {
        add_rows_up(piece_of(x, i, piece, piece), total.zeros(width))
    });
    sum_pieces(&partials, width)
}

/// ∂w = ∂yᵀ·x where it is wanted and `bwd` has to return it. A pass that takes it gets it without a copy, added to what was there in the
/// product itself.
pub(crate) fn weight_gradient<T: Real>(dy: Matrix<'_, T>, x: Matrix<'_, T>, w: &Tensor) -> Result<Option<Tensor>> {
    if !w.track_op() {
        return Ok(None);
    }
    let before = autograd::collects(w).then(|| autograd::take(w)).flatten();
    let dw = match before.map(|sum| autograd::into_vec::<T>(&sum)).transpose()?.flatten() {
        Some(mut sum) => {
            add_product(&mut sum, dy.transposed(), x)?;
            sum
        }
        None => product(dy.transposed(), x, None)?,
    };
    autograd::keep(w, Some(tensor(dw, w)?))
}

struct Linear;

/// How a backend multiplies contiguous x [.., in] with wᵀ.
struct Product {
    /// (1, rows, out, in)
    sizes: (usize, usize, usize, usize),
    /// x as [rows, in]. Flattening inside the operation keeps reshapes, each with a gradient to add up, out of the graph.
    flat: Layout,
    transposed: Layout,
    shape: Shape,
}

impl Product {
    fn new(x: &Layout, w: &Layout) -> Result<Self> {
        let (out, features) = w.shape().dims2()?;
        let rows = x.shape().elem_count() / features.max(1);
        let mut dims = x.dims().to_vec();
        dims.pop();
        dims.push(out);
        let flat = Layout::contiguous_with_offset((rows, features), x.start_offset());
        Ok(Product { sizes: (1, rows, out, features), flat, transposed: w.transpose(0, 1)?, shape: Shape::from(dims) })
    }
}

impl Linear {
    /// (∂x, ∂w) where they are wanted.
    fn factors(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out, features) = w.dims2()?;
        match (dy.device().is_cpu(), dy.dtype()) {
            (true, DType::F32) => Self::cpu_factors::<f32>(x, w, dy, (out, features)),
            (true, DType::F64) => Self::cpu_factors::<f64>(x, w, dy, (out, features)),
            _ => {
                let rows = dy.elem_count() / out.max(1);
                let dy = dy.reshape((rows, out))?;
                let dx = x.track_op().then(|| dy.matmul(&w.detach())?.reshape(x.shape())).transpose()?;
                let dw = w.track_op().then(|| dy.t()?.matmul(&x.detach().reshape((rows, features))?)).transpose()?;
                Ok((autograd::keep(x, dx)?, autograd::keep(w, dw)?))
            }
        }
    }

    fn cpu_factors<T: Real>(
        x: &Tensor,
        w: &Tensor,
        dy: &Tensor,
        (out, features): (usize, usize),
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (held_x, held_w, held_dy) = (Held::new(OP, x), Held::new(OP, w), Held::new(OP, dy));
        let xs = Matrix::packed(held_x.slice::<T>()?, features);
        let ws = Matrix::packed(held_w.slice::<T>()?, features);
        let dys = Matrix::packed(held_dy.slice::<T>()?, out);
        let dx = x.track_op().then(|| tensor(product(dys, ws, None)?, x)).transpose()?;
        Ok((autograd::keep(x, dx)?, weight_gradient(dys, xs, w)?))
    }

    /// x·wᵀ + b on the CPU, `b` empty for none.
    fn cpu<T: Real>(x: &[T], w: &[T], b: &[T], features: usize) -> Result<Vec<T>> {
        let b = if b.is_empty() { None } else { Some(b) };
        product(Matrix::packed(x, features), Matrix::packed(w, features).transposed(), b)
    }

    fn bias_gradient<T: Real>(b: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let held = Held::new(OP, dy);
        tensor(column_sums(held.slice::<T>()?, b.elem_count()), b)
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let p = Product::new(x_layout, w_layout)?;
        if !matches!(x, CpuStorage::F32(_) | CpuStorage::F64(_)) {
            return Ok((x.matmul(w, p.sizes, &p.flat, &p.transposed)?, p.shape));
        }
        by_type!(OP, x, T => {
            let y = Self::cpu(slice::<T>(OP, x, x_layout)?, slice::<T>(OP, w, w_layout)?, &[], p.sizes.3)?;
            Ok((T::to_cpu_storage_owned(y), p.shape))
        })
    }

    fn cuda_fwd(&self, x: &CudaStorage, x_layout: &Layout, w: &CudaStorage, w_layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let p = Product::new(x_layout, w_layout)?;
        Ok((x.matmul(w, p.sizes, &p.flat, &p.transposed)?, p.shape))
    }

    fn metal_fwd(&self, x: &MetalStorage, x_layout: &Layout, w: &MetalStorage, w_layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let p = Product::new(x_layout, w_layout)?;
        Ok((x.matmul(w, p.sizes, &p.flat, &p.transposed)?, p.shape))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.factors(x, w, &dy.contiguous()?)
    }
}

impl CustomOp3 for Linear {
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
        let p = Product::new(x_layout, w_layout)?;
        by_type!(OP, x, T => {
            let (x, w, b) = (slice::<T>(OP, x, x_layout)?, slice::<T>(OP, w, w_layout)?, slice::<T>(OP, b, b_layout)?);
            Ok((T::to_cpu_storage_owned(Self::cpu(x, w, b, p.sizes.3)?), p.shape))
        })
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (dx, dw) = self.factors(x, w, &dy)?;
        let db = match (b.track_op(), dy.dtype()) {
            (false, _) => None,
            (true, DType::F64) => Some(Self::bias_gradient::<f64>(b, &dy)?),
            (true, _) => Some(Self::bias_gradient::<f32>(b, &dy)?),
        };
        Ok((dx, dw, autograd::keep(b, db)?))
    }
}
