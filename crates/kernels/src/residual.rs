//! x + y of two tensors of one shape. candle's own addition waits for its threads in a loop that keeps a core busy.

use crate::real::Real;
use crate::rows::{Fresh, Held, by_type, fill, per_task, piece_of, slice, tensor};
use crate::{autograd, check};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "add";

/// x + y; the shapes must be equal.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    check::float(OP, "x", x)?;
    check::like(OP, "y", y, x)?;
    check::shape(OP, "y", y, x.dims())?;
    if x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64) {
        return x.contiguous()?.apply_op2(&y.contiguous()?, Add);
    }
    x + y
}

/// The memory is the limit, and it delivers more to narrow loads than to the widest: compiled for one instruction set alone.
fn sum<T: Real>(x: &[T], y: &[T], out: &mut Fresh<'_, T>) {
    out.write(x.iter().zip(y).map(|(&x, &y)| x + y));
}

/// What a pass takes for a variable shares its storage with nothing.
fn copy<T: Real>(d: &Tensor) -> Result<Tensor> {
    let d = d.contiguous()?;
    let held = Held::new(OP, &d);
    let x = held.slice::<T>()?;
    let piece = per_task(1);
    let copied = fill(x.len(), piece, |i, out: &mut Fresh<'_, T>| {
        out.write(piece_of(x, i, piece, out.len()).iter().copied());
    });
    tensor(copied, &d)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, y: &CpuStorage, y_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let piece = per_task(1);
        by_type!(OP, x, T => {
            let (x, y) = (slice::<T>(OP, x, x_layout)?, slice::<T>(OP, y, y_layout)?);
            let out = fill(x.len(), piece, |i, out: &mut Fresh<'_, T>| {
                sum(piece_of(x, i, piece, out.len()), piece_of(y, i, piece, out.len()), out);
            });
            Ok((T::to_cpu_storage_owned(out), x_layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, _: &Tensor, d: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let share = |operand: &Tensor| match (operand.track_op(), autograd::collects(operand), d.dtype()) {
            (false, ..) => Ok(None),
            (true, false, _) => Ok(Some(d.clone())),
            (true, true, DType::F64) => autograd::keep(operand, Some(copy::<f64>(d)?)),
            (true, true, _) => autograd::keep(operand, Some(copy::<f32>(d)?)),
        };
        Ok((share(x)?, share(y)?))
    }
}
