//! Values of tensors as plain vectors and back, without copies where that can be.

use std::sync::Mutex;

use candle_core::{CpuStorage, CudaStorage, DType, Device, InplaceOp1, Layout, MetalStorage, Result, Tensor, Var};
use prunectl_model::Transformer;
use rayon::prelude::*;

/// A variable of those values, in the type and on the device of the model.
pub(crate) fn variable(values: &[f32], shape: &[usize], model: &Transformer) -> Result<Var> {
    if model.device().is_cpu() && model.dtype() == DType::F32 {
        return Var::from_vec(values.to_vec(), shape, &Device::Cpu);
    }
    Var::from_tensor(&Tensor::from_slice(values, shape, model.device())?.to_dtype(model.dtype())?)
}

/// Takes the buffer out of a tensor.
struct Take(Mutex<Option<Vec<f32>>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take values"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let whole = |values: &Vec<f32>| layout.contiguous_offsets() == Some((0, values.len()));
        if let CpuStorage::F32(values) = storage
            && whole(values)
            && let Ok(mut taken) = self.0.lock()
        {
            *taken = Some(std::mem::take(values));
        }
        Ok(())
    }

    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        Ok(())
    }

    fn metal_fwd(&self, _: &mut MetalStorage, _: &Layout) -> Result<()> {
        Ok(())
    }
}

/// The values of a tensor in f32, row by row. The tensor must share its storage with no other one that is still read.
pub(crate) fn values(t: Tensor) -> Result<Vec<f32>> {
    let take = Take(Mutex::new(None));
    t.inplace_op1(&take)?;
    match take.0.into_inner() {
        Ok(Some(values)) => Ok(values),
        _ => t.to_dtype(DType::F32)?.flatten_all()?.to_vec1(),
    }
}

/// Values that one task sums up.
const CHUNK: usize = 64 * 1024;

/// Σ x² in f64, in a fixed order.
pub(crate) fn square_sum(values: &[f32]) -> f64 {
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(|chunk| chunk.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()).collect();
    sums.iter().sum()
}

/// Whether every value is a number. The largest bits without the sign say so, in one pass without branches.
pub(crate) fn finite(values: &[f32]) -> bool {
    values.iter().fold(0, |most, x| most.max(x.to_bits() & !SIGN)) < f32::INFINITY.to_bits()
}

/// The sign bit of an f32.
const SIGN: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_whole_tensors_and_of_views() {
        let t = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
        assert_eq!(values(t.t().unwrap()).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(values(t.narrow(0, 1, 1).unwrap()).unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(values(t.to_dtype(DType::F64).unwrap()).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(values(t).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(square_sum(&[3.0, 4.0]), 25.0);
        assert!(finite(&[]) && finite(&[0.0, -f32::MAX, f32::MIN_POSITIVE]));
        assert!([f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY].iter().all(|x| !finite(&[1.0, *x])));
    }
}
