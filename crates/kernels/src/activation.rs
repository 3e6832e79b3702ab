//! Activation functions.

use crate::{check, plain};
use candle_core::{Result, Tensor};

const OP: &str = "activation";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016).
    GeluErf,
    /// x · ½(1 + tanh(√(2/π)(x + 0.044715 x³))), the same paper's approximation.
    GeluTanh,
    /// x · σ(x) (Elfwing et al. 2017).
    Silu,
    /// max(x, 0); the gradient at 0 is 0.
    Relu,
    /// x · σ(1.702 x) (Hendrycks & Gimpel 2016).
    QuickGelu,
}

impl Activation {
    /// Element by element; any shape.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        check::float(OP, "x", x)?;
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        plain::activation(self, &x.to_dtype(plain::working_dtype(x.dtype()))?)?.to_dtype(x.dtype())
    }
}

/// x · Φ(x), any shape.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    Activation::GeluErf.apply(x)
}

/// GELU by its tanh approximation, any shape.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    Activation::GeluTanh.apply(x)
}

/// x · σ(x), any shape.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    Activation::Silu.apply(x)
}

/// max(x, 0), any shape.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    Activation::Relu.apply(x)
}

/// x · σ(1.702 x), any shape.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    Activation::QuickGelu.apply(x)
}
