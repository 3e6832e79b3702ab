//! The gated unit of GLU variants (Shazeer 2020): act(gate) · up, element by element.

use crate::activation::{Activation, Pointwise, by_activation};
use crate::real::Real;
use crate::rows::{Fresh, Held, by_type, fill, fill2, per_task, piece_of, slice, tensor, write2};
use crate::simd::multiversion;
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType};
use std::marker::PhantomData;

const OP: &str = "gated";

/// gate and up of one shape → act(gate) · up.
pub fn gated(act: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check::float(OP, "gate", gate)?;
    check::like(OP, "up", up, gate)?;
    check::shape(OP, "up", up, gate.dims())?;
    if gate.elem_count() == 0 {
        return Ok(gate.clone());
    }
    let work = plain::working_dtype(gate.dtype());
    let (g, u) = (gate.to_dtype(work)?, up.to_dtype(work)?);
    let y =
        if gate.device().is_cpu() { g.contiguous()?.apply_op2(&u.contiguous()?, Gated(act))? } else { (plain::activation(act, &g)? * u)? };
    y.to_dtype(gate.dtype())
}

multiversion! {
    fn forward<T: Real, F: Pointwise>(gate: &[T], up: &[T], y: &mut Fresh<'_, T>, _f: PhantomData<F>) {
        y.write(gate.iter().zip(up).map(|(&gate, &up)| F::value(gate) * up));
    }
}

multiversion! {
    fn backward<T: Real, F: Pointwise>(
        gate: &[T], up: &[T], dy: &[T], d_gate: &mut Fresh<'_, T>, d_up: &mut Fresh<'_, T>, _f: PhantomData<F>
    ) {
        write2(d_gate, d_up, gate.iter().zip(up).zip(dy).map(|((&gate, &up), &dy)| {
            let (value, slope) = F::with_slope(gate);
            (dy * up * slope, dy * value)
        }));
    }
}

/// act(gate) · up
pub(crate) fn values<T: Real>(act: Activation, gate: &[T], up: &[T]) -> Vec<T> {
    let piece = per_task(1);
    by_activation!(act, F => fill(gate.len(), piece, |i, y: &mut Fresh<'_, T>| {
        forward(piece_of(gate, i, piece, y.len()), piece_of(up, i, piece, y.len()), y, PhantomData::<F>);
    }))
}

/// (∂gate, ∂up)
pub(crate) fn gradients<T: Real>(act: Activation, gate: &[T], up: &[T], dy: &[T]) -> (Vec<T>, Vec<T>) {
    let piece = per_task(1);
    by_activation!(act, F => fill2((gate.len(), piece), (gate.len(), piece), |i, d_gate: &mut Fresh<'_, T>, d_up: &mut Fresh<'_, T>| {
        let n = d_gate.len();
        let at = |x| piece_of(x, i, piece, n);
        backward(at(gate), at(up), at(dy), d_gate, d_up, PhantomData::<F>);
    }))
}

struct Gated(Activation);

impl Gated {
    fn gradients<T: Real>(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gates, ups, dys) = (Held::new(OP, gate), Held::new(OP, up), Held::new(OP, dy));
        let (d_gate, d_up) = gradients(self.0, gates.slice::<T>()?, ups.slice::<T>()?, dys.slice::<T>()?);
        Ok((Some(tensor(d_gate, gate)?), Some(tensor(d_up, up)?)))
    }
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gate_layout: &Layout, up: &CpuStorage, up_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_type!(OP, gate, T => {
            let y = values(self.0, slice::<T>(OP, gate, gate_layout)?, slice::<T>(OP, up, up_layout)?);
            Ok((T::to_cpu_storage_owned(y), gate_layout.shape().clone()))
        })
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (d_gate, d_up) = match dy.dtype() {
            candle_core::DType::F64 => self.gradients::<f64>(gate, up, &dy)?,
            _ => self.gradients::<f32>(gate, up, &dy)?,
        };
        Ok((autograd::keep(gate, d_gate)?, autograd::keep(up, d_up)?))
    }
}
