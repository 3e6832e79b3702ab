//! Activation functions, each with its derivative.

use crate::real::Real;
use crate::rows::{Fresh, by_type, fill, per_task, piece_of, slice};
use crate::simd::multiversion;
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

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
        let work = x.to_dtype(plain::working_dtype(x.dtype()))?;
        let y = if x.device().is_cpu() { work.contiguous()?.apply_op1(Apply(self))? } else { plain::activation(self, &work)? };
        y.to_dtype(x.dtype())
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

/// A function of one number as a type, so that a loop over it is compiled without a branch.
pub(crate) trait Pointwise: 'static {
    fn value<T: Real>(x: T) -> T;
    /// (f(x), f′(x))
    fn with_slope<T: Real>(x: T) -> (T, T);
}

pub(crate) struct GeluErf;
pub(crate) struct GeluTanh;
pub(crate) struct Silu;
pub(crate) struct Relu;
pub(crate) struct QuickGelu;

impl Pointwise for GeluErf {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * x.normal().0
    }

    #[inline(always)]
    fn with_slope<T: Real>(x: T) -> (T, T) {
        let (cdf, density) = x.normal();
        (x * cdf, cdf + x * density)
    }
}

/// ½(1 + tanh u) = σ(2u): the factor 2√(2/π), and its product with 0.044715.
const TANH_RATE: f64 = 1.595_769_121_605_730_7;
const TANH_CUBE: f64 = 0.071_354_816_272_600_26;
/// Beyond it, either way, the sigmoid is 0 or 1 to the last bit and its slope 0; the cube must not overflow before that.
const TANH_LIMIT: f64 = 50.0;

impl Pointwise for GeluTanh {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        let c = x.within(T::of(TANH_LIMIT));
        x * (c * (T::of(TANH_RATE) + T::of(TANH_CUBE) * (c * c))).sigmoid()
    }

    #[inline(always)]
    fn with_slope<T: Real>(x: T) -> (T, T) {
        let c = x.within(T::of(TANH_LIMIT));
        let square = c * c;
        let s = (c * (T::of(TANH_RATE) + T::of(TANH_CUBE) * square)).sigmoid();
        let slope = T::of(TANH_RATE) + T::of(3.0 * TANH_CUBE) * square;
        (x * s, s + x * (s * (T::ONE - s) * slope))
    }
}

impl Pointwise for Silu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * x.sigmoid()
    }

    #[inline(always)]
    fn with_slope<T: Real>(x: T) -> (T, T) {
        let s = x.sigmoid();
        (x * s, s + x * (s * (T::ONE - s)))
    }
}

const QUICK_RATE: f64 = 1.702;

impl Pointwise for QuickGelu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * (T::of(QUICK_RATE) * x).sigmoid()
    }

    #[inline(always)]
    fn with_slope<T: Real>(x: T) -> (T, T) {
        let s = (T::of(QUICK_RATE) * x).sigmoid();
        (x * s, s + x * (s * (T::ONE - s) * T::of(QUICK_RATE)))
    }
}

impl Pointwise for Relu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        // Written so that NaN stays NaN.
        if x < T::ZERO { T::ZERO } else { x }
    }

    #[inline(always)]
    fn with_slope<T: Real>(x: T) -> (T, T) {
        let slope = if x > T::ZERO { T::ONE } else { x };
        (Self::value(x), if x <= T::ZERO { T::ZERO } else { slope })
    }
}

/// Runs `$body` with `$f` bound to the [`Pointwise`] type of an activation.
macro_rules! by_activation {
    ($act:expr, $f:ident => $body:expr) => {
        match $act {
            $crate::activation::Activation::GeluErf => {
                type $f = $crate::activation::GeluErf;
                $body
            }
            $crate::activation::Activation::GeluTanh => {
                type $f = $crate::activation::GeluTanh;
                $body
            }
            $crate::activation::Activation::Silu => {
                type $f = $crate::activation::Silu;
                $body
            }
            $crate::activation::Activation::Relu => {
                type $f = $crate::activation::Relu;
                $body
            }
            $crate::activation::Activation::QuickGelu => {
                type $f = $crate::activation::QuickGelu;
                $body
            }
        }
    };
}
pub(crate) use by_activation;

multiversion! {
    fn forward<T: Real, F: Pointwise>(x: &[T], y: &mut Fresh<'_, T>, _f: std::marker::PhantomData<F>) {
        y.write(x.iter().map(|&x| F::value(x)));
    }
}

multiversion! {
    fn backward<T: Real, F: Pointwise>(x: &[T], dy: &[T], dx: &mut Fresh<'_, T>, _f: std::marker::PhantomData<F>) {
        dx.write(x.iter().zip(dy).map(|(&x, &dy)| dy * F::with_slope(x).1));
    }
}

struct Apply(Activation);

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let piece = per_task(1);
        by_type!(OP, storage, T => {
            let x = slice::<T>(OP, storage, layout)?;
            let y = by_activation!(self.0, F => fill(x.len(), piece, |i, y: &mut Fresh<'_, T>| {
                forward(piece_of(x, i, piece, y.len()), y, std::marker::PhantomData::<F>);
            }));
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        autograd::keep(x, Some(x.detach().apply_op2_no_bwd(&dy.contiguous()?, &ApplyBackward(self.0))?))
    }
}

/// (x, ∂y) → ∂x
struct ApplyBackward(Activation);

impl CustomOp2 for ApplyBackward {
    fn name(&self) -> &'static str {
        "activation backward"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, dy: &CpuStorage, dy_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let piece = per_task(1);
        by_type!(OP, x, T => {
            let (x, dy) = (slice::<T>(OP, x, x_layout)?, slice::<T>(OP, dy, dy_layout)?);
            let dx = by_activation!(self.0, F => fill(x.len(), piece, |i, dx: &mut Fresh<'_, T>| {
                backward(piece_of(x, i, piece, dx.len()), piece_of(dy, i, piece, dx.len()), dx, std::marker::PhantomData::<F>);
            }));
            Ok((T::to_cpu_storage_owned(dx), x_layout.shape().clone()))
        })
    }
}
