//! The two element types that kernels compute in, and their transcendental functions: f32 by polynomials that vectorise, f64 by libm.

use candle_core::WithDType;
use std::ops::Neg;

/// f32 or f64.
pub trait Real: WithDType + Neg<Output = Self> {
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;

    /// A constant, rounded to this type.
    fn of(x: f64) -> Self;
    /// eˣ. f32: within 2 units in the last place; 0 below −87.
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    /// f32: within 4 units in the last place.
    fn tanh(self) -> Self;
    /// The normal distribution Φ(x) and its density φ(x). f32: absolute error of Φ below 3e-7; in the lower tail the relative error is
    /// below 5e-7 plus that of rounding x²/2, together 3e-6 at x = −9.
    fn normal(self) -> (Self, Self);

    /// 1 / (1 + e⁻ˣ)
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }

    /// x moved into [−limit, limit]; NaN stays.
    #[inline(always)]
    fn within(self, limit: Self) -> Self {
        let x = if self > limit { limit } else { self };
        if x < -limit { -limit } else { x }
    }
}

/// Σ cᵢ xⁱ by Horner's rule.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = sum * x + coefficients[i];
    }
    sum
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }

    /// 2ⁿ·eʳ with n = round(x / ln 2) and a minimax polynomial for (eʳ − 1 − r) / r² on |r| ≤ ½ ln 2 (relative error 3e-9 before
    /// rounding). Adding 1.5·2²³ rounds and leaves n in the low bits.
    #[inline(always)]
    fn exp(self) -> f32 {
        const ROUND: f32 = 12_582_912.0;
        /// ln 2 in two parts; n · the first is exact.
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        const SERIES: [f32; 5] = [0.499_999_93, 0.166_665_2, 0.041_668_396, 0.008_368_781, 0.001_381_446_7];
        // At 89 the result overflows to infinity, at −87.3 the factor 2ⁿ⁻¹ is 0. Comparisons leave NaN as it is.
        let x = if self > 89.0 { 89.0 } else { self };
        let x = if x < -87.3 { -87.3 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * LN2_HIGH) - n * LN2_LOW;
        let e = 1.0 + (r + r * r * polynomial(r, SERIES));
        // 2ⁿ⁻¹, then twice: 2¹²⁸ itself is not a number.
        let scale = f32::from_bits(shifted.to_bits().wrapping_add(126) << 23);
        e * scale * 2.0
    }

    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    /// x + x³·P(x²) below 0.6 (minimax), 1 − 2 / (e²ˣ + 1) above.
    #[inline(always)]
    fn tanh(self) -> f32 {
        const SERIES: [f32; 5] = [-0.333_332_63, 0.133_309, -0.053_692_97, 0.020_483_317, -0.005_528_634];
        let square = self * self;
        let small = self + self * (square * polynomial(square, SERIES));
        let large = 1.0 - 2.0 / (Real::exp(2.0 * self) + 1.0);
        if self.abs() < 0.6 { small } else { large }
    }

    /// Φ(−|x|) = e^(−x²/2)·t·P(t), t = 1 / (1 + 0.21 |x|): the form of Abramowitz & Stegun 7.1.26 with a degree 8 minimax polynomial of
    /// our own (relative error 1.6e-8 before rounding).
    #[inline(always)]
    fn normal(self) -> (f32, f32) {
        const SERIES: [f32; 9] = [
            0.083_711_58,
            0.085_068_81,
            0.069_192_534,
            0.124_871_29,
            -0.093_921_8,
            0.349_396_05,
            -0.330_249_04,
            0.283_586_47,
            -0.071_655_88,
        ];
        /// 1 / √(2π)
        const PEAK: f32 = 0.398_942_3;
        let size = self.abs();
        let bell = Real::exp(-0.5 * self * self);
        let t = 1.0 / (1.0 + 0.21 * size);
        let tail = bell * (t * polynomial(t, SERIES));
        (if self > 0.0 { 1.0 - tail } else { tail }, PEAK * bell)
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;

    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }

    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }

    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn tanh(self) -> f64 {
        f64::tanh(self)
    }

    #[inline(always)]
    fn normal(self) -> (f64, f64) {
        let density = (-0.5 * self * self).exp() * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 * 0.5;
        (0.5 * candle_core::cpu::erf::erfc_f64(-self * std::f64::consts::FRAC_1_SQRT_2), density)
    }
}
