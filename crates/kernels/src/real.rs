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

/// 2ⁿ·eʳ with n = round(x / ln 2) and a minimax polynomial for (eʳ − 1 − r) / r² on |r| ≤ ½ ln 2 (relative error 3e-9 before rounding),
/// for x up to 89 and NaN. Adding 1.5·2²³ rounds and leaves n in the low bits.
#[inline(always)]
fn exp_up_to_89(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; n · the first is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Of 2·eʳ.
    const SERIES: [f32; 7] =
        [2.0, 2.0, 2.0 * 0.499_999_93, 2.0 * 0.166_665_2, 2.0 * 0.041_668_396, 2.0 * 0.008_368_781, 2.0 * 0.001_381_446_7];
    // At −87.3 the factor 2ⁿ⁻¹ is 0. The comparison leaves NaN as it is.
    let x = if x < -87.3 { -87.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // 2ⁿ⁻¹ times twice the rest: 2¹²⁸ itself is not a number.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(126) << 23);
    polynomial(r, SERIES) * scale
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn exp(self) -> f32 {
        // At 89 the result overflows to infinity. The comparison leaves NaN as it is.
        exp_up_to_89(if self > 89.0 { 89.0 } else { self })
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

    /// Φ(−|x|) = e^(−x²/2)·t·P(t), t = 1 / (1 + 0.3 |x|): the form of Abramowitz & Stegun 7.1.26 with a degree 7 minimax polynomial of
    /// our own (relative error 1.3e-7 before rounding).
    #[inline(always)]
    fn normal(self) -> (f32, f32) {
        const SERIES: [f32; 8] =
            [0.119_625_17, 0.120_816_89, 0.099_523_1, 0.129_843_2, -0.056_095_38, 0.208_964_08, -0.158_713_31, 0.036_036_186];
        /// 1 / √(2π)
        const PEAK: f32 = 0.398_942_3;
        let size = self.abs();
        let bell = exp_up_to_89(-0.5 * self * self);
        let t = 1.0 / (1.0 + 0.3 * size);
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
