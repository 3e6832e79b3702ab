//! The second half of a gated MLP, y = (act(gate) · up)·wᵀ. The product act(gate) · up, as wide as the MLP, is not kept for the backward
//! pass: it costs far less than the matrix product that reads it.

use crate::activation::Activation;
use crate::matrix::{Matrix, product};
use crate::real::Real;
use crate::rows::{Held, by_type, slice, tensor};
use crate::{autograd, check, gated, linear};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "gated_linear";

/// gate and up [.., n], w [out, n] → [.., out]: [`linear`] of [`gated`](crate::gated()).
pub fn gated_linear(act: Activation, gate: &Tensor, up: &Tensor, w: &Tensor) -> Result<Tensor> {
    let fused = gate.device().is_cpu() && matches!(gate.dtype(), DType::F32 | DType::F64) && gate.elem_count() * w.elem_count() > 0;
    if !fused {
        return linear(&gated::gated(act, gate, up)?, w, None);
    }
    check::like(OP, "up", up, gate)?;
    check::shape(OP, "up", up, gate.dims())?;
    check::like(OP, "weight", w, gate)?;
    let (_, features) = w.dims2()?;
    let mut dims = gate.dims().to_vec();
    dims.pop();
    dims.push(features);
    check::shape(OP, "gate", gate, &dims)?;
    gate.contiguous()?.apply_op3(&up.contiguous()?, &w.contiguous()?, GatedLinear(act))
}

struct GatedLinear(Activation);

impl GatedLinear {
    fn gradients<T: Real>(&self, gate: &Tensor, up: &Tensor, w: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (out, features) = w.dims2()?;
        let (gates, ups, ws, dys) = (Held::new(OP, gate), Held::new(OP, up), Held::new(OP, w), Held::new(OP, dy));
        let (g, u, dy) = (gates.slice::<T>()?, ups.slice::<T>()?, Matrix::packed(dys.slice::<T>()?, out));
        let inner = if w.track_op() { gated::values(self.0, g, u) } else { Vec::new() };
        let dw = linear::weight_gradient(dy, Matrix::packed(&inner, features), w)?;
        if !(gate.track_op() || up.track_op()) {
            return Ok([None, None, dw]);
        }
        let d_inner = product(dy, Matrix::packed(ws.slice::<T>()?, features), None)?;
        let (d_gate, d_up) = gated::gradients(self.0, g, u, &d_inner);
        Ok([autograd::keep(gate, Some(tensor(d_gate, gate)?))?, autograd::keep(up, Some(tensor(d_up, up)?))?, dw])
    }
}

impl CustomOp3 for GatedLinear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, features) = w_layout.shape().dims2()?;
        let mut dims = gate_layout.dims().to_vec();
        dims.pop();
        dims.push(out);
        by_type!(OP, gate, T => {
            let inner = gated::values(self.0, slice::<T>(OP, gate, gate_layout)?, slice::<T>(OP, up, up_layout)?);
            let w = Matrix::packed(slice::<T>(OP, w, w_layout)?, features);
            Ok((T::to_cpu_storage_owned(product(Matrix::packed(&inner, features), w.transposed(), None)?), Shape::from(dims)))
        })
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let [d_gate, d_up, dw] = match dy.dtype() {
            DType::F64 => self.gradients::<f64>(gate, up, w, &dy)?,
            _ => self.gradients::<f32>(gate, up, w, &dy)?,
        };
        Ok((d_gate, d_up, dw))
    }
}
