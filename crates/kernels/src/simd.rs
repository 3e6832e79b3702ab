//! One generic loop, compiled for several instruction sets and chosen at run time, and reductions whose order does not depend on
//! which one was chosen: element-wise kernels give the same bits on SSE2, AVX2, AVX-512 and NEON (no fused multiply-add is used).

use crate::real::Real;

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Avx512,
    Avx2,
    Baseline,
}

/// The widest vectors this machine has; the standard library caches the answer.
#[cfg(target_arch = "x86_64")]
pub fn level() -> Level {
    if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512dq") && std::is_x86_feature_detected!("avx512vl") {
        Level::Avx512
    } else if std::is_x86_feature_detected!("avx2") {
        Level::Avx2
    } else {
        Level::Baseline
    }
}

/// Declares a function whose body is compiled once per instruction set. Everything it calls in its loops must be `#[inline(always)]`.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$($g:ident: $bound:path),+>($($arg:ident: $ty:ty),+ $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<$($g: $bound),+>($($arg: $ty),+) $(-> $ret)? {
            #[inline(always)]
            fn body<$($g: $bound),+>($($arg: $ty),+) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
                fn avx512<$($g: $bound),+>($($arg: $ty),+) $(-> $ret)? {
                    body::<$($g),+>($($arg),+)
                }
                #[target_feature(enable = "avx2")]
                fn avx2<$($g: $bound),+>($($arg: $ty),+) $(-> $ret)? {
                    body::<$($g),+>($($arg),+)
                }
                match crate::simd::level() {
                    // SAFETY: the features were found on this machine just now.
                    crate::simd::Level::Avx512 => return unsafe { avx512::<$($g),+>($($arg),+) },
                    // SAFETY: as above.
                    crate::simd::Level::Avx2 => return unsafe { avx2::<$($g),+>($($arg),+) },
                    crate::simd::Level::Baseline => {}
                }
            }
            body::<$($g),+>($($arg),+)
        }
    };
}
pub(crate) use multiversion;

/// Partial results a reduction keeps: two AVX-512 registers of f32, whatever the machine.
const LANES: usize = 32;

/// Folds the lanes pairwise: 16 + 16, 8 + 8, …
#[inline(always)]
fn join<T: Real>(mut lanes: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Adds the last numbers, fewer than there are lanes, to the first lanes. They go through an array of their own: lanes that are indexed
/// by a count do not stay in whole registers. The zeros that it is filled up with change no bit, as no lane is ever −0.
#[inline(always)]
fn with_tail<T: Real>(mut lanes: [T; LANES], last: impl Iterator<Item = T>) -> [T; LANES] {
    let mut tail = [T::ZERO; LANES];
    for (place, value) in tail.iter_mut().zip(last) {
        *place = value;
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane += value;
    }
    lanes
}

/// Σ f(x) in a fixed order.
#[inline(always)]
pub fn sum<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    join(with_tail(lanes, tail.iter().map(|&x| f(x))), |a, b| a + b)
}

/// Σ f(x, y) in a fixed order, over the shorter of the two.
#[inline(always)]
pub fn sum2<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (x_tail, y_tail) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x, y);
        }
    }
    join(with_tail(lanes, x_tail.iter().zip(y_tail).map(|(&x, &y)| f(x, y))), |a, b| a + b)
}

/// Σ f(x, y, z) in a fixed order, over the shortest of the three.
#[inline(always)]
pub fn sum3<T: Real>(x: &[T], y: &[T], z: &[T], f: impl Fn(T, T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (xs, ys, zs) = (x.chunks_exact(LANES), y.chunks_exact(LANES), z.chunks_exact(LANES));
    let (x_tail, y_tail, z_tail) = (xs.remainder(), ys.remainder(), zs.remainder());
    for ((x, y), z) in xs.zip(ys).zip(zs) {
        for (((lane, &x), &y), &z) in lanes.iter_mut().zip(x).zip(y).zip(z) {
            *lane += f(x, y, z);
        }
    }
    join(with_tail(lanes, x_tail.iter().zip(y_tail).zip(z_tail).map(|((&x, &y), &z)| f(x, y, z))), |a, b| a + b)
}

/// The largest value; −∞ for an empty slice. NaN is passed over: the exponentials that follow bring it back.
#[inline(always)]
pub fn max<T: Real>(x: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [T::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = larger(*lane, x);
    }
    join(lanes, larger)
}

/// x ← f(x); returns Σ f(x) in the order of [`sum`].
#[inline(always)]
pub fn map_sum_in_place<T: Real>(y: &mut [T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let mut ys = y.chunks_exact_mut(LANES);
    for y in &mut ys {
        for (lane, y) in lanes.iter_mut().zip(y) {
            *y = f(*y);
            *lane += *y;
        }
    }
    for (lane, y) in lanes.iter_mut().zip(ys.into_remainder()) {
        *y = f(*y);
        *lane += *y;
    }
    join(lanes, |a, b| a + b)
}
