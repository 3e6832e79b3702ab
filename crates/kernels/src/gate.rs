//! Gates: y = x · g, one factor for each unit of each example; ∂x = ∂y · g, ∂g = Σ ∂y · x over everything that shares a factor.

use crate::error::KernelError;
use crate::real::Real;
use crate::rows::{Fresh, Held, by_type, fill, per_task, piece_of, slice, sum_pieces, tensor};
use crate::simd::{self, multiversion};
use crate::{autograd, check};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "gate";

/// x [b, s, n, w] or [b, s, n], g [b, n], or [1, n] for all examples → the shape of x.
pub fn gate(x: &Tensor, g: &Tensor) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    check::like(OP, "g", g, x)?;
    let sizes = Sizes::new(x.dims())?;
    let rows = if g.dims().first() == Some(&1) { 1 } else { sizes.b };
    check::shape(OP, "g", g, &[rows, sizes.n])?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    if x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64) {
        return x.contiguous()?.apply_op2(&g.contiguous()?, Gate);
    }
    let spread = if x.rank() == 4 { g.reshape((rows, 1, sizes.n, 1))? } else { g.reshape((rows, 1, sizes.n))? };
    x.broadcast_mul(&spread)
}

#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    s: usize,
    n: usize,
    w: usize,
}

impl Sizes {
    fn new(dims: &[usize]) -> Result<Self> {
        match *dims {
            [b, s, n, w] => Ok(Sizes { b, s, n, w }),
            [b, s, n] => Ok(Sizes { b, s, n, w: 1 }),
            _ => {
                let found = Shape::from(dims);
                Err(KernelError::Shape { op: OP, what: "x", found, expected: "[batch, seq, units] or [batch, seq, units, width]".into() }
                    .into())
            }
        }
    }

    fn row(&self) -> usize {
        self.n * self.w
    }

    /// The gates of a row; there is one row of gates, or one for each example.
    fn gates<'a, T>(&self, g: &'a [T], row: usize) -> &'a [T] {
        piece_of(g, if g.len() == self.n { 0 } else { row / self.s.max(1) }, self.n, self.n)
    }

    /// x · g, row by row.
    fn scaled<T: Real>(self, x: &[T], g: &[T]) -> Vec<T> {
        let rows = per_task(self.row());
        fill(x.len(), rows * self.row(), |i, y: &mut Fresh<'_, T>| {
            let x = piece_of(x, i, rows * self.row(), y.len());
            for (at, x) in x.chunks_exact(self.row()).enumerate() {
                scale(x, self.gates(g, i * rows + at), y, self.w);
            }
        })
    }
}

/// As narrow as an addition's loop: the memory is the limit.
fn scale<T: Real>(x: &[T], g: &[T], y: &mut Fresh<'_, T>, width: usize) {
    if width == 1 {
        y.write(x.iter().zip(g).map(|(&x, &g)| x * g));
    } else {
        for (x, &g) in x.chunks_exact(width).zip(g) {
            y.write(x.iter().map(|&x| x * g));
        }
    }
}

multiversion! {
    /// Adds the products of a row's units to `dg`.
    fn add_dots<T: Real>(x: &[T], dy: &[T], dg: &mut [T], width: usize) {
        if width == 1 {
            for ((dg, &x), &dy) in dg.iter_mut().zip(x).zip(dy) {
                *dg += x * dy;
            }
        } else {
            for ((dg, x), dy) in dg.iter_mut().zip(x.chunks_exact(width)).zip(dy.chunks_exact(width)) {
                *dg += simd::sum2(x, dy, |x, dy| x * dy);
            }
        }
    }
}

struct Gate;

impl Gate {
    fn gradients<T: Real>(x: &Tensor, g: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::new(x.dims())?;
        let (xs, gs, dys) = (Held::new(OP, x), Held::new(OP, g), Held::new(OP, dy));
        let (xs, gs, dys) = (xs.slice::<T>()?, gs.slice::<T>()?, dys.slice::<T>()?);
        let dx = x.track_op().then(|| tensor(sizes.scaled(dys, gs), x)).transpose()?;
        let dg = || {
            let example = sizes.s * sizes.row();
            let each = fill(sizes.b * sizes.n, sizes.n, |i, dg: &mut Fresh<'_, T>| {
                let dg = dg.zeros(sizes.n);
                let (x, dy) = (piece_of(xs, i, example, example), piece_of(dys, i, example, example));
                for (x, dy) in x.chunks_exact(sizes.row()).zip(dy.chunks_exact(sizes.row())) {
                    add_dots(x, dy, dg, sizes.w);
                }
            });
            tensor(if gs.len() == each.len() { each } else { sum_pieces(&each, sizes.n) }, g)
        };
        Ok((dx, g.track_op().then(dg).transpose()?))
    }
}

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, g: &CpuStorage, g_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(x_layout.dims())?;
        by_type!(OP, x, T => {
            let y = sizes.scaled(slice::<T>(OP, x, x_layout)?, slice::<T>(OP, g, g_layout)?);
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, g: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (dx, dg) = match dy.dtype() {
            DType::F64 => Self::gradients::<f64>(x, g, &dy)?,
            _ => Self::gradients::<f32>(x, g, &dy)?,
        };
        Ok((autograd::keep(x, dx)?, autograd::keep(g, dg)?))
    }
}
