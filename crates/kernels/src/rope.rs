//! Rotary position embedding (Su et al. 2021, eq. 34): pairs (a, b) of a head's components are turned by an angle that grows with the
//! position, (a cos − b sin, b cos + a sin); the gradient is turned back.

use crate::error::KernelError;
use crate::real::Real;
use crate::rows::{Fresh, by_type, fill, per_task, piece_of, slice};
use crate::simd::multiversion;
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "rope";

/// Which components form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Component i with i + r/2 (GPT-NeoX, Llama in transformers' layout).
    Half,
    /// Component 2i with 2i + 1 (GPT-J, the paper).
    Interleaved,
}

/// x [b, h, s, d], cos and sin [b|1, s, r/2] → [b, h, s, d]; the first `rotary_dim` = r components turn, the rest pass through.
/// Differentiable in `x` only: the tables are constants. x may be a transposed view of [b, s, h, d]: it is read in place.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, style: RopeStyle, rotary_dim: usize) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    let (b, _, s, d) = x.dims4()?;
    if !rotary_dim.is_multiple_of(2) || rotary_dim > d {
        let expected = format!("an even number up to the head size {d}");
        return Err(KernelError::Value { op: OP, what: "rotary_dim", found: rotary_dim.to_string(), expected }.into());
    }
    for (what, table) in [("cos", cos), ("sin", sin)] {
        check::float(OP, what, table)?;
        check::same_device(OP, what, table, x)?;
        let rows = if table.dims().first() == Some(&1) { 1 } else { b };
        check::shape(OP, what, table, &[rows, s, rotary_dim / 2])?;
    }
    check::shape(OP, "sin", sin, cos.dims())?;
    if x.elem_count() == 0 || rotary_dim == 0 {
        return Ok(x.clone());
    }
    let work = plain::working_dtype(x.dtype());
    let (input, cos, sin) = (x.to_dtype(work)?, cos.to_dtype(work)?.detach(), sin.to_dtype(work)?.detach());
    let y = if x.device().is_cpu() {
        let turn = Turn { style, rotary_dim, back: false };
        rows_in_place(&input)?.apply_op3(&cos.contiguous()?, &sin.contiguous()?, turn)?
    } else {
        plain::rope(&input, &cos, &sin, style, rotary_dim)?
    };
    y.to_dtype(x.dtype())
}

/// The kernel reads any strides but those of the last dimension.
fn rows_in_place(x: &Tensor) -> Result<Tensor> {
    if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() }
}

multiversion! {
    fn turn_halves<T: Real>(x: &[T], cos: &[T], sin: &[T], y: &mut Fresh<'_, T>, sign: T) {
        let (a, b) = x.split_at(cos.len());
        let pairs = || a.iter().zip(b).zip(cos).zip(sin).map(|(((&a, &b), &cos), &sin)| (a, b, cos, sin * sign));
        y.write(pairs().map(|(a, b, cos, sin)| a * cos - b * sin));
        y.write(pairs().map(|(a, b, cos, sin)| b * cos + a * sin));
    }
}

multiversion! {
    fn turn_neighbours<T: Real>(x: &[T], cos: &[T], sin: &[T], y: &mut Fresh<'_, T>, sign: T) {
        let y = y.zeros(2 * cos.len());
        for (((y, x), &cos), &sin) in y.chunks_exact_mut(2).zip(x.chunks_exact(2)).zip(cos).zip(sin) {
            if let ([ya, yb], [a, b]) = (y, x) {
                let sin = sin * sign;
                *ya = *a * cos - *b * sin;
                *yb = *b * cos + *a * sin;
            }
        }
    }
}

struct Turn {
    style: RopeStyle,
    rotary_dim: usize,
    back: bool,
}

impl CustomOp3 for Turn {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (b, h, s, d) = x_layout.shape().dims4()?;
        let (tables, _, half) = cos_layout.shape().dims3()?;
        let rows = per_task(d);
        by_type!(OP, x, T => {
            let x = x.as_slice::<T>()?;
            let (cos, sin) = (slice::<T>(OP, cos, cos_layout)?, slice::<T>(OP, sin, sin_layout)?);
            let sign = if self.back { -<T as Real>::ONE } else { <T as Real>::ONE };
            let y = fill(b * h * s * d, rows * d, |i, y: &mut Fresh<'_, T>| {
                for row in i * rows..i * rows + y.len() / d {
                    let (batch, head, at) = (row / (h * s), row / s % h, row % s);
                    let x = piece_of(x, 1, row_start(x_layout, [batch, head, at]), d);
                    let table = if tables == 1 { at } else { batch * s + at };
                    let (cos, sin) = (piece_of(cos, table, half, half), piece_of(sin, table, half, half));
                    match self.style {
                        RopeStyle::Half => turn_halves(x, cos, sin, y, sign),
                        RopeStyle::Interleaved => turn_neighbours(x, cos, sin, y, sign),
                    }
                    y.write(x.iter().skip(self.rotary_dim).copied());
                }
            });
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Turn { style: self.style, rotary_dim: self.rotary_dim, back: !self.back };
        Ok((autograd::keep(x, Some(rows_in_place(dy)?.apply_op3_no_bwd(cos, sin, &back)?))?, None, None))
    }
}

/// Where the row at `index` of all dimensions but the last begins.
fn row_start(layout: &Layout, index: [usize; 3]) -> usize {
    layout.start_offset() + index.iter().zip(layout.stride()).map(|(i, stride)| i * stride).sum::<usize>()
}
