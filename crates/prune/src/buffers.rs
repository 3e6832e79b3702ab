//! Values of tensors as plain vectors and back, without copies where that can be.

use candle_core::{DType, Result, Tensor, Var};
use prunectl_kernels::autograd::into_vec;
use prunectl_model::Transformer;
use rayon::prelude::*;

/// A variable of those values, in the type and on the device of the model.
pub(crate) fn variable(values: &[f32], shape: &[usize], model: &Transformer) -> Result<Var> {
    Var::from_tensor(&Tensor::from_slice(values, shape, model.device())?.to_dtype(model.dtype())?)
}

/// The values of a tensor in f32, row by row. The tensor must share its storage with no other one that is still read.
pub(crate) fn values(t: Tensor) -> Result<Vec<f32>> {
    match into_vec::<f32>(&t)? {
        Some(values) => Ok(values),
        None => t.to_dtype(DType::F32)?.flatten_all()?.to_vec1(),
    }
}

/// Zeros that are written here: pages that are read before they are written fault twice.
pub(crate) fn zeros(n: usize) -> Vec<f32> {
    rayon::iter::repeat_n(0.0, n).collect()
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
    let most = |chunk: &[f32]| chunk.iter().fold(0, |most, x| most.max(x.to_bits() & !SIGN));
    values.par_chunks(CHUNK).map(most).reduce(|| 0, u32::max) < f32::INFINITY.to_bits()
}

/// The sign bit of an f32.
const SIGN: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use candle_core::Device;

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
