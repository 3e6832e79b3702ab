//! What can be wrong with a kernel's arguments. Kernels return `candle_core::Result`; these values travel inside
//! `candle_core::Error::Wrapped`, so that callers deal with one error type.

use candle_core::{DType, Shape};

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("{op}: {what} has shape {found:?}, expected {expected}")]
    Shape { op: &'static str, what: &'static str, found: Shape, expected: String },
    #[error("{op}: {what} is {found:?}, expected {expected}")]
    DType { op: &'static str, what: &'static str, found: DType, expected: &'static str },
    #[error("{op}: {what} is {found}, expected {expected}")]
    Value { op: &'static str, what: &'static str, found: String, expected: String },
    #[error("{op}: {what} is on the device {found}, the first argument on {expected}: move both to one device")]
    Device { op: &'static str, what: &'static str, found: String, expected: String },
}

impl From<KernelError> for candle_core::Error {
    fn from(error: KernelError) -> Self {
        candle_core::Error::wrap(error)
    }
}
