//! Argument checks that the kernels share.

use crate::error::KernelError;
use candle_core::{DType, Result, Tensor};

pub fn float(op: &'static str, what: &'static str, x: &Tensor) -> Result<()> {
    match x.dtype() {
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 => Ok(()),
        found => Err(KernelError::DType { op, what, found, expected: "f16, bf16, f32 or f64" }.into()),
    }
}

/// `x` is a float tensor of the same type and on the same device as `first`.
pub fn like(op: &'static str, what: &'static str, x: &Tensor, first: &Tensor) -> Result<()> {
    float(op, what, x)?;
    if x.dtype() != first.dtype() {
        return Err(KernelError::Value { op, what, found: format!("{:?}", x.dtype()), expected: format!("{:?}", first.dtype()) }.into());
    }
    same_device(op, what, x, first)
}

pub fn same_device(op: &'static str, what: &'static str, x: &Tensor, first: &Tensor) -> Result<()> {
    if !x.device().same_device(first.device()) {
        let (found, expected) = (format!("{:?}", x.device().location()), format!("{:?}", first.device().location()));
        return Err(KernelError::Device { op, what, found, expected }.into());
    }
    Ok(())
}

pub fn shape(op: &'static str, what: &'static str, x: &Tensor, dims: &[usize]) -> Result<()> {
    if x.dims() != dims {
        return Err(KernelError::Shape { op, what, found: x.shape().clone(), expected: format!("{dims:?}") }.into());
    }
    Ok(())
}

/// Size of the last dimension; a scalar is refused.
pub fn last_dim(op: &'static str, what: &'static str, x: &Tensor) -> Result<usize> {
    x.dims()
        .last()
        .copied()
        .ok_or_else(|| KernelError::Shape { op, what, found: x.shape().clone(), expected: "at least one dimension".to_string() }.into())
}

pub fn positive(op: &'static str, what: &'static str, value: f64) -> Result<()> {
    if !(value > 0.0 && value.is_finite()) {
        return Err(KernelError::Value { op, what, found: value.to_string(), expected: "a finite number above 0".to_string() }.into());
    }
    Ok(())
}
