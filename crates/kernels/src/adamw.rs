//! AdamW (Loshchilov & Hutter 2019, algorithm 2, with PyTorch's order of operations), in place on plain buffers.

use crate::error::KernelError;
use crate::real::Real;
use crate::simd::multiversion;
use candle_core::Result;
use rayon::prelude::*;

const OP: &str = "adamw_step";
/// Elements that one task updates.
const CHUNK: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decoupled: the parameter shrinks by 1 − lr · weight_decay first.
    pub weight_decay: f64,
}

/// The step's constants in the type of the buffers.
#[derive(Clone, Copy)]
struct Rates<T> {
    shrink: T,
    size: T,
    keep_m: T,
    take_m: T,
    keep_v: T,
    take_v: T,
    root: T,
    eps: T,
}

multiversion! {
    fn update<T: Real>(param: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], rates: Rates<T>) {
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            *m = rates.keep_m * *m + rates.take_m * g;
            *v = rates.keep_v * *v + rates.take_v * (g * g);
            *p = *p * rates.shrink - rates.size * *m / (v.sqrt() / rates.root + rates.eps);
        }
    }
}

/// One update of `param` with gradient `grad` and the running moments `m` and `v`; `step` counts from 1.
pub fn adamw_step(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], step: u64, options: &AdamW) -> Result<()> {
    for (what, len) in [("length of grad", grad.len()), ("length of m", m.len()), ("length of v", v.len())] {
        if len != param.len() {
            return Err(KernelError::Value { op: OP, what, found: len.to_string(), expected: param.len().to_string() }.into());
        }
    }
    if step == 0 {
        return Err(KernelError::Value { op: OP, what: "step", found: "0".to_string(), expected: "a count from 1".to_string() }.into());
    }
    let steps = step as f64;
    let rates = Rates {
        shrink: (1.0 - options.lr * options.weight_decay) as f32,
        size: (options.lr / (1.0 - options.beta1.powf(steps))) as f32,
        keep_m: options.beta1 as f32,
        take_m: (1.0 - options.beta1) as f32,
        keep_v: options.beta2 as f32,
        take_v: (1.0 - options.beta2) as f32,
        root: (1.0 - options.beta2.powf(steps)).sqrt() as f32,
        eps: options.eps as f32,
    };
    let chunks = param.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    chunks.for_each(|(((param, grad), m), v)| update(param, grad, m, v, rates));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps worked out in f64 from the algorithm's text.
    #[test]
    fn two_steps_follow_the_paper() {
        let options = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.5 };
        let (mut p, mut m, mut v) = (vec![1.0f32; 40_000], vec![0.0f32; 40_000], vec![0.0f32; 40_000]);
        let (mut p64, mut m64, mut v64) = (1.0f64, 0.0f64, 0.0f64);
        for (step, g) in [(1, 0.3f32), (2, -0.7)] {
            adamw_step(&mut p, &vec![g; 40_000], &mut m, &mut v, step, &options).unwrap();
            let g = f64::from(g);
            m64 = 0.9 * m64 + 0.1 * g;
            v64 = 0.99 * v64 + 0.01 * g * g;
            let (m_hat, v_hat) = (m64 / (1.0 - 0.9f64.powf(step as f64)), v64 / (1.0 - 0.99f64.powf(step as f64)));
            p64 -= 0.1 * 0.5 * p64;
            p64 -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
        }
        assert!(p.iter().all(|&p| (f64::from(p) - p64).abs() < 1e-6), "{} is not {p64}", p[0]);
    }

    #[test]
    fn lengths_that_differ_and_step_zero_are_refused() {
        let options = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
        assert!(adamw_step(&mut [0.0], &[0.0, 0.0], &mut [0.0], &mut [0.0], 1, &options).is_err());
        assert!(adamw_step(&mut [0.0], &[0.0], &mut [0.0], &mut [0.0], 0, &options).is_err());
        assert!(adamw_step(&mut [], &[], &mut [], &mut [], 1, &options).is_ok());
    }
}
