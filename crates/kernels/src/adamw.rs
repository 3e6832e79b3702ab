//! AdamW (Loshchilov & Hutter 2019, algorithm 2, with PyTorch's order of operations), in place on plain buffers.

use crate::error::KernelError;
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
    let correction1 = 1.0 - options.beta1.powf(step as f64);
    let correction2 = 1.0 - options.beta2.powf(step as f64);
    let shrink = (1.0 - options.lr * options.weight_decay) as f32;
    let size = (options.lr / correction1) as f32;
    let (b1, b2) = (options.beta1 as f32, options.beta2 as f32);
    let (c1, c2) = ((1.0 - options.beta1) as f32, (1.0 - options.beta2) as f32);
    let root = correction2.sqrt() as f32;
    let eps = options.eps as f32;
    let chunks = param.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    chunks.for_each(|(((param, grad), m), v)| {
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            *m = b1 * *m + c1 * g;
            *v = b2 * *v + c2 * (g * g);
            *p = *p * shrink - size * *m / (v.sqrt() / root + eps);
        }
    });
    Ok(())
}
